"""Shapes and values on which every implementation of an operation is tested and timed.

Tests run each case against the definition; benchmarks time those that are marked as realistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from featurestore.kernels.gated_block import BlockWeights

_HOP = 512  # samples; a window is four long
_RATE = 16_000  # Hz


@dataclass(frozen=True)
class GatedCase:
    """A batch for a gated block.

    Attributes:
        name: what is special about it.
        n_frames: of each utterance; 0 is a row that is not used.
        frames: of the buffer.
        dilation: between taps.
        scale: of the residual stream, which grows to 16 in the last block.
        units: per layer.
        timed: whether it is realistic enough for a benchmark.
    """

    name: str
    n_frames: tuple[int, ...]
    frames: int
    dilation: int
    scale: float = 1.0
    units: int = 128
    timed: bool = False

    def arguments(self, seed: int = 0) -> tuple[Array, Array, BlockWeights]:
        """Residual stream, frames and weights; the same for the same seed."""
        keys = jax.random.split(jax.random.key(seed), 5)
        units = self.units
        z = self.scale * jax.random.normal(keys[0], (len(self.n_frames), self.frames, units))
        n_frames = jnp.array(self.n_frames, jnp.int32)
        own = jnp.arange(self.frames)[:, None] < n_frames[:, None, None]
        weights = BlockWeights(
            jax.random.normal(keys[1], (7, units, 2 * units)) / (7 * units) ** 0.5,
            0.1 * jax.random.normal(keys[2], (2 * units,)),
            jax.random.normal(keys[3], (units, units)) / units**0.5,
            0.1 * jax.random.normal(keys[4], (units,)),
        )
        return jnp.where(own, z, 0.0), n_frames, weights


GATED_BLOCK: tuple[GatedCase, ...] = (
    GatedCase("one frame", (1,), 8, 1),
    GatedCase("full rows", (32, 32), 32, 2),
    GatedCase("shorter than the reach of the taps", (5, 3), 8, 16),
    GatedCase("unused rows", (17, 0, 9, 0), 24, 4),
    GatedCase("frames that are no multiple of anything", (31, 29, 7), 31, 8),
    GatedCase("large values", (64, 50), 64, 16, scale=8.0),
    GatedCase("a batch of the first block", (128,) * 28 + (120,) * 4, 128, 1, timed=True),
    GatedCase("a batch of the last block", (128,) * 28 + (120,) * 4, 128, 16, 4.0, timed=True),
    GatedCase("long utterances", (1000, 960, 1024, 900), 1024, 8, timed=True),
)


@dataclass(frozen=True)
class MfccCase:
    """A batch of waveforms for mel spectra.

    Attributes:
        name: what is special about it.
        n_frames: of each utterance; 0 is a row that is not used, and holds zeros.
        frames: of the buffer.
        hertz: of a tone, in place of noise of changing loudness.
        amplitude: 0 for silence.
        beyond: amplitude of noise in the buffer beyond what an utterance's frames read.
        timed: whether it is realistic enough for a benchmark.
    """

    name: str
    n_frames: tuple[int, ...]
    frames: int
    hertz: float | None = None
    amplitude: float = 0.5
    beyond: float = 0.0
    timed: bool = False

    def arguments(self, seed: int = 0) -> tuple[Array, Array]:
        """Buffers (utterance, sample) and frames of each; the same for the same seed."""
        keys = jax.random.split(jax.random.key(seed), 2)
        shape = (len(self.n_frames), (self.frames + 3) * _HOP)
        n_frames = jnp.array(self.n_frames, jnp.int32)
        seconds = jnp.arange(shape[1], dtype=jnp.float32) / _RATE
        if self.hertz is None:
            loudness = jnp.sin(2 * jnp.pi * 2 * seconds) ** 2
            signal = loudness * jax.random.uniform(keys[0], shape, jnp.float32, -1.0)
        else:
            signal = jnp.broadcast_to(jnp.sin(2 * jnp.pi * self.hertz * seconds), shape)
        end = jnp.where(n_frames > 0, (n_frames + 3) * _HOP, 0)[:, None]
        noise = self.beyond * jax.random.uniform(keys[1], shape, jnp.float32, -1.0)
        return jnp.where(jnp.arange(shape[1]) < end, self.amplitude * signal, noise), n_frames


MFCC: tuple[MfccCase, ...] = (
    MfccCase("one frame", (1,), 1),
    MfccCase("full rows", (32, 32, 32), 32),
    MfccCase("unused rows", (17, 0, 9, 0), 24),
    MfccCase("as long as a tile", (256, 200), 256),
    MfccCase("longer than a tile, and no multiple of one", (300, 17, 257, 0), 300),
    MfccCase("rows that do not divide into tiles", (60,) * 7, 61),
    MfccCase("silence", (40, 13), 40, amplitude=0.0),
    MfccCase("a tone", (40,), 40, hertz=440.0),
    MfccCase("a tone under the highest band's edge", (40, 7), 40, hertz=7990.0),
    MfccCase("faint, and loud beyond the utterance", (30, 4), 32, amplitude=1e-4, beyond=1.0),
    MfccCase("a batch of 4 s", (128,) * 28 + (120,) * 4, 128, timed=True),
    MfccCase("long utterances", (1000, 960, 1024, 900), 1024, timed=True),
)


@dataclass(frozen=True)
class MomentsCase:
    """Activations for statistics over frames.

    Attributes:
        name: what is special about it.
        shape: (layer, frame, unit).
        n_frames: of the utterance.
        offset: mean of all units.
        scale: standard deviation of all units.
        timed: whether it is realistic enough for a benchmark.
    """

    name: str
    shape: tuple[int, int, int]
    n_frames: int
    offset: float = 0.0
    scale: float = 1.0
    timed: bool = False

    def arguments(self, seed: int = 0) -> tuple[Array, Array]:
        """Activations, far off beyond the utterance's frames, and how many are its own."""
        noise = jax.random.normal(jax.random.key(seed), self.shape, jnp.float32)
        x = self.offset + self.scale * noise
        own = jnp.arange(self.shape[1])[:, None] < self.n_frames
        return jnp.where(own, x, 1e6), jnp.array(self.n_frames, jnp.int32)


MOMENTS: tuple[MomentsCase, ...] = (
    MomentsCase("one frame of one", (2, 1, 5), 1),
    MomentsCase("one frame of many", (2, 64, 5), 1),
    *(MomentsCase(f"{n} of 12 frames", (3, 12, 7), n) for n in range(2, 13)),
    MomentsCase("an odd number of frames", (3, 97, 16), 97),
    MomentsCase("an odd number of frames and padding", (3, 97, 16), 60),
    MomentsCase("halves that become odd", (3, 96, 16), 95),
    MomentsCase("nearly constant units", (2, 128, 16), 100, offset=0.9, scale=1e-5),
    MomentsCase("constant units", (2, 128, 16), 100, offset=0.9, scale=0.0),
    MomentsCase("an utterance of a batch", (15, 128, 128), 120, timed=True),
    MomentsCase("a long utterance", (15, 1024, 128), 1000, timed=True),
)


@dataclass(frozen=True)
class CrossProductsCase:
    """Features and targets of groups of rows.

    Attributes:
        name: what is special about it.
        sizes: rows of each group; they lie mixed up.
        left_out: rows of no group, whose targets are NaN.
        features: per row; the first is constant, the second nearly so.
        targets: per row.
        timed: whether it is realistic enough for a benchmark.
    """

    name: str
    sizes: tuple[int, ...]
    left_out: int = 0
    features: int = 12
    targets: int = 2
    timed: bool = False

    def arguments(self, seed: int = 0) -> tuple[Array, Array, Array]:
        """Features, targets and groups of all rows; the same for the same seed."""
        keys = jax.random.split(jax.random.key(seed), 3)
        counts = jnp.array((self.left_out, *self.sizes), jnp.int32)
        rows = self.left_out + sum(self.sizes)
        groups = jnp.repeat(
            jnp.arange(-1, len(self.sizes), dtype=jnp.int32), counts, total_repeat_length=rows
        )
        groups = jax.random.permutation(keys[0], groups)
        x = jax.random.normal(keys[1], (rows, self.features), jnp.float32)
        x = x.at[:, 0].set(0.9).at[:, 1].mul(1e-5).at[:, 1].add(0.9)
        noise = jax.random.normal(keys[2], (rows, self.targets), jnp.float32)
        y = 3.0 + x[:, -self.targets :] + noise
        return x, jnp.where(groups[:, None] < 0, jnp.nan, y), groups


CROSS_PRODUCTS: tuple[CrossProductsCase, ...] = (
    CrossProductsCase("one row", (1,)),
    CrossProductsCase("a group without rows, and one of one", (40, 0, 1, 23)),
    CrossProductsCase("the first and the last group without rows", (0, 30, 20, 0)),
    CrossProductsCase("rows left out", (50, 30), left_out=40),
    CrossProductsCase("nothing but rows left out", (0, 0), left_out=9),
    CrossProductsCase("more than a tile, a whole tile, one row less", (1100, 512, 511, 513)),
    CrossProductsCase("as many targets as features", (20, 31), left_out=3, features=5, targets=5),
    CrossProductsCase("ten speakers", (1050, 1000, 950, 1004, 1004) * 2, 23, 1920, timed=True),
    CrossProductsCase("actors", (60,) * 24, features=1920, timed=True),
)
