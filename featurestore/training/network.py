"""The GCU network with batch normalisation left in, as it is trained.

Parameters and running statistics carry the names and shapes of the original checkpoint, so that
what is trained is what `Weights` holds. `featurestore.gcu` runs the same network with the
normalisation folded in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from featurestore.kernels import dilated_convolution, frame_mask
from featurestore.weights import DILATIONS, EXPECTED_TENSORS, KERNEL, STACKS

Tensors = dict[str, Any]  # arrays by their names in the checkpoint

BN_EPSILON = 1e-8
BN_DECAY = 0.99
BLOCKS: tuple[tuple[str, int], ...] = tuple(
    (f"block_{stack}_{rate}", rate) for stack in range(STACKS) for rate in DILATIONS
)
_RUNNING = ("/mean", "/variance")


def split(tensors: Mapping[str, np.ndarray]) -> tuple[Tensors, Tensors]:
    """Trainable parameters and running statistics of a checkpoint's tensors."""
    parameters = {name: tensors[name] for name in EXPECTED_TENSORS if not name.endswith(_RUNNING)}
    statistics = {name: tensors[name] for name in EXPECTED_TENSORS if name.endswith(_RUNNING)}
    return parameters, statistics


def batch_moments(
    x: Float[Array, "utterance frame channel"], mask: Float[Array, "utterance frame 1"]
) -> tuple[Float[Array, " channel"], Float[Array, " channel"]]:
    """Mean and biased variance of each channel over the frames of all utterances, padding left out.

    In two passes: the variance of a channel far from zero would otherwise cancel.
    """
    x = x.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(mask), 1.0)
    mean = jnp.sum(x * mask, axis=(0, 1)) / count
    variance = jnp.sum(jnp.square(x - mean) * mask, axis=(0, 1)) / count
    return mean, variance


def normalise(x: Array, mean: Array, variance: Array, *, gamma: Array, beta: Array) -> Array:
    """`(x - mean) / sqrt(variance + 1e-8) * gamma + beta`, in float32."""
    scale = gamma * jax.lax.rsqrt(variance + BN_EPSILON)
    return (x.astype(jnp.float32) - mean) * scale + beta


def _product(x: Array, kernel: Array) -> Array:
    """`x @ kernel` with sums in float32."""
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32, precision="highest")


def _moved(move: Callable[[Array], Array], x: Array) -> Array:
    """`move(x)` where `move` only moves values about.

    XLA moves bfloat16 on a CPU by way of float32, value by value; as 16-bit integers, and kept
    apart from the product that follows, they are copied. With it, `convolve_by_products` takes half
    the time of XLA's convolution (`benchmarks/training.py`).
    """
    if x.dtype != jnp.bfloat16:
        return move(x)
    moved = move(jax.lax.bitcast_convert_type(x, jnp.uint16))
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(moved), jnp.bfloat16)


def _neighbours(x: Array, *, axis: int, channels: int, dilation: int) -> Array:
    """What lies under each of 7 taps along the frames of `axis`, side by side in `channels`."""
    reach, frames = (KERNEL // 2) * dilation, x.shape[axis]
    padding = [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)]
    padded = jnp.pad(x, padding)
    shifted = [
        jax.lax.slice_in_dim(padded, tap * dilation, tap * dilation + frames, axis=axis)
        for tap in range(KERNEL)
    ]
    return jnp.concatenate(shifted, axis=channels)


def _taps(x: Array, taps: int, dilation: int) -> Array:
    """(utterance * frame, tap * channel)."""
    if taps == 1:
        return x.reshape(-1, x.shape[-1])

    def move(values: Array) -> Array:
        wide = _neighbours(values, axis=1, channels=2, dilation=dilation)
        return wide.reshape(-1, wide.shape[-1])

    return _moved(move, x)


def _turned_taps(x: Array, taps: int, dilation: int) -> Array:
    """(tap * channel, utterance * frame): what is small is turned, before it is repeated."""

    def move(values: Array) -> Array:
        turned = jnp.transpose(values, (2, 0, 1))
        if taps > 1:
            turned = _neighbours(turned, axis=2, channels=0, dilation=dilation)
        return turned.reshape(turned.shape[0], -1)

    return _moved(move, x)


@jax.custom_vjp
def batch_norm(
    x: Float[Array, "utterance frame channel"],
    mask: Float[Array, "utterance frame 1"],
    gamma: Float[Array, " channel"],
    beta: Float[Array, " channel"],
) -> tuple[Array, Float[Array, " channel"], Float[Array, " channel"]]:
    """`normalise`d with the batch's own `batch_moments`, which are returned too.

    The gradient is the closed form (Ioffe and Szegedy 2015); the moments have none.
    """
    return _batch_norm(x, mask, gamma, beta)[0]


def _batch_norm(x: Array, mask: Array, gamma: Array, beta: Array) -> tuple[Any, Any]:
    mean, variance = batch_moments(x, mask)
    out = normalise(x, mean, variance, gamma=gamma, beta=beta)
    return (out, mean, variance), (x, mask, gamma, mean, variance)


def _batch_norm_gradients(saved: Any, incoming: Any) -> tuple[Array, None, Array, Array]:
    x, mask, gamma, mean, variance = saved
    arriving, _, _ = incoming
    inverse = jax.lax.rsqrt(variance + BN_EPSILON)
    count = jnp.maximum(jnp.sum(mask), 1.0)
    of_beta = jnp.sum(arriving, axis=(0, 1))
    of_gamma = jnp.sum(arriving * (x - mean), axis=(0, 1)) * inverse
    through = (of_beta + (x - mean) * (inverse * of_gamma)) * (mask / count)
    return (arriving - through) * (gamma * inverse), None, of_gamma, of_beta


batch_norm.defvjp(_batch_norm, _batch_norm_gradients)


def convolve(
    x: Float[Array, "utterance frame channel"],
    kernel: Float[Array, "tap channel out"],
    dilation: int,
    dtype: Any,
) -> Float[Array, "utterance frame out"]:
    """`kernels.dilated_convolution` of a batch, with factors rounded to `dtype`."""
    narrow = jnp.asarray(kernel, dtype)
    wide = dilated_convolution(jnp.asarray(x, dtype), narrow, dilation=dilation)
    return wide.astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_by_products(
    x: Float[Array, "utterance frame channel"],
    kernel: Float[Array, "tap channel out"],
    dilation: int,
    dtype: Any,
) -> Float[Array, "utterance frame out"]:
    """`convolve` for bfloat16 on a CPU, whose matrix units XLA uses for products alone.

    The taps are laid side by side, so that the convolution and both of its gradients are plain
    matrix products of rows by columns as they lie in memory. What automatic differentiation would
    make of them are products of float32 with bfloat16, computed in float32.

    Args:
        x: float32.
        kernel: float32; 7 taps, or 1 for a 1x1 convolution.
        dilation: frames between taps.
        dtype: to which the factors are rounded; sums are in float32.
    """
    columns = _taps(x.astype(dtype), len(kernel), dilation)
    out = _product(columns, kernel.reshape(-1, kernel.shape[-1]).astype(dtype))
    return out.reshape(*x.shape[:2], -1)


def _convolve(x: Array, kernel: Array, dilation: int, dtype: Any) -> tuple[Array, Any]:
    return convolve_by_products(x, kernel, dilation, dtype), (x, kernel)


def _convolve_gradients(
    dilation: int, dtype: Any, saved: tuple[Array, Array], incoming: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    incoming, taps = incoming.astype(dtype), len(kernel)
    columns = _turned_taps(x.astype(dtype), taps, dilation)
    of_kernel = _product(columns, incoming.reshape(-1, incoming.shape[-1])).reshape(kernel.shape)
    # The gradient of x is the same convolution with the taps the other way round.
    turned = _moved(
        lambda values: jnp.swapaxes(values[::-1], 1, 2).reshape(-1, values.shape[1]),
        kernel.astype(dtype),
    )
    of_x = _product(_taps(incoming, taps, dilation), turned)
    return of_x.reshape(x.shape), of_kernel


convolve_by_products.defvjp(_convolve, _convolve_gradients)


class _Layers:
    """Convolutions with batch normalisation; collects the batch's moments while it is trained."""

    def __init__(
        self, parameters: Tensors, statistics: Tensors | None, *, mask: Array, dtype: Any
    ) -> None:
        self.parameters, self.statistics = parameters, statistics
        self.mask, self.dtype = mask, dtype
        self.moments: Tensors = {}

    def batch_norm(self, name: str, x: Array) -> Array:
        gamma, beta = self.parameters[f"{name}/gamma"], self.parameters[f"{name}/beta"]
        if self.statistics is None:
            out, mean, variance = batch_norm(x, self.mask, gamma, beta)
            self.moments |= {f"{name}/mean": mean, f"{name}/variance": variance}
            return out
        mean, variance = self.statistics[f"{name}/mean"], self.statistics[f"{name}/variance"]
        return normalise(x, mean, variance, gamma=gamma, beta=beta)

    def _kernel(self, name: str) -> Array:
        """(tap, channel, out): the checkpoint's kernels begin with an axis of one."""
        kernel = self.parameters[f"{name}/W"]
        return kernel.reshape(-1, *kernel.shape[-2:])

    def convolve(self, names: tuple[str, ...], x: Array, dilation: int = 1) -> Array:
        """One convolution, or several of the same input side by side."""
        kernel = jnp.concatenate([self._kernel(name) for name in names], axis=-1)
        if self.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
            return convolve_by_products(x, kernel, dilation, self.dtype)
        return convolve(x, kernel, dilation, self.dtype)


def forward(
    parameters: Tensors,
    coefficients: Float[Array, "utterance frame 20"],
    n_frames: Int[Array, " utterance"],
    *,
    statistics: Tensors | None = None,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "utterance frame class"], Tensors]:
    """Character logits of a padded batch.

    Args:
        parameters: trainable tensors by checkpoint name.
        coefficients: MFCC, never normalised; rows from an utterance's `n_frames` on are padding.
        n_frames: frames of each utterance; 0 for an empty row.
        statistics: running statistics to normalise with; None normalises with the batch's own, over
            the frames that belong to an utterance.
        dropout: share of gated units that are silenced, each for a whole utterance.
        key: randomness of the dropout.
        dtype: of the factors of the convolutions; sums, normalisation and tanh stay in float32.

    Returns:
        Logits in float32 and the batch's moments by checkpoint name, none with `statistics`.
    """
    mask = jax.vmap(lambda n: frame_mask(coefficients.shape[1], n))(n_frames)
    layers = _Layers(parameters, statistics, mask=mask, dtype=dtype)
    # MFCC reach several hundred: bfloat16 would round c0 to whole dB.
    front = convolve(coefficients, parameters["front/conv_in/W"], 1, jnp.float32)
    z = jnp.tanh(layers.batch_norm("front/conv_in", front)) * mask
    total = jnp.zeros_like(z)
    for index, (block, dilation) in enumerate(BLOCKS):
        names = (f"{block}/conv_filter", f"{block}/conv_gate")
        both = jnp.split(layers.convolve(names, z, dilation), 2, axis=-1)
        filters, gates = (layers.batch_norm(n, x) for n, x in zip(names, both, strict=True))
        gated = jnp.tanh(filters) * jax.nn.sigmoid(gates)
        if dropout and key is not None:
            kept = jax.random.bernoulli(
                jax.random.fold_in(key, index), 1.0 - dropout, (len(z), 1, z.shape[-1])
            )
            gated = gated * kept / (1.0 - dropout)
        name = f"{block}/conv_out"
        skip = jnp.tanh(layers.batch_norm(name, layers.convolve((name,), gated)))
        total = total + skip
        z = (z + skip) * mask
    hidden = jnp.tanh(layers.batch_norm("logit/conv_1", layers.convolve(("logit/conv_1",), total)))
    logits = layers.convolve(("logit/conv_2",), hidden) + parameters["logit/conv_2/b"]
    return logits, layers.moments


def updated_statistics(statistics: Tensors, moments: Tensors, step: Int[Array, ""]) -> Tensors:
    """Running statistics after one more batch.

    The decay is the original's 0.99, but less in the first hundreds of steps, so that a short
    training does not keep the statistics that it began with.
    """
    decay = jnp.minimum(BN_DECAY, (1.0 + step) / (10.0 + step))
    return {
        name: decay * value + (1.0 - decay) * moments[name] for name, value in statistics.items()
    }
