"""The hand-made baseline: eGeMAPSv02 functionals by openSMILE, in parallel processes.

openSMILE hears each file at its own sampling rate, as `opensmile.Smile.process_file` does, and the
average of its channels.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np

from featurestore.audio import read_clip
from featurestore.errors import AudioError, FeatureStoreError
from featurestore.storage.place import file_stamp

if TYPE_CHECKING:
    import opensmile

_NICENESS = 10
_MISSING = (
    "view 'egemaps' needs openSMILE: pip install 'featurestore[egemaps]' (free for research, not "
    "for commercial use), or leave it out: --views network,mfcc"
)


@functools.cache
def _smile() -> opensmile.Smile:
    try:
        import opensmile
    except ImportError:
        raise FeatureStoreError(_MISSING) from None
    return opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=opensmile.FeatureLevel.Functionals,
    )


def feature_names() -> tuple[str, ...]:
    """Names of the 88 functionals, in openSMILE's order.

    Raises:
        FeatureStoreError: openSMILE is not installed.
    """
    return tuple(_smile().feature_names)


def functionals(path: str, start: float, end: float) -> tuple[np.ndarray, float, str]:
    """eGeMAPSv02 functionals of a file or a part of it.

    Args:
        path: audio file.
        start: seconds.
        end: seconds; NaN is the end of the file.

    Returns:
        float32 (88,), seconds of audio, and the sha256 of the decoded samples.

    Raises:
        AudioError: as `read_clip`; or too short a segment for openSMILE.
    """
    clip = read_clip(path, start=start, end=end)
    with warnings.catch_warnings():
        # openSMILE's wrapper warns and returns NaN for what is too short; that is refused below.
        warnings.simplefilter("ignore", UserWarning)
        values = np.asarray(_smile()(clip.samples, clip.rate), np.float32).ravel()
    duration = len(clip.samples) / clip.rate
    if np.isnan(values).all():
        raise AudioError(f"too short for eGeMAPS ({duration:.3f} s): {path}")
    return values, duration, clip.sha256


@functools.cache
def _step_back() -> None:
    """Leave the cores to whoever feeds the network, who works beside these processes."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(_NICENESS)


def _one(path: str, start: float, end: float) -> tuple[np.ndarray, float, str, str] | str:
    _step_back()
    stamp = file_stamp(path)
    try:
        return (*functionals(path, start, end), stamp)
    except AudioError as error:
        return str(error)


def functionals_of_many(
    segments: Iterable[tuple[str, float, float]], *, workers: int
) -> Generator[tuple[np.ndarray, float, str, str] | str]:
    """`functionals` of many segments, in order, in parallel processes.

    Args:
        segments: path, start and end of each.
        workers: number of processes.

    Yields:
        What `functionals` returns and the file's stamp, or the reason why it could not, as text.

    Raises:
        FeatureStoreError: a process was killed.
    """
    import joblib

    # loky starts clean interpreters (never a fork of a process that runs JAX) and, unlike
    # multiprocessing's spawn, works from scripts without an `if __name__ == "__main__"`.
    pool = joblib.Parallel(workers, backend="loky", return_as="generator", batch_size="auto")
    try:
        yield from pool(joblib.delayed(_one)(*segment) for segment in segments)
    except BrokenProcessPool as error:
        raise FeatureStoreError(
            "an openSMILE process was killed, probably for want of memory. What is written is "
            "safe; run the same ingest again, with fewer workers (--workers 1)"
        ) from error
