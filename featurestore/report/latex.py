"""Tables in LaTeX, with the rules of booktabs, and text that LaTeX prints as it is."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd

from featurestore.report.wording import raised

_LONG = 40  # rows; more do not fit a page

_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"{\ttfamily\char34}",
        **{one: f"\\{one}" for one in "_%&#${}"},
    }
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_OPTION = re.compile(r"^[\[*]")
_SIGNED = re.compile(r"[+-]\d+\.\d+( to [+-]\d+\.\d+)?")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?|NaN|< 0\.001")

_HEADINGS = {
    "feature_set": "Features",
    "mean_abs_r": "Mean |r|",
    "chance_abs_r": "Chance |r|",
    "first_abs_r": "First layers' mean |r|",
    "last_abs_r": "Last layers' mean |r|",
    "label_sd": "Label SD",
    "partial_significant": "Significant, also partial",
    "null_mean": "Permuted mean",
    "null_low": "Permuted low",
    "null_high": "Permuted high",
    "n": "n",
    "p": "p",
}
_MEASURES = {"mse": "MSE", "ccc": "CCC", "ccc_pooled": "CCC pooled", "r2": "R2"}


def escaped(text: object) -> str:
    """Text that LaTeX prints as it is; other scripts pass, and need a font that has them."""
    line = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(str(text).split()))
    line = line.translate(_SPECIAL)
    # At the start of a row these would be taken for an option of the line break before it.
    return _OPTION.sub(lambda found: f"{{{found[0]}}}", line)


def table(values: pd.DataFrame, *, caption: str, label: str) -> str:
    r"""A table environment for `\input`; a longtable where it does not fit a page.

    Args:
        values: numbers are printed with three decimals, NaN as NaN, names of columns as headings.
        caption: plain text.
        label: for `\ref`.
    """
    columns = [[_cell(str(name), value) for value in values[name]] for name in values]
    headings = [escaped(_heading(str(name))) for name in values]
    numbers = [all(_NUMBER.fullmatch(cell) for cell in column) for column in columns]
    cells = pd.DataFrame(
        [[_typeset(cell) for cell in row] for row in zip(*columns, strict=True)], columns=headings
    )
    long = len(values) > _LONG
    text = cells.style.hide(axis="index").to_latex(
        hrules=True,
        column_format="".join("r" if number else "l" for number in numbers),
        caption=escaped(caption),
        label=label,
        environment="longtable" if long else None,
        position=None if long else "htbp",
        position_float=None if long else "centering",
    )
    needed = ["booktabs", *(["longtable"] if long else [])]
    return "".join(f"% needs \\usepackage{{{name}}}\n" for name in needed) + text


def _cell(column: str, value: Any) -> str:
    """A value as text, before LaTeX."""
    if value is None or value is pd.NA:
        return "NaN"
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return "NaN"
        # Counts are floats in a column where one is missing.
        if _counts(column) and number.is_integer():
            return str(int(number))
        if column == "p" and number < 0.001:
            return "< 0.001"
        return f"{number:z.3f}"
    return _MEASURES.get(str(value), str(value)) if column == "measure" else str(value)


def _typeset(cell: str) -> str:
    signed = _SIGNED.fullmatch(cell)
    return re.sub("([+-])", r"$\1$", cell) if signed else escaped(cell)


def _counts(column: str) -> bool:
    return column in ("n", "utterances", "permutations", "defined") or column.endswith(
        ("_missing", "significant")
    )


def _heading(name: str) -> str:
    """A column's name for readers."""
    if name in _HEADINGS:
        return _HEADINGS[name]
    return raised(name).replace("_", " ") if name.isidentifier() else name
