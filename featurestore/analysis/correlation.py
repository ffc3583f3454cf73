"""Pearson correlation of every unit's pooled activation with a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from jaxtyping import Float64, Int64, Shaped
from numpy.typing import NDArray
from scipy import special

from featurestore.analysis.features import (
    Store,
    captured,
    is_numeric,
    known_speakers,
    label_values,
    text_values,
)
from featurestore.analysis.moments import Moments, lazy_moments
from featurestore.errors import AnalysisError
from featurestore.types import NETWORK, Statistic


def correlate(
    store: Store,
    *,
    target: str = "arousal",
    by: str | None = None,
    view: str = NETWORK,
    capture: str | None = None,
    statistic: Statistic = "mean",
) -> xr.Dataset:
    """Pearson correlation of each pooled unit with a label, over all utterances or per group.

    The store is read lazily and once; memory is bounded by one block of utterances per thread.

    Args:
        store: an open feature store.
        target: a numeric label; utterances without it do not count.
        by: None for all utterances together, "speaker" for one map per speaker, or any other label
            whose values make groups (text, or whole numbers such as a session). Utterances
            whose group is unknown do not count; an unknown speaker is an error.
        view: name or kind of a pooled view; "network" is the encoder's, of whatever kind.
        capture: capture point within the view; its first one by default.
        statistic: which pooled statistic over the frames of an utterance.

    Returns:
        Variables over (`by`, layer, unit), or (layer, unit) without `by`: `r` in [-1, 1], `p` the
        two-sided probability of an |r| at least this large among unrelated normal values (as
        `scipy.stats.pearsonr`, not corrected for the number of units), and `n` utterances. `r` and
        `p` are NaN where r is undefined: a constant unit, a constant target, or n < 2. Groups are
        in ascending order. Attributes: target, view, capture, statistic, by.

    Raises:
        AnalysisError: the label or the capture is not there, the label is text, or speakers are
            asked for and unknown.
    """
    return correlate_all(
        store, targets=(target,), by=by, view=view, capture=capture, statistic=statistic
    )[target]


def correlate_all(
    store: Store,
    *,
    targets: Sequence[str] = ("valence", "arousal"),
    by: str | None = None,
    view: str = NETWORK,
    capture: str | None = None,
    statistic: Statistic = "mean",
) -> dict[str, xr.Dataset]:
    """`correlate` for several targets in one read of the store.

    Args:
        store: an open feature store.
        targets: numeric labels, each with its own missing values.
        by: as in `correlate`.
        view: as in `correlate`.
        capture: as in `correlate`.
        statistic: as in `correlate`.

    Returns:
        One dataset per target, as `correlate` returns it, all with the same groups: those with any
        of the targets.

    Raises:
        AnalysisError: as in `correlate`, or no target is given.
    """
    if not targets:
        raise AnalysisError("No target was given; name at least one numeric label.")
    data = store.pooled(view)
    array = captured(data, capture, view=view)
    features = pick_statistic(array, statistic, view=view).transpose("utterance", ...)
    y = np.stack([label_values(features, target=target) for target in targets], axis=1)
    codes, groups = group_codes(features, by, wanted=~np.isnan(y).all(axis=1))
    found = lazy_moments(da.asarray(features.data), y=y, codes=codes).compute()
    found = found.over(np.arange(len(groups)))
    template = features.isel(utterance=0, drop=True) if features.sizes["utterance"] else features
    attrs = {
        "view": data.attrs.get("view", view),
        "capture": str(array.name),
        "statistic": statistic,
        "by": by or "all",
    }
    return {
        target: _dataset(found, column, by, groups, template).assign_attrs(target=target, **attrs)
        for column, target in enumerate(targets)
    }


def pick_statistic(array: xr.DataArray, statistic: str, *, view: str) -> xr.DataArray:
    """The slice of a pooled array that holds `statistic`.

    Raises:
        AnalysisError: the view was pooled without it; names those it holds.
    """
    held = array.coords["statistic"].values.tolist()
    if statistic not in held:
        raise AnalysisError(
            f"View {view!r} holds no statistic {statistic!r}, only: {', '.join(map(str, held))}."
        )
    return array.isel(statistic=held.index(statistic), drop=True)


def group_codes(
    data: xr.DataArray, by: str | None, *, wanted: NDArray[np.bool_]
) -> tuple[Int64[np.ndarray, " utterance"], Shaped[np.ndarray, " group"]]:
    """Group of every utterance, as an index into the sorted names of the groups.

    Args:
        data: anything with coordinates along utterance.
        by: a coordinate along utterance, or None for a single group.
        wanted: (utterance,) whether any target is known; only such utterances make groups.

    Returns:
        Codes, -1 where the group or every target is unknown, and the groups' values, ascending.

    Raises:
        AnalysisError: no such coordinate, unknown speakers, or a column of real numbers.
    """
    if by is None:
        return np.where(wanted, 0, -1), np.array([""])
    if by == "speaker":
        values = known_speakers(data.coords.to_dataset(), of=wanted)
        known = wanted
    else:
        values, known = _group_values(data, by)
        known = known & wanted
    groups, inverse = np.unique(values[known], return_inverse=True)
    codes = np.full(len(values), -1, np.int64)
    codes[known] = inverse
    return codes, groups


def _group_values(data: xr.DataArray, by: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values of a label column, and where they are known."""
    if by not in data.coords or data.coords[by].dims != ("utterance",):
        columns = ", ".join(
            str(name) for name, c in data.coords.items() if c.dims == ("utterance",)
        )
        raise AnalysisError(f"No column {by!r} to group utterances by; choose one of: {columns}.")
    values = data.coords[by].values
    if values.dtype.kind == "b" or not is_numeric(values):
        text = text_values(data.coords.to_dataset(), by)
        return text, text != ""
    known = np.isfinite(values)
    if (values[known] != np.round(values[known])).any():
        raise AnalysisError(
            f"Column {by!r} holds real numbers and does not make groups; use a text column or one "
            "of whole numbers."
        )
    return np.where(known, values, 0).astype(np.int64), known


def _dataset(
    found: Moments,
    column: int,
    by: str | None,
    groups: NDArray[Any],
    template: xr.DataArray,
) -> xr.Dataset:
    n, r = found.n[:, column], pearson(found, column)
    feature_dims = [str(dim) for dim in template.dims if dim != "utterance"]
    counts = np.broadcast_to(n.reshape(-1, *(1,) * len(feature_dims)), r.shape)
    values = {"r": r, "p": two_sided_p(r, n=counts), "n": counts.copy()}
    names = [by or "group", *feature_dims]
    coords: dict[Any, Any] = {
        name: coordinate
        for name, coordinate in template.coords.items()
        if coordinate.dims and set(coordinate.dims) <= set(feature_dims)
    }
    out = xr.Dataset({key: (names, value) for key, value in values.items()}, coords=coords)
    if by is None:
        return out.isel(group=0)
    return out.assign_coords({by: groups})


def pearson(found: Moments, column: int) -> Float64[np.ndarray, " group *feature"]:
    """Pearson's r of one target, NaN where it is undefined."""
    n, m2_y, m2_x = found.n[:, column], found.m2_y[:, column], found.m2_x[:, column]
    wide = (slice(None), *(None,) * (m2_x.ndim - 1))
    # Two roots rather than the root of a product, which underflows for nearly constant values.
    scale = np.sqrt(m2_x) * np.sqrt(m2_y)[wide]
    defined = (scale > 0) & (n >= 2)[wide]
    r = np.full(m2_x.shape, np.nan)
    np.divide(found.c_xy[:, column], scale, out=r, where=defined)
    return np.clip(r, -1.0, 1.0)


def two_sided_p(
    r: Float64[np.ndarray, " ..."], *, n: Int64[np.ndarray, " ..."]
) -> Float64[np.ndarray, " ..."]:
    """Two-sided p of Pearson's r under independent normal values, as `scipy.stats.pearsonr`.

    (r + 1) / 2 then follows Beta(n/2 - 1, n/2 - 1) (Student 1908). With n = 2, |r| is always 1 and
    p is 1. NaN where r is.
    """
    shape = np.maximum(n, 3) / 2 - 1
    p = np.minimum(1.0, 2 * special.betainc(shape, shape, (1 - np.abs(r)) / 2))
    return np.where(n > 2, p, np.where(np.isnan(r), np.nan, 1.0))


def chance_abs_r(n: float) -> float:
    """Expected |r| of unrelated normal values: Gamma((n-1)/2) / (sqrt(pi) Gamma(n/2)).

    It follows from r**2 ~ Beta(1/2, n/2 - 1). A speaker with few utterances has large |r| by
    chance, and figures of |r| draw this line so that it is not taken for a finding.

    Args:
        n: number of utterances.

    Returns:
        A value in (0, 1], NaN for n < 2.
    """
    if n < 2:
        return math.nan
    return math.exp(math.lgamma((n - 1) / 2) - math.lgamma(n / 2)) / math.sqrt(math.pi)
