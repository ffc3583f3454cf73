"""Statistics over an utterance's own frames, blind to padding.

    mean = sum(x) / n,  std = sqrt(sum((x - mean)^2) / n),  min, max        over the first n frames

`reference` says exactly that; every other implementation has to match it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from featurestore.kernels.choice import choose


def frame_mask(frames: int, n_frames: Int[Array, ""]) -> Float[Array, "frame 1"]:
    """1.0 on the first `n_frames` of `frames` rows, 0.0 beyond."""
    return (jnp.arange(frames) < n_frames)[:, None].astype(jnp.float32)


def reference(
    x: Float[Array, "*axes frame unit"], n_frames: Int[Array, ""]
) -> Float[Array, "4 *axes unit"]:
    """The definition of `masked_statistics`, in two passes and in the type of `x`.

    Args:
        x: activations; frames are the second axis from the end.
        n_frames: how many of them belong to the utterance.
    """
    own = (jnp.arange(x.shape[-2]) < n_frames)[:, None]
    count = n_frames.astype(x.dtype)
    mean = jnp.where(own, x, 0.0).sum(axis=-2) / count
    variance = jnp.where(own, (x - mean[..., None, :]) ** 2, 0.0).sum(axis=-2) / count
    low = jnp.where(own, x, jnp.inf).min(axis=-2)
    high = jnp.where(own, x, -jnp.inf).max(axis=-2)
    return jnp.stack([mean, jnp.sqrt(variance), low, high])


def _by_halves(x: Array, n_frames: Array) -> Array:
    """As the definition, with reductions that halve the frames."""
    valid = (jnp.arange(x.shape[-2]) < n_frames)[:, None]
    count = n_frames.astype(x.dtype)
    mean = _reduce_frames(jnp.where(valid, x, 0.0), jnp.add, jnp.sum) / count
    deviation = jnp.where(valid, x - mean[..., None, :], 0.0)
    std = jnp.sqrt(_reduce_frames(deviation * deviation, jnp.add, jnp.sum) / count)
    low = _reduce_frames(jnp.where(valid, x, jnp.inf), jnp.minimum, jnp.min)
    high = _reduce_frames(jnp.where(valid, x, -jnp.inf), jnp.maximum, jnp.max)
    return jnp.stack([mean, std, low, high])


def _reduce_frames(
    x: Float[Array, "*axes frame unit"],
    combine: Callable[[Array, Array], Array],
    reduce: Callable[..., Array],
) -> Float[Array, "*axes unit"]:
    """`reduce` over frames, halving them with `combine` as often as they can be halved.

    XLA fuses a masked reduction over the second axis from the end into a slow loop on a CPU: 26 ms
    for a batch of 4,096 frames of 15 layers, against 4 ms when halves are folded together first.
    """
    while x.shape[-2] % 2 == 0:
        half = x.shape[-2] // 2
        x = combine(x[..., :half, :], x[..., half:, :])
    return reduce(x, axis=-2)


_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"reference": reference, "halves": _by_halves}


def _auto() -> tuple[str, str]:
    return "halves", "no faster one for this device"


def masked_statistics(
    x: Float[Array, "*axes frame unit"], n_frames: Int[Array, ""], *, implementation: str = "auto"
) -> Float[Array, "4 *axes unit"]:
    """Mean, standard deviation, minimum and maximum over the first `n_frames` frames.

    The standard deviation is the population's (divided by n), in two passes so that a unit that
    hardly moves keeps its digits. Undefined (NaN) for zero frames.

    Args:
        x: activations; frames are the second axis from the end.
        n_frames: how many of them belong to the utterance.
        implementation: `reference`, `halves`, or "auto".
    """
    run = choose("masked statistics", implementation, _IMPLEMENTATIONS, _auto())
    return run(x, n_frames)
