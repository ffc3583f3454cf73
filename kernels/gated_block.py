"""One block of gated convolutional units over a padded batch.

    filter = tanh(conv7(z)),  gate = sigmoid(conv7(z))     dilated, SAME zero padding
    g = filter * gate                                       the gated activation
    s = tanh(conv1(g))                                      the block's output
    z' = mask * (z + s)                                     the residual stream

after Kim and Park (2016), speech-to-text-wavenet, with batch normalisation folded into the weights.
`reference` says exactly that for one utterance; every other implementation has to match it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from featurestore.kernels.choice import choose
from featurestore.kernels.moments import frame_mask, masked_statistics
from featurestore.kernels.products import convolution, pointwise
from featurestore.kernels.types import Precision
from featurestore.kernels.winograd import winograd_convolution


class BlockWeights(NamedTuple):
    """Weights of one block, batch normalisation folded in.

    Attributes:
        gated_kernel: filter and gate kernels side by side (tap, unit, 2 * unit): the first half of
            the outputs is the filter, the second half the gate.
        gated_bias: (2 * unit,).
        out_kernel: of the 1x1 output convolution (unit, unit).
        out_bias: (unit,).
    """

    gated_kernel: Array
    gated_bias: Array
    out_kernel: Array
    out_bias: Array


class Block(NamedTuple):
    """What a block gives; what was not asked for is None.

    Attributes:
        residual: z', (utterance, frame, unit), zero beyond each utterance's frames.
        gate: g, (utterance, frame, unit); anything beyond an utterance's frames.
        skip: s, likewise.
        moments: mean, standard deviation, minimum and maximum of g over each utterance's own frames
            (4, utterance, unit), as `masked_statistics`; anything where an utterance has none.
    """

    residual: Array
    gate: Array | None = None
    skip: Array | None = None
    moments: Array | None = None


def reference(
    z: Float[Array, "frame unit"],
    n_frames: Int[Array, ""],
    weights: BlockWeights,
    *,
    dilation: int,
) -> tuple[Array, Array, Array, Array]:
    """The definition, for one utterance in float32: z', g, s and the moments of g.

    Args:
        z: residual stream, zero beyond the utterance's last frame.
        n_frames: frames of the utterance. Its mask is applied again to the new stream, because a
            zero frame does not stay zero through bias and tanh, and neighbours would see it.
        weights: of the block.
        dilation: distance between taps in frames.
    """
    units = z.shape[-1]
    both = convolution(z[None], weights.gated_kernel, dilation=dilation)[0] + weights.gated_bias
    gate = jnp.tanh(both[:, :units]) * jax.nn.sigmoid(both[:, units:])
    skip = jnp.tanh(pointwise(gate, weights.out_kernel) + weights.out_bias)
    residual = (z + skip) * frame_mask(len(z), n_frames)
    return residual, gate, skip, masked_statistics(gate, n_frames, implementation="reference")


def _reference(
    z: Array,
    n_frames: Array,
    weights: BlockWeights,
    *,
    dilation: int,
    precision: Precision,
    keep: tuple[str, ...],
) -> Block:
    if precision != "float32":
        raise NotImplementedError("the definition is in float32")
    found = jax.vmap(lambda one, n: reference(one, n, weights, dilation=dilation))(z, n_frames)
    return Block(*found[:3], jnp.moveaxis(found[3], 1, 0))


@functools.partial(jax.jit, static_argnames=("dilation", "precision", "keep"))  # traced once
def _xla(
    z: Array,
    n_frames: Array,
    weights: BlockWeights,
    *,
    dilation: int,
    precision: Precision,
    keep: tuple[str, ...],
) -> Block:
    """The whole batch at once; XLA drops what nobody uses."""
    both = convolution(z, weights.gated_kernel, dilation=dilation, precision=precision)
    return _behind(both, z, n_frames, weights, precision)


@functools.partial(jax.jit, static_argnames=("dilation", "precision", "keep"))
def _winograd(
    z: Array,
    n_frames: Array,
    weights: BlockWeights,
    *,
    dilation: int,
    precision: Precision,
    keep: tuple[str, ...],
) -> Block:
    """The same with a third of the multiplications."""
    if precision != "float32":
        raise NotImplementedError("16-bit factors would lose their digits in the transforms")
    both = winograd_convolution(z, weights.gated_kernel, dilation=dilation)
    return _behind(both, z, n_frames, weights, precision)


def _behind(
    both: Array, z: Array, n_frames: Array, weights: BlockWeights, precision: Precision
) -> Block:
    """What follows the convolutions, which are without their bias."""
    units = z.shape[-1]
    both = both + weights.gated_bias
    gate = jnp.tanh(both[..., :units]) * jax.nn.sigmoid(both[..., units:])
    skip = jnp.tanh(pointwise(gate, weights.out_kernel, precision=precision) + weights.out_bias)
    mask = jax.vmap(frame_mask, in_axes=(None, 0))(z.shape[1], n_frames)
    moments = jax.vmap(masked_statistics, out_axes=1)(gate, n_frames)
    return Block((z + skip) * mask, gate, skip, moments)


def _mosaic(
    z: Array,
    n_frames: Array,
    weights: BlockWeights,
    *,
    dilation: int,
    precision: Precision,
    keep: tuple[str, ...],
) -> Block:
    """One fused kernel for NVIDIA Hopper."""
    from featurestore.kernels.gated_block_mosaic import gated_block_mosaic

    return gated_block_mosaic(
        z, n_frames, weights, dilation=dilation, precision=precision, keep=keep
    )


_IMPLEMENTATIONS: dict[str, Callable[..., Block]] = {
    "reference": _reference,
    "xla": _xla,
    "winograd": _winograd,
    "mosaic": _mosaic,
}


def _auto(precision: Precision) -> tuple[str, str]:
    device = jax.devices()[0]
    if device.platform != "gpu" or precision == "float32":
        return "xla", f"for {precision} factors on a {device.platform}"
    from featurestore.kernels.gated_block_mosaic import unavailable

    # The fused kernel is right in the interpreter and compiles for Hopper, but has not run on one.
    why = unavailable(device) or "the fused kernel is to be measured first: 'mosaic' asks for it"
    return "xla", why


def gated_block(
    z: Float[Array, "utterance frame unit"],
    n_frames: Int[Array, " utterance"],
    weights: BlockWeights,
    *,
    dilation: int,
    precision: Precision = "float32",
    implementation: str = "auto",
    keep: tuple[str, ...] = ("gate", "skip", "moments"),
) -> Block:
    """One block of a padded batch.

    Args:
        z: residual stream, zero beyond each utterance's last frame.
        n_frames: frames of each utterance; 0 in rows that are not used.
        weights: of the block, float32.
        dilation: distance between taps in frames.
        precision: type of the factors of products.
        implementation: `reference`, `xla`, `winograd`, `mosaic`, or "auto".
        keep: which of `gate`, `skip` and `moments` are wanted; others may be None.
    """
    run = choose("gated block", implementation, _IMPLEMENTATIONS, _auto(precision))
    found = run(z, n_frames, weights, dilation=dilation, precision=precision, keep=keep)
    return found._replace(**{name: None for name in Block._fields[1:] if name not in keep})
