"""Decoding and MFCC by librosa, as the network's front end hears."""

from __future__ import annotations

import math

import librosa
import numpy as np

RATE = 16_000


def librosa_load(path: str, start: float = math.nan, end: float = math.nan) -> np.ndarray:
    """A file or the part from `start` to `end` seconds, mono at 16 kHz; NaN is where it ends."""
    offset = 0.0 if math.isnan(start) else start
    duration = None if math.isnan(end) else end - offset
    samples, _ = librosa.load(path, sr=RATE, mono=True, offset=offset, duration=duration)
    return samples


def librosa_mfcc(samples: np.ndarray) -> np.ndarray:
    """MFCC (frame, 20), float32."""
    coefficients = librosa.feature.mfcc(
        y=samples, sr=RATE, n_mfcc=20, n_fft=2048, hop_length=512, pad_mode="reflect"
    )
    return np.ascontiguousarray(coefficients.T, np.float32)


def heard(path: str, start: float, end: float) -> np.ndarray:
    """MFCC (frame, 20) of a file or a part of it."""
    return librosa_mfcc(librosa_load(path, start, end))
