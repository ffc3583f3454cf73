"""`export`: features as one table for other software."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.analysis import CaptureOption, ViewOption
from featurestore.cli.app import JsonOption, QuietOption, app, example, print_json
from featurestore.cli.store import StoreArgument
from featurestore.types import NETWORK


@app.command(epilog=example("featurestore export iemocap.store -o iemocap.arff --target arousal"))
def export(
    store: StoreArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .parquet, .npz or .arff.")
    ],
    view: ViewOption = NETWORK,
    capture: CaptureOption = None,
    layers: Annotated[
        str,
        typer.Option(help="all, first or last (three), or by number from 0 and name: 0,3,5-8."),
    ] = "all",
    statistic: Annotated[
        list[str] | None,
        typer.Option(help="mean, std, min or max over each utterance's frames; repeatable."),
    ] = None,
    speaker: Annotated[
        list[str] | None, typer.Option(help="Only utterances of this speaker; repeatable.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Only these labels, in this order; repeatable. Weka predicts the last one.",
        ),
    ] = None,
    ids: Annotated[
        bool, typer.Option(help="Write ids, strings in ARFF, which scipy cannot read.")
    ] = True,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write features, one row per utterance, as Parquet, npz or ARFF."""
    from featurestore.export import export as run
    from featurestore.store.reader import open_store

    done = run(
        open_store(store),
        output,
        view=view,
        capture=capture,
        layers=layers,
        statistics=statistic or ("mean",),
        speakers=speaker or None,
        labels=target or None,
        ids=ids,
        progress=False if quiet else None,
    )
    if as_json:
        print_json(asdict(done))
        return
    print(
        f"{done.path}: {done.utterances:,} utterances, {done.features:,} features of {done.view}, "
        f"labels: {', '.join(done.labels) or 'none'}; {done.bytes / 1e6:,.1f} MB"
    )
