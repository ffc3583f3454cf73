"""Columns of a plan through decoding, the device and the writer, all at the same time.

Threads decode a few batches ahead, one batch is on the device while the last one is taken apart,
and a writer thread puts the previous column on disk. Every queue is bounded, so memory does not
grow with the corpus.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import jax
import numpy as np

from featurestore import egemaps
from featurestore.audio import read_clip
from featurestore.batching import Batch, Bucket, batches
from featurestore.columns import (
    Clock,
    ColumnWriter,
    Heard,
    OpenColumn,
    Work,
    column_writer,
    open_column,
    return_free_memory,
)
from featurestore.encoder import AudioFrontEnd, Encoder
from featurestore.errors import AudioError
from featurestore.extract import Extracted, Request, collect, compile_program, dispatch
from featurestore.storage.place import file_stamp
from featurestore.store.writer import SetAside
from featurestore.survey import samples_for

BATCHES_AHEAD = 3  # decoded before the device asks for them
# On a device at once, each started by a thread of its own: XLA runs on a CPU what one thread starts
# in order, and what is not parallel in one batch, as the FFT, leaves room for another.
BATCHES_RUNNING = 2


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

    column: OpenColumn
    batch: Batch
    all_members: tuple[int, ...]
    members: list[int]
    decoding: list[Future[_Decoded | str]]
    last: bool
    decoded: list[_Decoded] = field(default_factory=list)
    running: Future[Extracted] | None = None


def _steps(
    work: Work, buckets: Sequence[Bucket], front_end: AudioFrontEnd, pool: ThreadPoolExecutor
) -> Iterator[_Step]:
    """Batches of all columns in order, each with its decoding already begun."""
    for column in work.columns:
        if work.stopped():
            return
        opened = open_column(work, column)
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
    return_free_memory()

    def compute(step: _Step, device: jax.Device) -> Extracted:
        counts = work.frames[step.members]
        with work.clock("pad"):
            started = dispatch(
                encoder,
                request,
                bucket=step.batch.bucket,
                prepared=[one.prepared for one in step.decoded],
                n_frames=counts,
                front_end=front_end,
                device=device,
            )
        for one in step.decoded:
            one.release()
        with work.clock("network"):
            return collect(started, n_frames=counts)

    running: deque[_Step] = deque()
    at_once = BATCHES_RUNNING * len(devices)
    with (
        column_writer(work) as writer,
        ThreadPoolExecutor(decoders, thread_name_prefix="decoder") as pool,
        ThreadPoolExecutor(at_once, thread_name_prefix="device") as starters,
    ):
        planned = _ahead(_steps(work, buckets, front_end, pool), BATCHES_AHEAD + len(devices) - 1)
        for device, step in zip(itertools.cycle(devices), planned, strict=False):
            with work.clock("wait: decoding"):
                _gather(step, work)
            step.running = starters.submit(compute, step, device)
            running.append(step)
            if len(running) == at_once:
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


def _take_apart(step: _Step, work: Work, writer: ColumnWriter) -> None:
    """Copy a finished batch into its column, and hand the column on if it was the last one."""
    assert step.running is not None
    with work.clock("wait: device"):
        found = step.running.result()
    step.running = None
    step.column.allocate()
    with work.clock("copy"):
        heard = [
            Heard(work.rows.id(member), one.duration_s, one.sha256, one.stamp)
            for member, one in zip(step.members, step.decoded, strict=True)
        ]
        step.column.append(heard, found)
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
    with column_writer(work) as writer, closing(results):
        for column in work.columns:
            if work.stopped():
                return
            opened = open_column(work, column)
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
                heard = Heard(work.rows.id(member), duration, sha256, seen)
                found = Extracted(np.zeros(1, int), {}, {"features": values[None]})
                opened.append([heard], found)
            writer.submit(opened)
