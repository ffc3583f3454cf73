"""Labels exchanged within speakers: what a result would be if they said nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from featurestore.analysis.streams import Blocks


def permuted(
    values: Float64[np.ndarray, " utterance"],
    codes: Int64[np.ndarray, " utterance"],
    permutations: int,
    seed: int | Sequence[int],
) -> Float64[np.ndarray, "utterance permutation"]:
    """Labels exchanged within each speaker, as deviations from the speaker's mean; 0 if unknown."""
    rng = np.random.default_rng(seed)
    out = np.zeros((len(values), permutations))
    for code in np.unique(codes[codes >= 0]):
        rows = np.flatnonzero((codes == code) & np.isfinite(values))
        if len(rows):
            off = values[rows] - values[rows].mean()
            order = rng.permuted(np.tile(np.arange(len(rows)), (permutations, 1)), axis=1)
            out[rows] = off[order].T
    return out


def label_products(
    blocks: Blocks, *, shuffled: Sequence[NDArray[np.float64]]
) -> Float64[np.ndarray, "target feature permutation"]:
    """Of units, less a constant, and permuted labels."""
    total: Any = None
    shift: Any = None
    for rows, block in blocks:
        x = block.reshape(len(block), -1).astype(np.float64)
        if total is None:
            shift = x.mean(axis=0)  # labels sum to 0, so any will do; this keeps digits
            total = np.zeros((len(shuffled), x.shape[1], shuffled[0].shape[1]))
        x -= shift
        for place, labels in enumerate(shuffled):
            total[place] += x.T @ labels[rows]
    return total
