"""`audit-precision`: what storing frames in fewer bits costs."""

from __future__ import annotations

from typing import Annotated

import typer

from featurestore.cli.analysis import (
    CaptureOption,
    NoteOption,
    OutOption,
    ViewOption,
    analysis_notes,
    caveats,
)
from featurestore.cli.app import JsonOption, QuietOption, app, example, print_json
from featurestore.cli.store import StoreArgument
from featurestore.types import NETWORK


@app.command(
    "audit-precision",
    epilog=example(
        "featurestore audit-precision iemocap.store --target valence --target arousal -o precision"
    ),
)
def audit_precision(
    store: StoreArgument,
    target: Annotated[list[str], typer.Option("--target", "-t", help="Numeric label; repeatable.")],
    output: OutOption,
    view: ViewOption = NETWORK,
    capture: CaptureOption = None,
    features: Annotated[int, typer.Option(min=1, help="Units selected in each fold.")] = 100,
    notes: NoteOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what frames in float16 or int8 cost: bytes, errors, correlations, predictions."""
    from featurestore.analysis.precision import audit_precision as run
    from featurestore.report.precision import markdown_precision, write_precision
    from featurestore.store.reader import open_store

    opened = open_store(store)
    with analysis_notes():
        audit = run(
            opened,
            targets=target,
            view=view,
            capture=capture,
            features=features,
            progress=False if quiet else None,
        )
    said = caveats(opened, view, notes)
    files = write_precision(audit, output, notes=said)
    if as_json:
        facts = {"files": [str(file) for file in files], "rows": audit.to_dict("records")}
        print_json({**facts, "notes": [*audit.attrs["notes"], *said]})
        return
    print(markdown_precision(audit, notes=said))
    print(f"written: {', '.join(map(str, files))}")
