"""Untrained weights, `random:SEED`: the control that a trained network must beat."""

from __future__ import annotations

import math

import numpy as np

from featurestore.errors import CheckpointError
from featurestore.weights import EXPECTED_TENSORS, Weights

MAX_SEED = 2**32 - 1  # a longer seed would spill into the word that numbers the tensor

# Moments of each MFCC (`librosa-0.5`) over the 78,296 frames of LJSpeech LJ001-LJ002 (385 clips of
# read English, public domain) with librosa 0.11, 3 significant digits; printed by
#     python benchmarks/mfcc_moments.py ljspeech/manifest.csv
# fmt: off
SPEECH_MFCC_MEAN = (
    -283.0, 78.2, 9.75, 13.1, -29.4, -20.3, -25.7, -15.8, -8.02, -18.0,
    -8.64, -11.9, -2.26, -11.3, -10.5, -6.04, -6.48, -6.85, -6.13, -2.65,
)
SPEECH_MFCC_STD = (
    105.0, 66.3, 52.9, 37.0, 28.4, 21.7, 16.9, 16.6, 13.5, 12.9,
    11.7, 11.8, 9.75, 10.1, 9.21, 9.26, 8.3, 9.24, 9.46, 9.6,
)
# fmt: on


def random_weights(seed: int) -> Weights:
    """The network as the original program initialises it, before any training.

    Kernels are uniform in +-1/sqrt(fan_in), biases and beta 0, gamma 1, running means 0 and
    variances 1. The exception is `front/conv_in`: its input, MFCCs, is never normalised and would
    saturate every tanh, so its running statistics are what they would be on speech whose
    coefficients are independent with the moments above.

    The same seed gives the same bits on every platform: each kernel has a stream of its own, and
    the moments are sums that are rounded once.

    Args:
        seed: An integer from 0 to 4294967295.

    Raises:
        CheckpointError: The seed is not such an integer.
    """
    if (
        isinstance(seed, bool)
        or not isinstance(seed, int | np.integer)
        or not 0 <= seed <= MAX_SEED
    ):
        raise CheckpointError(f"seed {seed!r}; accepted: an integer from 0 to {MAX_SEED}")
    tensors = {
        name: _initial(name, shape, np.random.PCG64([int(seed), number]))
        for number, (name, shape) in enumerate(sorted(EXPECTED_TENSORS.items()))
    }
    mean, variance = _front_moments(tensors["front/conv_in/W"][0])
    tensors["front/conv_in/mean"], tensors["front/conv_in/variance"] = mean, variance
    return Weights(tensors, source=f"random:{seed}")


def _initial(name: str, shape: tuple[int, ...], stream: np.random.PCG64) -> np.ndarray:
    if not name.endswith("/W"):
        value = 1.0 if name.endswith(("/gamma", "/variance")) else 0.0
        return np.full(shape, value, np.float32)
    limit = 1.0 / math.sqrt(fan_in(shape))
    return ((2.0 * np.random.Generator(stream).random(shape) - 1.0) * limit).astype(np.float32)


def fan_in(shape: tuple[int, ...]) -> float:
    """Inputs of one output, by the rule of the original's initialiser.

    sugartensor 1.0.0.2, `sg_initializer._get_fans`: a kernel of 4 axes (1, taps, in, out) has
    taps * in inputs (896 for the dilated convolutions); for 3 axes (taps, in, out) it takes
    sqrt(taps * in * out), which is 128 for the 1x1 convolutions inside the network.
    """
    return float(math.prod(shape[:3])) if len(shape) == 4 else math.sqrt(math.prod(shape))


def _front_moments(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (unit,) of `kernel` (coefficient, unit) applied to speech."""
    rows = kernel.astype(np.float64).T.tolist()
    # math.fsum rounds once, so that no platform's order of summation shows in the last bit.
    mean = [math.fsum(w * m for w, m in zip(row, SPEECH_MFCC_MEAN, strict=True)) for row in rows]
    variance = [
        math.fsum((w * s) ** 2 for w, s in zip(row, SPEECH_MFCC_STD, strict=True)) for row in rows
    ]
    return np.array(mean, np.float32), np.array(variance, np.float32)
