"""Paired comparisons as Markdown, CSV and a figure of differences with their intervals."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from featurestore.errors import AnalysisError
from featurestore.files import replacing
from featurestore.provenance import Provenance
from featurestore.report.spreadsheet import csv_text
from featurestore.report.wording import end_digits
from featurestore.result_files import read_provenance, record_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEADINGS = {"mse": "MSE", "ccc": "CCC", "ccc_pooled": "CCC pooled"}
_DRAWN = ("mse", "ccc", "ccc_pooled")
_LONGEST = 34  # characters of a feature set's name beside a row


def markdown_comparison(
    rows: pd.DataFrame, *, notes: Sequence[str] = (), provenance: Provenance | None = None
) -> str:
    """Differences with intervals as a Markdown table.

    Args:
        rows: from `compare`, or several such tables concatenated.
        notes: caveats to print below.
        provenance: what the values were computed from, said in the last line.
    """
    table = paper_table(rows)
    lines = [
        "| " + " | ".join(table.columns) + " |",
        "| :-- | :-- | :-- | :-- | --: | --: | --: | :-- | --: | --: |",
    ]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |")
    lines += ["", caption(rows)]
    if notes:
        lines += ["", *(f"- {note}" for note in dict.fromkeys(notes))]
    if provenance:
        lines += ["", provenance.footer]
    return "\n".join(lines) + "\n"


def paper_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences with intervals as text with three decimals, headed for readers.

    Args:
        rows: from `compare`, or several such tables concatenated.
    """
    return pd.DataFrame(
        {
            "Target": rows["target"].astype(str),
            "Measure": [_HEADINGS.get(one, str(one)) for one in rows["measure"]],
            "First": rows["first"].astype(str),
            "Second": rows["second"].astype(str),
            "First value": [_number(value) for value in rows["first_value"]],
            "Second value": [_number(value) for value in rows["second_value"]],
            "Difference": [_number(value, sign="+") for value in rows["difference"]],
            "Interval": [
                _interval(low, high) for low, high in zip(rows["low"], rows["high"], strict=True)
            ],
            "p": [probability(p) for p in rows["p"]],
            "Speakers": rows["speakers"].astype(str),
        }
    )


def _number(value: float, *, sign: str = "", digits: int = 3) -> str:
    return f"{value:{sign}z.{digits}f}" if math.isfinite(value) else "NaN"


def _interval(low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "NaN"
    return " to ".join(_number(end, sign="+", digits=end_digits(end)) for end in (low, high))


def caption(rows: pd.DataFrame) -> str:
    """What the numbers of such a table are."""
    return (
        "Difference: first minus second, paired over held-out speakers; a negative one of MSE and "
        "a positive one of CCC favour the first. Interval: "
        f"{_level(rows)}, bootstrap over speakers (BCa). p: two-sided, swapping the two within "
        "speakers. Not corrected for the number of comparisons."
    )


def _level(rows: pd.DataFrame) -> str:
    return " and ".join(f"{100 * one:g} %" for one in rows["confidence"].unique())


def probability(p: float) -> str:
    """A p value with three decimals."""
    if p != p:
        return "NaN"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def write_comparison(
    rows: pd.DataFrame,
    out_dir: str | os.PathLike[str],
    *,
    stem: str = "comparison",
    notes: Sequence[str] = (),
    provenance: Provenance | None = None,
) -> list[Path]:
    """Write `<stem>.md`, `<stem>.csv` and `<stem>.png`.

    Args:
        rows: from `compare`, or several such tables concatenated.
        out_dir: folder, made where it is missing.
        stem: of the file names.
        notes: caveats to print below table and figure.
        provenance: what the values were computed from, said below both and recorded in the
            folder's `provenance.json`.

    Raises:
        AnalysisError: `rows` is empty, or a damaged `provenance.json`.
    """
    if rows.empty:
        raise AnalysisError("No comparison to write: the table has no row.")
    folder = Path(out_dir)
    if provenance:
        read_provenance(folder)  # a damaged one is to be known before anything is written
    contents = {
        "md": markdown_comparison(rows, notes=notes, provenance=provenance),
        "csv": csv_text(rows),
    }
    written = []
    for suffix, text in contents.items():
        with replacing(folder / f"{stem}.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        written.append(folder / f"{stem}.{suffix}")
    draw_comparison(rows, folder / f"{stem}.png", notes=notes, provenance=provenance)
    written.append(folder / f"{stem}.png")
    if provenance:
        record_results(folder, written, provenance)
    return written


def draw_comparison(
    rows: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    notes: Sequence[str] = (),
    provenance: Provenance | None = None,
) -> None:
    """A dot per difference with its interval, one panel per target (across) and measure (down).

    Args:
        rows: from `compare`, or several such tables concatenated.
        path: PNG file to write.
        notes: caveats printed below.
        provenance: what the values were computed from, said below and in text chunks.
    """
    from featurestore.report.canvas import save

    figure = comparison_figure(rows, notes=[*notes, *([provenance.footer] if provenance else [])])
    save(figure, path, provenance.png if provenance else {})


def comparison_figure(rows: pd.DataFrame, *, notes: Sequence[str] = ()) -> Figure:
    """The figure that `draw_comparison` writes.

    A dot is filled where the interval leaves out zero.

    Args:
        rows: from `compare`, or several such tables concatenated.
        notes: printed below.
    """
    from matplotlib.figure import Figure

    from featurestore.report.canvas import DPI, footer, shortened

    targets = list(rows["target"].unique())
    measures = [m for m in _DRAWN if (rows["measure"] == m).any()] or [*rows["measure"].unique()]
    pairs = list(dict.fromkeys(zip(rows["first"], rows["second"], strict=True)))
    height = 1.1 + len(measures) * (0.65 + 0.34 * len(pairs))
    figure = Figure(figsize=(3.2 + 3.4 * len(targets), height), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(measures), len(targets), squeeze=False, sharey=True, sharex="row")
    for line, measure in enumerate(measures):
        for column, target in enumerate(targets):
            chosen = rows[(rows["target"] == target) & (rows["measure"] == measure)]
            most = reach(rows[rows["measure"] == measure])
            _differences(grid[line][column], chosen, pairs, measure, most)
            if not line:
                grid[line][column].set_title(
                    shortened(target), loc="left", fontsize=9, fontweight="bold"
                )
    said = [
        "Dots: first minus second, paired over held-out speakers; filled where the interval leaves "
        f"out zero. Lines: {_level(rows)} bootstrap intervals. Triangles are farther out than "
        "there is room."
    ]
    footer(figure, "\n".join([*said, *notes]))
    return figure


def _differences(
    axes: Axes, rows: pd.DataFrame, pairs: Sequence[tuple[Any, Any]], measure: str, most: float
) -> None:
    """Dots and intervals of one target and measure, one row per pair of feature sets."""
    from featurestore.report.canvas import OPEN, open_frame, shortened

    for row in rows.to_dict("records"):
        place = pairs.index((row["first"], row["second"]))
        colour = _colour(row["low"], row["high"], lower_is_better=measure == "mse")
        ends = [min(max(row[end], -most), most) for end in ("low", "high")]
        axes.plot(ends, [place, place], color=colour, linewidth=2)
        inside = "white" if colour == OPEN else colour
        beyond = abs(row["difference"]) > most
        marker = ("<" if row["difference"] < 0 else ">") if beyond else "o"
        at = math.copysign(most, row["difference"]) if beyond else row["difference"]
        axes.plot(at, place, marker, color=colour, mfc=inside, markersize=5)
    axes.axvline(0, color="0.25", linewidth=0.8, zorder=0)
    names = [[shortened(name, most=_LONGEST) for name in pair] for pair in pairs]
    axes.set_yticks(range(len(pairs)), [f"{first}\nvs {second}" for first, second in names])
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    open_frame(axes, sides=("top", "right", "left"))
    axes.tick_params(labelsize=7)
    side = "lower is better" if measure == "mse" else "higher is better"
    axes.set_xlabel(f"difference in {_HEADINGS.get(measure, measure)} ({side})", fontsize=8)


def reach(rows: pd.DataFrame) -> float:
    """How far an axis of differences goes: four times as far as half of the intervals do.

    One comparison with a feature set that an outlier ruins would make the others points.
    """
    ends = rows[["low", "high", "difference"]].abs().max(axis=1).dropna()
    if ends.empty:
        return math.inf
    return float(min(4 * ends.median(), ends.max())) or math.inf


def _colour(low: float, high: float, *, lower_is_better: bool) -> str:
    """Blue where the first is better beyond the interval, red where worse, grey between."""
    from featurestore.report.canvas import BETTER, OPEN, WORSE

    if not (low > 0 or high < 0):
        return OPEN
    return BETTER if (high < 0) == lower_is_better else WORSE
