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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import featurestore as fs
from featurestore.analysis.caveats import label_caveats
from featurestore.analysis.comparison import compare, rows_of
from featurestore.analysis.features import known_speakers
from featurestore.analysis.models import FeatureSet
from featurestore.analysis.regression import evaluate_joined
from featurestore.analysis.sets import Joined, join
from featurestore.encoder import Encoder, load_encoder
from featurestore.progress import progress_bar
from featurestore.report.comparisons import markdown_comparison, write_comparison
from featurestore.report.tables import markdown_table, write_tables

MEAN = "mean of the random ones"


def evaluate_network(
    joined: Joined, network: str, *, features: str, targets: Sequence[str], best: int
) -> pd.DataFrame:
    """Rows as `evaluate` returns them, the network's name added to those of the feature sets."""
    sets = [
        FeatureSet(f"{best} best of all units ({network})", features, best),
        FeatureSet(f"all units, ridge ({network})", features, model="ridge"),
    ]
    folds = len(sets) * len(targets) * len(np.unique(known_speakers(joined.table)))
    with progress_bar(network, folds, unit="folds") as tick:
        results = evaluate_joined(joined, sets=sets, targets=targets, tick=tick)
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
        features = f"{view}.{encoder.captures[0]}.mean"
        joined = join(store, [features])
        notes = label_caveats(joined.table, targets=targets)
        results.append(
            evaluate_network(
                joined, name, features=features, targets=targets, best=options.features
            )
        )
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
