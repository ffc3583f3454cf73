"""Pooling over an utterance's frames inside the graph, blind to padding, and differentiable."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from featurestore.training.tuning_config import Pool


def pool_frames(
    x: Float[Array, "layer frame unit"],
    n_frames: Int[Array, ""],
    *,
    pool: Pool,
    queries: Float[Array, "layer unit"] | None = None,
) -> Float[Array, " feature"]:
    """One value per unit for an utterance, from its first `n_frames` frames.

    Args:
        x: activations.
        n_frames: frames that belong to the utterance; 0 for an unused row of a batch, which becomes
            zeros with a gradient of zeros.
        pool: `mean` and `max` over frames; `attention` is a mean weighted by a softmax over the
            utterance's frames of the product of each layer's units with that layer's query, so that
            queries of zeros are the mean.
        queries: what `attention` learns.

    Returns:
        layer * unit values, layer by layer, as in the store's pooled statistics.

    Raises:
        ValueError: attention without queries.
    """
    valid = (jnp.arange(x.shape[-2]) < n_frames)[:, None]
    if pool == "max":
        highest = jnp.max(jnp.where(valid, x, -jnp.inf), axis=-2)
        return jnp.where(n_frames > 0, highest, 0.0).reshape(-1)
    if pool == "mean":
        count = jnp.maximum(n_frames, 1).astype(x.dtype)
        return (_sum_frames(jnp.where(valid, x, 0.0)) / count).reshape(-1)
    if queries is None:
        raise ValueError("pooling by attention takes queries")
    scores = jnp.einsum("lfu,lu->lf", x, queries)
    # Finite, so that a row without frames has a gradient of zeros and not of NaN.
    weights = jax.nn.softmax(jnp.where(valid[:, 0], scores, -1e9), axis=-1)
    return jnp.einsum("lfu,lf->lu", jnp.where(valid, x, 0.0), weights).reshape(-1)


def _sum_frames(x: Float[Array, "layer frame unit"]) -> Float[Array, "layer unit"]:
    """Folded rather than summed at once: see `featurestore.kernels.pooling`."""
    while x.shape[-2] % 2 == 0:
        half = x.shape[-2] // 2
        x = x[..., :half, :] + x[..., half:, :]
    return x.sum(axis=-2)
