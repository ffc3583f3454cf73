"""Columns of a plan through decoding, the device and the writer, all at the same time.

Threads decode a few batches ahead, one batch is on the device while the last one is taken apart,
and a writer thread puts the previous column on disk. Every queue is bounded, so memory does not
grow with the corpus.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import pandas as pd

from featurestore import egemaps
from featurestore.audio import read_clip
from featurestore.batching import Batch, Bucket, batches
from featurestore.encoder import AudioFrontEnd, Encoder
from featurestore.errors import AudioError
from featurestore.extract import Request, collect, compile_program, dispatch
from featurestore.storage.place import file_stamp
from featurestore.store.ledger import Part
from featurestore.store.plan import Column
from featurestore.store.writer import PartWriter, SetAside, Utterance
from featurestore.survey import samples_for

BATCHES_AHEAD = 3  # decoded before the device asks for them
# On a device at once: one that computes, and one that waits so that the device never does.
BATCHES_RUNNING = 2


class Clock:
    """Busy seconds per stage, summed over the threads that work on it."""

    def __init__(self) -> None:
        """All stages start at zero."""
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count seconds for a stage."""
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of a `with` block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)


@dataclass(frozen=True)
class Work:
    """Columns to make.

    Attributes:
        columns: those still missing, in order.
        rows: manifest rows that `Column.members` index.
        frames: frames of each row.
        writers: the column's arrays in each view, with the columns each one still misses.
        frame_period_s: seconds between those frames.
        origin: how rows are made, for the ledger; asked when a column is finished.
        before_writing: raises if this process may not write any more.
        commit: puts a finished column's record into the ledger.
        clock: where time goes.
        tick: called with the seconds of audio done, set aside or not.
        stopped: whether no further column is to be begun.
        abandoned: whether even the column in hand is not wanted any more.
    """

    columns: Sequence[Column]
    rows: Rows
    frames: np.ndarray
    writers: Sequence[tuple[PartWriter, frozenset[int]]]
    frame_period_s: float
    origin: Callable[[], Mapping[str, Any]]
    before_writing: Callable[[], None]
    commit: Callable[[Part, dict[str, Any]], None]
    clock: Clock
    tick: Callable[[float], None]
    stopped: Callable[[], bool] = lambda: False
    abandoned: Callable[[], bool] = lambda: False


@dataclass
class _OpenColumn:
    """A column that is being filled."""

    column: Column
    column_start: int
    writers: Sequence[PartWriter]
    buffers: list[dict[str, np.ndarray]] = field(default_factory=list)
    utterances: list[Utterance] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    cursor: int = 0

    def allocate(self) -> None:
        if not self.buffers:
            self.buffers = [writer.buffers(self.column) for writer in self.writers]

    def append(
        self,
        id: str,
        layers: Mapping[str, Sequence[np.ndarray]],
        pooled: Mapping[str, np.ndarray],
        *,
        frames: int,
        duration_s: float,
        sha256: str,
        stamp: str,
    ) -> None:
        """Put one utterance behind the last one; what could not be read leaves no gap."""
        slot = len(self.utterances)
        for buffers in self.buffers:
            for path, buffer in buffers.items():
                group, _, name = path.partition("/")
                if group == "frames":
                    by_layer = buffer if buffer.ndim == 3 else buffer[None]
                    for rows, values in zip(by_layer, layers[name], strict=True):
                        rows[self.cursor : self.cursor + frames] = values
                elif group == "pooled":
                    buffer[:, slot] = pooled[name]
                else:
                    buffer[slot] = pooled[group]
        self.utterances.append(
            Utterance(
                id=id,
                slot=self.column.slot_start + slot,
                frame_start=self.column_start + self.cursor,
                frame_count=frames,
                duration_s=duration_s,
                audio_sha256=sha256,
                audio_stamp=stamp,
            )
        )
        self.cursor += frames


def _return_free_memory() -> None:
    """Give freed heap back to the system, where the C library can (glibc).

    It keeps what the compiler and batches of other shapes have freed, in pieces that the next ones
    do not fit: tens of megabytes more with every shape that a larger corpus adds.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


class _ColumnWriter:
    """One thread that writes columns, at most one waiting: two columns in memory, never more."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: Future[None] | None = None

    def submit(self, column: _OpenColumn) -> None:
        self.wait()
        self._pending = self._pool.submit(self._write, column)

    def wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def raise_failure(self) -> None:
        if self._pending is not None and self._pending.done():
            self._pending.result()

    def _write(self, column: _OpenColumn) -> None:
        column.allocate()
        with self._work.clock("write"):
            for writer, buffers in zip(column.writers, column.buffers, strict=True):
                self._work.before_writing()
                record = writer.write(
                    column.column,
                    buffers,
                    utterances=column.utterances,
                    set_aside=column.set_aside,
                    origins=[self._work.origin()],
                )
                self._work.commit(writer.part, record)
        _return_free_memory()

    def close(self) -> None:
        self._pool.shutdown(wait=True)


def _open(work: Work, column: Column) -> _OpenColumn:
    writers = [writer for writer, missing in work.writers if column.index in missing]
    return _OpenColumn(column, column.index * writers[0].layout.column_frames, writers)


@contextmanager
def _column_writer(work: Work) -> Iterator[_ColumnWriter]:
    writer = _ColumnWriter(work)
    try:
        yield writer
        writer.wait()
    except BaseException:
        writer.raise_failure()  # a write that failed came first, and is the cause
        raise
    finally:
        writer.close()


@dataclass
class _Decoded:
    prepared: np.ndarray
    duration_s: float
    sha256: str
    stamp: str

    def release(self) -> None:
        """Let go of the samples: the device has its own."""
        self.prepared = self.prepared[:0].copy()


def _decode(
    segment: tuple[str, float, float], frames: int, front_end: AudioFrontEnd, clock: Clock
) -> _Decoded | str:
    path, start, end = segment
    try:
        with clock("decode"):
            seen = file_stamp(path)
            clip = read_clip(path, start=start, end=end)
            samples = samples_for(clip, front_end)
            prepared = front_end.prepare(samples)
            found = front_end.frame_count(len(samples))
    except AudioError as error:
        return str(error)
    if found != frames:
        return f"the file changed since the store was begun: {path}"
    return _Decoded(prepared, len(clip.samples) / clip.rate, clip.sha256, seen)


@dataclass
class _Step:
    """A batch on its way; `last` closes its column."""

    column: _OpenColumn
    batch: Batch
    all_members: tuple[int, ...]
    members: list[int]
    decoding: list[Future[_Decoded | str]]
    last: bool
    decoded: list[_Decoded] = field(default_factory=list)
    started: Any = None


def _steps(
    work: Work, buckets: Sequence[Bucket], front_end: AudioFrontEnd, pool: ThreadPoolExecutor
) -> Iterator[_Step]:
    """Batches of all columns in order, each with its decoding already begun."""
    for column in work.columns:
        if work.stopped():
            return
        opened = _open(work, column)
        planned = batches(work.frames[column.members], buckets)
        for position, batch in enumerate(planned):
            members = [int(column.members[i]) for i in batch.members]
            decoding = [
                pool.submit(
                    _decode, work.rows.segment(i), int(work.frames[i]), front_end, work.clock
                )
                for i in members
            ]
            yield _Step(
                opened, batch, tuple(members), members, decoding, last=position == len(planned) - 1
            )


def _ahead(steps: Iterator[_Step], count: int) -> Iterator[_Step]:
    waiting: deque[_Step] = deque()
    for step in steps:
        waiting.append(step)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def run_network(
    work: Work,
    *,
    encoder: Encoder | None,
    request: Request,
    front_end: AudioFrontEnd,
    buckets: Sequence[Bucket],
    decoders: int,
) -> None:
    """Fill and write the columns of the views that the device makes from one front end.

    Args:
        work: what to make and where to put it.
        encoder: the network; unused where the request has no captures.
        request: what to bring back from the device.
        front_end: how the audio is heard.
        buckets: shapes to run.
        decoders: threads that decode.
    """
    # Each batch runs on one device, as it would if there were no other: to the bit the same result.
    devices = jax.local_devices()
    # All at once before the work: a compiler beside full buffers would raise the peak of memory
    # with every shape that a larger corpus adds.
    with work.clock("compile"):
        for bucket in _needed(work, buckets):
            for device in devices:
                compile_program(encoder, request, bucket, front_end=front_end, device=device)
    _return_free_memory()
    running: deque[_Step] = deque()
    with (
        _column_writer(work) as writer,
        ThreadPoolExecutor(decoders, thread_name_prefix="decoder") as pool,
    ):
        planned = _ahead(_steps(work, buckets, front_end, pool), BATCHES_AHEAD + len(devices) - 1)
        for device, step in zip(itertools.cycle(devices), planned, strict=False):
            with work.clock("wait for decoding"):
                _gather(step, work)
            with work.clock("pad"):
                step.started = dispatch(
                    encoder,
                    request,
                    bucket=step.batch.bucket,
                    prepared=[one.prepared for one in step.decoded],
                    n_frames=work.frames[step.members],
                    front_end=front_end,
                    device=device,
                )
            for one in step.decoded:
                one.release()
            running.append(step)
            if len(running) == BATCHES_RUNNING * len(devices):
                _take_apart(running.popleft(), work, writer)
        while running:
            _take_apart(running.popleft(), work, writer)


def _needed(work: Work, buckets: Sequence[Bucket]) -> list[Bucket]:
    """The buckets that some batch of the work falls into."""
    planned = (batches(work.frames[column.members], buckets) for column in work.columns)
    return list(dict.fromkeys(batch.bucket for column in planned for batch in column))


def _gather(step: _Step, work: Work) -> None:
    """Wait for the decoders; set aside what could not be read."""
    kept = []
    for member, future in zip(step.members, step.decoding, strict=True):
        result = future.result()
        if isinstance(result, str):
            step.column.set_aside.append(SetAside(work.rows.id(member), result))
        else:
            kept.append(member)
            step.decoded.append(result)
    step.members = kept
    step.decoding = []


def _take_apart(step: _Step, work: Work, writer: _ColumnWriter) -> None:
    """Copy a finished batch into its column, and hand the column on if it was the last one."""
    with work.clock("network"):
        results = collect(step.started, n_frames=work.frames[step.members])
    step.started = None
    step.column.allocate()
    with work.clock("copy"):
        for member, decoded, result in zip(step.members, step.decoded, results, strict=True):
            step.column.append(
                work.rows.id(member),
                result.layers,
                result.pooled,
                frames=int(work.frames[member]),
                duration_s=decoded.duration_s,
                sha256=decoded.sha256,
                stamp=decoded.stamp,
            )
    work.tick(float(work.frames[list(step.all_members)].sum()) * work.frame_period_s)
    if step.last:
        writer.submit(step.column)


def run_egemaps(work: Work, *, workers: int) -> None:
    """Fill and write the columns of the `egemaps` view.

    Args:
        work: what to make and where to put it.
        workers: processes.
    """
    segments = (work.rows.segment(int(i)) for column in work.columns for i in column.members)
    results = egemaps.functionals_of_many(segments, workers=workers)
    with _column_writer(work) as writer, closing(results):
        for column in work.columns:
            if work.stopped():
                return
            opened = _open(work, column)
            opened.allocate()
            for member in column.members:
                if work.abandoned():
                    return
                with work.clock("eGeMAPS"):
                    result = next(results)
                work.tick(float(work.frames[member]) * work.frame_period_s)
                if isinstance(result, str):
                    opened.set_aside.append(SetAside(work.rows.id(member), result))
                    continue
                values, duration, sha256, seen = result
                opened.append(
                    work.rows.id(member),
                    {},
                    {"features": values},
                    frames=0,
                    duration_s=duration,
                    sha256=sha256,
                    stamp=seen,
                )
            writer.submit(opened)


class Rows:
    """What decoding needs of manifest rows."""

    def __init__(self, manifest: pd.DataFrame) -> None:
        """A view of the table's columns."""
        self._ids = manifest["id"].to_numpy(object)
        self._paths = manifest["path"].to_numpy(object)
        self._edges = [
            manifest[name].to_numpy(float) if name in manifest else None
            for name in ("start", "end")
        ]

    def id(self, row: int) -> str:
        """The utterance."""
        return str(self._ids[row])

    def segment(self, row: int) -> tuple[str, float, float]:
        """Path, start and end (seconds; NaN where open)."""
        start, end = (math.nan if edge is None else float(edge[row]) for edge in self._edges)
        return str(self._paths[row]), start, end
