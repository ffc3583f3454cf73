"""Do the units of a trained recogniser follow emotion better than those of random networks?

    python benchmarks/trained_vs_random.py MANIFEST [--weights default] [--seeds 0,1,2,3,4]
                                           [--target arousal,valence] [--features 100]
                                           [--store FOLDER] -o OUT

MANIFEST is what `featurestore corpus` writes. Its utterances go through each network into one store
(statistics only; what the store holds already is not done again). Then labels are predicted from
each network's means, leaving one speaker out, by ridge regression on all units and by linear
regression on the best, and the trained network is compared with each random one and with their
mean, paired over speakers. OUT gets the tables, the comparisons and a figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import featurestore as fs
from featurestore.analysis.caveats import label_caveats
from featurestore.analysis.comparison import compare, rows_of
from featurestore.analysis.features import Aligned, FeatureSet, align, known_speakers, label_values
from featurestore.analysis.regression import COLUMNS, Fold, leave_one_speaker_out
from featurestore.analysis.ridge import fold_row, ridge_leave_one_speaker_out
from featurestore.encoder import Encoder, load_encoder
from featurestore.progress import progress_bar
from featurestore.report.comparisons import markdown_comparison, write_comparison
from featurestore.report.tables import markdown_table, write_tables

MEAN = "mean of the random ones"


def fold_models(
    X: np.ndarray, y: np.ndarray, speakers: np.ndarray, *, best: int
) -> Iterator[tuple[str, Fold]]:
    """The name of each model and each of its folds."""
    selected = FeatureSet(f"{best} best of all units", "gcu", best=best)
    for fold in leave_one_speaker_out(selected, X=X, y=y, speakers=speakers):
        yield selected.name, fold
    for fold in ridge_leave_one_speaker_out(X, y=y, speakers=speakers):
        yield "all units, ridge", fold


def evaluate_network(
    aligned: Aligned, network: str, *, targets: Sequence[str], best: int
) -> pd.DataFrame:
    """Rows as `evaluate` returns them, the network's name added to those of the feature sets."""
    rows = []
    units = aligned.matrices["gcu"].reshape(len(aligned.ids), -1)
    folds = 2 * len(targets) * len(np.unique(known_speakers(aligned.table)))
    with progress_bar(network, folds, unit="folds") as tick:
        for target in targets:
            values = label_values(aligned.table, target=target)
            known = np.isfinite(values)
            speakers = known_speakers(aligned.table, of=known)[known]
            y = values[known]
            for name, fold in fold_models(units[known], y, speakers, best=best):
                row = fold_row(
                    feature_set=f"{name} ({network})",
                    target=target,
                    speaker=fold.speaker,
                    truth=y[fold.test],
                    predicted=fold.predicted,
                    n_train=len(y) - len(fold.test),
                    n_features=fold.n_features,
                )
                rows.append(row)
                tick(1)
    results = pd.DataFrame(rows, columns=list(COLUMNS[1:]))
    results.insert(0, "table", 1)
    return results


def stored_view(store: fs.Store, encoder: Encoder) -> str:
    """The view that holds this network's activations."""
    return next(
        name
        for name in store.views
        if store.config(name).weights == encoder.fingerprint
        and store.config(name).front_end == encoder.front_end.name
    )


def compare_networks(
    results: pd.DataFrame, *, trained: str, controls: Sequence[str], best: int
) -> pd.DataFrame:
    """The trained network against the mean of the random ones, and against each of them."""
    found = []
    for name in ("all units, ridge", f"{best} best of all units"):
        first = rows_of(results, f"{name} ({trained})")
        others = [rows_of(results, f"{name} ({one})") for one in controls]
        said = f"{name}, {trained}"
        found.append(compare(first, others, names=(said, MEAN)))
        found += [
            compare(first, other, names=(said, control))
            for other, control in zip(others, controls, strict=True)
        ]
    return pd.concat(found, ignore_index=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="as written by `featurestore corpus`")
    parser.add_argument("--weights", default="default", help="the trained network")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of the random networks")
    parser.add_argument("--target", default="arousal,valence", help="numeric labels")
    parser.add_argument("--features", type=int, default=100, help="units that are selected")
    parser.add_argument("--store", type=Path, help="folder of the store; OUT/store by default")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    options = parser.parse_args(arguments)
    if not options.seeds.replace(",", "").isdigit() or options.features < 1:
        parser.error("--seeds takes whole numbers separated by commas, --features 1 or more")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    options = parse(arguments)
    targets = options.target.split(",")
    folder = options.store or options.output / "store"
    table = fs.read_manifest(options.manifest)
    networks: dict[str, Any] = {"trained": load_encoder(options.weights)}
    for seed in dict.fromkeys(options.seeds.split(",")):
        networks[f"random:{seed}"] = load_encoder(f"random:{seed}")
    results, notes = [], []
    for name, encoder in networks.items():
        fs.ingest(table, folder, encoder=encoder, views="network", frames=False)
        store = fs.open_store(folder)
        view = stored_view(store, encoder)
        aligned = align(store, views={"gcu": view}, capture=encoder.captures[0])
        notes = label_caveats(aligned.table, targets=targets)
        results.append(evaluate_network(aligned, name, targets=targets, best=options.features))
    notes.append(f"Trained: {networks['trained'].name} ({networks['trained'].fingerprint[:12]}).")
    everything = pd.concat(results, ignore_index=True)
    controls = [name for name in networks if name != "trained"]
    compared = compare_networks(
        everything, trained="trained", controls=controls, best=options.features
    )
    write_tables(everything, options.output, notes=notes)
    write_comparison(compared, options.output, notes=notes)
    print(markdown_table(everything, notes=notes))
    print(markdown_comparison(compared, notes=notes))


if __name__ == "__main__":
    main()
