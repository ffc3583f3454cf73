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
from featurestore.errors import AudioError
from featurestore.frontend import FrontEnd, frame_count
from featurestore.types import SAMPLE_RATE

# Reading headers waits for the disk, so more threads than cores help.
_THREADS = 16


@dataclass(frozen=True)
class Measured:
    """An utterance as its file's header describes it.

    Attributes:
        duration_s: seconds of audio.
        frames: MFCC frames at 32 ms.
        refusal: "" or why the front end cannot take it.
    """

    duration_s: float
    frames: int
    refusal: str


def segment(row: Mapping[str, Any]) -> tuple[str, float, float]:
    """Path, start and end (seconds; NaN where open) of a manifest row."""
    start, end = row.get("start", math.nan), row.get("end", math.nan)
    return str(row["path"]), float(start), float(end)


def samples_for(clip: Clip, front_end: FrontEnd) -> np.ndarray:
    """Samples of a decoded clip at the rate that the front end takes, in Hz `input_rate`.

    Raises:
        AudioError: a rate that the front end cannot take.
    """
    if front_end.input_rate == SAMPLE_RATE:
        return resample(clip.samples, clip.rate)
    _check_rate(clip.rate, front_end)
    return clip.samples


def _check_rate(rate: int, front_end: FrontEnd) -> None:
    if front_end.input_rate not in (SAMPLE_RATE, rate):
        raise AudioError(
            f"front end '{front_end.name}' takes {front_end.input_rate} Hz audio only, "
            f"this file has {rate} Hz; 'librosa-0.5' resamples any rate"
        )


def _measure(row: dict[str, object], front_end: FrontEnd | None) -> Measured | str:
    path, start, end = segment(row)
    try:
        info, count = probe_segment(path, start=start, end=end)
    except AudioError as error:
        return str(error)
    duration = count / info.rate
    if front_end is None:
        return Measured(duration, frame_count(resampled_length(count, info.rate)), "")
    try:
        _check_rate(info.rate, front_end)
        if front_end.input_rate == SAMPLE_RATE:
            length = resampled_length(count, info.rate)
        else:
            length = front_end.decimated_length(count)
        front_end.check_length(length)
    except AudioError as error:
        return Measured(duration, 1, str(error))
    return Measured(duration, frame_count(length), "")


def survey(
    manifest: pd.DataFrame, front_end: FrontEnd | None, tick: Callable[[float], None]
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Read every header.

    Args:
        manifest: validated rows.
        front_end: what will take the audio; None if only openSMILE does.
        tick: called with 1 per file.

    Returns:
        Measurements of what can be decoded and reasons for what cannot, both by utterance id.
    """
    rows = manifest[[c for c in ("path", "start", "end") if c in manifest]].to_dict("records")
    measured: dict[str, Measured] = {}
    problems: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(lambda row: _measure(row, front_end), rows)
        for id, result in zip(manifest["id"], results, strict=True):
            if isinstance(result, str):
                problems[id] = result
            else:
                measured[id] = result
            tick(1)
    return measured, problems
