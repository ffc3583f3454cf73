"""Decoding, MFCC and eGeMAPS."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from featurestore import egemaps
from featurestore.audio import load_audio
from featurestore.batching import Batch, pad_rows
from featurestore.benchmarks.inputs import THREADS, Inputs, Segment, absent
from featurestore.benchmarks.librosa_reference import librosa_load, librosa_mfcc
from featurestore.benchmarks.stages import NotMeasuredError, stage
from featurestore.benchmarks.timing import Agreement, Contest
from featurestore.types import HOP_LENGTH


@stage(
    "decode",
    "decode and resample to 16 kHz, one thread",
    reference="librosa.load",
    speeds=(4000, 5000),
)
def decoding(inputs: Inputs) -> Contest:
    """Our checked decoding, hash included, beside librosa's."""

    def ours(_: Path) -> None:
        for path, start, end in inputs.segments:
            load_audio(path, start=start, end=end)

    def theirs(_: Path) -> None:
        for one in inputs.segments:
            librosa_load(*one)

    found = zip(inputs.samples[:8], inputs.segments, strict=False)
    difference = max(np.abs(samples - librosa_load(*one)).max() for samples, one in found)
    agreement = Agreement("samples", float(difference), 1e-4)
    return Contest(inputs.audio_s, ours, theirs, agreement)


def _buffers(inputs: Inputs, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Waveforms (row, sample) and frames (row,) of a batch."""
    end = inputs.encoder.front_end
    prepared = [end.prepare(inputs.samples[member]) for member in batch.members]
    n_frames = np.zeros(batch.bucket.rows, np.int32)
    n_frames[: len(prepared)] = [len(inputs.coefficients[member]) for member in batch.members]
    length = end.buffer_length(batch.bucket.frames)
    return pad_rows(prepared, rows=batch.bucket.rows, length=length), n_frames


@stage(
    "mfcc",
    "MFCC, padded batches",
    reference="librosa.feature.mfcc, file by file, one BLAS thread",
    speeds=(1200, 1200),
)
def front_end(inputs: Inputs) -> Contest:
    """Our MFCC as the ingest makes them, padding included."""
    examples = [_buffers(inputs, batch) for batch in inputs.batches]

    def features(buffers: Any, n_frames: Any) -> Any:
        # A buffer is as long as its samples may be; how many of them count, the frames say.
        end = inputs.encoder.front_end
        return end.features(buffers, samples=n_frames * HOP_LENGTH, frames=n_frames)[0]

    run = inputs.compile("MFCC", features, examples)

    def ours(_: Path) -> None:
        for batch in inputs.batches:
            np.asarray(run(*_buffers(inputs, batch)))

    def theirs(_: Path) -> None:
        # After each product of librosa's, OpenBLAS's threads spin for a while on all cores.
        with threadpool_limits(1, user_api="blas"):
            for samples in inputs.samples:
                librosa_mfcc(samples)

    expected = [inputs.coefficients[member] for member in inputs.batches[0].members]
    found = np.asarray(run(*examples[0]))
    apart = [np.abs(row[: len(e)] - e).max() for row, e in zip(found, expected, strict=False)]
    return Contest(inputs.audio_s, ours, theirs, Agreement("MFCC", float(max(apart)), 1e-2))


@stage(
    "egemaps",
    "eGeMAPS, one process per core",
    reference="opensmile, file by file",
    speeds=(150, 75),
    most=(60, 2),
)
def hand_made(inputs: Inputs) -> Contest:
    """The same functionals by the same library."""
    if missing := absent("opensmile", extra="egemaps"):
        raise NotMeasuredError(missing)
    import opensmile

    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=opensmile.FeatureLevel.Functionals,
    )

    def by_file(one: Segment) -> np.ndarray:
        path, *times = one
        start, end = (None if math.isnan(time) else time for time in times)
        return np.asarray(smile.process_file(path, start=start, end=end), np.float32)

    def ours(_: Path) -> None:
        list(egemaps.functionals_of_many(inputs.segments, workers=THREADS))

    def theirs(_: Path) -> None:
        for one in inputs.segments:
            by_file(one)

    first = inputs.segments[0]
    difference = np.abs(egemaps.functionals(*first)[0] - by_file(first).ravel()).max()
    return Contest(inputs.audio_s, ours, theirs, Agreement("functionals", float(difference), 1e-3))
