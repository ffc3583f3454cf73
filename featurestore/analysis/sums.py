"""Sums of products of features and targets per group of utterances, in one pass over the store.

They are all that ridge regressions and least squares of any set of groups need: what a fold trains
on is the sum over all groups less those it holds out. `featurestore.kernels.cross_products` has the
definition and the same on a GPU; here blocks of a store are added up by the BLAS of a CPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from scipy import linalg
from scipy.linalg import blas

from featurestore.analysis.streams import Blocks, in_runs


@dataclass(frozen=True, eq=False)
class Sums:
    """Of dx = x - centre and targets y over the rows of each group; float64.

    Attributes:
        n: (group,) rows.
        x: (group, feature) sum of dx.
        y: (group, target) sum of y.
        xx: (group, feature, feature) sum of dx dx', whose upper triangle counts.
        xy: (group, feature, target) sum of dx y.
        yy: (group, target) sum of squares of y.
        low: (group, feature) smallest value; infinite for a group without rows.
        high: (group, feature) largest value.
        centre: (feature,), the same for all groups.
    """

    n: Int64[np.ndarray, " group"]
    x: Float64[np.ndarray, "group feature"]
    y: Float64[np.ndarray, "group target"]
    xx: Float64[np.ndarray, "group feature feature"]
    xy: Float64[np.ndarray, "group feature target"]
    yy: Float64[np.ndarray, "group target"]
    low: Float64[np.ndarray, "group feature"]
    high: Float64[np.ndarray, "group feature"]
    centre: Float64[np.ndarray, " feature"]

    def __add__(self, other: Sums) -> Sums:
        """Of the rows of both, about the centre of the first."""
        if not self.x.shape[1] or not other.x.shape[1]:  # of no row at all
            return self if self.x.shape[1] else other
        moved = other.about(self.centre)
        return Sums(
            self.n + moved.n,
            self.x + moved.x,
            self.y + moved.y,
            self.xx + moved.xx,
            self.xy + moved.xy,
            self.yy + moved.yy,
            np.minimum(self.low, moved.low),
            np.maximum(self.high, moved.high),
            self.centre,
        )

    def about(self, centre: Float64[np.ndarray, " feature"]) -> Sums:
        """The same sums about another centre."""
        shift = self.centre - centre
        if not shift.any():
            return self
        n = self.n[:, None].astype(np.float64)
        xx = self.xx
        if xx.size:
            crossed = self.x[:, :, None] * shift
            xx = xx + crossed + crossed.transpose(0, 2, 1) + n[:, :, None] * np.outer(shift, shift)
        xy = self.xy + shift[:, None] * self.y[:, None, :]
        return replace(self, x=self.x + n * shift, xx=xx, xy=xy, centre=centre)


def group_sums(
    x: da.Array,
    *,
    y: Float64[np.ndarray, "utterance target"],
    codes: Int64[np.ndarray, " utterance"],
    groups: int,
) -> Sums:
    """Sums over all rows of a lazy array.

    Memory is that of the sums and of two blocks of rows.

    Args:
        x: (utterance, *feature).
        y: targets, best near 0, known wherever a row has a group.
        codes: group of each row; a negative one leaves the row out.
        groups: number of groups.
    """
    work = functools.partial(_add_up, y=y, codes=codes, groups=groups)
    return functools.reduce(Sums.__add__, in_runs(x, work, wanted=codes >= 0))


@np.errstate(invalid="ignore")  # sums of what is not finite say so themselves
def _add_up(
    blocks: Blocks, *, y: NDArray[np.float64], codes: NDArray[np.int64], groups: int
) -> Sums:
    total: Any = None
    for rows, block in blocks:
        flat, own = block.reshape(len(block), -1), codes[rows]
        if total is None:
            # Near the mean, so that no digits are lost; which value it is does not matter.
            centre = flat.mean(axis=0, dtype=np.float64, where=(own >= 0)[:, None])
            total = _empty(groups, centre, y.shape[1])
        for group in np.unique(own[own >= 0]):
            picked = np.flatnonzero(own == group)
            x, dy = flat[picked], y[rows][picked]
            np.minimum(total.low[group], x.min(axis=0), out=total.low[group])
            np.maximum(total.high[group], x.max(axis=0), out=total.high[group])
            dx = x - total.centre
            total.n[group] += len(picked)
            total.x[group] += dx.sum(axis=0)
            total.y[group] += dy.sum(axis=0)
            # The transposes are Fortran's views of the same memory: nothing is copied.
            blas.dsyrk(1.0, dx.T, 1.0, total.xx[group].T, lower=1, overwrite_c=1)
            total.xy[group] += dx.T @ dy
            total.yy[group] += np.einsum("ut,ut->t", dy, dy)
    return _empty(groups, np.zeros(0), y.shape[1]) if total is None else total


def _empty(groups: int, centre: NDArray[np.float64], targets: int) -> Sums:
    width = len(centre)
    return Sums(
        np.zeros(groups, np.int64),
        np.zeros((groups, width)),
        np.zeros((groups, targets)),
        np.zeros((groups, width, width)),
        np.zeros((groups, width, targets)),
        np.zeros((groups, targets)),
        np.full((groups, width), np.inf),
        np.full((groups, width), -np.inf),
        centre,
    )


def group_triangles(
    x: da.Array,
    *,
    y: Float64[np.ndarray, "utterance target"],
    codes: Int64[np.ndarray, " utterance"],
    groups: int,
    centre: Float64[np.ndarray, " feature"],
) -> list[Float64[np.ndarray, "row column"]]:
    """R of the QR decomposition of each group's rows [1, x - centre, y], in one more pass.

    R'R are the same sums of products, whose small differences R has with all digits.

    Args:
        x: as in `group_sums`, and so on.
        y: targets.
        codes: group of each row.
        groups: number of groups.
        centre: what is subtracted from features.
    """
    work = functools.partial(_triangles, y=y, codes=codes, groups=groups, centre=centre)
    runs = in_runs(x, work, wanted=codes >= 0)
    return [_triangle(np.concatenate(own)) for own in zip(*runs, strict=True)]


def _triangles(
    blocks: Blocks,
    *,
    y: NDArray[np.float64],
    codes: NDArray[np.int64],
    groups: int,
    centre: NDArray[np.float64],
) -> list[NDArray[np.float64]]:
    found = [np.zeros((0, 1 + len(centre) + y.shape[1]))] * groups
    for rows, block in blocks:
        flat, own = block.reshape(len(block), -1), codes[rows]
        for group in np.unique(own[own >= 0]):
            picked = np.flatnonzero(own == group)
            ones = np.ones((len(picked), 1))
            below = np.concatenate([ones, flat[picked] - centre, y[rows][picked]], axis=1)
            found[group] = _triangle(np.concatenate([found[group], below]))
    return found


def _triangle(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return linalg.qr(rows, mode="r", check_finite=False)[0][: rows.shape[1]] if len(rows) else rows
