"""A front end for networks that hear the samples themselves and make their own frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Int

from featurestore.errors import AudioError
from featurestore.types import SAMPLE_RATE

# What Hugging Face's Wav2Vec2FeatureExtractor adds to the variance.
_VARIANCE_FLOOR = 1e-7


@dataclass(frozen=True)
class Waveform:
    """16 kHz samples for a network whose frames each see `window` samples, `hop` apart.

    Nothing is padded at the ends: an utterance has 1 + (samples - window) // hop frames, as
    convolutions without padding make them.

    Attributes:
        window: samples that one frame sees.
        hop: samples between frames.
        normalised: whether each utterance's samples are brought to mean 0 and variance 1 first.
        longest_s: seconds of the longest utterance that the network can take.
        input_rate: Hz; audio at any rate is resampled to it.
    """

    window: int
    hop: int
    normalised: bool = False
    longest_s: float = math.inf
    input_rate: int = SAMPLE_RATE

    @property
    def name(self) -> str:
        """What provenance records."""
        return "waveform-normalised" if self.normalised else "waveform"

    @property
    def frame_period_s(self) -> float:
        """Seconds between frames."""
        return self.hop / self.input_rate

    @property
    def frame_offset_s(self) -> float:
        """Centre of the first frame, in seconds from the utterance's first sample."""
        return self.window / 2 / self.input_rate

    def frame_count(self, samples: int) -> int:
        """Frames of an utterance of `samples` samples.

        Raises:
            AudioError: fewer samples than one frame sees, or more than `longest_s` seconds.
        """
        if samples < self.window:
            raise AudioError(
                f"{samples} samples at 16 kHz are too short for this network, which needs at least "
                f"{self.window} ({self.window / self.input_rate:.4f} s)"
            )
        if samples > self.longest_s * self.input_rate:
            raise AudioError(
                f"{samples / self.input_rate:.1f} s are too long for this network, which takes at "
                f"most {self.longest_s:g} s in one piece; cut the recording into utterances with "
                "the manifest's columns 'start' and 'end'"
            )
        return 1 + (samples - self.window) // self.hop

    def prepare(self, samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " sample"]:
        """The samples, normalised if so wanted.

        Raises:
            AudioError: as `frame_count`.
        """
        self.frame_count(len(samples))
        if not self.normalised:
            return np.asarray(samples, np.float32)
        wide = np.asarray(samples, np.float64)
        return ((wide - wide.mean()) / np.sqrt(wide.var() + _VARIANCE_FLOOR)).astype(np.float32)

    def buffer_length(self, frames: int) -> int:
        """Samples of the longest utterance that has this many frames."""
        return self.window + self.hop * frames - 1

    def features(
        self,
        buffers: Float[Array, "utterance sample"],
        *,
        samples: Int[Array, " utterance"],
        frames: Int[Array, " utterance"],
    ) -> tuple[Float[Array, "utterance sample"], Int[Array, " utterance"]]:
        """The buffers as they are, and how many of their samples count."""
        return buffers, samples
