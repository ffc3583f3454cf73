"""What the headers of a corpus say, before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from featurestore.audio import Clip, probe_segment, resample, resampled_length
from featurestore.encoder import AudioFrontEnd
from featurestore.errors import AudioError
from featurestore.frontend import frame_count
from featurestore.types import SAMPLE_RATE

# Reading headers waits for the disk, so more threads than cores help.
_THREADS = 16


@dataclass(frozen=True)
class Header:
    """What a file's header says of an utterance.

    Attributes:
        rate: Hz.
        samples: of the utterance at that rate.
    """

    rate: int
    samples: int

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.samples / self.rate


@dataclass(frozen=True)
class Measured:
    """An utterance as a front end will find it.

    Attributes:
        duration_s: seconds of audio.
        frames: of that front end; 1 where it refuses.
        refusal: "" or why the front end cannot take it.
    """

    duration_s: float
    frames: int
    refusal: str


def measure(header: Header, front_end: AudioFrontEnd | None) -> Measured:
    """Frames that a front end makes of an utterance; those of MFCC at 32 ms without one."""
    duration = header.duration_s
    resampled = resampled_length(header.samples, header.rate)
    if front_end is None:
        return Measured(duration, frame_count(resampled), "")
    try:
        _check_rate(header.rate, front_end)
        samples = resampled if front_end.input_rate == SAMPLE_RATE else header.samples
        return Measured(duration, front_end.frame_count(samples), "")
    except AudioError as error:
        return Measured(duration, 1, str(error))


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


def _read_header(row: dict[str, object]) -> Header | str:
    path, start, end = segment(row)
    try:
        info, count = probe_segment(path, start=start, end=end)
    except AudioError as error:
        return str(error)
    return Header(info.rate, count)


def read_headers(
    manifest: pd.DataFrame, tick: Callable[[float], None]
) -> tuple[dict[str, Header], dict[str, str]]:
    """Read every header.

    Args:
        manifest: validated rows.
        tick: called with 1 per file.

    Returns:
        Headers of what can be decoded and reasons for what cannot, both by utterance id.
    """
    rows = manifest[[c for c in ("path", "start", "end") if c in manifest]].to_dict("records")
    headers: dict[str, Header] = {}
    problems: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for id, result in zip(manifest["id"], pool.map(_read_header, rows), strict=True):
            if isinstance(result, str):
                problems[id] = result
            else:
                headers[id] = result
            tick(1)
    return headers, problems


def survey(
    manifest: pd.DataFrame, front_end: AudioFrontEnd | None, tick: Callable[[float], None]
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Read every header, and measure it for one front end.

    Args:
        manifest: validated rows.
        front_end: what will take the audio; None if only openSMILE does.
        tick: called with 1 per file.

    Returns:
        Measurements of what can be decoded and reasons for what cannot, both by utterance id.
    """
    headers, problems = read_headers(manifest, tick)
    return {id: measure(header, front_end) for id, header in headers.items()}, problems
