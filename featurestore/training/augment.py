"""Variety that a small corpus lacks: speed, noise, voices, channels, and gaps.

Speed and noise change the waveform, on the host; the rest changes the mel spectrum, inside the
compiled training step. All of it is drawn from keys, so that the same seed gives the same training.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from featurestore.frontend import MEL_BANDS, cepstrum
from featurestore.types import SAMPLE_RATE


@dataclass(frozen=True)
class Augmentation:
    """How much each utterance is varied; zeros leave it as it is.

    Attributes:
        speed: tempo and pitch together, a factor from 1 - speed to 1 + speed (Ko et al. 2015).
        noise: share of utterances that get noise.
        noise_db: signal-to-noise ratio in dB, drawn between the two.
        gain_db: loudness, up to this many dB more or less.
        tilt_db: the channel: standard deviation in dB of a smooth curve over the mel bands.
        warp: vocal tract length, a factor from 1 - warp to 1 + warp (Jaitly and Hinton 2013).
        bands: widest of two gaps in frequency, in mel bands of 128 (Park et al. 2019).
        frames: longest gap in time, in frames of 32 ms; about one gap in every `frames_apart`.
        frames_apart: frames of speech for each gap in time.
        coefficient_shift: the original's: coefficients rolled by -2 to 1 places.
    """

    speed: float = 0.12
    noise: float = 0.5
    noise_db: tuple[float, float] = (5.0, 35.0)
    gain_db: float = 12.0
    tilt_db: float = 3.0
    warp: float = 0.12
    bands: int = 16
    frames: int = 6
    frames_apart: int = 40
    coefficient_shift: bool = False

    @property
    def spectral(self) -> bool:
        """Whether anything changes the spectrum, rather than the waveform."""
        amounts = (self.gain_db, self.tilt_db, self.warp, self.bands, self.frames)
        return self.coefficient_shift or any(amounts)


NO_AUGMENTATION = Augmentation(
    speed=0.0, noise=0.0, gain_db=0.0, tilt_db=0.0, warp=0.0, bands=0, frames=0
)


def speed_factor(augmentation: Augmentation, generator: np.random.Generator) -> float:
    """Playing speed of an utterance, in steps of one per cent."""
    return 1.0 + round(augmentation.speed * float(generator.uniform(-1.0, 1.0)), 2)


def change_speed(
    samples: Float[np.ndarray, " sample"], factor: float
) -> Float[np.ndarray, " sample"]:
    """Samples as a tape plays them `factor` times as fast: shorter and higher above 1."""
    if factor == 1.0:
        return samples
    import soxr

    return soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ")


def add_noise(
    samples: Float[np.ndarray, " sample"],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> Float[np.ndarray, " sample"]:
    """Samples with noise of a random colour between white and brown, for some utterances."""
    if generator.random() >= augmentation.noise:
        return samples
    from scipy.signal import lfilter

    pole = generator.uniform(0.0, 0.98)
    noise = lfilter([1.0], [1.0, -pole], generator.standard_normal(len(samples), np.float32))
    ratio = generator.uniform(*augmentation.noise_db)
    power, noise_power = float(np.mean(samples**2)), float(np.mean(noise**2))
    scale = np.sqrt(power / max(noise_power, 1e-20)) * 10 ** (-ratio / 20)
    return (samples + scale * noise).astype(np.float32)


def augmented_mfcc(
    decibels: Float[Array, "frame band"],
    n_frames: Int[Array, ""],
    key: Key[Array, ""],
    augmentation: Augmentation,
) -> Float[Array, "frame coefficient"]:
    """MFCC of an utterance in another voice, through another channel, with gaps.

    Args:
        decibels: mel spectrum from `featurestore.frontend.log_mel_of_batch`.
        n_frames: frames that belong to the utterance; rows beyond come back as zeros.
        key: what is drawn.
        augmentation: how much.
    """
    keys = jax.random.split(key, 6)
    valid = (jnp.arange(len(decibels)) < n_frames)[:, None]
    if augmentation.warp:
        decibels = _warped(decibels, keys[0], augmentation.warp)
    # Gaps are filled with each band's mean: zero would be very loud on this scale.
    mean = jnp.sum(jnp.where(valid, decibels, 0.0), axis=0) / jnp.maximum(n_frames, 1)
    gaps = _band_gaps(keys[1], augmentation.bands) | _frame_gaps(
        keys[2], n_frames, len(decibels), augmentation
    )
    decibels = jnp.where(gaps, mean, decibels)
    decibels = decibels + _channel(keys[3], augmentation)
    coefficients = cepstrum(decibels)
    if augmentation.coefficient_shift:
        coefficients = jnp.roll(coefficients, jax.random.randint(keys[4], (), -2, 2), axis=1)
    return jnp.where(valid, coefficients, 0.0)


def _warped(decibels: Array, key: Array, most: float) -> Array:
    """The spectrum with its frequency axis stretched, by linear interpolation between bands."""
    import librosa

    edges = librosa.mel_frequencies(MEL_BANDS + 2, fmin=0.0, fmax=SAMPLE_RATE / 2)
    centres = jnp.asarray(edges[1:-1], jnp.float32)
    factor = 1.0 + jax.random.uniform(key, minval=-most, maxval=most)
    wanted = jnp.interp(centres * factor, centres, jnp.arange(MEL_BANDS, dtype=jnp.float32))
    below = jnp.clip(jnp.floor(wanted).astype(jnp.int32), 0, MEL_BANDS - 2)
    weight = wanted - below
    return decibels[:, below] * (1.0 - weight) + decibels[:, below + 1] * weight


def _band_gaps(key: Array, widest: int) -> Array:
    """(1, band): two runs of 0 to `widest` bands."""
    starts, widths = jax.random.uniform(key, (2, 2))
    width = jnp.floor(widths * (widest + 1))[:, None]
    start = jnp.floor(starts[:, None] * (MEL_BANDS - width))
    band = jnp.arange(MEL_BANDS, dtype=jnp.float32)
    return jnp.any((band >= start) & (band < start + width), axis=0)[None]


def _frame_gaps(key: Array, n_frames: Array, frames: int, augmentation: Augmentation) -> Array:
    """(frame, 1): one run of 0 to `frames` frames for every `frames_apart` frames of speech."""
    gaps = frames // augmentation.frames_apart + 1
    starts, widths = jax.random.uniform(key, (2, gaps))
    width = jnp.floor(widths * (augmentation.frames + 1))[:, None]
    wanted = jnp.arange(gaps) < n_frames // augmentation.frames_apart + 1
    start = jnp.floor(starts[:, None] * n_frames)
    frame = jnp.arange(frames, dtype=jnp.float32)
    inside = (frame >= start) & (frame < start + width) & wanted[:, None]
    return jnp.any(inside, axis=0)[:, None]


def _channel(key: Array, augmentation: Augmentation) -> Array:
    """(1, band): loudness and a smooth curve, in dB."""
    gain_key, curve_key = jax.random.split(key)
    gain = jax.random.uniform(gain_key, minval=-1.0, maxval=1.0) * augmentation.gain_db
    orders = jnp.arange(1, 5, dtype=jnp.float32)
    bands = (jnp.arange(MEL_BANDS, dtype=jnp.float32) + 0.5) / MEL_BANDS
    # Four cosines, weaker the faster they turn; together of about the standard deviation asked for.
    curves = jnp.cos(jnp.pi * orders[:, None] * bands) * jnp.sqrt(2.0) / orders[:, None]
    amounts = jax.random.normal(curve_key, (4,)) * augmentation.tilt_db / 1.19
    return (gain + amounts @ curves)[None]
