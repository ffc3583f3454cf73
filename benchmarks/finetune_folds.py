"""Does fine-tuning beat the frozen linear model on the same folds, and how long does a fold take?

    python benchmarks/finetune_folds.py MANIFEST [--weights default] [--pools mean,max,attention]
                                        [--losses mse,ccc] [--target arousal,valence]
                                        [--folds N] [--speakers A,B] -o OUT

MANIFEST may be a store with MFCC frames as well. Every combination of pooling and loss is a run of
its own in OUT, as `featurestore finetune` makes it, and goes on where it was stopped. The tables
say what fine-tuning changes against ridge regression on the same units, paired over held-out
speakers, and what a fold takes.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import pandas as pd

from featurestore.analysis.comparison import compare, rows_of
from featurestore.benchmarks.report import machine_facts
from featurestore.encoder import load_encoder
from featurestore.report.comparisons import markdown_comparison, write_comparison
from featurestore.report.tables import markdown_table, write_tables
from featurestore.training.finetune import Finetuned, finetune
from featurestore.training.tuning_config import FinetuneConfig


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="manifest, or store with MFCC frames")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--pools", default="mean")
    parser.add_argument("--losses", default="mse")
    parser.add_argument("--target", default="arousal,valence")
    parser.add_argument("--epochs", type=int, default=FinetuneConfig.epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, help="only the first N held-out speakers")
    parser.add_argument("--speakers", help="only these held-out speakers")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, pool: str, loss: str) -> Finetuned:
    """One combination, every fold of it."""
    config = FinetuneConfig(
        targets=tuple(options.target.split(",")),
        pool=pool,  # type: ignore[arg-type]  # checked by the configuration
        loss=loss,  # type: ignore[arg-type]
        epochs=options.epochs,
        seed=options.seed,
    )
    return finetune(
        options.source,
        encoder=load_encoder(options.weights),
        config=config,
        run=options.output / f"{pool}-{loss}",
        speakers=options.speakers.split(",") if options.speakers else None,
        folds=options.folds,
    )


def timing(found: Finetuned) -> str:
    """What a fold takes."""
    seconds = list(found.seconds.values())
    every = found.passes[found.passes["stage"] == "all"]
    return (
        f"{found.names.tuned}: a fold takes {statistics.median(seconds):.0f} s (median of "
        f"{len(seconds)}; {min(seconds):.0f} to {max(seconds):.0f}), linear models included; "
        f"a pass that trains everything {every['seconds'].median():.0f} s."
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    options = parse(arguments)
    facts = machine_facts(torch_device=None, threads=0)
    found = [
        run(options, pool, loss)
        for pool in options.pools.split(",")
        for loss in options.losses.split(",")
    ]
    compared = pd.concat(
        [
            compare(rows_of(one.results, one.names.tuned), rows_of(one.results, one.names.ridge))
            for one in found
        ],
        ignore_index=True,
    )
    results = pd.concat([one.results for one in found], ignore_index=True)
    # Runs that share a pooling have their linear models in common.
    results = results.drop_duplicates(["feature_set", "target", "fold"], ignore_index=True)
    results.attrs["notes"] = [note for one in found for note in one.results.attrs["notes"]]
    where = f"{facts['cpu']}, {facts['cores']} cores, JAX on {facts['jax_device']}"
    notes = [*map(timing, found), f"{where}; load {facts['load_average_before']:.1f} before."]
    write_tables(results, options.output, notes=notes)
    said = dict.fromkeys([*results.attrs["notes"], *notes])
    write_comparison(compared, options.output, notes=list(said))
    print(markdown_table(results, notes=notes))
    print(markdown_comparison(compared, notes=notes))


if __name__ == "__main__":
    main()
