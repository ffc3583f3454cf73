"""Ridge regression on all units, its penalty chosen for speakers that were not heard.

The 100 best units are the paper's way to regress on 1,920 features with fewer utterances than that;
shrinking all of them is the usual one. The penalty is what matters: chosen for held-out utterances
of speakers that are also in training (as scikit-learn's `RidgeCV` does by default) it comes out a
thousand times too small for a speaker that is not. Here it is chosen over held-out speakers, inside
the training fold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Shaped
from scipy import linalg
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut
from sklearn.preprocessing import StandardScaler

from featurestore.analysis.regression import Fold, concordance, joint_moments, r2

PENALTIES = np.logspace(0, 6, 13)
_INNER_FOLDS = 5


@dataclass(frozen=True, eq=False)
class RidgeModel:
    """A fitted ridge regression on standardised features.

    Attributes:
        mean: (feature,) of the training utterances.
        scale: (feature,) their population standard deviation, 1 for a constant feature.
        coefficients: (feature,) per standard deviation.
        intercept: prediction at the mean.
        penalty: the chosen factor of the squared coefficients, against a sum of squared errors.
    """

    mean: Float64[np.ndarray, " feature"]
    scale: Float64[np.ndarray, " feature"]
    coefficients: Float64[np.ndarray, " feature"]
    intercept: float
    penalty: float

    def predict(
        self, X: Float[np.ndarray, "utterance feature"]
    ) -> Float64[np.ndarray, " utterance"]:
        """Predictions in the unit of the target."""
        return ((X - self.mean) / self.scale) @ self.coefficients + self.intercept


def fit_ridge(
    X: Float[np.ndarray, "utterance feature"],
    *,
    y: Float64[np.ndarray, " utterance"],
    speakers: Shaped[np.ndarray, " utterance"],
    penalties: Float64[np.ndarray, " penalty"] = PENALTIES,
) -> RidgeModel:
    """Ridge on standardised features with the penalty of least squared error on unheard speakers.

    Args:
        X: features of the training utterances.
        y: their labels, all known.
        speakers: who says them. They are dealt into five groups (fewer with fewer speakers) that
            take turns in being held out; a single speaker's utterances are dealt one by one.
        penalties: what to choose from, all above 0.
    """
    X = np.asarray(X, np.float64)
    groups = np.unique(speakers, return_inverse=True)[1]
    if groups.max() == 0:
        groups = np.arange(len(y))
    errors = np.zeros(len(penalties))
    if len(penalties) > 1 and groups.max() > 0:
        splits = GroupKFold(min(_INNER_FOLDS, groups.max() + 1)).split(X, y, groups)
        for train, held in splits:
            scaler, coefficients, intercept = _path(X[train], y[train], penalties)
            predicted = scaler.transform(X[held]) @ coefficients + intercept
            errors += ((predicted - y[held, None]) ** 2).sum(axis=0)
    chosen = float(penalties[np.argmin(errors)])
    scaler, coefficients, intercept = _path(X, y, np.array([chosen]))
    return RidgeModel(
        mean=scaler.mean_,
        scale=scaler.scale_,
        coefficients=coefficients[:, 0],
        intercept=intercept,
        penalty=chosen,
    )


def _path(
    X: Float64[np.ndarray, "utterance feature"],
    y: Float64[np.ndarray, " utterance"],
    penalties: Float64[np.ndarray, " penalty"],
) -> tuple[StandardScaler, Float64[np.ndarray, "feature penalty"], float]:
    """Scaler, coefficients for every penalty, and the intercept.

    The product of X with itself, on its smaller side, is decomposed once for all penalties, where
    scikit-learn's `Ridge` would solve for each anew.
    """
    scaler = StandardScaler().fit(X)
    Z, intercept = scaler.transform(X), float(y.mean())
    wide = Z.shape[1] > Z.shape[0]
    values, vectors = linalg.eigh(Z @ Z.T if wide else Z.T @ Z, driver="evd")
    right = y - intercept if wide else Z.T @ (y - intercept)
    shrunk = (vectors.T @ right)[:, None] / (np.maximum(values, 0.0)[:, None] + penalties)
    solved = vectors @ shrunk
    return scaler, Z.T @ solved if wide else solved, intercept


def ridge_leave_one_speaker_out(
    X: Float[np.ndarray, "utterance feature"],
    *,
    y: Float64[np.ndarray, " utterance"],
    speakers: Shaped[np.ndarray, " utterance"],
    only: Collection[str] | None = None,
) -> Iterator[Fold]:
    """The folds of `regression.leave_one_speaker_out` with `fit_ridge` as the model.

    Args:
        X: features.
        y: labels, all known.
        speakers: who says the utterances.
        only: held-out speakers to run; all by default.
    """
    for train, test in LeaveOneGroupOut().split(X, y, speakers):
        speaker = str(speakers[test[0]])
        if only is None or speaker in only:
            model = fit_ridge(X[train], y=y[train], speakers=speakers[train])
            yield Fold(speaker, test, model.predict(X[test]), X.shape[1])


def fold_row(
    *,
    feature_set: str,
    target: str,
    speaker: str,
    truth: Float64[np.ndarray, " held_out"],
    predicted: Float64[np.ndarray, " held_out"],
    n_train: int,
    n_features: int,
) -> dict[str, Any]:
    """What `evaluate` says of a feature set, a target and a fold: `regression.COLUMNS`, no table.

    Args:
        feature_set: name, as printed.
        target: the label.
        speaker: who is held out.
        truth: labels of the held-out utterances.
        predicted: their predictions.
        n_train: utterances that the model was fitted to.
        n_features: it was given.
    """
    return {
        "feature_set": feature_set,
        "target": target,
        "fold": speaker,
        "n_train": n_train,
        "n_test": len(truth),
        "n_features": n_features,
        "mse": float(np.mean((predicted - truth) ** 2)),
        "ccc": concordance(truth, predicted=predicted),
        "r2": r2(truth, predicted=predicted),
        **joint_moments(truth, predicted=predicted),
    }
