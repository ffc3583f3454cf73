"""`demo`: everything once, on a corpus that is made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.app import QuietOption, app, example, note

_SYNTHETIC = (
    "The corpus is synthetic speech whose loudness, rate and pitch follow its arousal labels by "
    "construction."
)


@app.command(epilog=example("featurestore demo demo"))
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to write everything into.")],
    weights: Annotated[str, typer.Option("--weights", "-w", help="As for ingest.")] = "default",
    quiet: QuietOption = False,
) -> None:
    """Synthesise a small corpus in IEMOCAP's layout and take it through to heat maps and tables."""
    from featurestore.checkpoint import load_weights
    from featurestore.cli.analysis import correlate, evaluate
    from featurestore.cli.ingest import run_ingest
    from featurestore.corpus import read_corpus, write_manifest
    from featurestore.demo import UTTERANCES, write_demo_corpus
    from featurestore.progress import progress_bar
    from featurestore.setup import IngestConfig

    load_weights(weights)  # what cannot be used is refused before any work
    note("1/4  a corpus: 10 speakers in 5 sessions, spoken by espeak-ng")
    with progress_bar(
        "Speaking", UTTERANCES, unit="utterances", show=False if quiet else None
    ) as tick:
        write_demo_corpus(folder / "corpus", progress=lambda done, total: tick(1))
    note("2/4  a manifest, read from the corpus as any IEMOCAP would be")
    manifest, store = folder / "manifest.csv", folder / "store"
    table = read_corpus("iemocap", folder / "corpus")
    write_manifest(table, manifest)
    note("3/4  the store: activations of every layer, MFCC and eGeMAPS")
    plan, _ = run_ingest(
        manifest,
        store,
        weights=weights,
        config=IngestConfig(),
        progress=False if quiet else None,
    )
    note("4/4  heat maps and tables")
    targets, notes = ["valence", "arousal"], [_SYNTHETIC]
    # By name, since an earlier demo in this folder may have left a view of other weights.
    network = plan.views[0]
    figures, tables, made = folder / "figures", folder / "tables", str(store)
    correlate(made, targets, figures / "pooled", view=network, notes=notes)
    correlate(made, targets, figures / "by-speaker", by="speaker", view=network, notes=notes)
    for number in (1, 2):
        evaluate(made, tables, table=number, view=network, notes=notes)
    note(
        f"\nLook at {figures / 'pooled'} and {figures / 'by-speaker' / 'overview.png'}, and at "
        f"{tables}.\nThe store is {store}; in Python: featurestore.open_store('{store}').\n"
        f"{_SYNTHETIC}\nThe same commands take your own corpus: featurestore corpus --help"
    )
