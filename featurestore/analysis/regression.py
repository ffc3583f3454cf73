"""Held-out prediction of labels from feature sets, leaving one speaker out at a time.

Whatever is learned from data (selection, scaling, regression) is learned inside the training fold:
each feature set is one scikit-learn pipeline that never sees the held-out speaker.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Shaped
from numpy.typing import NDArray
from sklearn.dummy import DummyRegressor
from sklearn.feature_selection import SelectKBest, r_regression
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler

from featurestore.analysis.features import (
    Aligned,
    AnalysisWarning,
    FeatureSet,
    Source,
    Store,
    align,
    known_speakers,
    label_values,
    table_sets,
    text_values,
)
from featurestore.errors import AnalysisError
from featurestore.types import NETWORK

log = logging.getLogger(__name__)

COLUMNS = (
    "table",
    "feature_set",
    "target",
    "fold",
    "n_train",
    "n_test",
    "n_features",
    "mse",
    "ccc",
    "r2",
    "truth_mean",
    "predicted_mean",
    "truth_variance",
    "predicted_variance",
    "covariance",
)


def evaluate(
    store: Store,
    *,
    targets: Sequence[str] = ("valence", "arousal"),
    table: Literal[1, 2] = 1,
    view: str = NETWORK,
    capture: str | None = None,
    features: int = 100,
    agreed_only: bool | None = None,
    emotion_column: str = "emotion",
    disagreement: str = "xxx",
    mfcc_view: str = "mfcc",
    egemaps_view: str = "egemaps",
) -> pd.DataFrame:
    """Tables 1 and 2 of the paper: linear regression on feature sets, leave one speaker out.

    All sets are compared on the same utterances: those that every view holds and whose target is
    known. Two rows exist for eGeMAPS. The plain one is the paper's; in the other, features are
    scaled by the training fold's range and clipped to it, because a single speaker recorded far
    outside that range makes ordinary least squares extrapolate wildly and would condemn the
    feature set for what is a fault of the regression.

    Args:
        store: an open feature store.
        targets: numeric labels, each evaluated on its own.
        table: 1 compares the best of all units with eGeMAPS and MFCC; 2 the first and last layers.
        view: name or kind of the network's view; "network" is the only one that there is.
        capture: capture point of the network whose mean over frames is used; the view's first one
            by default.
        features: how many units are selected inside each fold, by their correlation with the target
            (the ranking of scikit-learn's `f_regression`).
        agreed_only: use only utterances whose raters agreed on a category; by default for table 2.
        emotion_column: label that holds the category.
        disagreement: its value where there was no majority ("xxx" in IEMOCAP).
        mfcc_view: name of the MFCC view, where a store has several.
        egemaps_view: name of the eGeMAPS view, where a store has several.

    Returns:
        One row per feature set, target and fold: table, feature_set, target, fold (the held-out
        speaker), n_train, n_test, n_features, mse (squared unit of the target), ccc, r2 (against
        the held-out speaker's own mean), and the population moments of truth and prediction in the
        fold, from which statistics over all folds together follow. Undefined values are NaN: ccc
        and r2 of a single utterance or a constant label; everything, for a selection by a constant
        target. `attrs` has "notes", a list of what was left out.

    Raises:
        AnalysisError: an unknown table, label, or capture; unknown speakers or fewer than two; no
            utterance left; categories asked for that the store does not hold.
    """
    if features < 1:
        raise AnalysisError(f"features={features} selects nothing; give 1 or more.")
    if isinstance(targets, str):
        targets = (targets,)
    sets, views, notes = _available(
        table_sets(table, best=features), store, (view, mfcc_view, egemaps_view)
    )
    aligned = align(store, views=views, capture=capture)
    if agreed_only or (agreed_only is None and table == 2):
        aligned, note = _agreed(aligned, emotion_column, disagreement, required=bool(agreed_only))
        notes += [note]
    rows = [row for target in targets for row in _target_rows(aligned, sets, target)]
    results = pd.DataFrame(rows, columns=list(COLUMNS[1:]))
    results.insert(0, "table", table)
    results.attrs["notes"] = notes
    return results


def _available(
    sets: Sequence[FeatureSet], store: Store, names: tuple[str, str, str]
) -> tuple[list[FeatureSet], dict[Source, str], list[str]]:
    """Feature sets that the store can answer, the views they need, and notes on the others."""
    kinds = store.kinds
    views: dict[Source, str] = {"gcu": names[0]}
    needed = {feature_set.source for feature_set in sets}
    if "mfcc" in needed and "mfcc" in kinds:
        views["mfcc"] = names[1]
    if "egemaps" in needed and "egemaps" in kinds:
        views["egemaps"] = names[2]
    notes = []
    if "egemaps" in needed and "egemaps" not in kinds:
        notes.append("The store has no eGeMAPS view, so its rows are absent.")
        warnings.warn(
            f"{notes[-1]} Ingest the same manifest again with --views network,mfcc,egemaps to add "
            "it.",
            AnalysisWarning,
            stacklevel=3,
        )
    return [s for s in sets if s.source is None or s.source in views], views, notes


def _agreed(
    aligned: Aligned, column: str, disagreement: str, *, required: bool
) -> tuple[Aligned, str]:
    """The utterances with a category that raters agreed on, and a note that says so."""
    if column not in aligned.table.coords:
        if required:
            raise AnalysisError(
                f"No label {column!r} in this store, so agreement between raters is unknown; name "
                "the column of categories (emotion_column) or use agreed_only=False."
            )
        note = f"The store has no {column!r} label: all utterances are used, agreed on or not."
        log.warning(note)
        return aligned, note
    category = text_values(aligned.table, column)
    keep = (category != "") & (category != disagreement)
    if not keep.any():
        raise AnalysisError(
            f"No utterance has an agreed category: label {column!r} is always empty or "
            f"{disagreement!r}. Use agreed_only=False for all utterances."
        )
    return aligned.take(keep), (
        f"Only utterances with an agreed category: {int(keep.sum())} of {len(keep)}."
    )


def _target_rows(
    aligned: Aligned, sets: Sequence[FeatureSet], target: str
) -> Iterator[dict[str, Any]]:
    values = label_values(aligned.table, target=target)
    known = np.isfinite(values)
    if not known.any():
        raise AnalysisError(f"Label {target!r} is missing for every utterance that is compared.")
    speakers = known_speakers(aligned.table, of=known)[known]
    held_out = np.unique(speakers)
    if len(held_out) < 2:
        raise AnalysisError(
            f"Leaving one speaker out takes at least 2 speakers with a {target!r} label, here is "
            f"{len(held_out)} ({held_out[0]!r}). Check the manifest's 'speaker' column."
        )
    aligned, y = aligned.take(known), values[known]
    for feature_set in sets:
        X = feature_set.matrix(aligned.matrices)
        for fold in leave_one_speaker_out(feature_set, X=X, y=y, speakers=speakers):
            yield {
                "feature_set": feature_set.name,
                "target": target,
                "fold": fold.speaker,
                "n_train": len(y) - len(fold.test),
                "n_test": len(fold.test),
                "n_features": fold.n_features,
                "mse": float(np.mean((fold.predicted - y[fold.test]) ** 2)),
                "ccc": concordance(y[fold.test], predicted=fold.predicted),
                "r2": r2(y[fold.test], predicted=fold.predicted),
                **joint_moments(y[fold.test], predicted=fold.predicted),
            }


@dataclass(frozen=True)
class Fold:
    """Predictions for one held-out speaker.

    Attributes:
        speaker: who was held out.
        test: (held_out,) rows of this speaker.
        predicted: (held_out,) predictions, NaN where the training fold allows none.
        n_features: number of features that the regression was given.
    """

    speaker: str
    test: NDArray[np.int64]
    predicted: Float64[np.ndarray, " held_out"]
    n_features: int


def leave_one_speaker_out(
    feature_set: FeatureSet,
    *,
    X: Float[np.ndarray, " utterance feature"],
    y: Float64[np.ndarray, " utterance"],
    speakers: Shaped[np.ndarray, " utterance"],
) -> Iterator[Fold]:
    """Fit on all speakers but one and predict that one, for each in ascending order."""
    width = X.shape[1]
    best = width if feature_set.best is None else min(feature_set.best, width)
    if feature_set.source is None:
        X = np.zeros((len(y), 1))  # scikit-learn refuses a matrix without columns
    for train, test in LeaveOneGroupOut().split(X, y, speakers):
        if feature_set.best is not None and np.ptp(y[train]) == 0:
            predicted = np.full(len(test), np.nan)  # no feature can be best for a constant
        else:
            model = pipeline(feature_set, width=width).fit(X[train], y[train])
            predicted = np.asarray(model.predict(X[test]), np.float64)
        yield Fold(str(speakers[test[0]]), test, predicted, best)


def pipeline(feature_set: FeatureSet, *, width: int) -> Pipeline:
    """The unfitted model of a feature set with `width` features: all that a fold may learn."""
    if feature_set.source is None:
        return make_pipeline(DummyRegressor(strategy="mean"))
    steps: list[Any] = []
    if feature_set.best is not None:
        steps.append(SelectKBest(selection_scores, k=min(feature_set.best, width)))
    # After the selection: float32 activations are widened where they are few.
    steps.append(FunctionTransformer(_to_float64))
    if feature_set.clipped:
        steps.append(MinMaxScaler(clip=True))
    return make_pipeline(*steps, LinearRegression())


def _to_float64(X: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(X, np.float64)


def selection_scores(
    X: Float[np.ndarray, " utterance feature"], y: Float64[np.ndarray, " utterance"]
) -> Float64[np.ndarray, " feature"]:
    """Squared correlation of each feature with y; -inf for a constant one, never selected first.

    The F value of scikit-learn's `f_regression` is r**2 / (1 - r**2) * (n - 2) and ranks features
    the same way, but its one-pass variance cancels for features that hardly vary around a large
    mean and makes noise of constant ones. So features are centred here, twice: their shift by the
    first row is exact in float64.
    """
    X = np.asarray(X, np.float64) - np.asarray(X[0], np.float64)
    X -= X.mean(axis=0)
    y = y - y[0]
    r = r_regression(X, y - y.mean(), center=False)
    return np.where(np.ptp(X, axis=0) > 0, r**2, -np.inf)


def concordance(
    truth: Float64[np.ndarray, " utterance"], *, predicted: Float64[np.ndarray, " utterance"]
) -> float:
    """Lin's concordance correlation coefficient, with population moments (Lin 1989, Biometrics 45).

    2 cov / (var truth + var predicted + (difference of means)^2), in [-1, 1]. NaN for fewer than
    two utterances, a constant truth, or predictions that are not finite.
    """
    if len(truth) < 2 or np.ptp(truth) == 0 or not np.isfinite(predicted).all():
        return math.nan
    return _concordance(**joint_moments(truth, predicted=predicted))


def _concordance(
    truth_mean: float,
    predicted_mean: float,
    truth_variance: float,
    predicted_variance: float,
    covariance: float,
) -> float:
    apart = (truth_mean - predicted_mean) ** 2
    return 2 * covariance / (truth_variance + predicted_variance + apart)


def joint_moments(
    truth: Float64[np.ndarray, " utterance"], *, predicted: Float64[np.ndarray, " utterance"]
) -> dict[str, float]:
    """Means, population variances and covariance of truth and prediction."""
    # Shifted by the first value, so that a constant prediction has a covariance of exactly zero.
    shifted = predicted - predicted[0]
    return {
        "truth_mean": float(truth.mean()),
        "predicted_mean": float(predicted.mean()),
        "truth_variance": float(truth.var()),
        "predicted_variance": float(shifted.var()),
        "covariance": float(np.mean((truth - truth.mean()) * (shifted - shifted.mean()))),
    }


def pooled_concordance(folds: pd.DataFrame) -> float:
    """CCC of the predictions of several folds taken together, from the moments of each.

    NaN where a fold has no predictions or the labels are all the same.
    """
    weight = (folds["n_test"] / folds["n_test"].sum()).to_numpy(np.float64)
    truth, predicted = folds["truth_mean"].to_numpy(), folds["predicted_mean"].to_numpy()
    truth_mean, predicted_mean = float(weight @ truth), float(weight @ predicted)
    truth_off, predicted_off = truth - truth_mean, predicted - predicted_mean
    truth_variance = float(weight @ (folds["truth_variance"] + truth_off**2))
    if truth_variance == 0:
        return math.nan
    return _concordance(
        truth_mean,
        predicted_mean,
        truth_variance,
        float(weight @ (folds["predicted_variance"] + predicted_off**2)),
        float(weight @ (folds["covariance"] + truth_off * predicted_off)),
    )


def r2(
    truth: Float64[np.ndarray, " utterance"], *, predicted: Float64[np.ndarray, " utterance"]
) -> float:
    """Coefficient of determination against the mean of `truth`, as `sklearn.metrics.r2_score`.

    NaN for fewer than two utterances, a constant truth, or predictions that are not finite.
    """
    if len(truth) < 2 or np.ptp(truth) == 0 or not np.isfinite(predicted).all():
        return math.nan
    return float(1 - np.mean((truth - predicted) ** 2) / truth.var())


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Mean, variance and standard deviation over folds, one row per feature set and target.

    Args:
        results: what `evaluate` returned.

    Returns:
        Rows in the order of `results`: table, feature_set, target, utterances (held out in all
        folds together), folds, mse_mean, mse_variance, mse_std (ddof = 1 over folds; NaN as soon as
        one fold's is), ccc_mean over the ccc_folds whose CCC is defined, ccc_pooled of all held-out
        predictions together, r2_mean over r2_folds.
    """
    rows = []
    keys = ["table", "feature_set", "target"]
    for (table, name, target), folds in results.groupby(keys, sort=False):
        mse = folds["mse"].to_numpy(np.float64)
        variance = float(np.var(mse, ddof=1)) if len(mse) > 1 else math.nan
        rows.append(
            {
                "table": table,
                "feature_set": name,
                "target": target,
                "utterances": int(folds["n_test"].sum()),
                "folds": len(folds),
                "mse_mean": float(mse.mean()),
                "mse_variance": variance,
                "mse_std": math.sqrt(variance),
                "ccc_mean": float(folds["ccc"].mean()),
                "ccc_folds": int(folds["ccc"].notna().sum()),
                "ccc_pooled": pooled_concordance(folds),
                "r2_mean": float(folds["r2"].mean()),
                "r2_folds": int(folds["r2"].notna().sum()),
            }
        )
    summary = pd.DataFrame(rows)
    summary.attrs = dict(results.attrs)
    return summary
