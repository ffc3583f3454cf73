"""What an encoder is, and how to get and run one.

An encoder is a network that turns audio into activations of shape (layer, frame, unit). The GCU
network (`featurestore.gcu`) and wav2vec 2.0 (`featurestore.wav2vec2`) are two; any object with the
members of `Encoder` is another, and goes through ingest, store, analysis and report like them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

from featurestore.batching import BatchPolicy, Bucket, batches, choose_buckets, fit_rows
from featurestore.errors import AudioError, CheckpointError, FeatureStoreError
from featurestore.hardware import compute_alike
from featurestore.types import COEFFICIENTS, RESERVED_KINDS
from featurestore.weights import Weights

compute_alike()  # whoever runs a network imports this module first
ENTRY_POINTS = "featurestore.encoders"  # group of other packages' loaders


@runtime_checkable
class AudioFrontEnd(Protocol):
    """How an encoder consumes audio: on the host up to a buffer, then on the device.

    `featurestore.frontend.FrontEnd` (MFCC) and `featurestore.waveform.Waveform` are two. Equal
    front ends do the same, so one must be hashable; frozen dataclasses are.
    """

    @property
    def name(self) -> str:
        """What provenance records."""
        ...

    @property
    def input_rate(self) -> int:
        """Hz. At 16,000, any audio is resampled; at another rate, files must have it."""
        ...

    @property
    def frame_period_s(self) -> float:
        """Seconds between frames."""
        ...

    @property
    def frame_offset_s(self) -> float:
        """Centre of the first frame, in seconds from the utterance's first sample."""
        ...

    def frame_count(self, samples: int) -> int:
        """Frames of an utterance of `samples` samples at `input_rate`.

        The plan asks for it when it has read the file's header, before anything is decoded.

        Raises:
            AudioError: too short, or too long.
        """
        ...

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        """One utterance's mono float32 samples (sample,) as they go into its buffer."""
        ...

    def buffer_length(self, frames: int) -> int:
        """Samples of a buffer that holds any prepared utterance of up to `frames` frames."""
        ...

    def features(self, buffers: Any, *, samples: Any, frames: Any) -> tuple[Any, Any]:
        """What `Encoder.apply` takes, of a batch; traced by JAX.

        Args:
            buffers: prepared utterances (utterance, sample), zeros beyond each one's end.
            samples: (utterance,) how long each prepared utterance is.
            frames: (utterance,) how many frames each has. Unused rows of a batch have 0 of both.

        Returns:
            The batch (utterance, time, ...), and how much of its time axis belongs to each.
        """
        ...


@runtime_checkable
class Encoder(Protocol):
    """A network with its weights, ready to run. There is no base class: having these is enough.

    Optional besides: `architecture` (hashable), which encoders of one class share if they run the
    same `apply`, so that what was compiled for one serves the others (by default only those of the
    same fingerprint do); `batching`, the `BatchPolicy` that suits its need of memory; `bounds`, the
    largest absolute value of each capture point, which int8 frames need; `bytes_per_frame`, the
    temporary memory of its program, for the plan; `precision` and
    `in_precision(precision)`, which returns the same network with that arithmetic (one of
    `float32`, `winograd`, `float16`, `bfloat16`) in its matrix products; and
    `by_layer(variables, batch, lengths, *, captures, frames)`, which ingest calls instead of
    `apply` where there is one: for each capture a list with one pair per layer, activations
    (utterance, frame, unit), or None unless `frames`, and their statistics as from
    `featurestore.kernels.masked_statistics` (4, utterance, unit), for a network that has them
    cheaper than from all layers side by side.
    """

    @property
    def name(self) -> str:
        """Where the weights came from, for people."""
        ...

    @property
    def untrained(self) -> bool:
        """Whether the weights are random: a control, not a finding about trained networks."""
        ...

    @property
    def kind(self) -> str:
        """What its views are called, such as "gcu": lower-case letters, digits and "_"."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the network and its weights: the same only if every activation is."""
        ...

    @property
    def captures(self) -> tuple[str, ...]:
        """Names of the capture points; the first one is the default."""
        ...

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, from input to output; every capture point has all of them."""
        ...

    @property
    def units(self) -> int:
        """Units of each layer."""
        ...

    @property
    def receptive_field(self) -> int | None:
        """Frames that one frame of the last layer sees; None if it sees the whole utterance."""
        ...

    @property
    def front_end(self) -> AudioFrontEnd:
        """How it consumes audio, and with it the frame rate."""
        ...

    @property
    def variables(self) -> Any:
        """Weights as a pytree of arrays, handed to `apply`."""
        ...

    def apply(self, variables: Any, batch: Any, lengths: Any) -> Mapping[str, Any]:
        """Activations of a padded batch; pure, traced by JAX, for any static shape.

        What lies beyond an utterance's length must not change its result: alone or in a batch, in
        a short buffer or a long one, each utterance's own frames must be the same to rounding.

        Args:
            variables: the attribute `variables`, perhaps of another encoder that shares
                `architecture`.
            batch: what `front_end.features` made, (utterance, time, ...).
            lengths: (utterance,) how much of the time axis belongs to each utterance; 0 in rows
                that are not used.

        Returns:
            float32 (utterance, layer, frame, unit) for each capture point, with as many frames as
            the buffer holds; rows beyond an utterance's frames may hold anything.
        """
        ...


_KIND = re.compile(r"[a-z][a-z0-9_]*")
_CAPTURE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_MEMBERS = tuple(name for name in vars(Encoder) if not name.startswith("_"))
_FRONT_END_MEMBERS = tuple(name for name in vars(AudioFrontEnd) if not name.startswith("_"))


def check_encoder(encoder: Any) -> Encoder:
    """The same encoder, if it has what an encoder needs.

    Raises:
        FeatureStoreError: a member is missing or cannot be used; names it.
    """
    what = f"encoder {type(encoder).__name__}"
    missing = [name for name in _MEMBERS if not hasattr(encoder, name)]
    if missing:
        raise FeatureStoreError(
            f"{what} has no {', '.join(missing)}; featurestore.Encoder says what each must be"
        )
    if not _KIND.fullmatch(str(encoder.kind)) or encoder.kind in RESERVED_KINDS:
        raise FeatureStoreError(
            f"{what} has kind {encoder.kind!r}; accepted: lower-case letters, digits and '_', "
            f"but not {', '.join(RESERVED_KINDS)}"
        )
    for name, values in (("captures", encoder.captures), ("layer_names", encoder.layer_names)):
        if isinstance(values, str) or not len(values) or len(set(values)) != len(values):
            raise FeatureStoreError(
                f"{what} has {name} {values!r}; expected a tuple of distinct names, at least one"
            )
    for capture in encoder.captures:
        if not _CAPTURE.fullmatch(capture) or capture == "mfcc":
            raise FeatureStoreError(
                f"{what} has capture {capture!r}; accepted: letters, digits and '_', not 'mfcc'"
            )
    if not encoder.fingerprint:
        raise FeatureStoreError(f"{what} has no fingerprint; give it a hash of its weights")
    if encoder.units < 1:
        raise FeatureStoreError(f"{what} has {encoder.units} units; expected 1 or more")
    # Not isinstance: from Python 3.12 on it asks in another way than hasattr.
    lacks = [name for name in _FRONT_END_MEMBERS if not hasattr(encoder.front_end, name)]
    if lacks:
        raise FeatureStoreError(f"{what}: its front_end has no {', '.join(lacks)}")
    return encoder


def program_key(encoder: Encoder) -> Hashable:
    """Equal for encoders that one compiled program serves, given weights of the same shapes."""
    return type(encoder), getattr(encoder, "architecture", encoder.fingerprint)


def batch_policy(encoder: Encoder) -> BatchPolicy:
    """How an encoder's batches are shaped unless its user says so."""
    return getattr(encoder, "batching", None) or BatchPolicy()


def _hugging_face(rest: str) -> Encoder:
    from featurestore.huggingface import load_folder

    return load_folder(rest)


_LOADERS: dict[str, Callable[[str], Encoder]] = {
    "wav2vec2": _hugging_face,
    "hubert": _hugging_face,
}


def _loader(kind: str) -> Callable[[str], Any] | None:
    if kind in _LOADERS:
        return _LOADERS[kind]
    for found in entry_points(group=ENTRY_POINTS, name=kind):
        return found.load()
    return None


def load_encoder(
    weights: str | Path | Weights | Encoder = "default", *, variant: str | None = None
) -> Encoder:
    """An encoder from weights.

    Args:
        weights: for the GCU network a prefix of a TensorFlow checkpoint, a `.safetensors` file, a
            registered name, `random:SEED`, or `Weights` already read; for others KIND:REST, such as
            `wav2vec2:FOLDER`, where other packages may add kinds. An encoder is returned as it is.
        variant: MFCC variant to use instead of the one that the weights were trained with.

    Raises:
        CheckpointError: weights that are missing, damaged or of another network.
        AudioError: an unknown front end.
        FeatureStoreError: something that is not an encoder, or a `variant` for one without MFCC.
    """
    kind, colon, rest = str(weights).partition(":")
    if not isinstance(weights, str | Path | Weights):
        loaded = check_encoder(weights)
    elif isinstance(weights, str) and colon and (load := _loader(kind)) is not None:
        loaded = check_encoder(load(rest))
    else:
        return _gcu(weights, variant)
    if variant is not None:
        raise FeatureStoreError(
            f"variant '{variant}' is one of MFCC and cannot be set for encoder '{loaded.name}'; "
            "leave it out"
        )
    return loaded


def _gcu(weights: str | Path | Weights, variant: str | None) -> Encoder:
    from featurestore.checkpoint import load_weights
    from featurestore.gcu import gcu_encoder

    if not isinstance(weights, Weights) and (Path(weights) / "config.json").is_file():
        raise CheckpointError(
            f"{weights} looks like a Hugging Face folder; say which network it holds: "
            f"wav2vec2:{weights}"
        )
    read = weights if isinstance(weights, Weights) else load_weights(weights)
    return gcu_encoder(read, variant=variant)


_applied: dict[Hashable, Any] = {}


def apply(
    encoder: Encoder,
    batch: Float[Array | np.ndarray, "utterance time ..."],
    lengths: Int[Array | np.ndarray, " utterance"],
) -> Mapping[str, Array]:
    """Named activations of a padded batch: `Encoder.apply`, compiled."""
    import jax

    key = program_key(encoder)
    if key not in _applied:
        _applied[key] = jax.jit(encoder.apply)
    return _applied[key](encoder.variables, batch, lengths)


def encode(
    encoder: Encoder,
    utterances: Sequence[Float[np.ndarray, " sample"] | Float[np.ndarray, "frame coefficient"]],
    *,
    policy: BatchPolicy | None = None,
) -> list[dict[str, np.ndarray]]:
    """Activations of every layer for utterances of any lengths, in the order given.

    Utterances are batched by length; the company an utterance runs in does not change its result
    by more than rounding (1e-5).

    Args:
        encoder: from `load_encoder`, or one of your own.
        utterances: mono waveforms (sample,) at the front end's rate, 16 kHz; or for an encoder that
            hears MFCC those of each utterance, (frame, 20), as from `featurestore.mfcc`.
        policy: how batches are shaped.

    Returns:
        Per utterance float32 (layer, frame, unit) by capture point. From MFCC, also whatever else
        the network names: for the GCU network `front` (frame, 128) and `logits` (frame, 28).

    Raises:
        AudioError: an array of another shape, too short, or with values that are not finite.
        FeatureStoreError: not an encoder.
    """
    check_encoder(encoder)
    arrays = [np.asarray(array) for array in utterances]
    if arrays and all(array.ndim == 1 for array in arrays):
        return _encode_waveforms(encoder, arrays, policy or batch_policy(encoder))
    return _encode_coefficients(encoder, arrays, policy or batch_policy(encoder))


def _buckets(lengths: Sequence[int], policy: BatchPolicy) -> tuple[Bucket, ...]:
    return fit_rows(choose_buckets(lengths, policy), [lengths], policy)


def _encode_waveforms(
    encoder: Encoder, waveforms: list[np.ndarray], policy: BatchPolicy
) -> list[dict[str, np.ndarray]]:
    from featurestore.extract import Request, collect, dispatch

    signals = [_checked(array, index, "samples") for index, array in enumerate(waveforms)]
    lengths = [encoder.front_end.frame_count(len(signal)) for signal in signals]
    request = Request(tuple(encoder.captures), mfcc=False, frames=True, dtype="float32")
    results: list[dict[str, np.ndarray]] = [{} for _ in signals]
    for batch in batches(lengths, _buckets(lengths, policy)):
        counts = [lengths[member] for member in batch.members]
        started = dispatch(
            encoder,
            request,
            bucket=batch.bucket,
            prepared=[encoder.front_end.prepare(signals[member]) for member in batch.members],
            n_frames=counts,
        )
        found = collect(started, n_frames=counts)
        for row, member in enumerate(batch.members):
            results[member] = {name: found.frames(name, row) for name in request.captures}
    return results


def _encode_coefficients(
    encoder: Encoder, coefficients: list[np.ndarray], policy: BatchPolicy
) -> list[dict[str, np.ndarray]]:
    from featurestore.frontend import FrontEnd

    if not isinstance(encoder.front_end, FrontEnd):
        raise AudioError(
            f"encoder '{encoder.name}' hears waveforms; expected arrays of shape (sample,), got "
            f"{', '.join(str(array.shape) for array in coefficients[:3])}"
        )
    inputs = [_checked_mfcc(array, index) for index, array in enumerate(coefficients)]
    lengths = [len(array) for array in inputs]
    results: list[dict[str, np.ndarray]] = [{} for _ in inputs]
    for batch in batches(lengths, _buckets(lengths, policy)):
        padded = np.zeros((batch.bucket.rows, batch.bucket.frames, COEFFICIENTS), np.float32)
        n_frames = np.zeros(batch.bucket.rows, np.int32)
        for row, member in enumerate(batch.members):
            padded[row, : lengths[member]] = inputs[member]
            n_frames[row] = lengths[member]
        out = {name: np.asarray(value) for name, value in apply(encoder, padded, n_frames).items()}
        for row, member in enumerate(batch.members):
            # Copies, so that one kept utterance does not keep its whole batch alive.
            results[member] = {
                name: value[row][..., : lengths[member], :].copy() for name, value in out.items()
            }
    return results


def _checked_mfcc(array: np.ndarray, index: int) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] != COEFFICIENTS or not len(array):
        raise AudioError(
            f"utterance {index}: expected MFCC of shape (frame, {COEFFICIENTS}) with at least one "
            f"frame, got {array.shape}"
        )
    return _checked(array, index, "MFCC")


def _checked(array: np.ndarray, index: int, what: str) -> np.ndarray:
    if what == "samples" and array.dtype.kind != "f":
        raise AudioError(
            f"utterance {index}: expected samples as floats in [-1, 1], got {array.dtype}; scale "
            "integers first"
        )
    with np.errstate(over="ignore"):  # refused below
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise AudioError(f"utterance {index}: {what} hold values that are not finite")
    return array
