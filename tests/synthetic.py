"""Small corpora of noise that is shaped a little like speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile


def babble(seconds: float, *, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Harmonics with a syllable-like envelope and some noise, peak about 0.3."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 90 + 120 * random.random()
    voice = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12))
    envelope = 0.2 + np.abs(np.sin(2 * np.pi * (2 + 2 * random.random()) * time))
    return (0.1 * voice * envelope + 0.01 * random.standard_normal(len(time))).astype(np.float32)


def write_corpus(
    folder: Path, *, durations: Sequence[float], speakers: int = 3, seed: int = 0
) -> pd.DataFrame:
    """Wav files and their manifest; arousal follows loudness, valence is noise."""
    random = np.random.default_rng(seed)
    rows = []
    for index, seconds in enumerate(durations):
        arousal = float(1 + 4 * random.random())
        path = folder / f"utterance_{index:03d}.wav"
        soundfile.write(path, babble(seconds, seed=index) * 10 ** ((arousal - 4) / 3), 16_000)
        rows.append(
            {
                "id": f"u{index:03d}",
                "path": str(path),
                "speaker": f"s{index % speakers}",
                "emotion": ("neu", "ang", "xxx")[index % 3],
                "valence": float(1 + 4 * random.random()),
                "arousal": arousal,
            }
        )
    return pd.DataFrame(rows)
