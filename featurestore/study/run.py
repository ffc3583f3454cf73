"""Run a study: ingest, analyses, traces, report; and make its tables again from a bundle."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featurestore.analysis.features import AnalysisWarning
from featurestore.analysis.trace import MODEL, Trace, trace
from featurestore.errors import AnalysisError
from featurestore.provenance import Provenance, reading
from featurestore.report.contents import Contents
from featurestore.report.exports import names_of, write_files
from featurestore.report.page import write_page
from featurestore.result_files import check_output, claim_results, read_provenance, record_results
from featurestore.study.analyses import Findings, analyse
from featurestore.study.assemble import chosen_ids, contents_of
from featurestore.study.bundle import Bundle, last_part, write_bundle
from featurestore.study.cache import Cache
from featurestore.study.checks import PAGE, check_places, check_study, ingests, of_its_weights
from featurestore.study.config import AnalysisPlan, Study
from featurestore.study.sets import units_of
from featurestore.study.views import Studied, view_named

if TYPE_CHECKING:
    from featurestore.ingest import IngestSummary

_CACHE = "cache"
_SHOWN = 5  # utterances that are named in a note


@dataclass(frozen=True, eq=False)
class Report:
    """What was written.

    Attributes:
        page: the HTML page.
        files: all files, the page first.
        contents: what they show.
        made: stages that were computed.
        used: stages whose results were those of an earlier run.
        origin: what the store was; None of a bundle.
    """

    page: Path
    files: list[Path]
    contents: Contents
    made: list[str]
    used: list[str]
    origin: Provenance | None = None


def run_study(
    study: Study,
    *,
    command: str | None = None,
    bundle: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Report:
    """Everything from ingest to report; what an earlier run did is done again only if it changed.

    Args:
        study: from `read_study`.
        command: that made it, for the lineage.
        bundle: zip file to write as well.
        progress: whether to show bars; None shows them on a terminal.

    Raises:
        FeatureStoreError: whatever keeps the ingest or an analysis from being done.
    """
    check_study(study, bundle=bundle)
    notes: list[str] = []
    if study.manifest:
        made = ingest_study(study, progress=progress)
        study, notes = of_its_weights(study, made[0].views), _set_aside(made)
    return report(study, command=command, bundle=bundle, notes=notes, progress=progress)


def ingest_study(study: Study, *, progress: bool | None = None) -> list[IngestSummary]:
    """Put a study's corpus into its store: with its network, and with those it is compared with.

    Args:
        study: with a manifest.
        progress: whether to show bars.
    """
    from featurestore.ingest import ingest

    return [
        ingest(study.manifest, study.store, encoder=weights, config=one, progress=progress)
        for weights, one in ingests(study)
    ]


def _set_aside(made: Sequence[IngestSummary]) -> list[str]:
    """A note on utterances that the ingest could not read."""
    reasons = {
        one.id: _without_folder(one.reason, one.path) for summary in made for one in summary.skipped
    }
    said = "; ".join(f"{id} ({reason})" for id, reason in list(reasons.items())[:_SHOWN])
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return [f"{len(reasons)} utterances could not be read: {said}{more}."] if reasons else []


def _without_folder(reason: str, path: str) -> str:
    """A reason that names a file by its name alone: a page tells nothing of this machine."""
    name, folder = last_part(path), os.path.dirname(path)
    said = reason.replace(path, name).replace(repr(path), repr(name))
    return said.replace(f"{folder}/", "") if len(folder) > 1 else said


def report(
    study: Study,
    *,
    command: str | None = None,
    bundle: str | os.PathLike[str] | None = None,
    notes: Sequence[str] = (),
    progress: bool | None = None,
) -> Report:
    """Analyse a store and write its report.

    Args:
        study: whose store is there; its manifest and ingest do not count.
        command: that made it, for the lineage.
        bundle: zip file to write as well.
        notes: on the corpus, for the report.
        progress: whether to show bars; None shows them on a terminal.

    Raises:
        AnalysisError: an unknown label, view or speaker; folds that would leak; a store that
            changed meanwhile; a place to write to that holds something else.
        StoreError: no store, or an unfinished one.
    """
    check_places(study, bundle)
    folder = Path(study.output)
    cache = Cache(folder / _CACHE)
    with reading(study.store) as source:
        store = Studied(source.store)
        findings = analyse(store, study, cache=cache, progress=progress)
        traces, untraced = _traces(store, findings, study)
        plan = study.analysis
        origin = source.provenance(
            views=_read_views(findings, store),
            capture=plan.capture or None,
            statistic="mean",
            targets=plan.targets,
            command=command,
            study=dataclasses.asdict(plan),
        )
    lineage = lineage_of(origin)
    said = [*notes, *untraced]
    contents = contents_of(
        findings,
        study,
        facts=store.facts,
        traces=traces,
        lineage=lineage,
        notes=said,
    )
    claim_results(folder, [PAGE, *names_of(contents)], origin)
    files = _write(contents, folder)
    earlier = [name for name, facts in read_provenance(folder).items() if _of_a_report(facts)]
    record_results(folder, files, origin, instead_of=earlier)
    if bundle:
        write_bundle(
            bundle, store=store, study=study, findings=findings, traces=traces, lineage=lineage,
            notes=said,
        )  # fmt: skip
    cache.forget_others()
    return Report(files[0], files, contents, cache.made, cache.used, origin)


def _read_views(findings: Findings, store: Studied) -> list[str]:
    """Names of the views that were read, the main one first."""
    read = [view_named(store.facts, block.view) for block in findings.joined.blocks]
    return list(dict.fromkeys([findings.main.name, *read]))


def _of_a_report(facts: Mapping[str, Any]) -> bool:
    """Whether a result was written by `report`, of whatever study."""
    return "study" in facts.get("options", {})


def _write(contents: Contents, folder: Path) -> list[Path]:
    files = write_files(contents, folder)
    page = folder / PAGE
    write_page(contents, page, files=[path.name for path in files])
    return [page, *files]


def lineage_of(origin: Provenance) -> dict[str, str]:
    """What a report says of where it came from: nothing about this machine's folders."""
    facts = origin.facts
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    return {
        "store": last_part(origin.store),
        "state": origin.state,
        "views": ", ".join(facts["views"]),
        "featurestore": str(facts["featurestore"]),
        "versions": versions,
        "made": str(facts["made"]),
        "command": _without_places(str(facts["command"])),
    }


def _without_places(command: str) -> str:
    """A command line with the names of files and folders, but not where they are."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote without its other half
        words = command.split()
    return shlex.join(_placeless(word) for word in words)


def _placeless(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{option}{equals}{last_part(value)}"


def _traces(store: Studied, findings: Findings, study: Study) -> tuple[list[Trace], list[str]]:
    """Traces of the study's utterances, or a note on why there are none."""
    if not findings.main.frames:
        return [], ["The view was ingested without frames, so there are no traces."]
    ids = chosen_ids(findings, study)
    model = dataclasses.replace(MODEL, features=f"{units_of(findings.main, study.analysis)}.mean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnalysisWarning)
        return trace(store.store, ids, targets=study.analysis.targets, model=model), []


def reproduce(
    bundle: Bundle, folder: str | os.PathLike[str], *, progress: bool | None = None
) -> tuple[Report, pd.DataFrame]:
    """Make a bundle's tables again from its pooled data, and its report.

    Args:
        bundle: from `read_bundle`.
        folder: for the report, new or empty: nothing says what its files were computed from.
        progress: whether to show bars.

    Returns:
        The report, and per table: rows, `largest` relative difference between the numbers in the
        bundle and those made again, and whether it is `same`: to 1e-6, and every text.

    Raises:
        AnalysisError: a folder that is not empty.
    """
    check_output(folder)
    if os.path.isdir(folder) and os.listdir(folder):
        raise AnalysisError(f"{os.fspath(folder)} is not empty; give a new folder (-o).")
    study = dataclasses.replace(bundle.study, output=os.fspath(folder))
    cache = Cache(None)
    findings = analyse(bundle, study, cache=cache, progress=progress)
    lineage = {**bundle.lineage, "made again from": "a bundle of pooled data"}
    contents = contents_of(
        findings,
        study,
        facts=bundle.facts,
        traces=bundle.traces,
        lineage=lineage,
        notes=bundle.notes,
    )
    files = _write(contents, Path(folder))
    compared = compare_tables(bundle.tables, findings.tables)
    return Report(files[0], files, contents, cache.made, cache.used), compared


def compare_tables(
    before: Mapping[str, pd.DataFrame], after: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """How far the numbers of two sets of tables are apart; see `reproduce`."""
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            rows.append({"table": name, "rows": 0, "largest": math.nan, "same": False})
            continue
        largest, same = _apart(before[name].reset_index(drop=True), after[name])
        rows.append({"table": name, "rows": len(after[name]), "largest": largest, "same": same})
    return pd.DataFrame(rows)


def _apart(before: pd.DataFrame, after: pd.DataFrame) -> tuple[float, bool]:
    if list(before.columns) != list(after.columns) or len(before) != len(after):
        return math.nan, False
    largest, same = 0.0, True
    for name in before.columns:
        if pd.api.types.is_numeric_dtype(before[name]) and before[name].dtype.kind != "b":
            a, b = before[name].to_numpy(np.float64), after[name].to_numpy(np.float64)
            same &= bool((np.isnan(a) == np.isnan(b)).all())
            size = np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-6)
            with np.errstate(invalid="ignore"):
                apart = np.where(a == b, 0.0, np.abs(a - b) / size)
            apart[(np.isinf(a) | np.isinf(b)) & (a != b)] = np.inf
            largest = max(largest, float(np.nanmax(apart, initial=0.0)))
        else:
            same &= before[name].astype(str).tolist() == after[name].astype(str).tolist()
    return largest, same and largest <= 1e-6


def default_study(store: str, output: str, **plan: Any) -> Study:
    """The study of a store that nobody wrote a file for.

    Args:
        store: folder or URL.
        output: folder of the report.
        plan: fields of `AnalysisPlan` that differ from its defaults.
    """
    return Study(store, output, analysis=AnalysisPlan(**plan))


def plan_lines(study: Study) -> list[str]:
    """What running a study will do, for people."""
    plan, ingest = study.analysis, study.ingest
    lines = [f"Study {study.title or study.store}"]
    if study.manifest:
        networks = ", ".join([ingest.weights, *ingest.controls])
        lines.append(f"  ingest        {study.manifest} into {study.store}, networks {networks}")
    else:
        lines.append(f"  store         {study.store}, as it is")
    lines += [
        f"  targets       {', '.join(plan.targets)}",
        f"  folds         {plan.folds}",
        f"  maps          given {', '.join(plan.covariates) or 'nothing'}; "
        f"{plan.permutations:,} permutations, {plan.resamples:,} resamples",
        f"  feature sets  tables 1 and 2, pooling, baselines, controls; own: {len(study.sets)}",
        f"  traces        {', '.join(study.traces.ids) or f'of {study.traces.count} utterances'}",
        f"  report        {Path(study.output) / PAGE}",
    ]
    return lines
