"""The recogniser: an encoder that names characters, run on batches and decoded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from featurestore.batching import Bucket, pad_rows
from featurestore.encoder import Encoder, program_key
from featurestore.errors import CheckpointError
from featurestore.training.alignment import Spans, align, path_spans
from featurestore.training.alphabet import written
from featurestore.training.decoding import beam_search, collapse, surplus_spaces
from featurestore.types import CLASSES


@dataclass(frozen=True, eq=False)
class Recognised:
    """What was recognised in an utterance.

    Attributes:
        text: words of a to z with single spaces between them.
        spans: the frames of each character.
    """

    text: str
    spans: Spans


def decode_path(path: Int[np.ndarray, " frame"]) -> Recognised:
    """The text of a path, which holds a class for each frame, and where it has its characters."""
    return _tidy(collapse(path), path_spans(path))


def decode_beam(logits: Float[np.ndarray, "frame class"], *, width: int) -> Recognised:
    """The text that a beam search finds, and where its most probable path has its characters.

    Raises:
        FeatureStoreError: the search's library is not installed.
    """
    labels = beam_search(logits, width=width)
    return _tidy(labels, align(logits, labels))


def _tidy(labels: Sequence[int], spans: Spans) -> Recognised:
    kept = ~surplus_spaces(labels)
    text = written(np.asarray(labels, int)[kept].tolist())
    return Recognised(text, Spans(spans.first[kept], spans.last[kept]))


_programs: dict[Hashable, Any] = {}


@dataclass(frozen=True, eq=False)
class Recogniser:
    """An encoder with the logits of the 28 symbols, and how they become text.

    Attributes:
        encoder: the network.
        beam: width of the beam search; None takes the most probable path.
    """

    encoder: Encoder
    beam: int | None = None

    def __post_init__(self) -> None:
        """Refuse an encoder that names no characters.

        Raises:
            CheckpointError: its `apply` gives no `logits` of 28 classes.
        """
        if self._key not in _programs:
            self._check_logits()
            _programs[self._key] = jax.jit(self._output)

    @property
    def _key(self) -> Hashable:
        return program_key(self.encoder), self.encoder.front_end, bool(self.beam)

    def _check_logits(self) -> None:
        hears, rows, frames = self.encoder.front_end, 1, 8
        buffers = jax.ShapeDtypeStruct((rows, hears.buffer_length(frames)), jnp.float32)
        counts = jax.ShapeDtypeStruct((rows,), jnp.int32)
        found = jax.eval_shape(self._activations, self.encoder.variables, buffers, counts, counts)
        shape = getattr(found.get("logits"), "shape", None)
        if shape is None or shape[-1] != CLASSES:
            raise CheckpointError(
                f"encoder '{self.encoder.name}' cannot transcribe: it gives "
                + ("no logits" if shape is None else f"logits of {shape[-1]} classes")
                + f", expected {CLASSES} (space, a to z, blank); use weights of the GCU network, "
                "such as 'default'"
            )

    def _activations(self, variables: Any, buffers: Array, samples: Array, frames: Array) -> Any:
        hears = self.encoder.front_end
        batch, lengths = hears.features(buffers, samples=samples, frames=frames)
        return self.encoder.apply(variables, batch, lengths)

    def _output(self, variables: Any, buffers: Array, samples: Array, frames: Array) -> Array:
        """Logits, or where nothing else is wanted each frame's most probable class."""
        logits = self._activations(variables, buffers, samples, frames)["logits"]
        return logits if self.beam else jnp.argmax(logits, axis=-1)

    def dispatch(
        self,
        bucket: Bucket,
        prepared: Sequence[np.ndarray],
        *,
        n_frames: Sequence[int] | np.ndarray,
    ) -> Array:
        """Start a batch on the device and return at once.

        Args:
            bucket: the batch's shape; at most `bucket.rows` utterances.
            prepared: waveforms from the front end's `prepare`.
            n_frames: their frames.

        Returns:
            What `collect` takes.
        """
        hears = self.encoder.front_end
        buffers = pad_rows(prepared, rows=bucket.rows, length=hears.buffer_length(bucket.frames))
        samples, frames = np.zeros((2, bucket.rows), np.int32)
        samples[: len(prepared)] = [len(one) for one in prepared]
        frames[: len(n_frames)] = n_frames
        output: Array = _programs[self._key](self.encoder.variables, buffers, samples, frames)
        return output

    def collect(
        self, dispatched: Array, *, n_frames: Sequence[int] | np.ndarray
    ) -> list[Recognised]:
        """Wait for a batch and decode each of its utterances."""
        output = np.asarray(dispatched)
        rows = [row[:count] for row, count in zip(output, n_frames, strict=False)]
        if self.beam is None:
            return [decode_path(row) for row in rows]
        return [decode_beam(row, width=self.beam) for row in rows]
