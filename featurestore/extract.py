"""What runs on the device: waveforms in, activations and pooled statistics out."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from featurestore.batching import Bucket
from featurestore.encoder import GCUNetwork
from featurestore.frontend import buffer_length, fill_buffers, mfcc_of_padded
from featurestore.kernels import masked_statistics
from featurestore.types import Capture, FrameDtype


@dataclass(frozen=True)
class Request:
    """What to bring back from the device; part of what is compiled.

    Attributes:
        captures: capture points of the network; empty leaves the network out.
        mfcc: whether to bring back the MFCC too.
        frames: whether to bring back every frame, besides the pooled statistics.
        dtype: of the frames; pooled statistics are float32 of unrounded activations.
    """

    captures: tuple[Capture, ...]
    mfcc: bool
    frames: bool
    dtype: FrameDtype = "float16"


@dataclass(frozen=True)
class Extracted:
    """One utterance's features; arrays by capture name.

    Attributes:
        frames: (layer, frame, unit), or (frame, coefficient) for "mfcc"; empty if not requested.
        pooled: (statistic, layer, unit) or (statistic, coefficient), float32.
    """

    frames: Mapping[str, np.ndarray]
    pooled: Mapping[str, np.ndarray]


def _features(
    request: Request,
    variables: Any,
    buffer: Float[Array, " sample"],
    n_frames: Int[Array, ""],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Frames and pooled statistics of one padded waveform; traced once per shape."""
    coefficients = mfcc_of_padded(buffer, n_frames)
    values: dict[str, Array] = {}
    if request.captures:
        activations: Any = GCUNetwork().apply(variables, coefficients, n_frames)
        values = {name: activations[name] for name in request.captures}
    if request.mfcc:
        values["mfcc"] = coefficients
    pooled = {name: masked_statistics(value, n_frames) for name, value in values.items()}
    if not request.frames:
        return {}, pooled
    # MFCC go up to several hundred, where float16 would keep two digits: they stay float32.
    dtypes = {name: jnp.float32 if name == "mfcc" else request.dtype for name in values}
    return {name: value.astype(dtypes[name]) for name, value in values.items()}, pooled


_programs: dict[tuple[Request, Bucket], jax.stages.Compiled] = {}


def compile_program(variables: Any, request: Request, bucket: Bucket) -> jax.stages.Compiled:
    """The program of a request for one shape, compiled once per process.

    Args:
        variables: the encoder's parameters; all encoders have the same shapes.
        request: what to bring back.
        bucket: the shape.
    """
    if (request, bucket) not in _programs:
        batched = jax.vmap(functools.partial(_features, request), in_axes=(None, 0, 0))
        samples = (bucket.rows, buffer_length(bucket.frames))
        _programs[request, bucket] = (
            jax.jit(batched)
            .lower(
                variables,
                jax.ShapeDtypeStruct(samples, jnp.float32),
                jax.ShapeDtypeStruct(samples[:1], jnp.int32),
            )
            .compile()
        )
    return _programs[request, bucket]


def dispatch(
    variables: Any,
    request: Request,
    *,
    bucket: Bucket,
    prepared: Sequence[np.ndarray],
    n_frames: Sequence[int] | np.ndarray,
) -> Any:
    """Start a batch on the device and return at once.

    Args:
        variables: the encoder's parameters; unused without captures.
        request: what to bring back.
        bucket: the batch's shape; at most `bucket.rows` utterances.
        prepared: waveforms from `FrontEnd.prepare`.
        n_frames: their frames.

    Returns:
        What `collect` takes.
    """
    buffers = fill_buffers(list(prepared), rows=bucket.rows, frames=bucket.frames)
    counts = np.zeros(bucket.rows, np.int32)
    counts[: len(n_frames)] = n_frames
    return compile_program(variables, request, bucket)(variables, buffers, counts)


def collect(dispatched: Any, *, n_frames: Sequence[int] | np.ndarray) -> list[Extracted]:
    """Wait for a batch and cut its utterances out of the padding; views, not copies."""
    frames, pooled = jax.device_get(dispatched)
    return [
        Extracted(
            {name: value[row][..., :count, :] for name, value in frames.items()},
            {name: value[row] for name, value in pooled.items()},
        )
        for row, count in enumerate(n_frames)
    ]
