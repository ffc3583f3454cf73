"""Shapes and values on which every implementation of an operation is tested and timed.

Tests run each case against the definition; benchmarks time those that are marked as realistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from featurestore.kernels.gated_block import BlockWeights


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
