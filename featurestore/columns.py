"""What is to be made, and a column of it while it is filled and written."""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from featurestore.extract import Extracted
from featurestore.store.ledger import Part
from featurestore.store.plan import Column
from featurestore.store.writer import PartWriter, SetAside, Utterance


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


@dataclass(frozen=True)
class Heard:
    """What is known of an utterance that was decoded; see `Utterance`."""

    id: str
    duration_s: float
    sha256: str
    stamp: str


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
class OpenColumn:
    """A column that is being filled."""

    column: Column
    column_start: int
    writers: Sequence[PartWriter]
    buffers: list[dict[str, np.ndarray]] = field(default_factory=list)
    utterances: list[Utterance] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    cursor: int = 0

    def allocate(self) -> None:
        """Take memory for it, unless it has."""
        if not self.buffers:
            self.buffers = [writer.buffers(self.column) for writer in self.writers]

    def append(self, heard: Sequence[Heard], found: Extracted) -> None:
        """Put a batch behind the last one; what could not be read leaves no gap.

        Args:
            heard: its utterances.
            found: their features, in rows of the same order.
        """
        if not heard:
            return
        slot, rows = len(self.utterances), len(heard)
        counts = found.counts[:rows].tolist()
        frames = sum(counts)
        for buffers in self.buffers:
            for path, buffer in buffers.items():
                group, _, name = path.partition("/")
                if group == "frames":
                    by_layer = buffer if buffer.ndim == 3 else buffer[None]
                    place = slice(self.cursor, self.cursor + frames)
                    _put_frames([one[place] for one in by_layer], found.layers[name], counts)
                elif group == "pooled":
                    buffer[:, slot : slot + rows] = found.pooled[name][:rows].swapaxes(0, 1)
                else:
                    buffer[slot : slot + rows] = found.pooled[group][:rows]
        for one, count in zip(heard, counts, strict=True):
            self.utterances.append(
                Utterance(
                    id=one.id,
                    slot=self.column.slot_start + len(self.utterances),
                    frame_start=self.column_start + self.cursor,
                    frame_count=count,
                    duration_s=one.duration_s,
                    audio_sha256=one.sha256,
                    audio_stamp=one.stamp,
                )
            )
            self.cursor += count


def _put_frames(
    goals: Sequence[np.ndarray], layers: Sequence[np.ndarray], counts: Sequence[int]
) -> None:
    """Frames (row, frame, unit) of each layer without the padding into (frame, unit).

    A layer at a time and not an utterance: NumPy lets other threads run during each copy, and waits
    for them afterwards.
    """
    rows, padded = len(counts), layers[0].shape[1]
    for layer in layers:
        if len(layer) < rows or layer.shape[1] != padded or max(counts) > padded:
            raise ValueError(f"{rows} utterances of {max(counts)} frames in {layer.shape}")
    own = np.concatenate([row * padded + np.arange(count) for row, count in enumerate(counts)])
    for goal, layer in zip(goals, layers, strict=True):
        flat = layer.reshape(-1, layer.shape[2])
        np.take(flat, own, axis=0, out=goal, mode="clip")  # "raise" would copy it once more


def return_free_memory() -> None:
    """Give freed heap back to the system, where the C library can (glibc).

    It keeps what the compiler and batches of other shapes have freed, in pieces that the next ones
    do not fit: tens of megabytes more with every shape that a larger corpus adds.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


class ColumnWriter:
    """One thread that writes columns, at most one waiting: two columns in memory, never more."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: Future[None] | None = None

    def submit(self, column: OpenColumn) -> None:
        """Write a column as soon as the one before it is written."""
        self.wait()
        self._pending = self._pool.submit(self._write, column)

    def wait(self) -> None:
        """Until what was submitted is written; raises what went wrong."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def raise_failure(self) -> None:
        """Raise what went wrong, if it is known already."""
        if self._pending is not None and self._pending.done():
            self._pending.result()

    def _write(self, column: OpenColumn) -> None:
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
        return_free_memory()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True)


def open_column(work: Work, column: Column) -> OpenColumn:
    """A column to be filled, for the views that miss it."""
    writers = [writer for writer, missing in work.writers if column.index in missing]
    return OpenColumn(column, column.index * writers[0].layout.column_frames, writers)


@contextmanager
def column_writer(work: Work) -> Iterator[ColumnWriter]:
    """A writer for a `with` block, at whose end everything is written."""
    writer = ColumnWriter(work)
    try:
        yield writer
        writer.wait()
    except BaseException:
        writer.raise_failure()  # a write that failed came first, and is the cause
        raise
    finally:
        writer.close()
