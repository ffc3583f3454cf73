"""Matrix products and dilated convolutions, in float32 or of 16-bit factors with float32 sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from featurestore.kernels.types import Precision


def dilated_convolution(
    z: Float[Array, "utterance frame channel"],
    kernel: Float[Array, "tap channel out"],
    *,
    dilation: int,
) -> Float[Array, "utterance frame out"]:
    """Non-causal convolution along frames with zero padding, so that the length stays the same.

    Args:
        z: input.
        kernel: an odd number of taps, `dilation` frames apart.
        dilation: distance between taps in frames.
    """
    reach = (kernel.shape[0] // 2) * dilation
    # NWC is the fastest layout on a CPU by far.
    return jax.lax.conv_general_dilated(
        z,
        kernel,
        window_strides=(1,),
        padding=[(reach, reach)],
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


def convolution(
    z: Float[Array, "utterance frame channel"],
    kernel: Float[Array, "tap channel out"],
    *,
    dilation: int,
    precision: Precision = "float32",
) -> Float[Array, "utterance frame out"]:
    """`dilated_convolution` in float32, or of 16-bit factors with float32 sums; has no gradient."""
    if precision == "float32":
        return dilated_convolution(z, kernel, dilation=dilation)
    return _by_product(z, kernel, dilation, precision)


def _by_product(z: Array, kernel: Array, dilation: int, precision: Precision) -> Array:
    """One matrix product of every frame's neighbours side by side.

    On a CPU XLA's convolution turns 16-bit factors into float32, and its product does not. It moves
    them by way of float32 too, value by value; as integers, and kept apart from the product, they
    are copied.
    """
    taps, channels, out = kernel.shape
    utterances, frames, _ = z.shape
    bits = jax.lax.bitcast_convert_type(z.astype(precision), jnp.uint16)
    reach = (taps // 2) * dilation
    padded = jnp.pad(bits, ((0, 0), (reach, reach), (0, 0)))
    shifted = [padded[:, tap * dilation : tap * dilation + frames] for tap in range(taps)]
    moved = jax.lax.optimization_barrier(jnp.concatenate(shifted, axis=-1))
    wide = jax.lax.bitcast_convert_type(moved, jnp.dtype(precision))
    flat = wide.reshape(-1, taps * channels)
    result = jax.lax.dot(
        flat,
        kernel.reshape(-1, out).astype(precision),
        preferred_element_type=jnp.float32,
    )
    return result.reshape(utterances, frames, out)


def pointwise(
    x: Float[Array, "*axes channel"],
    kernel: Float[Array, "channel out"],
    *,
    precision: Precision = "float32",
) -> Float[Array, "*axes out"]:
    """A 1x1 convolution: the same matrix applied to every frame."""
    if precision == "float32":
        return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    return jnp.matmul(
        x.astype(precision), kernel.astype(precision), preferred_element_type=jnp.float32
    )
