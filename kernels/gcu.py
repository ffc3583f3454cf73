"""One block of gated convolutional units, for one utterance.

The definition that every faster implementation has to match:

    filter = tanh(conv7(z)),  gate = sigmoid(conv7(z))     dilated, SAME zero padding
    g = filter * gate                                       the gated activation
    s = tanh(conv1(g))                                      the block's output
    z' = mask * (z + s)                                     the residual stream

after Kim and Park (2016), speech-to-text-wavenet, with batch normalisation folded into the weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dilated_convolution(
    z: Float[Array, "frame channel"],
    kernel: Float[Array, "tap channel out"],
    bias: Float[Array, " out"],
    *,
    dilation: int,
) -> Float[Array, "frame out"]:
    """Non-causal convolution along frames with zero padding, so that the length stays the same.

    Args:
        z: input, frames by channels.
        kernel: an odd number of taps, `dilation` frames apart.
        bias: added to every frame.
        dilation: distance between taps in frames.
    """
    reach = (kernel.shape[0] // 2) * dilation
    # NWC is the fastest layout on a CPU by far; under vmap the batch becomes N.
    out = jax.lax.conv_general_dilated(
        z[None],
        kernel,
        window_strides=(1,),
        padding=[(reach, reach)],
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return out[0] + bias


def pointwise(
    z: Float[Array, "frame channel"],
    kernel: Float[Array, "channel out"],
    bias: Float[Array, " out"],
) -> Float[Array, "frame out"]:
    """A 1x1 convolution: the same matrix applied to every frame."""
    return jnp.matmul(z, kernel, precision=jax.lax.Precision.HIGHEST) + bias


def gated_block(
    z: Float[Array, "frame unit"],
    mask: Float[Array, "frame 1"],
    *,
    gated_kernel: Float[Array, "tap unit twice"],
    gated_bias: Float[Array, " twice"],
    out_kernel: Float[Array, "unit unit"],
    out_bias: Float[Array, " unit"],
    dilation: int,
) -> tuple[
    Float[Array, "frame unit"],
    Float[Array, "frame unit"],
    Float[Array, "frame unit"],
]:
    """Gated activation, block output and new residual stream of one block.

    Filter and gate share one convolution: the first half of `gated_kernel`'s outputs is the filter,
    the second half the gate.

    Args:
        z: residual stream, zero beyond the utterance's last frame.
        mask: 1 on the utterance's frames, 0 on padding. Applied again to the new stream, because a
            zero frame does not stay zero through bias and tanh, and neighbours would see it.
        gated_kernel: filter and gate kernels side by side.
        gated_bias: their biases.
        out_kernel: the 1x1 output convolution.
        out_bias: its bias.
        dilation: distance between taps in frames.

    Returns:
        `(g, s, z')`, each frames by units.
    """
    units = z.shape[-1]
    both = dilated_convolution(z, gated_kernel, gated_bias, dilation=dilation)
    gate = jnp.tanh(both[:, :units]) * jax.nn.sigmoid(both[:, units:])
    skip = jnp.tanh(pointwise(gate, out_kernel, out_bias))
    return gate, skip, (z + skip) * mask
