"""Statistics over an utterance's own frames, blind to padding."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def frame_mask(frames: int, n_frames: Int[Array, ""]) -> Float[Array, "frame 1"]:
    """1.0 on the first `n_frames` of `frames` rows, 0.0 beyond."""
    return (jnp.arange(frames) < n_frames)[:, None].astype(jnp.float32)


def masked_statistics(
    x: Float[Array, "*axes frame unit"], n_frames: Int[Array, ""]
) -> Float[Array, "4 *axes unit"]:
    """Mean, standard deviation, minimum and maximum over the first `n_frames` frames.

    The standard deviation is the population's (divided by n), in two passes so that a unit that
    hardly moves keeps its digits. Undefined (NaN) for zero frames.

    Args:
        x: activations; frames are the second axis from the end.
        n_frames: how many of them belong to the utterance.
    """
    valid = (jnp.arange(x.shape[-2]) < n_frames)[:, None]
    count = n_frames.astype(x.dtype)
    mean = jnp.sum(jnp.where(valid, x, 0.0), axis=-2) / count
    deviation = jnp.where(valid, x - mean[..., None, :], 0.0)
    std = jnp.sqrt(jnp.sum(deviation * deviation, axis=-2) / count)
    low = jnp.min(jnp.where(valid, x, jnp.inf), axis=-2)
    high = jnp.max(jnp.where(valid, x, -jnp.inf), axis=-2)
    return jnp.stack([mean, std, low, high])
