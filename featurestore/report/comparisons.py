"""Paired comparisons as Markdown, CSV and a figure of differences with their intervals."""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from featurestore.errors import AnalysisError
from featurestore.files import replacing
from featurestore.provenance import Provenance, read_provenance, record_results

_HEADINGS = {"mse": "MSE", "ccc": "CCC", "ccc_pooled": "CCC pooled"}
_DPI = 150
_PER_INCH = 17  # characters of the footer, of 7 points
_BETTER, _WORSE, _OPEN = "#1b6ca8", "#b5432a", "0.45"


def markdown_comparison(
    rows: pd.DataFrame, *, notes: Sequence[str] = (), provenance: Provenance | None = None
) -> str:
    """Differences with intervals as a Markdown table.

    Args:
        rows: from `compare`, or several such tables concatenated.
        notes: caveats to print below.
        provenance: what the values were computed from, said in the last line.
    """
    lines = [
        "| Target | Measure | First | Second | First value | Second value | Difference "
        "| Interval | p | Speakers |",
        "| :-- | :-- | :-- | :-- | --: | --: | --: | :-- | --: | --: |",
    ]
    for row in rows.to_dict("records"):
        cells = [
            str(row["target"]),
            _HEADINGS.get(row["measure"], row["measure"]),
            str(row["first"]),
            str(row["second"]),
            f"{row['first_value']:.3f}",
            f"{row['second_value']:.3f}",
            f"{row['difference']:+.3f}",
            f"{row['low']:+.3f} to {row['high']:+.3f}",
            _probability(row["p"]),
            str(row["speakers"]),
        ]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    lines += [
        "",
        "Difference: first minus second, paired over held-out speakers; a negative one of MSE and "
        "a positive one of CCC favour the first. Interval: "
        f"{_level(rows)}, bootstrap over speakers (BCa). p: two-sided, swapping the two within "
        "speakers. Not corrected for the number of comparisons.",
    ]
    if notes:
        lines += ["", *(f"- {note}" for note in dict.fromkeys(notes))]
    if provenance:
        lines += ["", provenance.footer]
    return "\n".join(lines) + "\n"


def _level(rows: pd.DataFrame) -> str:
    return " and ".join(f"{100 * one:g} %" for one in rows["confidence"].unique())


def _probability(p: float) -> str:
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
        "csv": rows.to_csv(index=False, na_rep="NaN"),
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
    from matplotlib.figure import Figure

    targets = list(rows["target"].unique())
    measures = [m for m in ("mse", "ccc_pooled") if (rows["measure"] == m).any()]
    pairs = list(dict.fromkeys(zip(rows["first"], rows["second"], strict=True)))
    height = 1.1 + len(measures) * (0.65 + 0.27 * len(pairs))
    figure = Figure(figsize=(3.2 + 3.4 * len(targets), height), dpi=_DPI, layout="constrained")
    grid = figure.subplots(len(measures), len(targets), squeeze=False, sharey=True, sharex="row")
    for line, measure in enumerate(measures):
        for column, target in enumerate(targets):
            axes = grid[line][column]
            chosen = rows[(rows["target"] == target) & (rows["measure"] == measure)]
            for row in chosen.to_dict("records"):
                place = pairs.index((row["first"], row["second"]))
                colour = _colour(row["low"], row["high"], lower_is_better=measure == "mse")
                axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
                axes.plot(row["difference"], place, "o", color=colour, markersize=5)
            axes.axvline(0, color="0.25", linewidth=0.8)
            axes.set_yticks(range(len(pairs)), [_plain(f"{a}\nvs {b}") for a, b in pairs])
            axes.set_ylim(len(pairs) - 0.5, -0.5)
            axes.tick_params(labelsize=7, length=2)
            axes.spines[["top", "right", "left"]].set_visible(False)
            side = "lower is better" if measure == "mse" else "higher is better"
            axes.set_xlabel(f"difference in {_HEADINGS[measure]} ({side})", fontsize=8)
            if not line:
                axes.set_title(_plain(str(target).capitalize()), loc="left", fontweight="bold")
    said = [
        "Dots: first minus second, paired over held-out speakers. "
        f"Lines: {_level(rows)} bootstrap intervals."
    ]
    said += [*notes, *([provenance.footer] if provenance else [])]
    at = int(_PER_INCH * figure.get_figwidth())
    lines = [line for text in said for line in textwrap.wrap(text, at)]
    figure.supxlabel(_plain("\n".join(lines)), fontsize=7, x=0.01, ha="left", color="0.3")
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        chunks = provenance.png if provenance else {}
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor="white", metadata=chunks)


def _colour(low: float, high: float, *, lower_is_better: bool) -> str:
    """Blue where the first is better beyond the interval, red where worse, grey between."""
    if not (low > 0 or high < 0):
        return _OPEN
    return _BETTER if (high < 0) == lower_is_better else _WORSE


def _plain(text: str) -> str:
    """Text as it is: a dollar sign in a name does not start a formula."""
    return text.replace("$", r"\$")
