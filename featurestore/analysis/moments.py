"""Means, variances and covariances of features with targets, in one pass over a lazy array.

Everything a Pearson correlation needs is seven numbers per group, feature and target. They are
computed per dask block in float64 and merged pairwise, so that no task ever holds more than one
block and its result, and no utterance is read twice whatever the number of targets.

Within a block the two-pass formulas are used, on values shifted by the group's first: a unit that
is constant gets a variance of exactly zero (so that its correlation is undefined rather than
noise), and one that is nearly constant keeps its digits. Blocks are merged with the updates of
Chan, Golub and LeVeque (1983), in the form of Pébay (2008, SAND2008-6212, equations 2.1 and 3.8).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
from jaxtyping import Float64, Int64, Shaped
from numpy.typing import NDArray

FAN_IN = 8  # blocks merged by one task: shallow enough a tree, and few results held at a time


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of features x and targets y, per group.

    Attributes:
        groups: (group,) codes of the groups seen, ascending.
        n: (group, target) utterances whose target is known.
        mean_y: (group, target) mean of the target, in the target's unit.
        m2_y: (group, target) sum of squared deviations of the target.
        mean_x: (group, target, *feature) mean of the feature over the same utterances.
        m2_x: (group, target, *feature) sum of squared deviations of the feature.
        c_xy: (group, target, *feature) sum of products of deviations.
    """

    groups: Int64[np.ndarray, " group"]
    n: Int64[np.ndarray, " group target"]
    mean_y: Float64[np.ndarray, " group target"]
    m2_y: Float64[np.ndarray, " group target"]
    mean_x: Float64[np.ndarray, " group target *feature"]
    m2_x: Float64[np.ndarray, " group target *feature"]
    c_xy: Float64[np.ndarray, " group target *feature"]

    def over(self, groups: NDArray[np.int64]) -> Moments:
        """The same statistics with one row for each of `groups`; those never seen have n = 0."""
        rows = np.searchsorted(groups, self.groups)

        def spread(values: NDArray[Any]) -> NDArray[Any]:
            out = np.zeros((len(groups), *values.shape[1:]), values.dtype)
            out[rows] = values
            return out

        return Moments(
            groups=groups,
            n=spread(self.n),
            mean_y=spread(self.mean_y),
            m2_y=spread(self.m2_y),
            mean_x=spread(self.mean_x),
            m2_x=spread(self.m2_x),
            c_xy=spread(self.c_xy),
        )


def block_moments(
    x: Shaped[np.ndarray, " utterance *feature"],
    *,
    y: Float64[np.ndarray, " utterance target"],
    codes: Int64[np.ndarray, " utterance"],
) -> Moments:
    """Statistics of one block that is in memory.

    Args:
        x: (utterance, *feature) features, any real dtype.
        y: (utterance, target) float64; NaN where a target is unknown, and then that utterance does
            not count for that target.
        codes: (utterance,) group of each utterance; a negative code leaves the utterance out.
    """
    x = np.asarray(x)
    groups = np.unique(codes[codes >= 0])
    shape = (len(groups), y.shape[1])
    found = Moments(
        groups=groups,
        n=np.zeros(shape, np.int64),
        mean_y=np.zeros(shape),
        m2_y=np.zeros(shape),
        mean_x=np.zeros(shape + x.shape[1:]),
        m2_x=np.zeros(shape + x.shape[1:]),
        c_xy=np.zeros(shape + x.shape[1:]),
    )
    for row, group in enumerate(groups):
        for target in range(y.shape[1]):
            members = np.flatnonzero((codes == group) & ~np.isnan(y[:, target]))
            if members.size:
                _fill(found, (row, target), x[members].astype(np.float64), y[members, target])
    return found


def _fill(
    found: Moments, at: tuple[int, int], x: NDArray[np.float64], y: NDArray[np.float64]
) -> None:
    """Write the statistics of one group and target in place; overwrites `x`."""
    n = len(y)
    first_x, first_y = x[0].copy(), y[0]
    # The difference of two float32 values is exact in float64: a constant unit becomes exact zeros.
    x -= first_x
    dy = y - first_y
    shift_x, shift_y = x.mean(axis=0), dy.mean()
    x -= shift_x
    dy = dy - shift_y
    # The rest of each sum corrects the rounding of the mean (Chan, Golub and LeVeque, 1983).
    rest_x, rest_y = x.sum(axis=0), dy.sum()
    found.n[at] = n
    found.mean_y[at] = first_y + shift_y
    found.mean_x[at] = first_x + shift_x
    found.m2_y[at] = max(0.0, dy @ dy - rest_y**2 / n)
    found.m2_x[at] = np.maximum(0.0, np.einsum("u...,u...->...", x, x) - rest_x**2 / n)
    found.c_xy[at] = np.einsum("u...,u->...", x, dy) - rest_x * rest_y / n


def merge(a: Moments, b: Moments) -> Moments:
    """Statistics of the union of two disjoint sets of utterances (Pébay 2008)."""
    groups = np.union1d(a.groups, b.groups)
    a, b = a.over(groups), b.over(groups)
    n = a.n + b.n
    share = b.n / np.maximum(n, 1)
    dy = b.mean_y - a.mean_y
    dx = b.mean_x - a.mean_x

    def wide(values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(values.shape + (1,) * (dx.ndim - values.ndim))

    weight = a.n * share
    return Moments(
        groups=groups,
        n=n,
        mean_y=a.mean_y + dy * share,
        m2_y=a.m2_y + b.m2_y + weight * dy * dy,
        mean_x=a.mean_x + dx * wide(share),
        m2_x=a.m2_x + b.m2_x + wide(weight) * dx * dx,
        c_xy=a.c_xy + b.c_xy + wide(weight * dy) * dx,
    )


def merge_all(parts: list[Moments]) -> Moments:
    """Statistics of the union of all `parts`, at least one."""
    return functools.reduce(merge, parts)


def lazy_moments(
    x: da.Array,
    *,
    y: Float64[np.ndarray, " utterance target"],
    codes: Int64[np.ndarray, " utterance"],
) -> Any:
    """A dask `Delayed` whose result is the `Moments` of the whole array.

    One task per block along the first axis, and about one in seven more to merge them.

    Args:
        x: (utterance, *feature) dask array; other axes than the first are made whole per chunk.
        y: (utterance, target) float64, NaN where unknown.
        codes: (utterance,) int64 group codes, negative to leave an utterance out.
    """
    x = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
    one_block = dask.delayed(block_moments, pure=False)
    several = dask.delayed(merge_all, pure=False)
    parts = []
    stop = 0
    for block, size in zip(x.to_delayed().reshape(-1), x.chunks[0], strict=True):
        rows = slice(stop, stop + size)
        stop += size
        if (codes[rows] >= 0).any():  # a block without a wanted utterance is never read
            parts.append(one_block(block, y=y[rows], codes=codes[rows]))
    if not parts:
        parts.append(one_block(np.empty((0, *x.shape[1:])), y=y[:0], codes=codes[:0]))
    while len(parts) > 1:
        parts = [several(parts[at : at + FAN_IN]) for at in range(0, len(parts), FAN_IN)]
    return parts[0]
