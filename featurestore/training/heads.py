"""A linear head on pooled units: begun at the ridge solution, trained with MSE or CCC."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Shaped

from featurestore.analysis.ridge import fit_ridge
from featurestore.training.tuning_config import Loss

Head = dict[str, Array]
"""`kernel` (feature, target), `bias` (target,) and, for attention, `queries` (layer, unit)."""


@dataclass(frozen=True, eq=False)
class Standard:
    """What a fold's training utterances fix before the head is trained.

    Attributes:
        feature_mean: (feature,) of the pooled units under the weights that training begins with.
        feature_scale: (feature,) their standard deviation, 1 for a constant one.
        target_mean: (target,) of the labels.
        target_scale: (target,) their standard deviation, 1 for a constant one.
        penalty: (target,) factor of the head's squared weights, against a mean squared error of
            standardised labels: what ridge regression chose.
    """

    feature_mean: Float[np.ndarray, " feature"]
    feature_scale: Float[np.ndarray, " feature"]
    target_mean: Float64[np.ndarray, " target"]
    target_scale: Float64[np.ndarray, " target"]
    penalty: Float[np.ndarray, " target"]

    def standardised(
        self, truth: Float64[np.ndarray, "utterance target"]
    ) -> Float[np.ndarray, "utterance target"]:
        """Labels with mean 0 and variance 1 over the training utterances, as float32."""
        return ((truth - self.target_mean) / self.target_scale).astype(np.float32)

    def in_label_units(
        self, predicted: Float[np.ndarray, "utterance target"]
    ) -> Float64[np.ndarray, "utterance target"]:
        """What the head predicts, as the labels are."""
        return np.asarray(predicted, np.float64) * self.target_scale + self.target_mean


def ridge_head(
    pooled: Float[np.ndarray, "utterance feature"],
    *,
    truth: Float64[np.ndarray, "utterance target"],
    speakers: Shaped[np.ndarray, " utterance"],
    queries: tuple[int, int] | None = None,
) -> tuple[Head, Standard]:
    """The head that predicts what ridge regression on pooled units does.

    Args:
        pooled: units of the training utterances, pooled under the weights training begins with;
            for attention their mean, which is what queries of zeros are.
        truth: labels, NaN where unknown.
        speakers: over whom the penalty is chosen; see `analysis.ridge.fit_ridge`.
        queries: (layer, unit), to add attention's queries, zeros.
    """
    X = np.asarray(pooled, np.float64)
    mean, scale = X.mean(axis=0), X.std(axis=0)
    scale[scale == 0] = 1.0
    target_mean, target_scale = np.nanmean(truth, axis=0), np.nanstd(truth, axis=0)
    target_scale[target_scale == 0] = 1.0
    kernel, bias, penalty = [], [], []
    for column in range(truth.shape[1]):
        known = np.isfinite(truth[:, column])
        y = (truth[known, column] - target_mean[column]) / target_scale[column]
        model = fit_ridge(X[known], y=y, speakers=speakers[known])
        # A target with missing labels was standardised by fewer utterances than the others.
        kernel.append(model.coefficients * scale / model.scale)
        bias.append(model.intercept + (mean - model.mean) / model.scale @ model.coefficients)
        penalty.append(model.penalty / known.sum())
    head = {
        "kernel": jnp.asarray(np.stack(kernel, axis=1), jnp.float32),
        "bias": jnp.asarray(np.array(bias), jnp.float32),
    }
    if queries is not None:
        head["queries"] = jnp.zeros(queries, jnp.float32)
    standard = Standard(
        feature_mean=mean.astype(np.float32),
        feature_scale=scale.astype(np.float32),
        target_mean=target_mean,
        target_scale=target_scale,
        penalty=np.array(penalty, np.float32),
    )
    return head, standard


def predict_pooled(
    head: Head,
    pooled: Float[Array, "utterance feature"],
    *,
    feature_mean: Float[Array, " feature"],
    feature_scale: Float[Array, " feature"],
) -> Float[Array, "utterance target"]:
    """Predictions for standardised labels."""
    return ((pooled - feature_mean) / feature_scale) @ head["kernel"] + head["bias"]


def label_loss(
    predicted: Float[Array, "utterance target"],
    *,
    truth: Float[Array, "utterance target"],
    known: Float[Array, "utterance target"],
    loss: Loss,
) -> Float[Array, " target"]:
    """Mean squared error, or one minus the concordance correlation coefficient, per target.

    With labels of mean 0 and variance 1, as they are over a fold's training utterances,

        1 - CCC = E[(truth - predicted)^2] / (1 + E[predicted^2])

    exactly. Both expectations are plain means over utterances, so a batch estimates each without
    bias, and none (a batch of one, of equal labels, of equal lengths) leaves the ratio undefined,
    as the textbook formula with a batch's own variances would.

    Args:
        predicted: for standardised labels.
        truth: standardised labels; anything finite where unknown.
        known: 1 where the label is known and the utterance is none of the batch's padding.
        loss: which one.
    """
    count = jnp.maximum(known.sum(axis=0), 1.0)
    error = (known * (predicted - truth) ** 2).sum(axis=0) / count
    if loss == "mse":
        return error
    return error / (1.0 + (known * predicted**2).sum(axis=0) / count)
