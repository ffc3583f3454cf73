"""What other arithmetic than float32 changes: activations, correlations and CCC.

    python benchmarks/precision_modes.py MANIFEST [-o OUT] [--modes winograd,float16,bfloat16]

Statistics of every utterance in each precision, against those of `parity`; then the correlation of
every unit with each target, and leave-one-speaker-out regression on the 100 best units (table 1).
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import featurestore as fs
from featurestore.analysis.features import AnalysisWarning
from featurestore.setup import IngestConfig


def store_of(manifest: pd.DataFrame, folder: Path, mode: str, weights: str) -> fs.Store:
    """A store with statistics of the network in this precision; made if it is not there."""
    config = IngestConfig(views=("network",), frames=False, precision=mode)
    fs.ingest(manifest, folder / mode, encoder=weights, config=config)
    return fs.open_store(folder / mode)


def largest_by_statistic(exact: fs.Store, other: fs.Store) -> dict[str, float]:
    """Largest absolute difference of each statistic, over utterances, layers and units."""
    one, two = (next(iter(store.pooled().data_vars.values())) for store in (exact, other))
    apart = abs(one - two).max(["utterance", "layer", "unit"]).compute()
    return {str(name): float(apart.sel(statistic=name)) for name in apart["statistic"].to_numpy()}


def ccc(store: fs.Store, target: str) -> float:
    """Mean CCC over held-out speakers of the 100 best units."""
    with warnings.catch_warnings():  # the other rows of the table are not wanted
        warnings.simplefilter("ignore", AnalysisWarning)
        rows = fs.evaluate(store, targets=(target,), table=1)
    best = rows[rows["feature_set"].str.startswith("100 best of all")]
    return float(best["ccc"].mean())


def compare(stores: dict[str, fs.Store], targets: list[str]) -> list[dict[str, str]]:
    """One row per precision."""
    exact = stores["parity"]
    maps = {target: fs.correlate(exact, target=target)["r"] for target in targets}
    known = {target: ccc(exact, target) for target in targets}
    rows = []
    for mode, store in stores.items():
        if mode == "parity":
            continue
        apart = largest_by_statistic(exact, store)
        row = {"precision": mode, "mean": f"{apart['mean']:.1e}", "std": f"{apart['std']:.1e}"}
        row["min, max"] = f"{max(apart['min'], apart['max']):.1e}"
        for target in targets:
            r = fs.correlate(store, target=target)["r"]
            row[f"r with {target}"] = f"{float(np.abs(r - maps[target]).max()):.1e}"
            row[f"CCC {target}"] = f"{ccc(store, target):.4f} ({known[target]:.4f})"
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="as written by `featurestore corpus`")
    parser.add_argument("-o", "--output", type=Path, default=Path("precision"), metavar="OUT")
    parser.add_argument("--modes", default="winograd,float16,bfloat16")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--target", default="arousal,valence")
    options = parser.parse_args(arguments)
    table = fs.read_manifest(options.manifest)
    stores = {
        mode: store_of(table, options.output, mode, options.weights)
        for mode in ("parity", *options.modes.split(","))
    }
    rows = compare(stores, options.target.split(","))
    print("| " + " | ".join(rows[0]) + " |\n| :-- |" + " --: |" * (len(rows[0]) - 1))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


if __name__ == "__main__":
    main()
