"""`report`, `map`, `trace` and `study`: what a corpus says, with inference, as a page and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.analysis import (
    CaptureOption,
    FoldsOption,
    NoteOption,
    OutOption,
    SchedulerOption,
    analysis_notes,
    check_folder,
    chosen_targets,
    command_line,
    note_older,
)
from featurestore.cli.app import JsonOption, QuietOption, app, example, print_json
from featurestore.cli.ingest import cluster_client
from featurestore.cli.store import StoreArgument
from featurestore.types import NETWORK

if TYPE_CHECKING:
    import pandas as pd

    from featurestore.report.contents import Contents
    from featurestore.study.run import Report

study_app = typer.Typer(
    help="Run a whole study from one file, or make it again from a bundle.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(study_app, name="study")

TargetsOption = Annotated[
    list[str] | None, typer.Option("--target", "-t", help="Numeric label; repeatable.")
]
StudyViewOption = Annotated[
    str,
    typer.Option(
        help="View by name or kind; by default the only one of a network, or of a trained one."
    ),
]
PermutationsOption = Annotated[
    int, typer.Option(min=0, help="Of the labels within speakers; 0 for none.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything random.")]
BundleOption = Annotated[
    Path | None,
    typer.Option(help="Write a zip of pooled data, folds and results, without audio, as well."),
]


@app.command(epilog=example("featurestore report iemocap.store -o report"))
def report(
    store: StoreArgument,
    output: OutOption,
    target: TargetsOption = None,
    view: StudyViewOption = NETWORK,
    capture: CaptureOption = None,
    folds: FoldsOption = "speaker",
    permutations: PermutationsOption = 1000,
    seed: SeedOption = 0,
    title: Annotated[str, typer.Option(help="Of the page.")] = "",
    bundle: BundleOption = None,
    scheduler: SchedulerOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Analyse a store and write everything as one page, and as files for a paper.

    Maps with intervals and tests, speakers, confounds, layers, the paper's tables, controls,
    comparisons and traces. Run again, only what changed is computed.
    """
    from dataclasses import replace

    from featurestore.study.run import default_study
    from featurestore.study.run import report as run

    check_folder(output)
    plan: dict[str, Any] = {"view": view, "capture": capture or "", "folds": folds}
    plan |= {"permutations": permutations, "seed": seed}
    plan["targets"] = chosen_targets(target)
    chosen = replace(default_study(store, str(output), **plan), title=title)
    with cluster_client(scheduler), analysis_notes():
        found = run(
            chosen, command=command_line(), bundle=bundle, progress=False if quiet else None
        )
    _print_report(found, bundle, as_json=as_json)


@app.command(
    "map", epilog=example("featurestore map iemocap.store -t arousal --partial duration -o maps")
)
def maps(
    store: StoreArgument,
    output: OutOption,
    target: TargetsOption = None,
    view: StudyViewOption = NETWORK,
    capture: CaptureOption = None,
    statistic: Annotated[str, typer.Option(help="mean, std, min or max over frames.")] = "mean",
    partial: Annotated[
        list[str] | None,
        typer.Option(
            help="Covariate of the partial map: duration, loudness, f0, egemaps:NAME, a numeric "
            "column, a text column, or column=value; repeatable. Duration and loudness by default."
        ),
    ] = None,
    confound: Annotated[
        list[str] | None,
        typer.Option(help="Covariate of the confound map; all that the corpus offers by default."),
    ] = None,
    permutations: PermutationsOption = 1000,
    seed: SeedOption = 0,
    notes: NoteOption = None,
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correlate every unit with labels, with intervals, tests, covariates and stability."""
    from featurestore.analysis.confounds import by_layer, confound_map
    from featurestore.analysis.covariates import DEFAULT, offered
    from featurestore.analysis.maps import correlation_maps
    from featurestore.provenance import reading
    from featurestore.report.exports import usual_names
    from featurestore.study.views import Studied, caveats_of, covariate_views, main_view

    targets = chosen_targets(target)
    check_folder(output, usual_names(targets, of=("map", "thresholds", "stability", "confounds")))
    with cluster_client(scheduler), analysis_notes(), reading(store) as source:
        studied = Studied(source.store)
        main = main_view(studied.facts, view)
        features = f"{main.name}.{capture or main.captures[0]}.{statistic}"
        absent = set(DEFAULT) - set(offered(source.store, DEFAULT)) if partial is None else set()
        partial = [one for one in (DEFAULT if partial is None else partial) if one not in absent]
        heard = covariate_views(studied, [*partial, *(confound or ["loudness"])])
        found = correlation_maps(
            source.store, targets=targets, features=features, permutations=permutations, seed=seed,
            partial=partial,
        )  # fmt: skip
        confounds = confound_map(source.store, features=features, names=confound, without=targets)
        table = source.store.pooled(main.name)
        said = [*caveats_of(main, table, targets), *(notes or [])]
        left_out = [f"The store has no {one}, so the partial map does without." for one in absent]
        origin = source.provenance(
            views=[main.name, *heard], capture=capture, statistic=statistic, targets=targets,
            partial=partial, permutations=permutations, seed=seed, command=command_line(),
        )  # fmt: skip
    contents = _partial_contents(
        targets, found.layer_names, said, origin,
        maps=found.maps, thresholds=found.thresholds, stability=found.stability,
        confounds=by_layer(confounds) if len(confounds) else confounds,
    )  # fmt: skip
    files = _write(contents, output, origin)
    if as_json:
        rows = found.thresholds.to_dict("records")
        facts = {"maps": rows, "notes": [*left_out, *found.notes], "caveats": said}
        print_json({"files": [str(file) for file in files], **facts})
        return
    from featurestore.study.statements import statements

    tables = {"maps": found.maps, "thresholds": found.thresholds, "stability": found.stability}
    _print_lines(
        [*statements(tables), *(f"note: {one}" for one in [*left_out, *found.notes, *said])]
    )
    _print_written(files)


@app.command(epilog=example("featurestore trace iemocap.store --id Ses01F_impro01_F000 -o trace"))
def trace(
    store: StoreArgument,
    output: OutOption,
    id: Annotated[list[str], typer.Option("--id", help="Utterance; repeatable.")],
    target: TargetsOption = None,
    view: StudyViewOption = NETWORK,
    features: Annotated[
        str | None,
        typer.Option(help="Means over frames, such as network.gate.mean[0:3]; all units if none."),
    ] = None,
    model: Annotated[str, typer.Option(help="ridge, ols, svr or pls.")] = "ridge",
    best: Annotated[int | None, typer.Option(min=1, help="Features that are selected.")] = None,
    notes: NoteOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply a linear model frame by frame: how a label rises and falls within an utterance.

    The model is fitted to all other speakers. The mean of the curve is the utterance's prediction.
    """
    from featurestore.analysis.models import FeatureSet
    from featurestore.analysis.trace import trace as run
    from featurestore.provenance import reading
    from featurestore.report.exports import trace_names
    from featurestore.study.views import Studied, caveats_of, in_view, main_view, views_of

    targets, ids = chosen_targets(target), list(dict.fromkeys(id))
    check_folder(output, trace_names(ids, targets))
    with analysis_notes(), reading(store) as source:
        facts = Studied(source.store).facts
        main = main_view(facts, view)
        expression = in_view(features or NETWORK, main.name)
        named = f"{f'{best} best of ' if best else ''}{features or 'all units'}, {model}"
        chosen = FeatureSet(named, expression, best, model=model)  # type: ignore[arg-type]
        found = run(source.store, ids, targets=targets, model=chosen)
        said = [*caveats_of(main, source.store.pooled(main.name), targets), *(notes or [])]
        origin = source.provenance(
            views=views_of(facts, [main.name, expression]), statistic="mean", targets=targets,
            features=expression, model=model, command=command_line(),
        )  # fmt: skip
    contents = _partial_contents(targets, main.layer_names, said, origin, traces=found)
    files = _write(contents, output, origin)
    rows = [
        {"id": one.id, "speaker": one.speaker, "target": one.target, "features": one.features,
         "frames": len(one.time_s), "predicted": one.predicted, "from_pooled": one.pooled,
         "truth": one.truth}
        for one in found
    ]  # fmt: skip
    if as_json:
        print_json({"files": [str(file) for file in files], "traces": rows})
        return
    for row in rows:
        print(
            f"{row['id']}, {row['target']}: predicted {row['predicted']:.3f} (from the stored mean "
            f"{row['from_pooled']:.3f}), label {row['truth']:.3f}"
        )
    _print_written(files)


@study_app.command("run", epilog=example("featurestore study run ravdess.toml"))
def study_run(
    file: Annotated[Path, typer.Argument(help="Study file; 'featurestore study init' writes one.")],
    bundle: BundleOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, and stop after the plan.")
    ] = False,
    scheduler: SchedulerOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ingest a corpus and report on it; what has not changed since the last run is not done again.

    What was taken from the last run is said at the end, and in --json.
    """
    from featurestore.study.checks import check_study
    from featurestore.study.config import read_study
    from featurestore.study.run import plan_lines, run_study

    study = read_study(file)
    if not as_json:
        _print_lines(plan_lines(study))
    if dry_run:
        check_study(study, bundle=bundle)
        if as_json:
            print_json({"study": study.to_dict(), "plan": plan_lines(study)})
        return
    with cluster_client(scheduler), analysis_notes():
        found = run_study(
            study, command=command_line(), bundle=bundle, progress=False if quiet else None
        )
    _print_report(found, bundle, as_json=as_json)


@study_app.command("init", epilog=example("featurestore study init ravdess.toml"))
def study_init(
    file: Annotated[Path, typer.Argument(help="Study file to write.")],
    manifest: Annotated[str, typer.Option(help="Of the corpus.")] = "manifest.csv",
) -> None:
    """Write a study file with every choice at its default, to be edited."""
    from featurestore.errors import AnalysisError
    from featurestore.study.template import write_template

    if file.exists():
        raise AnalysisError(f"{file} is there already; delete it or choose another name.")
    write_template(file, manifest=manifest)
    print(f"{file}: edit it, then 'featurestore study run {file}'")


@study_app.command("reproduce", epilog=example("featurestore study reproduce ravdess.zip -o again"))
def study_reproduce(
    bundle: Annotated[Path, typer.Argument(help="Zip that --bundle wrote.")],
    output: OutOption,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle's tables again from its pooled data, and compare them with those in it.

    Exit code 1 if any number differs by more than a millionth.
    """
    from featurestore.study.bundle import read_bundle
    from featurestore.study.run import reproduce

    with analysis_notes():
        found, compared = reproduce(read_bundle(bundle), output, progress=False if quiet else None)
    same = bool(compared["same"].all())
    if as_json:
        tables = compared.to_dict("records")
        print_json({"same": same, "tables": tables, "page": str(found.page)})
    else:
        for row in compared.to_dict("records"):
            apart = row["largest"]
            by = f"to {apart:.1e}" if apart == apart else "other rows or columns"
            said = "the same" if row["same"] else "DIFFERENT"
            print(f"{row['table']:<14} {row['rows']:>7,} rows  {said} ({by})")
        print(found.page)
    if not same:
        raise typer.Exit(1)


def _partial_contents(
    targets: tuple[str, ...], layers: Any, said: list[str], origin: Any, **parts: Any
) -> Contents:
    """Contents of a report with some parts only."""
    import pandas as pd

    from featurestore.report.contents import Contents
    from featurestore.study.run import lineage_of

    return Contents(
        title="", targets=targets, layer_names=layers, corpus={}, speakers=pd.DataFrame(),
        caveats=said, lineage=lineage_of(origin), **parts,
    )  # fmt: skip


def _write(contents: Contents, output: Path, origin: Any) -> list[Path]:
    from featurestore.report.exports import names_of, write_files
    from featurestore.result_files import claim_results, record_results

    claim_results(output, names_of(contents), origin)
    files = write_files(contents, output)
    record_results(output, files, origin)
    note_older(output, origin)
    return files


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line)


def _print_written(files: list[Path]) -> None:
    print(f"{len(files)} files in {files[0].parent}")


def _print_report(found: Report, bundle: Path | None, *, as_json: bool) -> None:
    contents = found.contents
    if found.origin:
        note_older(found.page.parent, found.origin)
    if as_json:
        print_json(
            {
                "page": str(found.page),
                "files": [str(file) for file in found.files],
                "bundle": str(bundle) if bundle else None,
                "statements": list(contents.statements),
                "caveats": list(contents.caveats),
                "notes": list(contents.notes),
                "computed": found.made,
                "from_an_earlier_run": found.used,
                "results": _records(contents.results),
                "comparisons": contents.comparisons.to_dict("records"),
            }
        )
        return
    _print_lines([*contents.statements, ""])
    _print_lines([*(f"note: {one}" for one in [*contents.caveats, *contents.notes])])
    kept = f", {len(found.used)} taken from an earlier run" if found.used else ""
    print(f"{len(found.made)} stages computed{kept}; {len(found.files)} files")
    if bundle:
        print(f"{bundle}: pooled data, folds and results, without audio")
    print(found.page)


def _records(results: pd.DataFrame) -> list[dict[str, Any]]:
    from featurestore.analysis.scores import summarise

    return summarise(results).to_dict("records") if len(results) else []
