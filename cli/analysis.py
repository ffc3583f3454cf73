"""`correlate` and `evaluate`: heat maps and tables."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.app import JsonOption, app, example, note, print_json
from featurestore.cli.ingest import cluster_client
from featurestore.cli.store import StoreArgument
from featurestore.errors import AnalysisError
from featurestore.types import NETWORK, Statistic

if TYPE_CHECKING:
    import pandas as pd

    from featurestore.analysis.models import FeatureSet
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
FoldsOption = Annotated[
    str, typer.Option(help="Who is held out: speaker, session, a column, or speaker:K groups.")
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
    from featurestore.analysis.caveats import PROXIES, weights_caveats

    source, utterances = store.config(view).weights_source, store.utterances(view)
    found = weights_caveats(source, untrained=source.startswith("random:"))
    if "ratings" in utterances and (utterances["ratings"] == "proxy").any():
        found.append(PROXIES)
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
    targets = chosen_targets(target)
    with cluster_client(scheduler), analysis_notes(), reading(store) as source:
        found = correlate_all(
            source.store, targets=targets, by=by, view=view, capture=capture, statistic=statistic
        )
        said = caveats(source.store, view, notes)
        origin = source.provenance(
            views=[view],
            capture=capture,
            statistic=statistic,
            targets=targets,
            by=by,
            command=command_line(),
        )
    files = write_correlations(found, output, notes=said, provenance=origin)
    note_older(output, origin)
    _print_files(files, as_json=as_json)


@app.command(
    epilog=f"{example('featurestore evaluate iemocap.store --table 1 -o tables')}\n\n"
    + example(
        "featurestore evaluate iemocap.store --set 'last = network.mean[-3:]' "
        "--set 'first = network.mean[:3]' --model ridge --compare -o ends"
    )
)
def evaluate(
    store: StoreArgument,
    output: OutOption,
    table: Annotated[
        int | None,
        typer.Option(
            min=1, max=2, help="The paper's table: 1 (all units, the default) or 2 (by layers)."
        ),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="Numeric label; repeatable.")
    ] = None,
    view: ViewOption = NETWORK,
    capture: CaptureOption = None,
    features: Annotated[
        int | None,
        typer.Option(min=1, help="Units that each fold of a table selects; 100 by default."),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A feature set of your own instead of a table: 'NAME = EXPRESSION', or an "
            "expression: view.capture.statistic[layers] with + between terms, such as "
            "'network.mean[0:3] + egemaps'; 'network' is --view. Repeatable.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Of every --set: ols (the default), ridge, svr or pls."),
    ] = None,
    best: Annotated[
        int | None, typer.Option(min=1, help="Features that each fold keeps of every --set.")
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            help="How --best chooses them: f_regression (the default), f_classif, abs_r, or pca."
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            help="Of every --set: none, standard or robust; what suits the model if none."
        ),
    ] = None,
    folds: FoldsOption = "speaker",
    compared: Annotated[
        bool, typer.Option("--compare", help="Compare the first --set with each other one.")
    ] = False,
    notes: NoteOption = None,
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict labels from features, leaving one speaker out: the paper's Tables 1 and 2.

    Or any feature sets (--set), each compared with the first (--compare), with intervals.
    """
    from featurestore.analysis.regression import evaluate as run
    from featurestore.provenance import reading
    from featurestore.report.tables import write_tables

    of_sets = {"model": model, "best": best, "select": select, "scale": scale}
    _check_choices(
        own, compared, of_sets, {"table": table, "features": features, "capture": capture}
    )
    check_folder(output)
    targets = chosen_targets(target)
    with cluster_client(scheduler), analysis_notes(), reading(store) as source:
        number, features = table or 1, features or 100
        chosen: dict[str, Any] = {"table": number, "features": features, "folds": folds}
        if own:
            defaults = {"model": model or "ols", "select": select or "f_regression"}
            choices = {**of_sets, **defaults}
            view, sets, views = _own_sets(source.store, view, own, choices)
            results = run(source.store, targets=targets, sets=sets, view=view, folds=folds)
            chosen = {"sets": own, **choices, "folds": folds}
        else:
            views = _compared(source.store, view, number)
            results = run(
                source.store, targets=targets, table=1 if number == 1 else 2, view=view,
                capture=capture, features=features, folds=folds,
            )  # fmt: skip
        said = caveats(source.store, view, notes)
        origin = source.provenance(
            views=views, capture=capture, statistic="mean", targets=targets,
            command=command_line(), **chosen,
        )  # fmt: skip
    files = write_tables(results, output, notes=said, provenance=origin)
    rows = _comparisons(results) if compared else None
    _print_evaluated(results, rows, files, output, said, origin, as_json=as_json)


def _check_choices(
    own: list[str] | None,
    compared: bool,
    of_sets: Mapping[str, Any],
    of_tables: Mapping[str, Any],
) -> None:
    """Refuse options that do not go together, which would be ignored otherwise.

    Args:
        own: every --set.
        compared: whether --compare was given.
        of_sets: options that --set needs, by name; None if not given.
        of_tables: those that are for tables only.
    """
    if compared and len(own or ()) < 2:
        raise AnalysisError("--compare takes two feature sets or more: give --set at least twice.")
    for name, value in (of_tables if own else of_sets).items():
        if value is not None:
            raise AnalysisError(_misplaced(name, value))
    if of_sets["select"] is not None and of_sets["best"] is None:
        raise AnalysisError(
            f"--select {of_sets['select']} says how features are chosen; say how many: --best 100."
        )


def _misplaced(name: str, value: Any) -> str:
    """What is wrong with an option of tables beside --set, or of --set without it."""
    if name == "capture":
        said = f"name it in the expression of --set: network.{value}.mean"
    elif name == "features":
        said = f"with --set, --best {value} selects"
    elif name == "table":
        said = "leave out either it or --set"
    else:
        return f"--{name} {value} is for sets of your own; give --set, or leave it out."
    return f"--{name} {value} is for tables; {said}."


def _own_sets(
    store: Store, view: str, texts: list[str], choices: Mapping[str, Any]
) -> tuple[str, list[FeatureSet], list[str]]:
    """The network's view, the sets of the command line, and all views that they read."""
    from featurestore.analysis.models import FeatureSet
    from featurestore.study.views import Studied, in_view, main_view, views_of

    facts = Studied(store).facts
    main = main_view(facts, view).name
    sets = []
    for text in texts:
        name, _, expression = (part.strip() for part in text.rpartition("="))
        sets.append(FeatureSet(name or expression, in_view(expression, main), **choices))
    # The utterances that are compared are those of the network's view, whatever a set names.
    return main, sets, views_of(facts, [main, *(one.features for one in sets)])


def _comparisons(results: pd.DataFrame) -> pd.DataFrame:
    """The first feature set against each other one."""
    import pandas as pd

    from featurestore.analysis.comparison import compare, rows_of

    first, *others = results["feature_set"].unique()
    tables = [compare(rows_of(results, first), rows_of(results, other)) for other in others]
    return pd.concat(tables, ignore_index=True)


def _print_evaluated(
    results: pd.DataFrame,
    compared: pd.DataFrame | None,
    files: list[Path],
    output: Path,
    said: list[str],
    origin: Provenance,
    *,
    as_json: bool,
) -> None:
    """Write the comparison, if there is one, and show everything."""
    from featurestore.analysis.scores import summarise
    from featurestore.report.comparisons import markdown_comparison, write_comparison
    from featurestore.report.tables import markdown_table

    if compared is not None:
        files = [*files, *write_comparison(compared, output, notes=said, provenance=origin)]
    note_older(output, origin)
    if as_json:
        rows = summarise(results).reset_index(drop=True).to_dict("records")
        found = {"files": [str(file) for file in files], "rows": rows}
        if compared is not None:
            found["comparisons"] = compared.to_dict("records")
        print_json(found)
        return
    print(markdown_table(results, notes=said, provenance=origin))
    if compared is not None:
        print(markdown_comparison(compared, notes=said, provenance=origin))
    _print_files(files, as_json=False)


def _compared(store: Store, view: str, table: int) -> list[str]:
    """The views that a table compares, as far as the store has them."""
    from featurestore.analysis.models import table_sets

    wanted = {one.features for one in table_sets(table)}
    return [view, *(kind for kind in ("mfcc", "egemaps") if kind in wanted & store.kinds)]


def chosen_targets(asked: Sequence[str] | None) -> tuple[str, ...]:
    """The labels that were asked for, each once, or those of the paper."""
    return tuple(dict.fromkeys(asked or ("valence", "arousal")))


def command_line() -> str:
    """The command as it was given, to be run again."""
    return shlex.join(["featurestore", *sys.argv[1:]])


def check_folder(output: Path, names: Sequence[str] = ()) -> None:
    """Refuse a folder in a store, or whose `provenance.json` is damaged, before anything is done.

    Args:
        output: folder of results.
        names: of files that are to be written and may be no one else's.
    """
    from featurestore.result_files import check_free, check_output

    check_output(output)
    check_free(output, names)


def note_older(output: Path, origin: Provenance) -> None:
    """Name a folder's files that were computed before the store changed."""
    from featurestore.result_files import older_results

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
