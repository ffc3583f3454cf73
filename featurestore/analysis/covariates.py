"""What else may explain a correlation: duration, loudness, pitch, sex, or any column.

duration            seconds of audio
loudness            eGeMAPS' mean loudness, or the mean of the first MFCC (log energy)
f0                  eGeMAPS' mean F0, semitones above 27.5 Hz
egemaps:NAME        any eGeMAPS functional
age                 a numeric column
sex=f               1 where a text column has this value, 0 where it has another
sex                 each of a text column's values
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float64, Shaped
from numpy.typing import NDArray

from featurestore.analysis.features import (
    Store,
    is_numeric,
    label_values,
    numeric_labels,
    text_values,
)
from featurestore.errors import AnalysisError

DEFAULT = ("duration", "loudness")
MOST_VALUES = 12  # of a text column whose values are covariates each

_FUNCTIONALS = {
    "loudness": "loudness_sma3_amean",
    "f0": "F0semitoneFrom27.5Hz_sma3nz_amean",
}


@dataclass(frozen=True, eq=False)
class Covariate:
    """A number per utterance.

    Attributes:
        name: as asked for, with the value of a text column.
        numbers: (utterance,), NaN where unknown.
        said: what it is, where the name does not say it.
    """

    name: str
    numbers: Float64[np.ndarray, " utterance"]
    said: str = ""


def covariates(
    store: Store, table: xr.Dataset, names: Sequence[str], *, drop_first: bool = False
) -> list[Covariate]:
    """Covariates of the utterances of a table.

    Args:
        store: for those that are features.
        table: coordinates along utterance: id, duration_s and labels.
        names: see the module.
        drop_first: leave out the first value of a text column, which the others imply.

    Raises:
        AnalysisError: a name that is none, or a text column of too many values; says what there is.
    """
    found: list[Covariate] = []
    for name in names:
        found += _named(store, table, name, drop_first)
    doubled = {one.name for one in found if [x.name for x in found].count(one.name) > 1}
    if doubled:
        raise AnalysisError(f"Covariate {sorted(doubled)[0]!r} is there twice.")
    return found


def offered(store: Store, names: Sequence[str]) -> list[str]:
    """Those of the names that are not features of a view that the store lacks.

    Args:
        store: for those that are features.
        names: see the module.
    """
    lacking = set() if store.kinds & {"egemaps", "mfcc"} else {"loudness"}
    lacking |= set() if "egemaps" in store.kinds else {"f0"}
    return [name for name in names if name not in lacking]


def available(store: Store, table: xr.Dataset, *, without: Sequence[str] = ()) -> list[str]:
    """Covariates that a corpus offers: those of sound, and labels that vary.

    Args:
        store: for those that are features.
        table: coordinates along utterance.
        without: labels that are not to be named, such as the targets.
    """
    names = ["duration"] if "duration_s" in table.coords else []
    names += ["loudness"] if store.kinds & {"egemaps", "mfcc"} else []
    names += ["f0"] if "egemaps" in store.kinds else []
    skipped = {
        "duration_s",
        "frame_count",
        "audio_sha256",
        "id",
        "speaker",
        "path",
        "text",
        *without,
    }
    for name in map(str, table.coords):
        if name in skipped or table[name].dims != ("utterance",):
            continue
        if is_numeric(table[name].values):
            if len(np.unique(label_values(table, target=name))) > 1:
                names.append(name)
        elif 2 <= len(set(text_values(table, name).tolist()) - {""}) <= MOST_VALUES:
            names.append(name)
    return names


def _named(store: Store, table: xr.Dataset, name: str, drop_first: bool) -> list[Covariate]:
    column, equals, value = name.partition("=")
    if equals:
        return [Covariate(name, _indicator(table, column, value))]
    if name in table.coords and not is_numeric(table[name].values):
        return _each_value(table, name, drop_first)
    if name in table.coords:
        return [Covariate(name, label_values(table, target=name))]
    if name == "duration":
        return [Covariate(name, label_values(table, target="duration_s"), "seconds")]
    if name.startswith("egemaps:"):
        return [Covariate(name, _functional(store, table, name.removeprefix("egemaps:")))]
    if name in _FUNCTIONALS and "egemaps" in store.kinds:
        functional = _FUNCTIONALS[name]
        return [Covariate(name, _functional(store, table, functional), f"eGeMAPS {functional}")]
    if name == "loudness" and "mfcc" in store.kinds:
        return [Covariate(name, _log_energy(store, table), "mean of the first MFCC")]
    if name in _FUNCTIONALS:
        raise AnalysisError(
            f"Covariate {name!r} is a feature of eGeMAPS, and the store has no such view; ingest "
            "the same manifest again with --views network,mfcc,egemaps, or leave it out."
        )
    raise AnalysisError(
        f"No covariate {name!r}; there are: duration, loudness, f0, egemaps:NAME, and the columns "
        f"{', '.join([*numeric_labels(table), *_text_columns(table)]) or 'none'}."
    )


def _text_columns(table: xr.Dataset) -> list[str]:
    return [
        str(name)
        for name, column in table.coords.items()
        if column.dims == ("utterance",) and name != "id" and not is_numeric(column.values)
    ]


def _indicator(table: xr.Dataset, column: str, value: str) -> NDArray[np.float64]:
    if column not in table.coords or table[column].dims != ("utterance",):
        raise AnalysisError(
            f"No column {column!r} for covariate {f'{column}={value}'!r}; there are: "
            f"{', '.join(map(str, table.coords))}."
        )
    text = text_values(table, column)
    if value not in text:
        held = ", ".join(sorted(set(text.tolist()) - {""})[:MOST_VALUES])
        raise AnalysisError(f"Column {column!r} never is {value!r}; it is: {held}.")
    return np.where(text == "", np.nan, text == value)


def _each_value(table: xr.Dataset, column: str, drop_first: bool) -> list[Covariate]:
    values = sorted(set(text_values(table, column).tolist()) - {""})
    if not 2 <= len(values) <= MOST_VALUES:
        raise AnalysisError(
            f"Column {column!r} has {len(values)} values; as a covariate it may have 2 to "
            f"{MOST_VALUES}. Name one of them, such as {column}={values[0] if values else 'x'}."
        )
    return [
        Covariate(f"{column}={value}", _indicator(table, column, value))
        # Of two values, one says all.
        for value in (values[1:] if drop_first or len(values) == 2 else values)
    ]


def _functional(store: Store, table: xr.Dataset, name: str) -> NDArray[np.float64]:
    if "egemaps" not in store.kinds:
        raise AnalysisError(
            f"egemaps:{name}: the store has no eGeMAPS view; ingest the same manifest again with "
            "--views network,mfcc,egemaps."
        )
    features = store.features("egemaps")
    held = features.coords["feature"].values.tolist()
    if name not in held:
        raise AnalysisError(f"No eGeMAPS functional {name!r}; there are: {', '.join(held)}.")
    return _by_id(table, features, features.isel(feature=held.index(name)).values)


def _log_energy(store: Store, table: xr.Dataset) -> NDArray[np.float64]:
    data = store.pooled("mfcc")
    array = data[str(next(iter(data.data_vars)))].sel(statistic="mean").isel(coefficient=0)
    return _by_id(table, array, array.values)


def _by_id(
    table: xr.Dataset, source: xr.DataArray, values: Shaped[np.ndarray, " row"]
) -> NDArray[np.float64]:
    """Values of another view for the utterances of the table; NaN where it lacks one."""
    row = {i: at for at, i in enumerate(text_values(source, "id").tolist())}
    at = np.array([row.get(i, -1) for i in text_values(table, "id").tolist()], np.int64)
    return np.where(at >= 0, np.asarray(values, np.float64)[at], np.nan)
