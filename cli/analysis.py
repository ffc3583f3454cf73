"""`correlate` and `evaluate`: heat maps and tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.app import JsonOption, app, example, note, print_json
from featurestore.cli.store import StoreArgument
from featurestore.types import NETWORK, Statistic

if TYPE_CHECKING:
    from featurestore.store.reader import Store

OutOption = Annotated[Path, typer.Option("--output", "-o", help="Folder for figures and tables.")]
ViewOption = Annotated[
    str,
    typer.Option(
        help="View by name or kind, such as 'gcu'; 'network' is the only one of a network."
    ),
]
CaptureOption = Annotated[
    str | None,
    typer.Option(
        help="Capture point, such as gate, skip or residual. The view's first one if none."
    ),
]
NoteOption = Annotated[
    list[str] | None, typer.Option("--note", help="A caveat to print under every figure and table.")
]


@contextmanager
def analysis_notes() -> Iterator[None]:
    """Print the analyses' own warnings as notes instead of Python's warning lines."""
    from featurestore.analysis.features import AnalysisWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AnalysisWarning)
        yield
    for message in dict.fromkeys(
        str(one.message) for one in caught if issubclass(one.category, AnalysisWarning)
    ):
        note(f"note: {message}")


def caveats(store: Store, view: str, more: list[str] | None) -> list[str]:
    """What has to be said under every result of a view."""
    found = []
    source = store.config(view).weights_source
    if source.startswith("random:"):
        found.append(f"Weights {source}: an untrained network, a control and not a finding.")
    utterances = store.utterances(view)
    if "ratings" in utterances and (utterances["ratings"] == "proxy").any():
        found.append("Labels are proxies derived from the acted emotion, not ratings.")
    return [*found, *(more or [])]


@app.command(
    epilog=example(
        "featurestore correlate iemocap.store --target valence --target arousal "
        "--by speaker -o figures"
    )
)
def correlate(
    store: StoreArgument,
    target: Annotated[list[str], typer.Option("--target", "-t", help="Numeric label; repeatable.")],
    output: OutOption,
    by: Annotated[
        str | None, typer.Option(help="One map per value of this label, such as 'speaker'.")
    ] = None,
    view: ViewOption = NETWORK,
    capture: CaptureOption = None,
    statistic: Annotated[Statistic, typer.Option(help="Over each utterance's frames.")] = "mean",
    notes: NoteOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correlate every unit with a label: heat maps of layers by units, and tables of r, p and n."""
    from featurestore.analysis.correlation import correlate_all
    from featurestore.report.correlations import write_correlations
    from featurestore.store.reader import open_store

    opened = open_store(store)
    with analysis_notes():
        found = correlate_all(
            opened, targets=target, by=by, view=view, capture=capture, statistic=statistic
        )
        files = write_correlations(found, output, notes=caveats(opened, view, notes))
    _print_files(files, as_json=as_json)


@app.command(epilog=example("featurestore evaluate iemocap.store --table 1 -o tables"))
def evaluate(
    store: StoreArgument,
    output: OutOption,
    table: Annotated[
        int, typer.Option(min=1, max=2, help="The paper's table: 1 (all units) or 2 (by layers).")
    ] = 1,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="Numeric label; repeatable.")
    ] = None,
    view: ViewOption = NETWORK,
    capture: CaptureOption = None,
    features: Annotated[int, typer.Option(min=1, help="Units selected in each fold.")] = 100,
    notes: NoteOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict labels from features, leaving one speaker out: the paper's Tables 1 and 2."""
    from featurestore.analysis.regression import evaluate as run
    from featurestore.analysis.regression import summarise
    from featurestore.report.tables import markdown_table, write_tables
    from featurestore.store.reader import open_store

    opened = open_store(store)
    with analysis_notes():
        results = run(
            opened,
            targets=tuple(target or ("valence", "arousal")),
            table=1 if table == 1 else 2,
            view=view,
            capture=capture,
            features=features,
        )
    said = caveats(opened, view, notes)
    files = write_tables(results, output, notes=said)
    if as_json:
        rows = summarise(results).reset_index(drop=True).to_dict("records")
        print_json({"files": [str(file) for file in files], "rows": rows})
        return
    print(markdown_table(results, notes=said))
    _print_files(files, as_json=False)


def _print_files(files: list[Path], *, as_json: bool) -> None:
    if as_json:
        print_json({"files": [str(file) for file in files]})
        return
    print(f"{len(files)} files in {files[0].parent}:")
    for file in files[:12]:
        print(f"  {file.name}")
    if len(files) > 12:
        print(f"  and {len(files) - 12} more")
