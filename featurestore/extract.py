"""What runs on the device: waveforms in, activations and pooled statistics out."""

from __future__ import annotations

import functools
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Int

from featurestore.batching import Bucket, pad_rows
from featurestore.compilation import keeping_compiled
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
    """The features of a batch; arrays by capture name.

    Attributes:
        counts: frames of each utterance.
        layers: one array (row, frame, unit) per layer, for "mfcc" one (row, frame, coefficient),
            padding and empty rows included; empty if not requested.
        pooled: (row, statistic, layer, unit) or (row, statistic, coefficient), float32.
    """

    counts: np.ndarray
    layers: Mapping[str, Sequence[np.ndarray]]
    pooled: Mapping[str, np.ndarray]

    def frames(self, capture: str, row: int) -> np.ndarray:
        """Of one utterance: (layer, frame, unit), or (frame, coefficient) for "mfcc"."""
        layers = [layer[row, : self.counts[row]] for layer in self.layers[capture]]
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
    values: dict[str, list[tuple[Any, Array]]] = {}
    if request.captures and encoder is not None:
        values = _layers(encoder, variables, batch, lengths, n_frames, request)
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
    request: Request,
) -> dict[str, list[tuple[Any, Array]]]:
    """Activations (utterance, frame, unit) and statistics (4, utterance, unit) of each layer."""
    if hasattr(encoder, "by_layer"):
        return encoder.by_layer(
            variables, batch, lengths, captures=request.captures, frames=request.frames
        )
    activations = encoder.apply(variables, batch, lengths)
    return {
        name: [
            (activations[name][:, layer], _pooled(activations[name][:, layer], n_frames))
            for layer in range(activations[name].shape[1])
        ]
        for name in request.captures
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
_checked: set[Hashable] = set()
_placed: dict[tuple[int, jax.Device], tuple[Encoder, Any]] = {}
_making = threading.RLock()  # held while one of these grows; batches run in several threads


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
    device: jax.Device | None = None,
) -> jax.stages.Compiled:
    """The program of a request for one shape, compiled once per device and kind of network.

    Args:
        encoder: the network; unused without captures.
        request: what to bring back.
        bucket: the shape.
        front_end: how it hears the audio; the encoder's own by default.
        device: that runs it; the first one by default.

    Raises:
        FeatureStoreError: the network's activations have another shape than it says.
        ValueError: neither an encoder nor a front end.
    """
    hears = _front_end(encoder, front_end)
    device = device or jax.local_devices()[0]
    key = _program_key(encoder, request, bucket, hears), device
    with _making:
        if key not in _programs:
            network = encoder if request.captures else None
            _programs[key] = _compile(network, request, bucket, hears, device)
    return _programs[key]


def _compile(
    network: Encoder | None,
    request: Request,
    bucket: Bucket,
    hears: AudioFrontEnd,
    device: jax.Device,
) -> jax.stages.Compiled:
    if network is not None:
        says = program_key(network), request, tuple(network.layer_names), network.units
        if says not in _checked:
            _check_shapes(network, request, bucket, _inputs(hears, bucket))
            _checked.add(says)
    features = functools.partial(_features, request, network, hears)
    buffers, counts = _arguments(hears, bucket)
    variables = jax.tree.map(_shape, network.variables if network else {})
    program = jax.jit(features, in_shardings=SingleDeviceSharding(device))
    with keeping_compiled():
        return program.lower(variables, buffers, counts, counts).compile()


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))


def _arguments(front_end: AudioFrontEnd, bucket: Bucket) -> tuple[Any, Any]:
    buffers = jax.ShapeDtypeStruct(
        (bucket.rows, front_end.buffer_length(bucket.frames)), jnp.float32
    )
    return buffers, jax.ShapeDtypeStruct((bucket.rows,), jnp.int32)


def _inputs(front_end: AudioFrontEnd, bucket: Bucket) -> Any:
    buffers, counts = _arguments(front_end, bucket)
    return jax.eval_shape(
        lambda b, s, f: front_end.features(b, samples=s, frames=f), buffers, counts, counts
    )


def _weights_on(device: jax.Device, encoder: Encoder) -> Any:
    """An encoder's weights where they are needed; put there once."""
    key = id(encoder), device
    with _making:
        if key not in _placed:
            for other in [one for one in _placed if one[0] != id(encoder)]:
                del _placed[other]  # one network at a time is in use
            _placed[key] = encoder, jax.device_put(encoder.variables, device)
        return _placed[key][1]


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
    device: jax.Device | None = None,
) -> Any:
    """Start a batch on a device and return at once.

    Args:
        encoder: the network; unused without captures.
        request: what to bring back.
        bucket: the batch's shape; at most `bucket.rows` utterances.
        prepared: waveforms from the front end's `prepare`.
        n_frames: their frames.
        front_end: how the network hears the audio; the encoder's own by default.
        device: that runs it; the first one by default.

    Returns:
        What `collect` takes.
    """
    hears = _front_end(encoder, front_end)
    device = device or jax.local_devices()[0]
    length = hears.buffer_length(bucket.frames)
    buffers = pad_rows(prepared, rows=bucket.rows, length=length)
    samples, frames = np.zeros((2, bucket.rows), np.int32)
    samples[: len(prepared)] = [min(length, len(one)) for one in prepared]
    frames[: len(n_frames)] = n_frames
    program = compile_program(encoder, request, bucket, front_end=hears, device=device)
    network = encoder if request.captures else None
    variables = _weights_on(device, network) if network is not None else {}
    return program(variables, *jax.device_put((buffers, samples, frames), device))


def collect(dispatched: Any, *, n_frames: Sequence[int] | np.ndarray) -> Extracted:
    """Wait for a batch and bring back what was requested of it."""
    frames, pooled = jax.device_get(dispatched)
    return Extracted(np.asarray(n_frames), frames, pooled)
