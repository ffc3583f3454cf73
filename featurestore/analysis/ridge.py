"""Ridge regression on all units, its penalty chosen for speakers that were not heard.

The 100 best units are the paper's way to regress on 1,920 features with fewer utterances than that;
shrinking all of them is the usual one. The penalty is what matters: chosen for held-out utterances
of speakers that are also in training (as scikit-learn's `RidgeCV` does by default) it comes out a
thousand times too small for a speaker that is not. Here it is chosen over held-out speakers, inside
the training fold.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped
from numpy.typing import NDArray
from scipy import linalg
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import RobustScaler, StandardScaler

from featurestore.analysis.threads import one_blas_thread

PENALTIES = np.logspace(0, 6, 13)
INNER_FOLDS = 5
# Below, more than nine of the sixteen digits are lost in the product of X with itself.
_LEAST_INVERSE_CONDITION = 1e-9
_LEAST_TO_CHOOSE = 1e-13  # three digits are enough to see which penalty is best


@dataclass(frozen=True, eq=False)
class RidgeModel:
    """A fitted ridge regression on standardised features.

    Attributes:
        mean: (feature,) of the training utterances.
        scale: (feature,) their population standard deviation, 1 for a constant feature; or their
            interquartile range.
        coefficients: (feature,) per unit of the scale.
        intercept: prediction at the mean.
        penalty: the chosen factor of the squared coefficients, against a sum of squared errors.
        limits: smallest and largest values (feature,) that features are clipped to, if they are.
    """

    mean: Float64[np.ndarray, " feature"]
    scale: Float64[np.ndarray, " feature"]
    coefficients: Float64[np.ndarray, " feature"]
    intercept: float
    penalty: float
    limits: tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]] | None = None

    def predict(
        self, X: Float[np.ndarray, "utterance feature"]
    ) -> Float64[np.ndarray, " utterance"]:
        """Predictions in the unit of the target."""
        clipped = X if self.limits is None else np.clip(X, *self.limits)
        return ((clipped - self.mean) / self.scale) @ self.coefficients + self.intercept


def fit_ridge(
    X: Float[np.ndarray, "utterance feature"],
    *,
    y: Float64[np.ndarray, " utterance"],
    speakers: Shaped[np.ndarray, " utterance"],
    penalties: Float64[np.ndarray, " penalty"] = PENALTIES,
) -> RidgeModel:
    """`fit_ridges` for one target.

    Args:
        X: features of the training utterances.
        y: their labels, all known.
        speakers: who says them.
        penalties: what to choose from, all above 0.
    """
    return fit_ridges(X, Y=y[:, None], speakers=speakers, penalties=penalties)[0]


def fit_ridges(
    X: Float[np.ndarray, "utterance feature"],
    *,
    Y: Float64[np.ndarray, "utterance target"],
    speakers: Shaped[np.ndarray, " utterance"],
    penalties: Float64[np.ndarray, " penalty"] = PENALTIES,
    robust: bool = False,
) -> list[RidgeModel]:
    """Ridge on scaled features with the penalty of least squared error on unheard speakers.

    Args:
        X: features of the training utterances.
        Y: their labels, all known.
        speakers: who says them. They are dealt into five groups (fewer with fewer speakers) that
            take turns in being held out; a single speaker's utterances are dealt one by one.
        penalties: what to choose from, all above 0.
        robust: scale by interquartile ranges instead of standard deviations, and clip what is
            predicted from to the range of what was fitted.

    Returns:
        One model per target, each with a penalty of its own.
    """
    X = np.asarray(X, np.float64)
    groups = inner_groups(speakers)
    errors = np.zeros((len(penalties), Y.shape[1]))
    if len(penalties) > 1 and groups.max() > 0:
        splits = GroupKFold(min(INNER_FOLDS, groups.max() + 1)).split(X, Y, groups)
        for train, held in splits:
            path = _Path(X[train], Y[train], robust)
            Z = path.scaled(X[held])
            for row, penalty in enumerate(penalties):
                coefficients = path.coefficients(penalty, _LEAST_TO_CHOOSE)
                off = Z @ coefficients + path.intercept - Y[held]
                errors[row] += (off**2).sum(axis=0)
    chosen = [float(penalties[best]) for best in np.argmin(errors, axis=0)]
    path = _Path(X, Y, robust)
    fitted = {penalty: path.coefficients(penalty) for penalty in set(chosen)}
    return [
        RidgeModel(
            mean=path.mean,
            scale=path.scale,
            coefficients=fitted[penalty][:, column],
            intercept=float(path.intercept[column]),
            penalty=penalty,
            limits=path.limits,
        )
        for column, penalty in enumerate(chosen)
    ]


def inner_groups(speakers: Shaped[np.ndarray, " utterance"]) -> Int64[np.ndarray, " utterance"]:
    """Codes of speakers, over whom a choice is made; of utterances, where there is one speaker."""
    groups = np.unique(speakers, return_inverse=True)[1].astype(np.int64)
    return groups if groups.max() > 0 else np.arange(len(speakers))


class Spectrum:
    """Ridge regressions of one matrix of products with any number of penalties.

    The eigendecomposition takes about the time of the dozen Cholesky factorisations that there
    would be, one for each penalty; but then a solution is one product, and the condition is known.
    """

    def __init__(self, gram: Float64[np.ndarray, "n n"], *, overwrite: bool = False):
        """Decompose a symmetric matrix, whose upper triangle counts.

        Args:
            gram: the matrix.
            overwrite: whether its memory may be used; without, other threads may run meanwhile.
        """
        with one_blas_thread():
            if overwrite:
                # The transpose is Fortran's view of the same memory: nothing is copied.
                found = linalg.eigh(gram.T, lower=True, driver="evd", overwrite_a=True)
            else:
                found = np.linalg.eigh(gram, UPLO="U")
        self.vectors = found[1]
        self.values = np.maximum(found[0], 0.0)  # what is less is rounding

    def holds(self, penalty: float, least: float = _LEAST_INVERSE_CONDITION) -> bool:
        """Whether the inverse condition of the matrix with this penalty is at least so much."""
        return bool(self.values[0] + penalty > least * (self.values[-1] + penalty))

    def shrunk(
        self, rotated: Float64[np.ndarray, "n k"], penalty: float
    ) -> Float64[np.ndarray, "n k"]:
        """Solutions of right-hand sides, both turned into the basis of eigenvectors."""
        return rotated / (self.values + penalty)[:, None]


class _Path:
    """Ridge regressions of the same data with several penalties.

    The product of X with itself is made on its smaller side, and once, where scikit-learn's `Ridge`
    makes it anew for each penalty.
    """

    def __init__(
        self,
        X: Float64[np.ndarray, "utterance feature"],
        Y: Float64[np.ndarray, "utterance target"],
        robust: bool,
    ):
        # A regression with an intercept does not depend on what is subtracted, be it a median.
        self.mean = X.mean(axis=0)
        self.scale = (RobustScaler if robust else StandardScaler)().fit(X).scale_
        self.limits = (X.min(axis=0), X.max(axis=0)) if robust else None
        self.intercept = Y.mean(axis=0)
        self.Z, self.Y = self.scaled(X), Y - self.intercept
        self.wide = self.Z.shape[1] > self.Z.shape[0]
        self.spectrum = Spectrum(self.Z @ self.Z.T if self.wide else self.Z.T @ self.Z)
        right = self.Y if self.wide else self.Z.T @ self.Y
        self.rotated = self.spectrum.vectors.T @ right

    def scaled(self, X: Float64[np.ndarray, "row feature"]) -> Float64[np.ndarray, "row feature"]:
        """Features of any rows as the regression is given them."""
        clipped = X if self.limits is None else np.clip(X, *self.limits)
        return (clipped - self.mean) / self.scale

    def coefficients(
        self, penalty: float, least: float = _LEAST_INVERSE_CONDITION
    ) -> Float64[np.ndarray, "feature target"]:
        """Per unit of each feature's scale."""
        if not self.spectrum.holds(penalty, least):
            left, sizes, right = self._singular
            shrunk = sizes / (sizes**2 + penalty)
            return right.T @ (shrunk[:, None] * (left.T @ self.Y))
        solved = self.spectrum.vectors @ self.spectrum.shrunk(self.rotated, penalty)
        return self.Z.T @ solved if self.wide else solved

    @functools.cached_property
    def _singular(self) -> tuple[NDArray[np.float64], ...]:
        """Singular value decomposition of Z, which keeps the digits that its product loses.

        It takes some ten times as long, hence only where it is needed.
        """
        return linalg.svd(self.Z, full_matrices=False, lapack_driver="gesdd")
