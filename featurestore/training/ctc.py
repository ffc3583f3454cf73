"""The CTC loss (Graves et al. 2006) over padded batches: optax's, told what cannot be aligned."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from featurestore.training.alphabet import BLANK


def min_frames(
    labels: Int[Array, "utterance symbol"], n_labels: Int[Array, " utterance"]
) -> Int[Array, " utterance"]:
    """Fewest frames that align each target: one a symbol, and a blank between equal neighbours."""
    inside = jnp.arange(1, labels.shape[1]) < n_labels[:, None]
    repeated = (labels[:, 1:] == labels[:, :-1]) & inside
    return n_labels + jnp.sum(repeated, axis=1)


def ctc_loss(
    logits: Float[Array, "utterance frame class"],
    n_frames: Int[Array, " utterance"],
    labels: Int[Array, "utterance symbol"],
    n_labels: Int[Array, " utterance"],
) -> Float[Array, " utterance"]:
    """Negative log-likelihood of each target, in nats.

    Args:
        logits: unnormalised; frames from an utterance's `n_frames` on are padding.
        n_frames: frames of each utterance, at least 1 for a target to be possible.
        labels: targets from 0 to 26; what follows an utterance's `n_labels` is padding.
        n_labels: symbols of each target; 0 for an empty one.

    Returns:
        Infinity for a target that no alignment fits, with a gradient of zero, as PyTorch's
        `ctc_loss` with `zero_infinity` has it for the gradient.
    """
    padded_frames = jnp.arange(logits.shape[1]) >= n_frames[:, None]
    padded_labels = jnp.arange(labels.shape[1]) >= n_labels[:, None]
    losses = optax.ctc_loss(
        # Padding may hold anything, and 0 times infinity is no number.
        jnp.where(padded_frames[:, :, None], 0.0, logits.astype(jnp.float32)),
        padded_frames.astype(jnp.float32),
        labels,
        padded_labels.astype(jnp.float32),
        blank_id=BLANK,
    )
    possible = (min_frames(labels, n_labels) <= n_frames) & (n_frames > 0)
    return jnp.where(possible, losses, jnp.inf)
