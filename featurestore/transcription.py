"""Speech to text with the recogniser: plan, decode, recognise, score, in bounded memory."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from featurestore.audio import read_clip
from featurestore.batching import BatchPolicy, Bucket, batches, choose_buckets, fit_rows
from featurestore.corpus import validate_manifest
from featurestore.encoder import AudioFrontEnd, Encoder, load_encoder
from featurestore.errors import AudioError, FeatureStoreError
from featurestore.progress import progress_bar
from featurestore.recognition import Recognised, Recogniser
from featurestore.survey import samples_for, segment, survey
from featurestore.training.alphabet import spell
from featurestore.training.decoding import beam_library
from featurestore.training.error_rates import count_errors, error_library
from featurestore.transcripts import Reference, Transcription, Unread
from featurestore.weights import Weights

_BATCHES_AHEAD = 3  # decoded before the device asks for them
# Utterances are batched by length within this much work (18 h) and come out in their own order:
# what waits for its turn is text, not audio.
_WINDOW_FRAMES = 2_000_000


@dataclass(frozen=True)
class TranscribeConfig:
    """How speech becomes text.

    Attributes:
        beam: width of the beam search; None takes the most probable path.
        score: whether to count errors against the manifest's text, where it has one.
        batching: how batches are shaped.
        workers: decoding threads.
    """

    beam: int | None = None
    score: bool = True
    batching: BatchPolicy = field(default_factory=BatchPolicy)
    workers: int = field(default_factory=joblib.cpu_count)

    def __post_init__(self) -> None:
        """Refuse what cannot run before any work.

        Raises:
            FeatureStoreError: a beam without a prefix, or without its library.
        """
        if self.beam is not None:
            if self.beam < 1:
                raise FeatureStoreError(f"beam width {self.beam}: expected at least 1; 16 is usual")
            beam_library()


@dataclass(frozen=True)
class TranscriptionPlan:
    """What will be transcribed, known before any audio is decoded.

    Attributes:
        utterances: that can be read, as far as headers tell.
        hours: of audio in those, to a frame per utterance.
        scored: of which some have a text to compare with.
        unread: rows of the table that cannot be read, by id.
        table: the manifest.
        frames: frames of each row; 0 for what cannot be read.
        buckets: shapes to run.
        recogniser: the network.
        config: how speech becomes text.
    """

    utterances: int
    hours: float
    scored: int
    unread: dict[str, str]
    table: pd.DataFrame = field(repr=False)
    frames: np.ndarray = field(repr=False)
    buckets: tuple[Bucket, ...] = field(repr=False)
    recogniser: Recogniser = field(repr=False)
    config: TranscribeConfig = field(repr=False)


def plan_transcription(
    table: pd.DataFrame,
    *,
    encoder: Encoder,
    config: TranscribeConfig | None = None,
    progress: bool | None = None,
) -> TranscriptionPlan:
    """What `run_transcription` would do; reads the headers of all files and nothing else.

    Args:
        table: a manifest as from `read_manifest`; only `path` is required.
        encoder: from `load_encoder`.
        config: how speech becomes text.
        progress: whether to show a bar; None shows one on a terminal.

    Raises:
        ManifestError: a bad manifest, naming row and column.
        CheckpointError: an encoder that knows no characters.
        FeatureStoreError: texts to compare with, but no jiwer.
    """
    config = config or TranscribeConfig()
    recogniser = Recogniser(encoder, config.beam)
    manifest = validate_manifest(table)
    with progress_bar("Reading headers", len(manifest), unit="files", show=progress) as tick:
        measured, unread = survey(manifest, encoder.front_end, tick)
    unread |= {id: one.refusal for id, one in measured.items() if one.refusal}
    frames = np.array([0 if id in unread else measured[id].frames for id in manifest["id"]], int)
    scored = 0
    if "text" in manifest and config.score:
        scored = int(np.count_nonzero(manifest["text"].str.strip().astype(bool) & (frames > 0)))
    if scored:
        error_library()
    return TranscriptionPlan(
        utterances=int(np.count_nonzero(frames)),
        hours=float(frames.sum()) * encoder.front_end.frame_period_s / 3600,
        scored=scored,
        unread=unread,
        table=manifest,
        frames=frames,
        buckets=fit_rows(
            choose_buckets(frames[frames > 0], config.batching),
            [frames[frames > 0]],
            config.batching,
        ),
        recogniser=recogniser,
        config=config,
    )


def transcribe(
    files: pd.DataFrame | Sequence[str | os.PathLike[str]],
    *,
    encoder: Encoder | Weights | str | Path = "default",
    config: TranscribeConfig | None = None,
    progress: bool | None = None,
) -> list[Transcription | Unread]:
    """Speech to text, scored where there is a text to compare with.

    Args:
        files: a manifest as from `read_manifest`, or paths of audio files.
        encoder: the network, or what `load_encoder` takes.
        config: how speech becomes text.
        progress: whether to show bars; None shows them on a terminal.

    Returns:
        One result per utterance, in order; what cannot be read does not stop the rest.

    Raises:
        ManifestError: a bad manifest, or a file given twice.
        CheckpointError: an encoder that knows no characters.
        FeatureStoreError: texts to compare with but no jiwer, or a beam without its library.
    """
    table = files
    if not isinstance(table, pd.DataFrame):
        table = pd.DataFrame({"path": [os.fspath(file) for file in table]})
    loaded = load_encoder(encoder)
    plan = plan_transcription(table, encoder=loaded, config=config, progress=progress)
    return list(run_transcription(plan, progress=progress))


def run_transcription(
    plan: TranscriptionPlan, *, progress: bool | None = None
) -> Iterator[Transcription | Unread]:
    """Transcribe as planned: one result per row of the table, in order, as they come.

    Args:
        plan: from `plan_transcription`.
        progress: whether to show a bar; None shows one on a terminal.
    """
    rows = plan.table.to_dict("records")
    period = plan.recogniser.encoder.front_end.frame_period_s
    with (
        progress_bar(
            "Transcribing",
            plan.hours * 3600,
            unit="h",
            scale=3600,
            rate=lambda speed: f"{speed:,.0f}x real time",
            show=progress,
        ) as tick,
        ThreadPoolExecutor(plan.config.workers, thread_name_prefix="decoder") as pool,
    ):
        for window in _windows(plan.frames):
            done: dict[int, Transcription | Unread] = {}
            for step in _on_device(plan, _steps(plan, rows, window, pool)):
                done |= _results(plan, rows, step)
                tick(float(plan.frames[list(step.members)].sum()) * period)
            for row in window:
                id, path = rows[row]["id"], rows[row]["path"]
                yield done[row] if row in done else Unread(id, path, plan.unread[id])


def _windows(frames: np.ndarray) -> Iterator[range]:
    """Consecutive rows of about `_WINDOW_FRAMES` frames."""
    window = np.cumsum(frames) // _WINDOW_FRAMES
    bounds = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), len(frames)]
    for first, last in itertools.pairwise(bounds):
        yield range(first, last)


@dataclass(frozen=True)
class _Speech:
    """Decoded audio, as the front end takes it."""

    prepared: np.ndarray
    duration_s: float


def _decode(row: dict[Any, Any], frames: int, front_end: AudioFrontEnd) -> _Speech | str:
    path, start, end = segment(row)
    try:
        clip = read_clip(path, start=start, end=end)
        samples = samples_for(clip, front_end)
        prepared = front_end.prepare(samples)
    except AudioError as error:
        return str(error)
    if front_end.frame_count(len(samples)) != frames:
        return f"the file changed since its header was read: {path}"
    return _Speech(prepared, len(clip.samples) / clip.rate)


@dataclass
class _Step:
    """A batch on its way: decoding, then on the device."""

    bucket: Bucket
    members: tuple[int, ...]
    decoding: list[Future[_Speech | str]]
    decoded: dict[int, _Speech | str] = field(default_factory=dict)
    device: Any = None

    @property
    def heard(self) -> dict[int, _Speech]:
        """What could be decoded, by row."""
        return {row: one for row, one in self.decoded.items() if isinstance(one, _Speech)}


def _steps(
    plan: TranscriptionPlan, rows: list[dict[Any, Any]], window: range, pool: ThreadPoolExecutor
) -> Iterator[_Step]:
    """The batches of a window, the audio of a few of them being decoded ahead."""
    readable = [row for row in window if plan.frames[row]]
    front_end = plan.recogniser.encoder.front_end
    ahead: deque[_Step] = deque()
    for batch in batches(plan.frames[readable], plan.buckets):
        members = tuple(readable[index] for index in batch.members)
        decoding = [
            pool.submit(_decode, rows[row], int(plan.frames[row]), front_end) for row in members
        ]
        ahead.append(_Step(batch.bucket, members, decoding))
        if len(ahead) > _BATCHES_AHEAD:
            yield ahead.popleft()
    yield from ahead


def _on_device(plan: TranscriptionPlan, steps: Iterator[_Step]) -> Iterator[_Step]:
    """Batches once the device has begun with the next one, so that neither waits for the other."""
    last: _Step | None = None
    for step in steps:
        step.decoded = {
            row: future.result() for row, future in zip(step.members, step.decoding, strict=True)
        }
        step.decoding = []
        if heard := step.heard:
            step.device = plan.recogniser.dispatch(
                step.bucket,
                [one.prepared for one in heard.values()],
                n_frames=plan.frames[list(heard)],
            )
        if last is not None:
            yield last
        last = step
    if last is not None:
        yield last


def _results(
    plan: TranscriptionPlan, rows: list[dict[Any, Any]], step: _Step
) -> dict[int, Transcription | Unread]:
    """What became of each member of a batch."""
    results: dict[int, Transcription | Unread] = {
        row: Unread(rows[row]["id"], rows[row]["path"], reason)
        for row, reason in step.decoded.items()
        if isinstance(reason, str)
    }
    heard = step.heard
    if not heard:
        return results
    found = plan.recogniser.collect(step.device, n_frames=plan.frames[list(heard)])
    for (row, speech), one in zip(heard.items(), found, strict=True):
        results[row] = _transcription(plan, rows[row], one, speech.duration_s)
    return results


def _transcription(
    plan: TranscriptionPlan, row: dict[Any, Any], found: Recognised, duration_s: float
) -> Transcription:
    hears = plan.recogniser.encoder.front_end
    start_s, end_s = found.spans.seconds(
        duration_s=duration_s,
        frame_period_s=hears.frame_period_s,
        frame_offset_s=hears.frame_offset_s,
    )
    path, start, end = segment(row)
    return Transcription(
        id=row["id"],
        path=path,
        speaker=row["speaker"],
        start=start,
        end=end,
        duration_s=duration_s,
        text=found.text,
        start_s=start_s,
        end_s=end_s,
        reference=_reference(row.get("text", ""), found.text) if plan.config.score else None,
    )


def _reference(said: str, heard: str) -> Reference | None:
    """What a manifest's text spells against what was heard; None if it spells nothing."""
    spelled = spell(said)
    if not spelled.text:
        return None
    (characters,) = count_errors([spelled.text], [heard])
    (words,) = count_errors([spelled.text], [heard], unit="word")
    return Reference(spelled.text, spelled.dropped, characters, words)
