"""A report as files for a paper: its figures as PNG and SVG, its tables as CSV and LaTeX."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import pandas as pd

from featurestore.files import replacing
from featurestore.report import comparisons, latex
from featurestore.report.contents import Contents
from featurestore.report.names import file_names
from featurestore.report.spreadsheet import csv_text
from featurestore.report.tables import caption, long_table, stem_of, undefined_means

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Format = Literal["png", "svg"]

_FORMATS: tuple[Format, ...] = ("png", "svg")
_DPI = 200
_SAID_WHOLE = re.compile(r"[A-Za-z0-9._-]{1,40}")
# Without the sign between the two, so that one name is of one pair.
_TARGET_WHOLE = re.compile(r"[A-Za-z0-9_]{0,23}[A-Za-z0-9]")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_SAID = ("state", "view", "featurestore")  # in PNG files; nothing that tells about our disks


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a report.

    Attributes:
        data: all digits, for the CSV file.
        paper: as it is set in LaTeX; None of one that does not fit a paper.
        caption: of it.
    """

    data: pd.DataFrame
    paper: pd.DataFrame | None = None
    caption: str = ""


def write_files(contents: Contents, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every figure as PNG and SVG and every table as CSV, those for a paper also as LaTeX.

    Files are replaced whole, and the same contents give the same bytes.

    Args:
        contents: of the report; what is empty in it gets no file.
        folder: made where it is missing.

    Returns:
        The files written: `<stem>.csv` and `<stem>.tex` of `tables_of`, then `<stem>.png` and
        `<stem>.svg` of `figures_of`. CSV files have NaN where a value is undefined.

    Raises:
        OSError: the folder cannot be written to.
    """
    from featurestore.report.canvas import all_scripts, save

    written = []
    for stem, table in tables_of(contents).items():
        texts = {"csv": csv_text(table.data)}
        if table.paper is not None:
            said = " ".join([table.caption, *contents.caveats])
            texts["tex"] = latex.table(table.paper, caption=said, label=f"tab:{stem}")
        for suffix, text in texts.items():
            path = Path(folder) / f"{stem}.{suffix}"
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
            written.append(path)
    facts = {key: contents.lineage[key] for key in _SAID if key in contents.lineage}
    chunks = {f"featurestore.{key}": str(value) for key, value in facts.items()}
    with all_scripts():
        for stem, draw in figures_of(contents).items():
            figure = draw()
            for format in _FORMATS:
                path = Path(folder) / f"{stem}.{format}"
                inside = chunks if format == "png" else None
                save(figure, path, inside, format=format, dpi=_DPI)
                written.append(path)
    return written


def names_of(contents: Contents) -> list[str]:
    """Names of the files that `write_files` writes."""
    tables = tables_of(contents).items()
    return [
        *(f"{stem}.csv" for stem, _ in tables),
        *(f"{stem}.tex" for stem, table in tables if table.paper is not None),
        *(f"{stem}.{format}" for stem in figures_of(contents) for format in _FORMATS),
    ]


_TABLES = (
    *("table1", "table2", "table-pooling", "table-baselines", "table-controls", "table-own"),
    *("comparisons", "permutations", "speakers", "stability", "thresholds", "confounds", "curves"),
    "trends",
)
_FIGURES = ("stability", "confounds", "layer-curves", "comparisons", "permutations")


def usual_names(targets: Sequence[str], *, of: Collection[str] | None = None) -> list[str]:
    """Names of the files that a report may have whatever is found, but for those of traces.

    Args:
        targets: of the report.
        of: stems, where only some parts are made; those of maps are `map`.
    """
    maps = list(_safe({f"map-{target}": target for target in targets}))
    stems = {
        **dict.fromkeys(_TABLES, ("csv", "tex")),
        "folds": ("csv",),
        **dict.fromkeys(maps, ("csv",)),
    }
    found = [(stem, suffix) for stem, suffixes in stems.items() for suffix in suffixes]
    found += [(stem, format) for stem in (*_FIGURES, *maps) for format in _FORMATS]
    return [
        f"{stem}.{suffix}"
        for stem, suffix in found
        if of is None or (stem if stem not in maps else "map") in of
    ]


def trace_names(ids: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Names of the files of traces of utterances, by one model."""
    stems = [trace_stem(id, target) for id in ids for target in targets]
    return [f"{stem}.{suffix}" for stem in stems for suffix in ("csv", *_FORMATS)]


def figures_of(contents: Contents) -> dict[str, Callable[[], Figure]]:
    """What draws each figure of a report, by the stem of its file.

    Stems: `map-<target>`, `stability`, `confounds`, `layer-curves`, `comparisons`, `permutations`,
    and `trace-<id>-<target>` (`trace_stem`). Those without values are left out.
    """
    from featurestore.report import drawings, model_drawings

    mapped = set(contents.maps.get("target", ()))
    found: dict[str, Callable[[], Figure]] = {
        f"map-{target}": partial(drawings.draw_map, contents, target)
        for target in contents.targets
        if target in mapped
    }
    for name, table, draw in (
        ("stability", contents.stability, drawings.draw_stability),
        ("confounds", contents.confounds, drawings.draw_confounds),
        ("layer-curves", contents.curves, model_drawings.draw_curves),
        ("comparisons", contents.comparisons, model_drawings.draw_comparisons),
        ("permutations", contents.permutations, model_drawings.draw_permutations),
    ):
        if not table.empty:
            found[name] = partial(draw, contents)
    for number, stem in enumerate(_trace_stems(contents)):
        found[stem] = partial(model_drawings.draw_trace, contents, number)
    return _safe(found)


def tables_of(contents: Contents) -> dict[str, Table]:
    """Each table of a report, by the stem of its file.

    Stems: `table<n>` of the numbered result tables, `table-<name>` of the others, `folds` (all of
    them, a row per fold), `comparisons`, `permutations`, `map-<target>`, `thresholds`, `stability`,
    `confounds`, `curves`, `trends`, `speakers`, and `trace-<id>-<target>` (`trace_stem`; a row per
    frame). Empty ones are left out.
    """
    found = {**_result_tables(contents.results), "folds": Table(contents.results)}
    if not contents.comparisons.empty:
        found["comparisons"] = Table(
            contents.comparisons,
            comparisons.paper_table(contents.comparisons),
            comparisons.caption(contents.comparisons),
        )
    for name, said in _CAPTIONS.items():
        table = getattr(contents, name)
        found[name] = Table(table, table, said)
    for target, rows in _by_target(contents.maps, contents).items():
        found[f"map-{target}"] = Table(rows)
    confounds = _layers_named(contents.confounds, contents).rename(columns=_OF_CONFOUNDS)
    found["confounds"] = Table(contents.confounds, confounds, _CONFOUNDS)
    curves = _layers_named(contents.curves, contents)
    found["curves"] = Table(contents.curves, curves, _CURVES)
    found["trends"] = Table(contents.trends, contents.trends, _TRENDS)
    for stem, trace in zip(_trace_stems(contents), contents.traces, strict=True):
        over_time = pd.DataFrame({"time_s": trace.time_s, "value": trace.values})  # noqa: PD011
        found[stem] = Table(over_time)
    return _safe({stem: table for stem, table in found.items() if not table.data.empty})


def trace_stem(id: str, target: str) -> str:
    """Of the files of a trace: `trace-<id>-<target>`, the same in every report.

    Where a file name cannot say both, what it can say of them and the start of their SHA-256, so
    that no other utterance or target has it.
    """
    if _SAID_WHOLE.fullmatch(id) and _TARGET_WHOLE.fullmatch(target):
        return f"trace-{id}-{target}"
    digest = hashlib.sha256(json.dumps([id, target]).encode()).hexdigest()[:12]
    # Ids and targets of which nothing is left have the digest.
    parts = [_UNSAFE.sub("_", part)[:24].strip("._-") for part in (id, target)]
    return "-".join(["trace", *filter(None, parts), digest])


def _trace_stems(contents: Contents) -> list[str]:
    """A stem for each trace; those of one utterance and target by several models are counted."""
    found: list[str] = []
    for trace in contents.traces:
        stem = trace_stem(trace.id, trace.target)
        again = sum(
            (one.id, one.target) == (trace.id, trace.target)
            for one in contents.traces[: len(found)]
        )
        found.append(f"{stem}-{again + 1}" if again else stem)
    return found


_CAPTIONS = {
    "permutations": "What was observed, and mean and interval of the same measure after permuting "
    "the labels.",
    "speakers": "Speakers, with mean and standard deviation of their labels and the number of "
    "utterances without one.",
    "stability": "How alike a speaker's correlations are to those of the other speakers "
    "(similarity), and how alike their reliability lets them be (ceiling).",
    "thresholds": "Units that follow a label: defined ones, those with q < 0.05, those of them "
    "also without what the covariates explain, and the r within speakers that the largest of all "
    "units exceeds in 5 % of permutations.",
}


_CONFOUNDS = (
    "How each layer's units follow what else may explain a label: mean and largest |r| over units, "
    "and the mean |r| of unrelated values."
)
_OF_CONFOUNDS = {"kind": "Over", "max_abs_r": "Largest |r|", "chance": "By chance"}
_CURVES = (
    "Ridge regression on one layer alone, speakers held out, with intervals by a bootstrap over "
    "speakers."
)
_TRENDS = (
    "Change of the held-out CCC of single layers from the first to the last, along a straight line "
    "fitted to each speaker's curve; mean over speakers with its bootstrap interval, and p of "
    "Student's t and of Wilcoxon's signed ranks."
)


def _result_tables(results: pd.DataFrame) -> dict[str, Table]:
    found: dict[str, Table] = {}
    if results.empty:
        return found
    for name, rows in results.groupby("table", sort=False):
        stem = stem_of(name)
        values = long_table(rows)
        # LaTeX numbers its tables itself.
        said = [caption(rows).removeprefix(f"Table {name}. "), *undefined_means(rows)]
        found[stem] = Table(values, values, " ".join(said))
    return found


def _layers_named(table: pd.DataFrame, contents: Contents) -> pd.DataFrame:
    """A table with the names of layers instead of their places."""
    if table.empty:
        return table
    names = dict(enumerate(map(str, contents.layer_names)))
    return table.assign(layer=[names.get(int(one), str(one)) for one in table["layer"]])


def _by_target(table: pd.DataFrame, contents: Contents) -> dict[str, pd.DataFrame]:
    if table.empty:
        return {}
    return {target: table[table["target"] == target] for target in contents.targets}


def _safe(found: Mapping[str, T]) -> dict[str, T]:
    stems = file_names(found)
    return {stems[name]: value for name, value in found.items()}
