"""Something to listen to, where no corpus is given."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from featurestore.types import SAMPLE_RATE

VOICES = 10


def spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, spread evenly."""
    rows = np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int)
    return table.iloc[rows].reset_index(drop=True)


def make_speech(folder: Path, *, utterances: int) -> tuple[pd.DataFrame, str]:
    """A corpus of `utterances` of 1.5 to 6 seconds at 16 kHz.

    Returns:
        Its manifest, and what it is, for people.
    """
    if importlib.util.find_spec("espeakng_loader") is not None:
        from featurestore.corpus import read_corpus
        from featurestore.demo import write_demo_corpus

        each = -(-utterances // VOICES)
        write_demo_corpus(folder, utterances_per_speaker=each)
        return spread(read_corpus("iemocap", folder), utterances), "sentences by espeak-ng"
    return _modulated_noise(folder, utterances), (
        "modulated noise (pip install 'featurestore[demo]' has espeak-ng speak instead)"
    )


def _modulated_noise(folder: Path, utterances: int) -> pd.DataFrame:
    from featurestore.corpus.manifest import validate_manifest

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows = []
    for index in range(utterances):
        path = folder / f"{index:05d}.wav"
        samples = babble(random, seconds=float(random.uniform(1.5, 6.0)))
        soundfile.write(path, samples, SAMPLE_RATE)
        speaker = f"voice{index % VOICES}"
        rows.append({"id": f"noise{index:05d}", "path": str(path), "speaker": speaker})
    return validate_manifest(pd.DataFrame(rows), source="synthetic speech")


def babble(random: np.random.Generator, *, seconds: float) -> np.ndarray:
    """Harmonics with a syllable-like envelope and some noise, float32 at 16 kHz, peak under 1."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch, rate, loudness = 90 + 120 * random.random(), 2 + 2 * random.random(), random.random()
    voice = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12))
    envelope = 0.2 + np.abs(np.sin(2 * np.pi * rate * time))
    noise = 0.01 * random.standard_normal(len(time))
    return ((0.02 + 0.1 * loudness) * voice * envelope + noise).astype(np.float32)
