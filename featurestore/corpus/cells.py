"""Table cells as text or numbers, and the list of what is wrong with them.

Text columns leave this module as `object` columns of Python `str`, "" where missing: the one form
that pandas 2 and pandas 3 (where `str` is a dtype of its own, with NaN) treat alike.
"""

from __future__ import annotations

import math
import numbers
import os
from typing import NamedTuple

import numpy as np
import pandas as pd

from featurestore.errors import ManifestError

SHOWN = 5  # problems spelled out in one error message


class Problem(NamedTuple):
    """One thing wrong with a table; `row` counts from 1 below the header."""

    message: str
    row: int | None
    column: str | None


class Problems:
    """What is wrong with one table, collected so that a user can correct several cells at once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.ids: list[str] = []
        self._found: list[Problem] = []
        self._cells: set[tuple[int | None, str | None]] = set()

    def add(self, message: str, *, row: int | None = None, column: str | None = None) -> None:
        """Notes one problem, the first of each cell; `row` is the zero-based position."""
        if row is not None and (row, column) in self._cells:
            return
        self._cells.add((row, column))
        self._found.append(Problem(message, None if row is None else row + 1, column))

    def raise_any(self) -> None:
        """Raises what was found so far.

        Raises:
            ManifestError: if anything was; shows the first five and the total.
        """
        if not self._found:
            return
        found = sorted(self._found, key=lambda problem: problem.row or 0)
        lines = [self._line(problem) for problem in found[:SHOWN]]
        note = ""
        if any(problem.row for problem in found):
            note = " (rows are counted from 1 below the header)"
        if len(found) == 1:
            raise ManifestError(f"{self.source}: {lines[0]}{note}")
        if len(found) > SHOWN:
            lines.append(f"and {len(found) - SHOWN} more")
        listed = "\n  ".join(lines)
        raise ManifestError(f"{self.source}: {len(found)} problems{note}:\n  {listed}")

    def _line(self, problem: Problem) -> str:
        where = []
        if problem.row is not None:
            name = self.ids[problem.row - 1] if problem.row <= len(self.ids) else ""
            where.append(f"row {problem.row}" + (f" (id {name!r})" if name.strip() else ""))
        if problem.column is not None:
            where.append(f"column {problem.column!r}")
        return ", ".join(where) + (": " if where else "") + problem.message


def cells_of(column: pd.Series) -> list[object]:
    """The cells of any kind of column as plain Python objects."""
    return column.astype(object).tolist()


def is_missing(value: object) -> bool:
    """True for None, NaN, NaT and pandas.NA; the empty string is up to the caller."""
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def as_text(value: object) -> str | None:
    """A cell as text, "" where missing; None for what is neither text nor a number."""
    if isinstance(value, str):
        return str(value)
    if is_missing(value):
        return ""
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, (numbers.Number, np.generic)) and not isinstance(value, np.datetime64):
        # Readers of tables turn integers into floats where a cell is missing: 3.0 was a 3.
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            return str(int(value))
        return str(value)
    return None


def as_number(value: object) -> float | None:
    """A cell as a number, NaN where missing or spelled "nan"; None for what is not a number."""
    if isinstance(value, str):
        word = value.strip()
        if not word:
            return math.nan
        try:
            # Python reads "1_000" as a number; no other tool does.
            return None if "_" in word else float(word)
        except ValueError:
            return None
    if is_missing(value):
        return math.nan
    if isinstance(value, (numbers.Number, np.bool_)):
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return None
    return None


def is_blank(value: object) -> bool:
    """True for a missing cell and for text without a visible character."""
    return not value.strip() if isinstance(value, str) else is_missing(value)


def text_series(values: list[str]) -> pd.Series:
    """Text in the form described at the top of this module."""
    return pd.Series(values, dtype=object)


def text_column(column: pd.Series, *, name: str, problems: Problems) -> list[str]:
    """A column as text, with a problem for each cell that cannot be."""
    out: list[str] = []
    for row, value in enumerate(cells_of(column)):
        text = as_text(value)
        if text is None:
            problems.add(
                f"{value!r} is a {type(value).__name__}; write text or a number",
                row=row,
                column=name,
            )
        out.append(text or "")
    _check_encodable(out, name=name, problems=problems)
    return out


def _check_encodable(values: list[str], *, name: str, problems: Problems) -> None:
    # File names that are not valid text reach Python as lone surrogates, which no table can hold.
    try:
        "".join(values).encode("utf-8")
    except UnicodeEncodeError:
        for row, value in enumerate(values):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                problems.add(
                    f"{value!r} cannot be written as UTF-8; rename the file or correct the cell",
                    row=row,
                    column=name,
                )


def number_column(column: pd.Series, *, name: str, problems: Problems, way_out: str) -> np.ndarray:
    """A column as finite float64 numbers, NaN where missing, with a problem for each other cell."""
    if is_numeric(column):
        values = np.asarray(column.astype("Float64").to_numpy(dtype="float64", na_value=np.nan))
    else:
        values = np.full(len(column), np.nan)
        for row, cell in enumerate(cells_of(column)):
            number = as_number(cell)
            if number is None:
                problems.add(f"{cell!r} is not a number; {way_out}", row=row, column=name)
            else:
                values[row] = number
    for row in np.flatnonzero(np.isinf(values)).tolist():
        problems.add(f"{values[row]} is not a finite number; {way_out}", row=int(row), column=name)
    return values


def is_numeric(column: pd.Series) -> bool:
    """True for real numbers and booleans, nullable or not."""
    dtype = column.dtype
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)


def mostly_numbers(column: pd.Series) -> bool:
    """True if more than half of the cells that say something are numbers.

    Cells that spell "nan" say that a number is missing, so they do not vote; where there is nothing
    else, they decide.
    """
    voting = [value for value in cells_of(column) if not is_blank(value)]
    parsed = [as_number(value) for value in voting]
    missing = sum(number is not None and math.isnan(number) for number in parsed)
    others = sum(number is None for number in parsed)
    counted = len(parsed) - missing
    if counted == 0:
        return missing > 0
    return 2 * (counted - others) > counted
