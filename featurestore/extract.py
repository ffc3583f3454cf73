"""What runs on the device: waveforms in, activations and pooled statistics out."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from featurestore.batching import Bucket, pad_rows
from featurestore.encoder import AudioFrontEnd, Encoder, program_key
from featurestore.errors import FeatureStoreError
from featurestore.kernels import masked_statistics
from featurestore.types import FrameDtype


@dataclass(frozen=True)
class Request:
    """What to bring back from the device; part of what is compiled.

    Attributes:
        captures: capture points of the encoder; empty leaves the network out.
        mfcc: whether to bring back the MFCC too; only for a front end that makes them.
        frames: whether to bring back every frame, besides the pooled statistics.
        dtype: of the frames; pooled statistics are float32 of unrounded activations.
        scales: for int8, the step between two values of each capture.
    """

    captures: tuple[str, ...]
    mfcc: bool
    frames: bool
    dtype: FrameDtype = "float16"
    scales: tuple[float, ...] = ()


@dataclass(frozen=True)
class Extracted:
    """One utterance's features; arrays by capture name.

    Attributes:
        layers: one array (frame, unit) per layer, for "mfcc" one (frame, coefficient); empty if not
            requested.
        pooled: (statistic, layer, unit) or (statistic, coefficient), float32.
    """

    layers: Mapping[str, Sequence[np.ndarray]]
    pooled: Mapping[str, np.ndarray]

    def frames(self, capture: str) -> np.ndarray:
        """(layer, frame, unit), or (frame, coefficient) for "mfcc"."""
        layers = self.layers[capture]
        return layers[0] if capture == "mfcc" else np.stack(layers)


def _features(
    request: Request,
    encoder: Encoder | None,
    front_end: AudioFrontEnd,
    variables: Any,
    buffers: Float[Array, "utterance sample"],
    n_samples: Int[Array, " utterance"],
    n_frames: Int[Array, " utterance"],
) -> tuple[dict[str, list[Array]], dict[str, Array]]:
    """Frames by layer and pooled statistics of a padded batch; traced once per shape."""
    batch, lengths = front_end.features(buffers, samples=n_samples, frames=n_frames)
    values: dict[str, list[tuple[Array, Array]]] = {}
    if request.captures and encoder is not None:
        values = _layers(encoder, variables, batch, lengths, n_frames, request.captures)
    if request.mfcc:
        values["mfcc"] = [(batch, _pooled(batch, n_frames))]
    pooled = {
        name: _stacked([layer[1] for layer in layers], name) for name, layers in values.items()
    }
    if not request.frames:
        return {}, pooled
    # Layers stay apart: side by side they would be copied once more, here and on the way back.
    frames = {
        name: [_stored(layer[0], name, request) for layer in layers]
        for name, layers in values.items()
    }
    return frames, pooled


def _layers(
    encoder: Encoder,
    variables: Any,
    batch: Array,
    lengths: Array,
    n_frames: Array,
    captures: Sequence[str],
) -> dict[str, list[tuple[Array, Array]]]:
    """Activations (utterance, frame, unit) and statistics (4, utterance, unit) of each layer."""
    if hasattr(encoder, "by_layer"):
        return encoder.by_layer(variables, batch, lengths, captures=captures)
    activations = encoder.apply(variables, batch, lengths)
    return {
        name: [
            (activations[name][:, layer], _pooled(activations[name][:, layer], n_frames))
            for layer in range(activations[name].shape[1])
        ]
        for name in captures
    }


def _pooled(values: Array, n_frames: Array) -> Array:
    return jax.vmap(masked_statistics, out_axes=1)(values, n_frames)


def _stacked(layers: list[Array], name: str) -> Array:
    """(utterance, statistic, layer, unit), or (utterance, statistic, coefficient)."""
    if name == "mfcc":
        return jnp.swapaxes(layers[0], 0, 1)
    return jnp.stack(layers, axis=2).swapaxes(0, 1)


def _stored(values: Array, name: str, request: Request) -> Array:
    """Frames in the type that is kept."""
    if name == "mfcc":
        return values  # up to several hundred, where float16 would keep two digits
    if request.dtype == "int8":
        steps = values / request.scales[request.captures.index(name)]
        return jnp.clip(jnp.round(steps), -127, 127).astype(jnp.int8)
    return values.astype(request.dtype)


def _check_shapes(encoder: Encoder, request: Request, bucket: Bucket, inputs: Any) -> None:
    """Refuse a network whose activations are not what it says, before any of it is compiled."""
    found = jax.eval_shape(encoder.apply, encoder.variables, *inputs)
    expected = (bucket.rows, len(encoder.layer_names), bucket.frames, encoder.units)
    for name in request.captures:
        shape = getattr(found.get(name), "shape", None)
        if shape != expected:
            raise FeatureStoreError(
                f"encoder '{encoder.name}' gives capture '{name}' of shape {shape} for "
                f"{bucket.rows} utterances of up to {bucket.frames} frames; expected {expected}: "
                "(utterance, layer, frame, unit), as layer_names, front_end and units say"
            )


_programs: dict[Hashable, jax.stages.Compiled] = {}


def _program_key(
    encoder: Encoder | None, request: Request, bucket: Bucket, front_end: AudioFrontEnd
) -> Hashable:
    if encoder is None or not request.captures:
        return request, bucket, front_end
    leaves, structure = jax.tree.flatten(encoder.variables)
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return request, bucket, front_end, program_key(encoder), structure, shapes


def compile_program(
    encoder: Encoder | None,
    request: Request,
    bucket: Bucket,
    *,
    front_end: AudioFrontEnd | None = None,
) -> jax.stages.Compiled:
    """The program of a request for one shape, compiled once per process and kind of network.

    Args:
        encoder: the network; unused without captures.
        request: what to bring back.
        bucket: the shape.
        front_end: how it hears the audio; the encoder's own by default.

    Raises:
        FeatureStoreError: the network's activations have another shape than it says.
        ValueError: neither an encoder nor a front end.
    """
    hears = _front_end(encoder, front_end)
    key = _program_key(encoder, request, bucket, hears)
    if key not in _programs:
        buffers = jax.ShapeDtypeStruct(
            (bucket.rows, hears.buffer_length(bucket.frames)), jnp.float32
        )
        counts = jax.ShapeDtypeStruct((bucket.rows,), jnp.int32)
        network = encoder if request.captures else None
        if network is not None:
            inputs = jax.eval_shape(
                lambda b, s, f: hears.features(b, samples=s, frames=f), buffers, counts, counts
            )
            _check_shapes(network, request, bucket, inputs)
        _programs[key] = (
            jax.jit(functools.partial(_features, request, network, hears))
            .lower(network.variables if network else {}, buffers, counts, counts)
            .compile()
        )
    return _programs[key]


def _front_end(encoder: Encoder | None, front_end: AudioFrontEnd | None) -> AudioFrontEnd:
    if front_end is not None:
        return front_end
    if encoder is None:
        raise ValueError("give an encoder or a front end")
    return encoder.front_end


def dispatch(
    encoder: Encoder | None,
    request: Request,
    *,
    bucket: Bucket,
    prepared: Sequence[np.ndarray],
    n_frames: Sequence[int] | np.ndarray,
    front_end: AudioFrontEnd | None = None,
) -> Any:
    """Start a batch on the device and return at once.

    Args:
        encoder: the network; unused without captures.
        request: what to bring back.
        bucket: the batch's shape; at most `bucket.rows` utterances.
        prepared: waveforms from the front end's `prepare`.
        n_frames: their frames.
        front_end: how the network hears the audio; the encoder's own by default.

    Returns:
        What `collect` takes.
    """
    hears = _front_end(encoder, front_end)
    length = hears.buffer_length(bucket.frames)
    buffers = pad_rows(prepared, rows=bucket.rows, length=length)
    samples, frames = np.zeros((2, bucket.rows), np.int32)
    samples[: len(prepared)] = [min(length, len(one)) for one in prepared]
    frames[: len(n_frames)] = n_frames
    program = compile_program(encoder, request, bucket, front_end=hears)
    variables = encoder.variables if encoder is not None and request.captures else {}
    return program(variables, buffers, samples, frames)


def collect(dispatched: Any, *, n_frames: Sequence[int] | np.ndarray) -> list[Extracted]:
    """Wait for a batch and cut its utterances out of the padding; views, not copies."""
    frames, pooled = jax.device_get(dispatched)
    return [
        Extracted(
            {name: [layer[row, :count] for layer in layers] for name, layers in frames.items()},
            {name: value[row] for name, value in pooled.items()},
        )
        for row, count in enumerate(n_frames)
    ]
