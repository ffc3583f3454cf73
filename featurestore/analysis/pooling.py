"""Correlations of several speakers taken together, and probabilities of many tests.

Speakers are a sample of those that could have been recorded. What holds for speakers in general is
asked of a random-effects meta-analysis of Fisher's z: each speaker's r has an error of its own and
the speakers differ (DerSimonian and Laird 1986, Controlled Clinical Trials 7). The interval is that
of Knapp and Hartung (2003, Statistics in Medicine 22), never narrower than the plain one, since
with ten speakers the difference between them is itself hardly known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped
from numpy.typing import NDArray
from scipy import stats

_LARGEST = 1 - 3e-8  # |r| of a unit that is the label itself, whose z would be infinite


@dataclass(frozen=True, eq=False)
class Pooled:
    """Random effects over speakers, all over (*feature).

    Attributes:
        r: of the mean Fisher z; NaN without any speaker.
        low: end of its interval.
        high: end of its interval.
        p: two-sided, that r is 0.
        tau2: variance of the speakers' true z.
        i2: share of the variance between speakers' z that is more than their errors, 0 to 1.
        heterogeneity_p: of Cochran's Q, that all speakers have one r.
        agreement: share of speakers whose r has the sign of the pooled one.
        speakers: whose r is defined, and of 4 utterances or more.
    """

    r: Float64[np.ndarray, " *feature"]
    low: Float64[np.ndarray, " *feature"]
    high: Float64[np.ndarray, " *feature"]
    p: Float64[np.ndarray, " *feature"]
    tau2: Float64[np.ndarray, " *feature"]
    i2: Float64[np.ndarray, " *feature"]
    heterogeneity_p: Float64[np.ndarray, " *feature"]
    agreement: Float64[np.ndarray, " *feature"]
    speakers: Shaped[np.ndarray, " *feature"]


def pool_speakers(
    r: Float64[np.ndarray, " speaker *feature"],
    *,
    n: Float64[np.ndarray, " speaker *feature"],
    confidence: float = 0.95,
) -> Pooled:
    """Random-effects mean of correlations.

    Args:
        r: NaN where it is undefined.
        n: utterances behind each, less the covariates that were taken out of it. Fewer than 4 say
            nothing, since the variance of Fisher's z is 1 / (n - 3).
        confidence: of the interval.
    """
    n = np.broadcast_to(n, r.shape)
    known = np.isfinite(r) & (n > 3)
    count = known.sum(axis=0)
    z = np.where(known, np.arctanh(np.clip(r, -_LARGEST, _LARGEST)), 0.0)
    weight = np.where(known, np.maximum(n - 3.0, 0.0), 0.0)
    total = weight.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        fixed = (weight * z).sum(axis=0) / total
        q = (weight * (z - fixed) ** 2).sum(axis=0)
        excess = q - (count - 1)
        tau2 = np.maximum(0.0, excess / (total - (weight**2).sum(axis=0) / total))
        tau2 = np.where(count > 1, tau2, 0.0)
        shrunk = np.where(known, 1 / (1 / np.where(known, weight, 1.0) + tau2), 0.0)
        mean = (shrunk * z).sum(axis=0) / shrunk.sum(axis=0)
        scale = (shrunk * (z - mean) ** 2).sum(axis=0) / np.maximum(count - 1, 1)
        error = np.sqrt(np.maximum(1.0, scale) / shrunk.sum(axis=0))
        freedom = np.where(count > 1, count - 1.0, np.inf)  # one speaker: only its own error
        half = stats.t.ppf((1 + confidence) / 2, freedom) * error
        p = 2 * stats.t.sf(np.abs(mean) / error, freedom)
        i2 = np.where(count > 1, np.maximum(0.0, excess / q), np.nan)
        i2 = np.where((count > 1) & (q <= 0), 0.0, i2)
        different = np.where(count > 1, stats.chi2.sf(q, np.maximum(count - 1, 1)), np.nan)
        same = (known & (np.sign(z) == np.sign(mean))).sum(axis=0) / count
    empty = count == 0
    values = (np.tanh(mean), np.tanh(mean - half), np.tanh(mean + half), p, tau2)
    r_, low, high, p, tau2 = (np.where(empty, np.nan, value) for value in values)
    return Pooled(r_, low, high, p, tau2, i2, different, np.where(empty, np.nan, same), count)


def false_discovery(p: Float64[np.ndarray, " ..."]) -> Float64[np.ndarray, " ..."]:
    """Benjamini-Hochberg q of every p (1995, J. R. Statist. Soc. B 57). NaN does not count."""
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known], method="bh")
    return q


def bootstrap_interval(
    drawn: Float64[np.ndarray, " resample *feature"],
    *,
    found: Float64[np.ndarray, " *feature"],
    left_out: Float64[np.ndarray, " speaker *feature"],
    confidence: float = 0.95,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bias-corrected and accelerated interval (Efron 1987) of each feature's own statistic.

    Args:
        drawn: the statistic in resamples of speakers; NaN in one where it is undefined.
        found: the statistic itself.
        left_out: the statistic without each speaker.
        confidence: of the interval.

    Returns:
        low and high (*feature): plain percentiles where bias or acceleration is undefined, NaN
        where the statistic is, or where there is one speaker.
    """
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        count = np.isfinite(drawn).sum(axis=0)
        # A resample of everybody is the statistic itself, but for rounding, which would decide on
        # the side and be another one on another processor.
        same = np.isclose(drawn, found, rtol=1e-9, atol=1e-12)
        below = (((drawn < found) & ~same).sum(axis=0) + 0.5 * same.sum(axis=0)) / count
        bias = stats.norm.ppf(below)
        off = left_out.mean(axis=0) - left_out
        acceleration = (off**3).sum(axis=0) / (6 * (off**2).sum(axis=0) ** 1.5)
        shifted = bias + stats.norm.ppf(tails).reshape(2, *(1,) * found.ndim)
        at = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
        at = np.where(np.isfinite(at), at, tails.reshape(2, *(1,) * found.ndim))
    ordered = np.sort(drawn, axis=0)  # what is undefined comes last
    place = at * np.maximum(count - 1, 0)
    floor = np.floor(place).astype(np.int64)
    lower = np.take_along_axis(ordered, floor, axis=0)
    upper = np.take_along_axis(ordered, np.minimum(floor + 1, np.maximum(count - 1, 0)), axis=0)
    ends = lower + (place - floor) * (upper - lower)
    undefined = ~np.isfinite(found) | (len(left_out) < 2) | (count == 0)
    return np.where(undefined, np.nan, ends[0]), np.where(undefined, np.nan, ends[1])
