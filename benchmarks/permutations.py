"""A thousand permutations of labels under leave-one-speaker-out ridge, beside scikit-learn.

    python benchmarks/permutations.py [--utterances 10039] [--speakers 10] [--permutations 1000]
                                      [--memory 800] [--repeats 3] [--store FOLDER] [--json FILE]

A store of invented statistics is written, all in all larger than `--memory` (MB). From it,
`permutation_test` runs in a fresh process, whose peak memory is reported; and once more without a
limit. Beside it, with features in memory as float64, scikit-learn does what is measured here of the
same and multiplied:

- a loop as anyone would write it: one `StandardScaler` and `Ridge` for each permutation, target,
  fold and penalty;
- a loop as one who knows would write it: a `Ridge` for each fold and penalty, of which all
  permutations of all targets are columns.

Reading features and making permutations counts for `permutation_test` alone. Before anything is
timed, errors of both sides are compared: of all folds for the labels as they are, and of all
permutations for the folds and penalties that are measured. Run it on an idle machine; what other
processes took is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurestore as fs
from featurestore.analysis.held_out_ridge import hold_out_each
from featurestore.analysis.label_permutation import PENALTIES
from featurestore.analysis.permutation import permuted
from featurestore.analysis.sums import group_sums, group_triangles
from featurestore.benchmarks.invented import Size, write_store
from featurestore.benchmarks.report import machine_facts
from featurestore.benchmarks.timing import Agreement, OtherProcesses
from featurestore.errors import FeatureStoreError

TARGETS = ("arousal", "valence")
FEATURES = "network.gate.mean"
_TOLERANCE = 1e-8

_OURS = """
import json, sys, time
import featurestore as fs
from featurestore.analysis.label_permutation import permutation_test

options = json.loads(sys.argv[1])
began = time.perf_counter()
found = permutation_test(fs.open_store(options.pop("store")), progress=False, **options)
seconds = time.perf_counter() - began
try:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
except OSError:  # not Linux
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "rows": found.to_dict("records")}))
"""


@dataclass(frozen=True)
class Scale:
    """What is run.

    Attributes:
        size: of the store.
        permutations: of the labels.
        memory_mb: that `permutation_test` may take.
        folds: of which scikit-learn is measured.
        penalties: of which scikit-learn is measured.
        repeats: turns that count.
    """

    size: Size
    permutations: int
    memory_mb: int
    folds: int
    penalties: int
    repeats: int


def run_ours(folder: Path, scale: Scale, *, limited: bool = True) -> dict[str, Any]:
    """`permutation_test` in a fresh process: seconds without imports, peak memory, its rows.

    Args:
        folder: of the store.
        scale: what is run.
        limited: whether it is told how much memory it may take.

    Raises:
        FeatureStoreError: the process fails.
    """
    options = {
        "store": str(folder),
        "targets": TARGETS,
        "features": FEATURES,
        "permutations": scale.permutations,
        "memory": scale.memory_mb * 1_000_000 if limited else None,
    }
    source = str(Path(fs.__file__).parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", _OURS, json.dumps(options)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if done.returncode:
        raise FeatureStoreError(f"permutation_test failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


@dataclass(frozen=True, eq=False)
class Corpus:
    """What scikit-learn is given.

    Attributes:
        X: (utterance, feature) float64.
        Y: (utterance, column): of each target, labels as they are and permuted within speakers.
        folds: rows to train on and to predict, for each speaker.
    """

    X: NDArray[np.float64]
    Y: NDArray[np.float64]
    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    def labels(self, place: int) -> NDArray[np.float64]:
        """Of a target, as they are."""
        return self.Y[:, place * self.Y.shape[1] // len(TARGETS)]


def read_corpus(folder: Path, scale: Scale) -> Corpus:
    """All of it in memory."""
    data = fs.open_store(folder).pooled("network")
    mean = data["gate"].sel(statistic="mean").to_numpy()
    who = np.unique(data["speaker"].to_numpy().astype(str), return_inverse=True)[1]
    columns = []
    for target in TARGETS:
        y = data[target].to_numpy()
        level = np.bincount(who, y)[who] / np.bincount(who)[who]
        columns += [y[:, None], permuted(y, who, scale.permutations, 0) + level[:, None]]
    X = mean.reshape(len(who), -1).astype(np.float64)
    return Corpus(X, np.concatenate(columns, axis=1), list(LeaveOneGroupOut().split(X, groups=who)))


def fit(corpus: Corpus, fold: int, penalty: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
    """scikit-learn's mean squared error of a held-out speaker, of one label or of many columns."""
    train, test = corpus.folds[fold]
    model = make_pipeline(StandardScaler(), Ridge(penalty)).fit(corpus.X[train], y[train])
    return np.mean((model.predict(corpus.X[test]) - y[test]) ** 2, axis=0)


def check_observed(corpus: Corpus, rows: list[dict[str, Any]]) -> Agreement:
    """What `permutation_test` says of the labels as they are, by scikit-learn in all folds."""
    worst = 0.0
    for place, target in enumerate(TARGETS):
        said = next(r for r in rows if (r["target"], r["measure"]) == (target, "mse"))
        y, total = corpus.labels(place), 0.0
        for fold, (_, test) in enumerate(corpus.folds):
            total += len(test) * float(fit(corpus, fold, said["penalty"], y))
        worst = max(worst, abs(total / len(y) / said["observed"] - 1))
    return Agreement("mean squared error of the labels, all folds, relative", worst, _TOLERANCE)


def check_permuted(corpus: Corpus, folds: range, penalties: NDArray[np.float64]) -> Agreement:
    """All columns of the folds and penalties that are measured, from sums and by scikit-learn."""
    codes = np.full(len(corpus.Y), len(folds))  # whom is not measured is a group of its own
    for fold in folds:
        codes[corpus.folds[fold][1]] = fold
    lazy, y = da.from_array(corpus.X, chunks=(4096, -1)), corpus.Y - corpus.Y.mean(axis=0)
    groups = int(codes.max()) + 1
    sums = group_sums(lazy, y=y, codes=codes, groups=groups)

    def triangles() -> list[NDArray[np.float64]]:
        return group_triangles(lazy, y=y, codes=codes, groups=groups, centre=sums.centre)

    found = hold_out_each(sums, penalties=penalties, triangles=triangles).mse
    worst = 0.0
    for fold in folds:
        for row, penalty in enumerate(penalties):
            theirs = fit(corpus, fold, float(penalty), corpus.Y)
            worst = max(worst, float(np.abs(found[fold, row] / theirs - 1).max()))
    return Agreement("mean squared error of all permutations, relative", worst, _TOLERANCE)


def measure(folder: Path, scale: Scale) -> dict[str, Any]:
    """Write, check, and run all sides in turns."""
    speakers = write_store(folder, scale.size)["speaker"].value_counts()
    corpus = read_corpus(folder, scale)
    folds = range(min(scale.folds, len(corpus.folds)))
    picked = np.linspace(0, len(PENALTIES) - 1, scale.penalties + 2).round().astype(int)[1:-1]
    penalties = PENALTIES[picked]
    first = run_ours(folder, scale)
    agreements = [check_observed(corpus, first["rows"]), check_permuted(corpus, folds, penalties)]
    turns = [
        (run_ours(folder, scale), _loops(corpus, folds, penalties)) for _ in range(scale.repeats)
    ]
    free = [run_ours(folder, scale, limited=False) for _ in range(scale.repeats)]
    facts = {
        "scale": asdict(scale),
        "store_bytes": scale.size.bytes,
        "utterances_of_speakers": [int(speakers.min()), int(speakers.max())],
        "ours_s": [ours["seconds"] for ours, _ in turns],
        "peak_bytes": max(ours["peak_bytes"] for ours in (first, *(ours for ours, _ in turns))),
        "without_limit_s": [one["seconds"] for one in free],
        "without_limit_peak_bytes": max(one["peak_bytes"] for one in free),
        "agreements": [asdict(one) for one in agreements],
        "rows": first["rows"],
        "cores_busy_elsewhere": [busy for _, (_, busy) in turns],
    }
    part, whole = len(folds) * len(penalties), len(corpus.folds) * len(PENALTIES)
    for name, each in (("plain", corpus.Y.shape[1]), ("columns", 1)):
        measured = [seconds[name] for _, (seconds, _) in turns]
        times = whole * each / part
        facts[name] = {
            "fits": whole * each,
            "measured_fits": part,
            "measured_s": measured,
            "whole_s": times * statistics.median(measured),
            "ratio": statistics.median(
                times * theirs / ours
                for theirs, ours in zip(measured, facts["ours_s"], strict=True)
            ),
        }
    return facts


def _loops(
    corpus: Corpus, folds: range, penalties: NDArray[np.float64]
) -> tuple[dict[str, float], float | None]:
    """Seconds of both loops over what is measured, and cores that other processes took."""
    others, seconds = OtherProcesses(), {}
    for name, y in (("plain", corpus.labels(0)), ("columns", corpus.Y)):
        began = time.perf_counter()
        for fold in folds:
            for penalty in penalties:
                fit(corpus, fold, float(penalty), y)
        seconds[name] = time.perf_counter() - began
    return seconds, others.cores()


_SIDES = {
    "plain": "scikit-learn, a fit for each permutation, target, fold and penalty",
    "columns": "scikit-learn, a fit for each fold and penalty, permutations as columns",
}


def markdown(facts: dict[str, Any]) -> str:
    """The table, and what there is to say of it."""
    scale, size = facts["scale"], facts["scale"]["size"]
    ours = statistics.median(facts["ours_s"])
    lines = [
        f"{size['utterances']:,} utterances x {size['layers'] * size['units']:,} features x "
        f"{size['speakers']} speakers, {len(PENALTIES)} penalties, {len(TARGETS)} targets, "
        f"{scale['permutations']:,} permutations; a store of {facts['store_bytes'] / 1e6:,.0f} MB",
        "",
        "| | fits | measured | all of it | ratio |",
        "| :-- | --: | --: | --: | --: |",
        f"| `permutation_test`, memory={scale['memory_mb']} MB | | all | {_duration(ours)} | 1 |",
    ]
    free = statistics.median(facts["without_limit_s"])
    lines.append(
        f"| the same without a limit, {facts['without_limit_peak_bytes'] / 1e6:,.0f} MB | | all | "
        f"{_duration(free)} | {free / ours:.2f} |"
    )
    for name, said in _SIDES.items():
        one = facts[name]
        lines.append(
            f"| {said} | {one['fits']:,} | {one['measured_fits']} in "
            f"{statistics.median(one['measured_s']):.3g} s | {_duration(one['whole_s'])}, "
            f"extrapolated | {one['ratio']:,.1f} |"
        )
    p = ", ".join(f"{r['target']} {r['p']:.3g}" for r in facts["rows"] if r["measure"] == "mse")
    lines += [
        "",
        f"Peak of the limited process: {facts['peak_bytes'] / 1e6:,.0f} MB. p of the mse: {p}.",
    ]
    lines += [f"Agreement: {a['what']}, {a['difference']:.1e}." for a in facts["agreements"]]
    busy = [cores for cores in facts["cores_busy_elsewhere"] if cores is not None]
    beside = f"; other processes took up to {max(busy):.2f} cores" if busy else ""
    return "\n".join([*lines, f"Medians of {scale['repeats']} turns{beside}."])


def _duration(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=10_039)
    parser.add_argument("--speakers", type=int, default=10)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--units", type=int, default=128, help="of each layer")
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--memory", type=int, default=800, help="MB of our process", metavar="MB")
    parser.add_argument("--folds", type=int, default=2, help="of which scikit-learn is measured")
    parser.add_argument("--penalties", type=int, default=2, help="likewise")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", type=Path, help="where the store is made; it is removed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    counts = [value for value in vars(options).values() if isinstance(value, int)]
    if min(counts) < 1 or options.speakers < 2 or options.penalties > len(PENALTIES) - 2:
        parser.error(f"numbers are 1 or more, --speakers 2, --penalties up to {len(PENALTIES) - 2}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    options = parse(arguments)
    scale = Scale(
        Size(options.utterances, options.speakers, options.layers, options.units),
        options.permutations,
        memory_mb=options.memory,
        folds=options.folds,
        penalties=options.penalties,
        repeats=options.repeats,
    )
    facts = machine_facts(torch_device=None, threads=os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(dir=options.store) as folder:
        found = measure(Path(folder) / "store", scale)
    print(markdown(found))
    print(f"\n{facts}")
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, **found}, indent=2))


if __name__ == "__main__":
    main()
