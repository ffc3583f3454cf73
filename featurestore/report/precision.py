"""What a storage type of frames costs, as Markdown and CSV."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.analysis.precision import REFERENCE
from featurestore.errors import AnalysisError
from featurestore.files import replacing
from featurestore.report.spreadsheet import csv_text

_BYTES = "MB per hour"
_FRAMES = {
    _BYTES: "bytes_per_hour",
    "Activation MSE": "activation_mse",
    "Largest error": "activation_max_error",
    "Largest error of a mean": "mean_max_error",
}
_SCIENCE = {
    "Largest change of r": "r_change_max",
    "Mean change of r": "r_change_mean",
    "Units lost": "units_lost",
    "CCC": "ccc",
    "Change": "ccc_change",
    "CCC pooled": "ccc_pooled",
    "Change ": "ccc_pooled_change",
    "MSE": "mse",
    "Change  ": "mse_change",
}


def markdown_precision(audit: pd.DataFrame, *, notes: Sequence[str] = ()) -> str:
    """Two tables: what the types cost in bytes and errors, and in findings.

    Args:
        audit: what `audit_precision` returned.
        notes: caveats to print below.
    """
    lines = [_line(["Frames", *_FRAMES]), "| :-- |" + " --: |" * len(_FRAMES)]
    for name, rows in audit.groupby("frames", sort=False):
        row = rows.iloc[0]
        cells = [f"{row['bytes_per_hour'] / 1e6:,.1f}"]
        cells += [_small(row[column]) for column in list(_FRAMES.values())[1:]]
        lines.append(_line([_named(str(name)), *cells]))
    lines += [
        "",
        _line(["Target", "Frames", *_SCIENCE]),
        "| :-- | :-- |" + " --: |" * len(_SCIENCE),
    ]
    for _, rows in audit.groupby("target", sort=False):
        for row in rows.to_dict("records"):
            cells = [_score(name, row[name]) for name in _SCIENCE.values()]
            lines.append(_line([row["target"], _named(row["frames"]), *cells]))
    lines += ["", _caption(audit), ""]
    said = dict.fromkeys([*audit.attrs.get("notes", []), *notes])
    return "\n".join([*lines, *(f"- {note}" for note in said)]) + "\n"


def write_precision(
    audit: pd.DataFrame, out_dir: str | os.PathLike[str], *, notes: Sequence[str] = ()
) -> list[Path]:
    """Write `precision.md` and `precision.csv`; the latter has all digits, NaN for the unknown.

    Args:
        audit: what `audit_precision` returned.
        out_dir: folder, made where it is missing.
        notes: caveats to print below the Markdown tables.

    Returns:
        The files written.

    Raises:
        AnalysisError: `audit` is empty.
    """
    if audit.empty:
        raise AnalysisError("No audit to write: it has no row.")
    written = []
    for suffix, text in (
        ("md", markdown_precision(audit, notes=notes)),
        ("csv", csv_text(audit)),
    ):
        path = Path(out_dir) / f"precision.{suffix}"
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    return written


def _caption(audit: pd.DataFrame) -> str:
    counts = "; ".join(
        f"{row['target']}: {int(row['utterances']):,} utterances, {int(row['speakers'])} speakers"
        for row in audit[audit["frames"] == REFERENCE].to_dict("records")
    )
    return (
        f"View {audit.attrs.get('view', '')}, capture {audit.attrs.get('capture', '')}. {counts}. "
        "Every row but the first takes the mean over each utterance's frames in that type; the "
        "first one's means are kept in float32 from activations that were never rounded, and "
        "changes are from there. r: Pearson's, per unit. Units lost: those whose mean became the "
        "same for all. CCC (Lin 1989) and MSE: linear regression on the best units, leaving one "
        "speaker out, mean over speakers; pooled is of all held-out predictions together. Bytes "
        "are those of the values of one capture. -: not known from this store."
    )


def _named(name: str) -> str:
    return "none, means alone" if name == REFERENCE else name


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|").strip() for cell in cells) + " |"


def _small(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2e}" if value else "0"


def _score(column: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if column == "units_lost":
        return str(int(value))
    if column.startswith("r_"):
        return _small(value)
    return f"{value:+.1e}" if column.endswith("_change") else f"{value:.4f}"
