"""How names and numbers are put, wherever they are: in sentences, tables, figures and the page."""

from __future__ import annotations

import pandas as pd

LEAST_PERMUTATIONS = 20  # with fewer, no p_max can be below 0.05
_MOST_DIGITS = 6


def covariates_of(thresholds: pd.DataFrame, target: str) -> str | None:
    """Names of the covariates of a partial map, "" where there are none; None if not known."""
    if "covariates" not in thresholds:
        return None
    names = thresholds["covariates"][thresholds["target"] == target]
    if names.empty:
        return None
    return str(names.iloc[0]) if isinstance(names.iloc[0], str) else ""


def raised(name: object) -> str:
    """A name at the start of a sentence; of EmoAct nothing but the first letter may change."""
    text = str(name)
    return text[:1].upper() + text[1:]


def end_digits(value: float, digits: int = 3) -> int:
    """Digits after the point of an interval's end, so that it is seen on which side of zero it is.

    Args:
        value: finite.
        digits: where they leave something of the value.

    Returns:
        `digits`, or as many more, up to 6, as the first significant one needs.
    """
    for enough in range(digits, _MOST_DIGITS + 1):
        if float(f"{value:.{enough}f}"):
            return enough
    return digits
