"""What the headers of a corpus say, before anything is decoded."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from featurestore.audio import Clip, probe_segment, read_clip, resample, resampled_length
from featurestore.encoder import AudioFrontEnd
from featurestore.errors import AudioError
from featurestore.frontend import frame_count
from featurestore.storage.place import file_stamp
from featurestore.types import SAMPLE_RATE

# Reading headers waits for the disk, so more threads than cores help.
_THREADS = 16
_BLOCK = 65_536
_TRIED = 8  # headers that one thread reads before it looks whether others would help


@dataclass(frozen=True)
class Headers:
    """What the headers of utterances say, in their order.

    Attributes:
        rates: (utterance,) Hz; 0 where the file cannot be read.
        samples: (utterance,) of the utterance at that rate.
        problems: why a file cannot be read, by position.
    """

    rates: np.ndarray
    samples: np.ndarray
    problems: dict[int, str]

    @property
    def readable(self) -> np.ndarray:
        """(utterance,) whether the file can be read."""
        return self.rates > 0

    @property
    def durations_s(self) -> np.ndarray:
        """(utterance,) seconds of audio."""
        return self.samples / np.maximum(self.rates, 1)


@dataclass(frozen=True)
class Measured:
    """Utterances as a front end will find them, in the order of their headers.

    Attributes:
        frames: (utterance,) of that front end; 1 where it refuses or the file cannot be read.
        refusals: why the front end cannot take them, by position.
    """

    frames: np.ndarray
    refusals: dict[int, str]

    @property
    def accepted(self) -> np.ndarray:
        """(utterance,) whether the front end takes it."""
        taken = np.ones(len(self.frames), bool)
        taken[list(self.refusals)] = False
        return taken


def measure(headers: Headers, front_end: AudioFrontEnd | None) -> Measured:
    """Frames that a front end makes of utterances; those of MFCC at 32 ms without one."""
    # A corpus has far fewer lengths than utterances: every pair is asked for once.
    sizes = np.stack([headers.rates, headers.samples], axis=1)
    pairs, place = np.unique(sizes, axis=0, return_inverse=True)
    found = [_measure_one(int(rate), int(samples), front_end) for rate, samples in pairs]
    refused = {i: reason for i, (_, reason) in enumerate(found) if reason}
    place = place.reshape(-1)
    frames = np.array([count for count, _ in found], np.int64)[place]
    which = np.flatnonzero(np.isin(place, list(refused)) & headers.readable)
    return Measured(frames, {int(i): refused[int(place[i])] for i in which})


def _measure_one(rate: int, samples: int, front_end: AudioFrontEnd | None) -> tuple[int, str]:
    if not rate:
        return 1, ""
    resampled = resampled_length(samples, rate)
    if front_end is None:
        return frame_count(resampled), ""
    try:
        _check_rate(rate, front_end)
        heard = resampled if front_end.input_rate == SAMPLE_RATE else samples
        return front_end.frame_count(heard), ""
    except AudioError as error:
        return 1, str(error)


def segment(row: Mapping[str, Any]) -> tuple[str, float, float]:
    """Path, start and end (seconds; NaN where open) of a manifest row."""
    start, end = row.get("start", math.nan), row.get("end", math.nan)
    return str(row["path"]), float(start), float(end)


def samples_for(clip: Clip, front_end: AudioFrontEnd) -> np.ndarray:
    """Samples of a decoded clip at the rate that the front end takes, in Hz `input_rate`.

    Raises:
        AudioError: a rate that the front end cannot take.
    """
    if front_end.input_rate == SAMPLE_RATE:
        return resample(clip.samples, clip.rate)
    _check_rate(clip.rate, front_end)
    return clip.samples


def _check_rate(rate: int, front_end: AudioFrontEnd) -> None:
    if front_end.input_rate not in (SAMPLE_RATE, rate):
        raise AudioError(
            f"front end '{front_end.name}' takes {front_end.input_rate} Hz audio only, "
            f"this file has {rate} Hz; 'librosa-0.5' resamples any rate"
        )


def _read_header(path: str, start: float, end: float) -> tuple[int, int] | str:
    try:
        info, count = probe_segment(path, start=start, end=end)
    except AudioError as error:
        return str(error)
    return info.rate, count


def segments(manifest: pd.DataFrame) -> Iterator[tuple[str, float, float]]:
    """Path, start and end (seconds; NaN where open) of every row."""
    open_end = np.full(len(manifest), np.nan)
    starts, ends = (
        manifest[name].to_numpy(float) if name in manifest else open_end
        for name in ("start", "end")
    )
    return zip(manifest["path"], starts.tolist(), ends.tolist(), strict=True)


def read_headers(manifest: pd.DataFrame, tick: Callable[[float], None]) -> Headers:
    """Read every header.

    Args:
        manifest: validated rows.
        tick: called with 1 per file.
    """
    rates = np.zeros(len(manifest), np.int64)
    samples = np.zeros(len(manifest), np.int64)
    problems: dict[int, str] = {}
    rows = segments(manifest)
    first, size = 0, _TRIED
    waits = False
    with ThreadPoolExecutor(_THREADS) as pool:
        # In blocks: a pool takes everything that it is given into memory at once.
        while block := list(itertools.islice(rows, size)):
            spread = pool.map if waits else map
            began, busy = time.perf_counter(), time.thread_time()
            results = spread(_read_header, *zip(*block, strict=True))
            for position, result in enumerate(results, first):
                if isinstance(result, str):
                    problems[position] = result
                else:
                    rates[position], samples[position] = result
                tick(1)
            first += len(block)
            # Threads hide the waiting for a disk or a network; where there is none, headers in the
            # page cache, they wait for one another, and one alone is sooner done.
            waits = waits or time.perf_counter() - began > 2 * (time.thread_time() - busy)
            size = _BLOCK if waits else min(2 * size, _BLOCK)
    return Headers(rates, samples, problems)


@dataclass(frozen=True)
class Surveyed:
    """An utterance as a front end will find it.

    Attributes:
        duration_s: seconds of audio.
        frames: of that front end; 1 where it refuses.
        refusal: "" or why the front end cannot take it.
    """

    duration_s: float
    frames: int
    refusal: str


def survey(
    manifest: pd.DataFrame, front_end: AudioFrontEnd | None, tick: Callable[[float], None]
) -> tuple[dict[str, Surveyed], dict[str, str]]:
    """Read every header, and measure it for one front end.

    Args:
        manifest: validated rows.
        front_end: what will take the audio; None if only openSMILE does.
        tick: called with 1 per file.

    Returns:
        Measurements of what can be decoded and reasons for what cannot, both by utterance id.
    """
    headers = read_headers(manifest, tick)
    measured = measure(headers, front_end)
    durations = headers.durations_s
    found, problems = {}, {}
    for position, id in enumerate(manifest["id"]):
        if position in headers.problems:
            problems[id] = headers.problems[position]
        else:
            refusal = measured.refusals.get(position, "")
            frames = int(measured.frames[position])
            found[id] = Surveyed(float(durations[position]), frames, refusal)
    return found, problems


def stamps(paths: Sequence[str]) -> list[str]:
    """What changes when somebody writes a file again; "" where there is none."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(file_stamp, paths))


def audio_digests(manifest: pd.DataFrame) -> list[str]:
    """sha256 of the decoded samples of every row; "" where it cannot be decoded."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_digest, *zip(*segments(manifest), strict=True)))


def _digest(path: str, start: float, end: float) -> str:
    try:
        return read_clip(path, start=start, end=end).sha256
    except AudioError:
        return ""
