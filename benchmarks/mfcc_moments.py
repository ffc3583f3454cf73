"""Measures the mean and standard deviation of each MFCC over a speech corpus.

    python benchmarks/mfcc_moments.py MANIFEST.csv [--limit FILES]

MANIFEST has a column `path`, relative to its own folder. Prints the constants SPEECH_MFCC_MEAN and
SPEECH_MFCC_STD of `featurestore.random_weights`, which put the first layer of an untrained network
at the working point that batch normalisation would have found on such speech.

The front end is `librosa-0.5`: 16 kHz, n_fft 2048, hop 512, 20 coefficients, centre padding by
reflection. It is computed by librosa itself, so that the constants do not depend on this package.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import librosa
import numpy as np
import soundfile
import soxr

from featurestore.types import COEFFICIENTS, HOP_LENGTH, SAMPLE_RATE


def speech_mfcc(path: Path) -> np.ndarray:
    """MFCC (frame, coefficient) float64 of one file, mixed to mono and resampled to 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)
    coefficients = librosa.feature.mfcc(
        y=mono,
        sr=SAMPLE_RATE,
        n_mfcc=COEFFICIENTS,
        n_fft=2048,
        hop_length=HOP_LENGTH,
        pad_mode="reflect",
    )
    return coefficients.T.astype(np.float64)


def moments(paths: Iterable[Path]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard deviation (coefficient,) over all frames of all files, and their number."""
    frames = np.concatenate([speech_mfcc(path) for path in paths])
    return frames.mean(axis=0), frames.std(axis=0), len(frames)


def rounded(values: np.ndarray) -> str:
    """The values as a Python tuple, 3 significant digits each."""
    return "(" + ", ".join(repr(float(f"{value:.3g}")) for value in values) + ")"


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="CSV with a column `path`")
    parser.add_argument("--limit", type=int, help="use the first FILES files only", metavar="FILES")
    options = parser.parse_args(arguments)
    with options.manifest.open(newline="", encoding="utf-8") as stream:
        names = [row["path"] for row in csv.DictReader(stream)][: options.limit]
    mean, std, frames = moments(options.manifest.parent / name for name in names)
    print(f"# {len(names)} files, {frames} frames")
    print(f"SPEECH_MFCC_MEAN = {rounded(mean)}")
    print(f"SPEECH_MFCC_STD = {rounded(std)}")


if __name__ == "__main__":
    main()
