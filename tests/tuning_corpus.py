"""A corpus to fine-tune on, without audio."""

from __future__ import annotations

import numpy as np

from featurestore.training.utterances import LabelledUtterances


def corpus(count: int = 40, *, speakers: int = 5, seed: int = 0) -> LabelledUtterances:
    """MFCC-like noise; arousal moves the spread of a coefficient, which no mean shows."""
    random = np.random.default_rng(seed)
    arousal = random.uniform(1, 5, count)
    coefficients = []
    for value in arousal:
        one = random.normal(0, 10, (random.integers(9, 25), 20))
        one[:, 0] += 40 * (value - 3)
        coefficients.append(one.astype(np.float32))
    valence = np.where(np.arange(count) % 9 == 4, np.nan, random.uniform(1, 5, count))
    return LabelledUtterances(
        targets=("arousal", "valence"),
        ids=np.array([f"u{i:03d}" for i in range(count)]),
        speakers=np.array([f"s{i % speakers}" for i in range(count)]),
        truth=np.stack([arousal, valence], axis=1),
        coefficients=tuple(coefficients),
        audio=np.array([f"{i:064x}" for i in range(count)]),
    )
