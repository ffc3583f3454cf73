"""CSV that a spreadsheet shows as it is written, whatever a corpus calls its speakers."""

from __future__ import annotations

import csv
from typing import Any

import pandas as pd

# With these a cell begins that spreadsheets run as a formula, or strip until they can.
_LIVE = ("=", "+", "-", "@", "\t", "\r")


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV with all digits, NaN where a value is undefined, and no live formula.

    Text that a spreadsheet would take for a formula, in a cell or a heading, gets a `'` before it,
    which shows it as text; numbers stay what they are.

    Args:
        table: without its index.
    """
    plain, returns = table.copy(deep=False), False
    for place, name in enumerate(table.columns):
        if not pd.api.types.is_numeric_dtype(table[name]):
            column = [inert(value) for value in table[name]]
            plain.isetitem(place, pd.Series(column, table.index, dtype=object))
            returns |= any("\r" in value for value in column if isinstance(value, str))
    plain.columns = pd.Index([inert(name) for name in table.columns])
    # Python before 3.13 does not quote a lone carriage return, which readers take for a line's end.
    quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    text: str = plain.to_csv(index=False, na_rep="NaN", lineterminator="\n", quoting=quoting)
    return text


def inert(value: Any) -> Any:
    """A cell's value, text that begins like a formula and is no number behind a `'`."""
    if not isinstance(value, str) or not value.startswith(_LIVE):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
