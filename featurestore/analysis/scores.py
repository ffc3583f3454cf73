"""How good held-out predictions are: per speaker, per fold, and of all speakers together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

COLUMNS = (
    "table",
    "feature_set",
    "target",
    "fold",
    "speaker",
    "n_train",
    "n_test",
    "n_features",
    "mse",
    "ccc",
    "r2",
    "pearson",
    "truth_mean",
    "predicted_mean",
    "truth_variance",
    "predicted_variance",
    "covariance",
)


def fold_row(
    *,
    feature_set: str,
    target: str,
    speaker: str,
    truth: Float64[np.ndarray, " held_out"],
    predicted: Float64[np.ndarray, " held_out"],
    n_train: int,
    n_features: int,
    fold: str | None = None,
) -> dict[str, Any]:
    """What `evaluate` says of a feature set, a target and a held-out speaker.

    Args:
        feature_set: name, as printed.
        target: the label.
        speaker: who is held out.
        truth: labels of the held-out utterances.
        predicted: their predictions.
        n_train: utterances that the model was fitted to.
        n_features: it was given.
        fold: its name, if it is not the speaker's.
    """
    moments = joint_moments(truth, predicted=predicted)
    return {
        "feature_set": feature_set,
        "target": target,
        "fold": speaker if fold is None else fold,
        "speaker": speaker,
        "n_train": n_train,
        "n_test": len(truth),
        "n_features": n_features,
        "mse": float(np.mean((predicted - truth) ** 2)),
        "ccc": concordance(truth, predicted=predicted),
        "r2": r2(truth, predicted=predicted),
        "pearson": _pearson(**moments) if len(truth) > 1 and np.ptp(truth) > 0 else math.nan,
        **moments,
    }


def _pearson(
    truth_variance: float, predicted_variance: float, covariance: float, **_: float
) -> float:
    """Correlation of truth and prediction; NaN of a constant prediction."""
    scale = math.sqrt(truth_variance) * math.sqrt(predicted_variance)
    return covariance / scale if scale > 0 else math.nan


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


def pooled_moments(speakers: pd.DataFrame) -> dict[str, float]:
    """`joint_moments` of the predictions of several speakers taken together, from those of each."""
    weight = (speakers["n_test"] / speakers["n_test"].sum()).to_numpy(np.float64)
    truth, predicted = speakers["truth_mean"].to_numpy(), speakers["predicted_mean"].to_numpy()
    truth_mean, predicted_mean = float(weight @ truth), float(weight @ predicted)
    truth_off, predicted_off = truth - truth_mean, predicted - predicted_mean
    return {
        "truth_mean": truth_mean,
        "predicted_mean": predicted_mean,
        "truth_variance": float(weight @ (speakers["truth_variance"] + truth_off**2)),
        "predicted_variance": float(weight @ (speakers["predicted_variance"] + predicted_off**2)),
        "covariance": float(weight @ (speakers["covariance"] + truth_off * predicted_off)),
    }


def pooled_concordance(speakers: pd.DataFrame) -> float:
    """CCC of the predictions of several speakers taken together, from the moments of each.

    NaN where a speaker has no predictions or the labels are all the same.
    """
    moments = pooled_moments(speakers)
    return _concordance(**moments) if moments["truth_variance"] > 0 else math.nan


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
        folds together), folds, speakers, mse_mean, mse_variance, mse_std (ddof = 1 over folds; NaN
        as soon as one fold's is), mse_weighted (over utterances), ccc_mean (over the ccc_folds
        speakers whose CCC is defined), ccc_pooled of all held-out predictions together, r2_mean
        over r2_folds speakers, r2_pooled (against the mean of all held-out labels), pearson_mean
        over pearson_folds speakers, pearson_pooled.
    """
    rows = []
    keys = ["table", "feature_set", "target"]
    for (table, name, target), speakers in results.groupby(keys, sort=False):
        weight = speakers["n_test"] / speakers["n_test"].sum()
        squared = (speakers["mse"] * speakers["n_test"]).groupby(speakers["fold"], sort=False)
        counts = speakers["n_test"].groupby(speakers["fold"], sort=False).sum()
        mse = squared.sum(min_count=1).to_numpy(np.float64) / counts.to_numpy(np.float64)
        if speakers["mse"].isna().any():
            mse = np.where(
                speakers["mse"].isna().groupby(speakers["fold"], sort=False).any(), np.nan, mse
            )
        variance = float(np.var(mse, ddof=1)) if len(mse) > 1 else math.nan
        weighted = float((weight * speakers["mse"]).sum(skipna=False))
        moments = pooled_moments(speakers)
        rows.append(
            {
                "table": table,
                "feature_set": name,
                "target": target,
                "utterances": int(speakers["n_test"].sum()),
                "folds": len(mse),
                "speakers": len(speakers),
                "mse_mean": float(mse.mean()),
                "mse_variance": variance,
                "mse_std": math.sqrt(variance),
                "mse_weighted": weighted,
                "ccc_mean": float(speakers["ccc"].mean()),
                "ccc_folds": int(speakers["ccc"].notna().sum()),
                "ccc_pooled": pooled_concordance(speakers),
                "r2_mean": float(speakers["r2"].mean()),
                "r2_folds": int(speakers["r2"].notna().sum()),
                "r2_pooled": 1 - weighted / moments["truth_variance"]
                if moments["truth_variance"] > 0
                else math.nan,
                "pearson_mean": float(speakers["pearson"].mean()),
                "pearson_folds": int(speakers["pearson"].notna().sum()),
                "pearson_pooled": _pearson(**moments),
            }
        )
    summary = pd.DataFrame(rows)
    summary.attrs = dict(results.attrs)
    return summary
