"""What the page's script is given: numbers as base64, names as text, all of it inert JSON."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, UInt16
from numpy.typing import NDArray

from featurestore.report.contents import Contents, Scatter

UNDEFINED = 65535  # of quantised values; the levels are those below
_LEVELS = 65534

MAP_COLUMNS = (
    "r",
    "low",
    "high",
    "q",
    "p_max",
    "i2",
    "r_within",
    "within_low",
    "within_high",
    "partial_r",
    "partial_low",
    "partial_high",
    "partial_q",
    "r_between",
    "r_all",
)

# A browser ends a script element at these characters, or a line of a string in old ones.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def inert_json(value: Any) -> str:
    """JSON that no HTML parser finds markup in; numbers that are not finite become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate, as in a file name that is not UTF-8, cannot be written as UTF-8.
    return text.translate(_ESCAPES).encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def encoded(values: NDArray[Any], dtype: str) -> dict[str, Any]:
    """An array as plotly.js takes it: base64 of little-endian numbers, and their shape."""
    array = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return {
        "dtype": dtype,
        "bdata": base64.b64encode(array.tobytes()).decode("ascii"),
        "shape": ", ".join(str(size) for size in array.shape),
    }


def quantise(
    values: Float[np.ndarray, "utterance layer unit"],
) -> tuple[
    UInt16[np.ndarray, "layer unit utterance"],
    Float64[np.ndarray, "layer unit"],
    Float64[np.ndarray, "layer unit"],
]:
    """Each unit's values as levels between its smallest and its largest one.

    A value is low + (high - low) * level / 65534, off by at most half a level; `UNDEFINED` is a
    value that is not finite.

    Returns:
        Levels, and the smallest and largest value of each unit (0 for a unit without any).
    """
    by_unit = np.moveaxis(np.asarray(values, np.float64), 0, -1)
    known = np.isfinite(by_unit)
    some = known.any(axis=-1)
    low = np.where(some, np.where(known, by_unit, np.inf).min(axis=-1, initial=np.inf), 0.0)
    high = np.where(some, np.where(known, by_unit, -np.inf).max(axis=-1, initial=-np.inf), 0.0)
    width = np.where(high > low, high - low, 1.0)
    share = (np.where(known, by_unit, 0.0) - low[..., None]) / width[..., None]
    levels = np.where(known, np.rint(share * _LEVELS), UNDEFINED)
    return levels.astype(np.uint16), low, high


def restore(
    levels: UInt16[np.ndarray, "layer unit utterance"],
    *,
    low: Float64[np.ndarray, "layer unit"],
    high: Float64[np.ndarray, "layer unit"],
) -> Float64[np.ndarray, "layer unit utterance"]:
    """What the script makes of quantised values; NaN where they are undefined."""
    values = low[..., None] + (high - low)[..., None] * levels.astype(np.float64) / _LEVELS
    return np.where(levels == UNDEFINED, np.nan, values)


def payload(
    contents: Contents, *, figures: dict[str, Any], curves: dict[str, Any], style: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the script draws from.

    Args:
        contents: of the report.
        figures: plotly.js figures by name, drawn as they are.
        curves: a plotly.js figure over layers by target, in which the script marks one.
        style: colours and symbols of the figures that the script makes.
    """
    targets = [str(target) for target in contents.targets]
    return {
        "style": style,
        "figures": figures,
        "curves": curves,
        "layers": [str(name) for name in contents.layer_names],
        "maps": {
            target: map_data(contents.maps, target, len(contents.layer_names))
            for target in targets
            if has_map(contents.maps, target)
        },
        "scatter": None if contents.scatter is None else scatter_data(contents.scatter, targets),
    }


def has_map(maps: pd.DataFrame, target: str) -> bool:
    """Whether there is anything to draw for a target."""
    return not maps.empty and bool((maps["target"] == target).any())


def map_data(maps: pd.DataFrame, target: str, layers: int) -> dict[str, Any]:
    """The columns of a map as (layer, unit) grids; NaN for units that a layer does not have."""
    rows = maps[maps["target"] == target]
    layer, unit = rows["layer"].to_numpy(np.int64), rows["unit"].to_numpy(np.int64)
    shape = (max(layers, int(layer.max()) + 1), int(unit.max()) + 1)
    grids = {}
    for name in MAP_COLUMNS:
        grid = np.full(shape, np.nan)
        if name in rows:
            grid[layer, unit] = rows[name].to_numpy(np.float64)
        grids[name] = encoded(grid, "f4")
    return {"layers": shape[0], "units": shape[1], "columns": grids}


def scatter_data(scatter: Scatter, targets: list[str]) -> dict[str, Any]:
    """Labels of the sampled utterances, and their values of every unit, quantised."""
    values = scatter.values  # noqa: PD011 (an array, not a data frame's)
    levels, low, high = quantise(values)
    table = scatter.utterances
    return {
        "ids": [str(name) for name in table["id"]],
        "speakers": [str(name) for name in table["speaker"]],
        "labels": {t: table[t].to_numpy(np.float64) for t in targets if t in table},
        "units": values.shape[2],
        "levels": encoded(levels.reshape(-1), "u2"),
        "low": encoded(low.reshape(-1), "f8"),
        "high": encoded(high.reshape(-1), "f8"),
        "total": scatter.total,
    }
