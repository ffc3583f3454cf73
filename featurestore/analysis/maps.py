"""Correlation maps with inference: what holds within speakers, between them, and for others.

Everything but the permutations follows from one pass over the store: per half of each speaker's
utterances, means and (co)variances of every unit with every target and covariate. The permutations
take one pass more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Int64
from numpy.typing import NDArray

from featurestore.analysis.correlation import chance_abs_r, group_codes, pearson
from featurestore.analysis.covariates import DEFAULT, Covariate, covariates
from featurestore.analysis.features import Store, label_values, utterance_table
from featurestore.analysis.moments import Moments, lazy_moments, merge
from featurestore.analysis.partial import (
    Question,
    across,
    flat,
    partial_r,
    questions_of,
    ratio,
    within,
)
from featurestore.analysis.permutation import label_products, permuted
from featurestore.analysis.pooling import bootstrap_interval, false_discovery, pool_speakers
from featurestore.analysis.sets import finite_block, unit_index
from featurestore.analysis.stability import stability
from featurestore.analysis.streams import in_runs
from featurestore.errors import AnalysisError
from featurestore.types import NETWORK

LEVEL = 0.05
FEWEST = 4  # utterances whose r has a variance


@dataclass(frozen=True, eq=False)
class Maps:
    """What `correlation_maps` found.

    Attributes:
        maps: one row per target and unit; see `featurestore.report.contents.Contents`.
        thresholds: one row per target.
        stability: one row per target and speaker.
        notes: what was left out, with counts.
        layer_names: (layer,), empty for features without layers.
    """

    maps: pd.DataFrame
    thresholds: pd.DataFrame
    stability: pd.DataFrame
    notes: tuple[str, ...]
    layer_names: tuple[str, ...]


def correlation_maps(
    store: Store,
    *,
    targets: Sequence[str] = ("valence", "arousal"),
    features: str = NETWORK,
    partial: Sequence[str] = DEFAULT,
    permutations: int = 1000,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Maps:
    """Correlations of every unit with labels, and how sure they are.

    Args:
        store: an open feature store.
        targets: numeric labels.
        features: one term of `featurestore.analysis.sets`, without layers, such as gcu.gate.mean.
        partial: covariates (`featurestore.analysis.covariates`) that the partial map takes out.
        permutations: of labels within speakers, for the largest |r| of a map; 0 for none.
        resamples: of speakers, for the intervals of `r_within`.
        confidence: of all intervals.
        seed: of halves, permutations and resamples.

    Returns:
        `maps` per target and unit: `r` pooled over speakers by random effects with its interval
        `low` to `high`, `p` and, over all units of the map, Benjamini-Hochberg `q`; `tau2`, `i2`,
        `heterogeneity_q` and `agreement` of the speakers; `speakers` and `n` utterances that
        count; `r_within`, of deviations from the speakers' means, with a bootstrap interval over
        speakers and `p_max`, the share of permutations whose largest |r_within| of all units is
        as large; `r_between`, of the speakers' means; `r_all`, over all utterances; and `r`, its
        interval, p and q again as `partial_...`, given the covariates. NaN where undefined: a
        constant unit, a constant label, or no speaker with 4 utterances.

    Raises:
        AnalysisError: an unknown target, covariate or speaker, features of several terms, or no
            utterance with a label.
    """
    if resamples < 1 or permutations < 0:
        raise AnalysisError(
            f"resamples={resamples}, permutations={permutations}; accepted: 1 resample or more, "
            "and 0 permutations or more"
        )
    array, left_out = finite_block(store, features)
    table = utterance_table(array)
    names = tuple(dict.fromkeys([targets] if isinstance(targets, str) else targets))
    taken = covariates(store, table, partial, drop_first=True)
    y = {target: label_values(table, target=target) for target in names}
    codes, speakers = _speakers(array, y)
    questions, columns = questions_of(y, taken)
    halves = _halves(codes, np.random.default_rng(seed))
    lazy = da.asarray(array.data)
    found = lazy_moments(lazy, y=columns, codes=np.where(codes >= 0, 2 * codes + halves, -1))
    found = found.compute().over(np.arange(2 * len(speakers)))
    first, second = _rows(found, slice(0, None, 2)), _rows(found, slice(1, None, 2))
    whole = merge(first, second)
    largest = _largest_r(lazy, y, codes, whole, questions, permutations, seed)
    index = unit_index(array)
    maps, thresholds, stable = [], [], []
    notes = left_out
    for target, question in questions.items():
        partial_map = partial_r(whole, question, codes)
        one = _map(whole, question, partial_map, resamples, confidence, seed)
        notes += _notes(target, y[target], whole, question, partial_map[1][:, 0], speakers)
        if permutations:
            one |= _exceeded(one["r_within"], largest[target])
        maps.append(pd.DataFrame({"target": target, **index, **one}))
        thresholds.append(_thresholds(target, maps[-1], largest[target], taken))
        stable.append(
            stability(pearson(whole, question.column), pearson(first, question.column),
                      pearson(second, question.column), n=whole.n[:, question.column],
                      n_halves=(first.n[:, question.column], second.n[:, question.column]),
                      label_m2=whole.m2_y[:, question.column], layers=index.get("layer"))
            .assign(target=target, speaker=speakers)
        )  # fmt: skip
    return Maps(
        pd.concat(maps, ignore_index=True),
        pd.DataFrame(thresholds),
        pd.concat(stable, ignore_index=True),
        (*dict.fromkeys(notes), *(f"{one.name}: {one.said}." for one in taken if one.said)),
        _layer_names(array),
    )


def _speakers(
    array: xr.DataArray, y: dict[str, NDArray[np.float64]]
) -> tuple[Int64[np.ndarray, " utterance"], NDArray[Any]]:
    """Codes of speakers, -1 without a label, and their names."""
    if not y:
        raise AnalysisError("No target was given; name at least one numeric label.")
    wanted = np.asarray(~np.isnan(np.stack(list(y.values()), axis=1)).all(axis=1))
    for target, values in y.items():
        if not np.isfinite(values).any():
            raise AnalysisError(f"Label {target!r} is missing for every utterance.")
    return group_codes(array, "speaker", wanted=wanted)


def _halves(codes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """0 or 1 for each utterance: a random half of each speaker's."""
    half = np.zeros(len(codes), np.int64)
    for code in np.unique(codes[codes >= 0]):
        rows = rng.permutation(np.flatnonzero(codes == code))
        half[rows[::2]] = 1
    return half


def _rows(found: Moments, rows: slice) -> Moments:
    """Every other row, as moments of the groups 0, 1, 2, ..."""
    picked = {
        name: getattr(found, name)[rows] for name in found.__dataclass_fields__ if name != "groups"
    }
    return Moments(groups=np.arange(len(picked["n"])), **picked)


def _map(
    found: Moments,
    question: Question,
    partial: tuple[NDArray[np.float64], NDArray[np.float64]],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, NDArray[Any]]:
    """Columns of a target's map, flat over features."""
    column = question.column
    r = flat(pearson(found, column))
    n = found.n[:, column, None].astype(np.float64)
    pooled = pool_speakers(r, n=n, confidence=confidence)
    inside, low, high = _within_speakers(found, column, resamples, confidence, seed)
    between, overall = across(found, column)
    given = pool_speakers(partial[0], n=partial[1], confidence=confidence)
    return {
        "r": pooled.r,
        "low": pooled.low,
        "high": pooled.high,
        "p": pooled.p,
        "q": false_discovery(pooled.p),
        "tau2": pooled.tau2,
        "i2": pooled.i2,
        "heterogeneity_q": false_discovery(pooled.heterogeneity_p),
        "agreement": pooled.agreement,
        "speakers": pooled.speakers,
        "n": np.where(np.isfinite(r) & (n >= FEWEST), n, 0.0).sum(axis=0).astype(np.int64),
        "r_within": inside,
        "within_low": low,
        "within_high": high,
        "p_max": np.full(len(inside), np.nan),
        "r_between": between,
        "r_all": overall,
        "partial_r": given.r,
        "partial_low": given.low,
        "partial_high": given.high,
        "partial_p": given.p,
        "partial_q": false_discovery(given.p),
    }


def _within_speakers(
    found: Moments, column: int, resamples: int, confidence: float, seed: int
) -> tuple[NDArray[np.float64], ...]:
    """Pearson's r of deviations from the speakers' means, and its interval over speakers."""
    held = np.flatnonzero(found.n[:, column] > 0)
    drawn = np.zeros((resamples, len(found.n)))
    drawn[:, held] = np.random.default_rng(seed).multinomial(
        len(held), np.full(len(held), 1 / len(held)), size=resamples
    )
    whole = within(found, column, np.ones((1, len(found.n))))[0]
    left_out = within(found, column, (1.0 - np.eye(len(found.n)))[held])
    low, high = bootstrap_interval(
        within(found, column, drawn), found=whole, left_out=left_out, confidence=confidence
    )
    return whole, low, high


def _largest_r(
    lazy: da.Array,
    y: dict[str, NDArray[np.float64]],
    codes: NDArray[np.int64],
    found: Moments,
    questions: dict[str, Question],
    permutations: int,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Largest |r_within| over all units in each permutation of the labels within speakers."""
    if not permutations:
        return {target: np.full(0, np.nan) for target in y}
    shuffled = [permuted(values, codes, permutations, seed) for values in y.values()]
    work = functools.partial(label_products, shuffled=shuffled)
    products = functools.reduce(np.add, in_runs(lazy, work, wanted=codes >= 0))
    largest = {}
    for place, target in enumerate(y):
        column = questions[target].column
        x = flat(found.m2_x[:, column]).sum(axis=0)
        r = ratio(products[place], x[:, None], np.asarray(found.m2_y[:, column].sum()))
        defined = np.isfinite(r).all(axis=1)
        largest[target] = (
            np.abs(r[defined]).max(axis=0) if defined.any() else np.full(permutations, np.nan)
        )
    return largest


def _exceeded(
    within: NDArray[np.float64], largest: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """For each r, the share of permutations, and of the labels as they are, that reach it."""
    ordered = np.sort(largest)
    # An r that is reached up to rounding is reached.
    reached = len(ordered) - np.searchsorted(ordered, np.abs(within) * (1 - 1e-12))
    p = (1 + reached) / (1 + len(ordered))
    return {"p_max": np.where(np.isfinite(within), p, np.nan)}


def _thresholds(
    target: str, one: pd.DataFrame, largest: NDArray[np.float64], taken: Sequence[Covariate]
) -> dict[str, Any]:
    n = float(one["n"].max())
    return {
        "target": target,
        "n": int(n),
        "speakers": int(one["speakers"].max()),
        "defined": int(one["r"].notna().sum()),
        "undefined": int(one["r"].isna().sum()),
        "significant": int((one["q"] < LEVEL).sum()),
        "partial_significant": int(((one["q"] < LEVEL) & (one["partial_q"] < LEVEL)).sum()),
        "heterogeneous": int((one["heterogeneity_q"] < LEVEL).sum()),
        "threshold": float(np.quantile(largest, 1 - LEVEL)) if len(largest) else math.nan,
        "exceeding": int((one["p_max"] < LEVEL).sum()),
        "permutations": len(largest),
        "chance_abs_r": chance_abs_r(n),
        "covariates": ", ".join(covariate.name for covariate in taken),
    }


def _layer_names(array: xr.DataArray) -> tuple[str, ...]:
    if "layer" not in array.dims:
        return ()
    named = "layer_name" in array.coords
    names = array.coords["layer_name"].to_numpy() if named else range(array.sizes["layer"])
    return tuple(map(str, names))


def _notes(
    target: str,
    y: NDArray[np.float64],
    found: Moments,
    question: Question,
    freedom: NDArray[np.float64],
    speakers: NDArray[Any],
) -> list[str]:
    """What does not count in a target's map, with numbers."""
    known, n = np.isfinite(y), found.n[:, question.column]
    notes = []
    if not known.all():
        notes.append(f"{target}: {int((~known).sum())} of {len(known)} utterances have no label.")

    def named(chosen: NDArray[np.bool_]) -> str:
        return ", ".join(map(str, speakers[chosen]))

    few, absent = (n > 0) & (n < FEWEST), n == 0
    if few.any():
        notes.append(
            f"{target}: {int(few.sum())} speakers with fewer than {FEWEST} utterances count in "
            f"r_within and r_all, but not in r over speakers: {named(few)}."
        )
    if absent.any():
        notes.append(f"{target}: no label for {int(absent.sum())} speakers: {named(absent)}.")
    flat = (n > 0) & (found.m2_y[:, question.column] == 0)
    if flat.any():
        notes.append(f"{target}: the label never changes for: {named(flat)}.")
    less = int(known.sum() - np.isfinite(question.table[:, 0]).sum())
    if less:
        notes.append(
            f"{target}: {less} utterances lack a covariate and do not count in the partial map."
        )
    lost = (n >= FEWEST) & (freedom < FEWEST)
    if lost.any():
        notes.append(
            f"{target}: {int(lost.sum())} speakers with fewer than {FEWEST} utterances more than "
            f"covariates do not count in the partial map: {named(lost)}."
        )
    constant = int((found.m2_x[:, question.column] == 0).all(axis=0).sum())
    if constant:
        notes.append(
            f"{target}: {constant} units are constant within every speaker and have no correlation."
        )
    return notes
