"""Real-time factors of every stage, against librosa and PyTorch doing the same.

    python benchmarks/throughput.py MANIFEST [--utterances 400] [--repeats 5]
                                    [--json FILE] [--markdown FILE]

MANIFEST is what `featurestore corpus` writes. The utterances are spread evenly over it. Both sides
run in turns in this one process, after a first run that warms caches up and compiles; compilation
is reported apart. Both use every core (`torch.set_num_threads(os.cpu_count())`) unless the stage
says otherwise, and the GPU if JAX has one; NumPy's BLAS has one thread, which is what suits librosa
and PyTorch best together. What needs PyTorch or openSMILE is left out without them, and said so.

Run it on an idle machine: PyTorch's threads wait for one another at every operation, so that a
second busy process slows it several times more than it slows JAX. What other processes took is
measured and reported.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
from _report import Row, machine_facts, to_markdown
from _stages import STAGES, THREADS, Bench, Stage
from _timing import OtherProcesses, alternate
from threadpoolctl import threadpool_limits

from featurestore.audio import probe
from featurestore.checkpoint import load_weights
from featurestore.corpus import read_manifest
from featurestore.encoder import load_encoder

if TYPE_CHECKING:
    from torch_reference import Reference

SLOW_UTTERANCES, SLOW_REPEATS = 60, 2


def spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, spread evenly."""
    rows = np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int)
    return table.iloc[rows].reset_index(drop=True)


def load_reference(tensors: Mapping[str, np.ndarray]) -> Reference | None:
    """The network in PyTorch, on the GPU if JAX is on one too; None without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch
    from torch_reference import Reference

    gpu = jax.devices()[0].platform == "gpu" and torch.cuda.is_available()
    return Reference(tensors, device="cuda" if gpu else "cpu", threads=THREADS)


def measure(one: Stage, bench: Bench, *, repeats: int, scratch: Path | None) -> Row:
    """Run a stage."""
    if one.slow:
        bench = Bench(spread(bench.table, SLOW_UTTERANCES), bench.encoder, bench.reference)
        repeats = min(repeats, SLOW_REPEATS)
    contest = one.contest(bench)
    busy = OtherProcesses()
    # After each matrix product of librosa's, OpenBLAS's threads spin for a while on the cores that
    # PyTorch needs next: file by file on two cores that costs PyTorch five sixths of its speed.
    with threadpool_limits(1, user_api="blas"):
        ours, theirs = alternate(contest, repeats=repeats, scratch=scratch)
    return Row(
        stage=one.title,
        reference=one.reference,
        utterances=len(bench.table),
        audio_s=contest.audio_s,
        ours=ours,
        theirs=theirs,
        missing=contest.theirs if isinstance(contest.theirs, str) else "",
        difference=contest.difference,
        compiles=one.compiles,
        # Our own worker processes would count as others.
        disturbance=None if one.slow else busy.cores(),
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="as written by `featurestore corpus`")
    parser.add_argument("--utterances", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side")
    parser.add_argument("--weights", default="random:0", help="they do not change the speed")
    parser.add_argument(
        "--scratch", type=Path, help="folder on the disk that stores are written to"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.utterances < 1 or options.repeats < 1:
        parser.error("--utterances and --repeats must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    options = parse(arguments)
    weights = load_weights(options.weights)
    reference = load_reference(weights.tensors)
    table = spread(read_manifest(options.manifest), options.utterances)
    bench = Bench(table, load_encoder(weights), reference)
    report: dict[str, Any] = {
        "machine": machine_facts(
            torch_device=reference.device if reference else None, threads=THREADS
        ),
        "corpus": {
            "utterances": len(table),
            "audio_s": bench.audio_s,
            "rates": sorted({probe(path).rate for path, _, _ in bench.segments}),
        },
        "repeats": options.repeats,
        "left_out": [],
    }
    rows: list[Row] = []
    for one in STAGES:
        if one.needs and importlib.util.find_spec(one.needs) is None:
            report["left_out"].append(f"{one.title}: pip install {one.needs}")
            continue
        print(f"{one.title}, and {one.reference} ...", file=sys.stderr, flush=True)
        rows.append(measure(one, bench, repeats=options.repeats, scratch=options.scratch))
    markdown = to_markdown(report, rows)
    print(markdown)
    if options.markdown:
        options.markdown.write_text(markdown, encoding="utf-8")
    if options.json:
        report["rows"] = [row.to_dict() for row in rows]
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
