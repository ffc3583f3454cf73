"""MFCC in JAX, equal to librosa's (0.11 semantics), for batches of padded waveforms.

16 kHz, n_fft 2048, hop 512 (32 ms), periodic Hann window, power spectrum, 128 Slaney mel bands with
area normalisation over 0-8 kHz, `10 log10(max(1e-10, S))`, clamped to 80 dB under the loudest band
of the whole utterance, orthonormal DCT-II, first 20 coefficients. Frame t is centred at t * 32 ms.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Array, Float, Int

from featurestore.batching import pad_rows
from featurestore.errors import AudioError
from featurestore.types import (
    COEFFICIENTS,
    FRAME_PERIOD_S,
    HOP_LENGTH,
    SAMPLE_RATE,
    FrontEndVariant,
)

if TYPE_CHECKING:
    import jax

    from featurestore.kernels.mfcc import MelFilters

N_FFT = 2048  # samples
MEL_BANDS = 128
_BLOCKS = N_FFT // HOP_LENGTH  # a window is four hops long, so frames are four shifted blocks


@dataclass(frozen=True)
class FrontEnd:
    """A named way from samples to MFCC.

    Attributes:
        name: what provenance records.
        padding: how the signal goes on beyond its two ends, 1,024 samples each side.
        input_rate: sampling rate in Hz that the variant takes.
        decimation: keep every n-th sample, without a filter.
    """

    name: FrontEndVariant
    padding: Literal["reflect", "constant"]
    input_rate: int = SAMPLE_RATE
    decimation: int = 1

    @property
    def frame_period_s(self) -> float:
        """Seconds between frames."""
        return FRAME_PERIOD_S

    @property
    def frame_offset_s(self) -> float:
        """Centre of the first frame, in seconds from the utterance's first sample."""
        return 0.0

    @property
    def min_samples(self) -> int:
        """Fewest samples at 16 kHz: a reflection of 1,024 needs one sample more than that."""
        return N_FFT // 2 + 1 if self.padding == "reflect" else 1

    def decimated_length(self, samples: int) -> int:
        """Samples at 16 kHz that `samples` at `input_rate` become."""
        return -(-samples // self.decimation)

    def prepare(self, samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " padded"]:
        """Decimate where the variant says so, then continue the signal beyond its true ends.

        Raises:
            AudioError: fewer samples than `min_samples`.
        """
        samples = samples[:: self.decimation]
        self.check_length(len(samples))
        return np.pad(samples, N_FFT // 2, mode=self.padding)

    def frame_count(self, samples: int) -> int:
        """Frames of an utterance of `samples` samples at `input_rate`.

        Raises:
            AudioError: fewer samples than `min_samples`.
        """
        length = self.decimated_length(samples)
        self.check_length(length)
        return frame_count(length)

    def buffer_length(self, frames: int) -> int:
        """Samples of the prepared waveform that `frames` frames read."""
        return buffer_length(frames)

    def features(
        self,
        buffers: Float[Array, "utterance sample"],
        *,
        samples: Int[Array, " utterance"],
        frames: Int[Array, " utterance"],
    ) -> tuple[Float[Array, "utterance frame 20"], Int[Array, " utterance"]]:
        """MFCC of prepared waveforms in zero-filled buffers, and how many of their frames count."""
        return mfcc_of_batch(buffers, frames), frames

    def check_length(self, samples: int) -> None:
        """Raise unless `samples` samples at 16 kHz are enough.

        Raises:
            AudioError: fewer samples than `min_samples`.
        """
        if samples < self.min_samples:
            raise AudioError(
                f"{samples} samples at 16 kHz are too short for front end '{self.name}', which "
                f"needs at least {self.min_samples} ({self.min_samples / SAMPLE_RATE:.3f} s)"
                + ("; 'librosa' takes any length" if self.padding == "reflect" else "")
            )


FRONT_ENDS: dict[str, FrontEnd] = {
    "librosa-0.5": FrontEnd("librosa-0.5", "reflect"),
    "librosa": FrontEnd("librosa", "constant"),
    "vctk-decimate": FrontEnd("vctk-decimate", "reflect", input_rate=48_000, decimation=3),
}


def front_end(variant: str) -> FrontEnd:
    """The front end of that name.

    Raises:
        AudioError: an unknown name.
    """
    if variant not in FRONT_ENDS:
        raise AudioError(f"unknown MFCC variant '{variant}'; accepted: {', '.join(FRONT_ENDS)}")
    return FRONT_ENDS[variant]


def frame_count(samples: int) -> int:
    """Frames of an utterance of `samples` samples at 16 kHz."""
    return 1 + samples // HOP_LENGTH


def buffer_length(frames: int) -> int:
    """Samples of the padded waveform that `frames` frames read."""
    return (frames + _BLOCKS - 1) * HOP_LENGTH


@functools.cache
def _filters() -> MelFilters:
    """Window (2048,), mel weights (1025, 128) and DCT (128, 20), float64."""
    import librosa.filters
    import scipy.fft
    import scipy.signal

    from featurestore.kernels.mfcc import MelFilters

    window = scipy.signal.get_window("hann", N_FFT, fftbins=True)
    mel = librosa.filters.mel(
        sr=SAMPLE_RATE,
        n_fft=N_FFT,
        n_mels=MEL_BANDS,
        fmin=0.0,
        fmax=SAMPLE_RATE / 2,
        htk=False,
        norm="slaney",
        dtype=np.float64,
    )
    dct = scipy.fft.dct(np.eye(MEL_BANDS), type=2, norm="ortho", axis=0)[:COEFFICIENTS].T
    return MelFilters(window, mel.T, dct)


def mfcc_of_batch(
    buffers: Float[Array, "utterance sample"], n_frames: Int[Array, " utterance"]
) -> Float[Array, "utterance frame coefficient"]:
    """MFCC of prepared waveforms in fixed buffers; traceable.

    Args:
        buffers: `FrontEnd.prepare`d samples followed by zeros, `buffer_length(frames)` long.
        n_frames: frames that belong to each utterance. Only they set its 80 dB reference; rows
            beyond are zero.
    """
    from featurestore.kernels.mfcc import mfcc as of_batch

    return of_batch(buffers, n_frames, _filters())


def log_mel_of_batch(
    buffers: Float[Array, "utterance sample"], n_frames: Int[Array, " utterance"]
) -> Float[Array, "utterance frame band"]:
    """Mel spectra in dB, from which `cepstrum` makes MFCC; arguments as for `mfcc_of_batch`."""
    from featurestore.kernels.mfcc import log_mel

    return log_mel(buffers, n_frames, _filters())


def cepstrum(decibels: Float[Array, "frame band"]) -> Float[Array, "frame coefficient"]:
    """The first 20 coefficients of the orthonormal DCT-II over 128 mel bands in dB."""
    import jax.numpy as jnp

    return jnp.matmul(decibels, _filters().dct.astype(decibels.dtype), precision="highest")


@functools.cache
def _jitted() -> jax.stages.Wrapped:
    import jax

    return jax.jit(mfcc_of_batch)


def fill_buffers(
    prepared: list[np.ndarray], *, rows: int, frames: int
) -> Float[np.ndarray, "row sample"]:
    """Prepared waveforms as rows of one zero-filled batch; rows beyond the last one stay zero."""
    return pad_rows(prepared, rows=rows, length=buffer_length(frames))


def mfcc(
    samples: Float[np.ndarray, " sample"], *, variant: str = "librosa-0.5"
) -> Float[np.ndarray, "frame coefficient"]:
    """MFCC of one utterance.

    Args:
        samples: mono float samples in [-1, 1] at 16 kHz (at 48 kHz for `vctk-decimate`, which
            takes every third).
        variant: `librosa-0.5` (reflected ends, what the published weights were trained with),
            `librosa` (zeros beyond the ends, librosa's default up to 0.11), or `vctk-decimate`.

    Returns:
        float32, `1 + samples // 512` frames by 20 coefficients.

    Raises:
        AudioError: an unknown variant, samples that are not one finite mono signal, or too few of
            them for the variant.
    """
    chosen = front_end(variant)
    signal = np.asarray(samples)
    if signal.ndim != 1 or signal.dtype.kind not in "f":
        raise AudioError(
            f"expected one mono signal of floats, shape (samples,), got {signal.dtype} of shape "
            f"{signal.shape}; average the channels and scale integers to [-1, 1] first"
        )
    with np.errstate(over="ignore"):  # refused below
        signal = signal.astype(np.float32)
    if not np.isfinite(signal).all():
        raise AudioError(f"sample {int(np.argmin(np.isfinite(signal)))} is not a finite number")
    prepared = chosen.prepare(signal)
    frames = frame_count(chosen.decimated_length(len(signal)))
    buffers = fill_buffers([prepared], rows=1, frames=frames)
    return np.asarray(_jitted()(buffers, np.array([frames], np.int32)))[0]
