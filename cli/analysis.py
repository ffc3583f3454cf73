"""`correlate` and `evaluate`: heat maps and tables."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.app import JsonOption, app, example, note, print_json
from featurestore.cli.ingest import cluster_client
from featurestore.cli.store import StoreArgument
from featurestore.types import NETWORK, Statistic

if TYPE_CHECKING:
    from featurestore.provenance import Provenance
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
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        help="Read the store on a dask cluster: local, local:N (processes), or the address of a "
        "scheduler, such as tcp://host:8786."
    ),
]

_NAMED = 12  # files that are listed by name


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
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correlate every unit with a label: heat maps of layers by units, and tables of r, p and n."""
    from featurestore.analysis.correlation import correlate_all
    from featurestore.provenance import reading
    from featurestore.report.correlations import write_correlations

    check_folder(output)
    with cluster_client(scheduler), analysis_notes(), reading(store) as source:
        found = correlate_all(
            source.store, targets=target, by=by, view=view, capture=capture, statistic=statistic
        )
        said = caveats(source.store, view, notes)
        origin = source.provenance(
            views=[view],
            capture=capture,
            statistic=statistic,
            targets=target,
            by=by,
            command=command_line(),
        )
    files = write_correlations(found, output, notes=said, provenance=origin)
    note_older(output, origin)
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
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict labels from features, leaving one speaker out: the paper's Tables 1 and 2."""
    from featurestore.analysis.regression import evaluate as run
    from featurestore.analysis.regression import summarise
    from featurestore.provenance import reading
    from featurestore.report.tables import markdown_table, write_tables

    check_folder(output)
    targets = tuple(target or ("valence", "arousal"))
    with cluster_client(scheduler), analysis_notes(), reading(store) as source:
        results = run(
            source.store,
            targets=targets,
            table=1 if table == 1 else 2,
            view=view,
            capture=capture,
            features=features,
        )
        said = caveats(source.store, view, notes)
        origin = source.provenance(
            views=_compared(source.store, view, table),
            capture=capture,
            statistic="mean",
            targets=targets,
            table=table,
            features=features,
            command=command_line(),
        )
    files = write_tables(results, output, notes=said, provenance=origin)
    note_older(output, origin)
    if as_json:
        rows = summarise(results).reset_index(drop=True).to_dict("records")
        print_json({"files": [str(file) for file in files], "rows": rows})
        return
    print(markdown_table(results, notes=said, provenance=origin))
    _print_files(files, as_json=False)


def _compared(store: Store, view: str, table: int) -> list[str]:
    """The views that a table compares, as far as the store has them."""
    from featurestore.analysis.features import table_sets

    wanted = {one.source for one in table_sets(table)}
    return [view, *(kind for kind in ("mfcc", "egemaps") if kind in wanted & store.kinds)]


def command_line() -> str:
    """The command as it was given, to be run again."""
    return shlex.join(["featurestore", *sys.argv[1:]])


def check_folder(output: Path) -> None:
    """Refuse a folder whose `provenance.json` is damaged before anything is computed."""
    from featurestore.provenance import read_provenance

    read_provenance(output)


def note_older(output: Path, origin: Provenance) -> None:
    """Name a folder's files that were computed before the store changed."""
    from featurestore.provenance import older_results

    older = older_results(output, origin)
    if not older:
        return
    more = f" and {len(older) - _NAMED} more" if len(older) > _NAMED else ""
    files, were = ("file", "was") if len(older) == 1 else ("files", "were")
    note(
        f"note: {len(older)} {files} in {output} {were} computed from an older state of the store; "
        f"run their commands again ('featurestore results {output}' lists them): "
        f"{', '.join(older[:_NAMED])}{more}"
    )


def _print_files(files: list[Path], *, as_json: bool) -> None:
    if as_json:
        print_json({"files": [str(file) for file in files]})
        return
    print(f"{len(files)} files in {files[0].parent}:")
    for file in files[:_NAMED]:
        print(f"  {file.name}")
    if len(files) > _NAMED:
        print(f"  and {len(files) - _NAMED} more")
