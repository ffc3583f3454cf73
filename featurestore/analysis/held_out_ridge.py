"""Ridge regression of every fold from sums alone: exact, whatever the number of utterances.

What a fold trains on is the total less what it holds out, and how well it predicts follows from the
sums of what it holds out: no prediction is made. So a thousand permutations of the labels are a
thousand more columns, and each fold's matrix is factorised once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray
from scipy import linalg
from scipy.linalg import blas

from featurestore.analysis.ridge import Spectrum
from featurestore.analysis.sums import Sums
from featurestore.errors import AnalysisError
from featurestore.progress import Tick

Triangles = Callable[[], Sequence[NDArray[np.float64]]]

# Of a sum of squares about the mean, against that about another value, from which it is a small
# difference: below, it has fewer than nine digits.
_DIGITS = 1e-7


@dataclass(frozen=True, eq=False)
class HeldOut:
    """How every group is predicted from the others, (group, penalty, target) unless said otherwise.

    Attributes:
        n: (group,) held-out utterances.
        truth_mean: (group, target).
        truth_variance: (group, target), population.
        predicted_mean: of the predictions.
        predicted_variance: of the predictions, population.
        covariance: of predictions and truth.
    """

    n: NDArray[np.int64]
    truth_mean: Float64[np.ndarray, "group target"]
    truth_variance: Float64[np.ndarray, "group target"]
    predicted_mean: Float64[np.ndarray, "group penalty target"]
    predicted_variance: Float64[np.ndarray, "group penalty target"]
    covariance: Float64[np.ndarray, "group penalty target"]

    @property
    def mse(self) -> Float64[np.ndarray, "group penalty target"]:
        """Mean squared error of each group."""
        off = (self.predicted_mean - self.truth_mean[:, None]) ** 2
        return self.predicted_variance + self.truth_variance[:, None] - 2 * self.covariance + off

    def pooled(self) -> dict[str, Float64[np.ndarray, "penalty target"]]:
        """`mse` over all utterances, `ccc` and `r2` of all groups' predictions together.

        NaN where all labels are the same.
        """
        weight = (self.n / self.n.sum())[:, None, None]
        truth = self.truth_mean[:, None]
        truth_mean = (weight * truth).sum(axis=0)
        predicted_mean = (weight * self.predicted_mean).sum(axis=0)
        truth_off, off = truth - truth_mean, self.predicted_mean - predicted_mean
        variance = (weight * (self.truth_variance[:, None] + truth_off**2)).sum(axis=0)
        predicted = (weight * (self.predicted_variance + off**2)).sum(axis=0)
        covariance = (weight * (self.covariance + truth_off * off)).sum(axis=0)
        mse = (weight * self.mse).sum(axis=0)
        known = np.broadcast_to(variance > 0, mse.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = (truth_mean - predicted_mean) ** 2
            ccc = 2 * covariance / (variance + predicted + apart)
            r2 = 1 - mse / variance
        return {"mse": mse, "ccc": np.where(known, ccc, np.nan), "r2": np.where(known, r2, np.nan)}


def hold_out_each(
    sums: Sums,
    *,
    penalties: Float64[np.ndarray, " penalty"],
    triangles: Triangles,
    tick: Tick = lambda amount: None,
) -> HeldOut:
    """Ridge on features standardised in training, holding out one group at a time.

    Exactly scikit-learn's `StandardScaler` and `Ridge`, for every penalty and target at once.

    Args:
        sums: of all groups.
        penalties: 0 for ordinary least squares.
        triangles: what `group_triangles` finds, called only where the condition of a fold's matrix
            would cost more than nine digits.
        tick: is told of every group.

    Raises:
        AnalysisError: fewer than two groups, or least squares with more features than utterances.
    """
    groups, (width, targets) = len(sums.n), sums.xy.shape[1:]
    if groups < 2 or (sums.n == 0).any():
        raise AnalysisError("Holding a group out takes at least 2 groups with utterances.")
    fewest = int(sums.n.sum() - sums.n.max())
    if (penalties <= 0).any() and fewest <= width:
        raise AnalysisError(
            f"Least squares of {width} features needs more than {fewest} utterances; give a "
            "penalty above 0, or fewer features."
        )
    held = HeldOut(
        sums.n,
        sums.y / sums.n[:, None],
        np.maximum(0.0, sums.yy / sums.n[:, None] - (sums.y / sums.n[:, None]) ** 2),
        *(np.empty((groups, len(penalties), targets)) for _ in range(3)),
    )
    for group in range(groups):
        _hold_out(_Fold(sums, group, triangles), penalties, held)
        tick(1)
    return held


def _hold_out(fold: _Fold, penalties: Float64[np.ndarray, " penalty"], into: HeldOut) -> None:
    """Predict under all penalties; on return the fold is let go, before the next one is made."""
    for row, penalty in enumerate(penalties):
        fold.predict(float(penalty), into, row)


def _less_outer(matrix: NDArray[np.float64], n: float, x: NDArray[np.float64]) -> None:
    """Subtract n x x' from the upper triangle, in place."""
    blas.dsyr(-n, x, a=matrix.T, lower=1, overwrite_a=1)  # the transpose is Fortran's view


class _Fold:
    """One group held out: the regression of the others."""

    def __init__(self, sums: Sums, group: int, triangles: Triangles):
        self.sums, self.group, self.triangles = sums, group, triangles
        others = np.arange(len(sums.n)) != group
        n = int(sums.n[others].sum())
        self.mean = sums.x[others].sum(axis=0) / n
        self.mean_y = sums.y[others].sum(axis=0) / n
        gram = np.zeros_like(sums.xx[group])
        for other in np.flatnonzero(others):  # of these, an index would make copies
            gram += sums.xx[other]
        squares = np.diagonal(gram).copy()
        _less_outer(gram, n, self.mean)
        constant = sums.low[others].min(axis=0) == sums.high[others].max(axis=0)
        left = np.diagonal(gram).copy()
        self.others, self.constant = others, constant
        self.lossy = bool((~constant & (left < _DIGITS * squares)).any())
        if self.lossy:  # such as a unit that is dead in all but the group held out
            left = self._squares_by_qr()
        self.scale = np.where(constant, 1.0, np.sqrt(np.where(constant, 1.0, left) / n))
        if self.lossy:
            return
        gram /= self.scale
        gram /= self.scale[:, None]
        gram[constant] = 0.0  # rounding
        gram[:, constant] = 0.0
        self.spectrum = Spectrum(gram, overwrite=True)
        basis = self.spectrum.vectors
        right = sums.xy.sum(axis=0)
        right -= sums.xy[group]
        right -= np.outer(n * self.mean, self.mean_y)
        right /= self.scale[:, None]
        right[constant] = 0.0
        self.rotated = basis.T @ right
        # Held-out covariances and mean in the same basis: no slope is needed in the features'.
        n, mean = sums.n[group], sums.x[group] / sums.n[group]
        self.held_xx = basis.T @ self._covariance_times(basis, n, mean)
        held_xy = sums.xy[group] / n
        held_xy -= np.outer(mean, sums.y[group] / n)
        held_xy /= self.scale[:, None]
        self.held_xy = basis.T @ held_xy
        self.apart = ((mean - self.mean) / self.scale) @ basis

    def _covariance_times(
        self, basis: NDArray[np.float64], n: int, mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Of the held-out rows in units of the scale; only its upper triangle is ever there."""
        covariance = self.sums.xx[self.group] / n
        _less_outer(covariance, 1.0, mean)
        covariance /= self.scale
        covariance /= self.scale[:, None]
        return blas.dsymm(1.0, covariance.T, basis, lower=1)

    def predict(self, penalty: float, into: HeldOut, row: int) -> None:
        """Write moments of the predictions under a penalty."""
        at = (self.group, row)
        if self.lossy or not self.spectrum.holds(penalty):
            slope, held = self._by_qr(penalty), self.triangles()[self.group]
            mean = self.sums.x[self.group] / self.sums.n[self.group] - self.mean
            into.predicted_mean[at] = self.mean_y + mean @ slope
            into.predicted_variance[at], into.covariance[at] = self._moments_of(held, slope)
            return
        shrunk = self.spectrum.shrunk(self.rotated, penalty)
        into.predicted_mean[at] = self.mean_y + self.apart @ shrunk
        spread = np.einsum("ft,ft->t", shrunk, self.held_xx @ shrunk)
        into.predicted_variance[at] = np.maximum(0.0, spread)
        into.covariance[at] = np.einsum("ft,ft->t", shrunk, self.held_xy)

    def _training_rows(self) -> NDArray[np.float64]:
        """The others' triangles: rows [1, dx, y] of the same sums of products."""
        held = self.triangles()
        return np.concatenate([held[int(group)] for group in np.flatnonzero(self.others)])

    def _squares_by_qr(self) -> NDArray[np.float64]:
        """(feature,) sums of squares about the training mean, with all digits."""
        rows = self._training_rows()[:, : 1 + len(self.mean)]
        return (linalg.qr(rows, mode="r")[0][1:, 1:] ** 2).sum(axis=0)

    def _by_qr(self, penalty: float) -> NDArray[np.float64]:
        """Slopes from the rows' triangles: their products are never made."""
        rows = self._training_rows()
        width, known = len(self.mean), np.flatnonzero(~self.constant)
        design = np.concatenate([rows[:, :1], rows[:, 1 + known] / self.scale[known]], axis=1)
        below = np.sqrt(penalty) * np.eye(1 + len(known))[1:]
        right = np.zeros((len(rows) + len(known), rows.shape[1] - 1 - width))
        right[: len(rows)] = rows[:, 1 + width :]
        solved = linalg.lstsq(np.concatenate([design, below]), right, lapack_driver="gelsy")[0]
        slope = np.zeros((width, right.shape[1]))
        slope[known] = solved[1:] / self.scale[known, None]
        return slope

    def _moments_of(
        self, triangle: NDArray[np.float64], slope: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Variance of the held-out predictions, and covariance with the truth.

        With R of rows [1, dx, y], R [-m, slope] has the sum of squares of dx slope - m.
        """
        n, width = self.sums.n[self.group], len(self.mean)
        mean = self.sums.x[self.group] / n
        ones, dx, y = triangle[:, :1], triangle[:, 1 : 1 + width], triangle[:, 1 + width :]
        off = dx @ slope - ones * (mean @ slope)
        off_y = y - ones * (self.sums.y[self.group] / n)
        return np.einsum("rt,rt->t", off, off) / n, np.einsum("rt,rt->t", off, off_y) / n
