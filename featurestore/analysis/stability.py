"""Is it the same pattern in every speaker? Which ones show it, and which are only noisy?

The paper sees its pattern in some speakers and asks why. A speaker's map of correlations may
differ from the others' for two reasons: the speaker has few utterances, or labels that hardly vary,
so that the map is mostly error; or the speaker's voice does carry the emotion in other units. The
first is seen in the speaker's own data: maps of two halves of the utterances do not agree either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from featurestore.analysis.correlation import chance_abs_r
from featurestore.analysis.sets import END_LAYERS

LEAST_RELIABLE = 0.5  # below, half of the variance of a map is error
LEAST_SHARED = 0.5  # of the similarity that the errors of both maps allow


def stability(
    r: Float64[np.ndarray, " speaker *feature"],
    first: Float64[np.ndarray, " speaker *feature"],
    second: Float64[np.ndarray, " speaker *feature"],
    *,
    n: Int64[np.ndarray, " speaker"],
    n_halves: tuple[Int64[np.ndarray, " speaker"], Int64[np.ndarray, " speaker"]],
    label_m2: Float64[np.ndarray, " speaker"],
    layers: Int64[np.ndarray, " feature"] | None = None,
) -> pd.DataFrame:
    """How reliable each speaker's map is, and how much of it is that of the others.

    Args:
        r: correlations of each speaker.
        first: those of a random half of the speaker's utterances.
        second: those of the other half.
        n: utterances of each speaker.
        n_halves: of each speaker's halves.
        label_m2: sum of squared deviations of each speaker's labels.
        layers: of each feature, if features have layers.

    Returns:
        One row per speaker. `n`; `label_sd`; `mean_abs_r`, and `chance_abs_r` that unrelated values
        would show; `reliability`: correlation between the maps of both halves, stepped up to the
        whole (Spearman 1910, Brown 1910); `similarity`: correlation of the speaker's map with the
        mean map of the other speakers; `ceiling`: the largest that errors of both allow, the root
        of the product of their reliabilities; `verdict`: "noisy" if reliability is below 0.5, else
        "shared" if similarity is half of the ceiling or more, else "own", and "undefined" where one
        of these is: no label, too few utterances, or nobody reliable to compare with;
        `first_abs_r` and `last_abs_r`: mean |r| of the first and last three layers. Means are of
        Fisher's z, each speaker counting by the inverse of its variance, utterances - 3; a map of
        3 utterances or fewer is none.
    """
    z = _z(r, n)
    halves = _z(first, n_halves[0]), _z(second, n_halves[1])
    weight, weights = n - 3, [one - 3 for one in n_halves]
    count = len(z)
    rows: list[dict[str, Any]] = []
    for speaker in range(count):
        others = np.arange(count) != speaker
        own = reliability(halves[0][speaker], halves[1][speaker])
        means = (_mean(half[others], w[others]) for half, w in zip(halves, weights, strict=True))
        theirs = reliability(*means)
        similarity = _correlation(z[speaker], _mean(z[others], weight[others]))
        ceiling = float(np.sqrt(own * theirs)) if own > 0 and theirs > 0 else np.nan
        size = np.abs(r[speaker]).reshape(-1)
        rows.append(
            {
                "n": int(n[speaker]),
                "label_sd": float(np.sqrt(label_m2[speaker] / (n[speaker] - 1)))
                if n[speaker] > 1
                else np.nan,
                "mean_abs_r": _nanmean(size),
                "chance_abs_r": chance_abs_r(float(n[speaker])),
                "reliability": own,
                "similarity": similarity,
                "ceiling": ceiling,
                "verdict": _verdict(own, similarity, ceiling),
                **_ends(size, layers),
            }
        )
    return pd.DataFrame(rows)


def reliability(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Of the mean of two measurements, from their correlation: 2 r / (1 + r), at least 0."""
    r = _correlation(first, second)
    return max(0.0, 2 * r / (1 + r)) if r > -1 else 0.0 if r == r else np.nan


def _verdict(reliable: float, similarity: float, ceiling: float) -> str:
    if reliable < LEAST_RELIABLE:
        return "noisy"
    if not np.isfinite([reliable, similarity, ceiling]).all():
        return "undefined"
    return "shared" if similarity >= LEAST_SHARED * ceiling else "own"


def _ends(size: NDArray[np.float64], layers: NDArray[np.int64] | None) -> dict[str, float]:
    if layers is None:
        return {"first_abs_r": np.nan, "last_abs_r": np.nan}
    return {
        "first_abs_r": _nanmean(size[layers < END_LAYERS]),
        "last_abs_r": _nanmean(size[layers > layers.max() - END_LAYERS]),
    }


def _z(r: NDArray[np.float64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fisher's z, flat over features; that of an r of 1 would be infinite and is left out.

    Of 2 utterances, every r is 1 up to rounding, and of 3 the variance of z is infinite.
    """
    flat = r.reshape(len(r), -1)
    known = (np.abs(flat) < 1 - 1e-9) & (n[:, None] > 3)
    return np.where(known, np.arctanh(np.where(known, flat, 0.0)), np.nan)


def _mean(z: NDArray[np.float64], weight: NDArray[np.int64]) -> NDArray[np.float64]:
    """Over speakers, of those whose z is defined."""
    known = np.isfinite(z) * weight[:, None]
    count = known.sum(axis=0)
    total = (known * np.where(np.isfinite(z), z, 0.0)).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _nanmean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's r over features where both are defined; NaN for fewer than three."""
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(np.corrcoef(a, b)[0, 1])
