"""Batches of an epoch: which utterances run together, and their audio, decoded ahead of the device.

Everything is a function of the seed, the epoch and the utterance, so a training that goes on in the
middle of an epoch meets the batches that it would have met.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from featurestore.audio import read_clip
from featurestore.batching import BatchPolicy, Bucket, choose_buckets
from featurestore.errors import AudioError
from featurestore.frontend import N_FFT, FrontEnd, fill_buffers, frame_count
from featurestore.survey import samples_for
from featurestore.training.augment import Augmentation, add_noise, change_speed, speed_factor
from featurestore.training.data import Example
from featurestore.types import SAMPLE_RATE

_BATCHES_AHEAD = 4
# Padded frames that could be trained on while one more shape is compiled: 9 s at 8,000 frames/s, as
# measured on two CPU cores.
_COMPILE_COST = 72_000


@dataclass(frozen=True)
class Planned:
    """A batch before its audio is read.

    Attributes:
        bucket: its shape.
        symbols: width of its label array.
        members: which utterances.
        speeds: how fast each is played.
    """

    bucket: Bucket
    symbols: int
    members: tuple[int, ...]
    speeds: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """A padded batch; rows without an utterance have no frames.

    Attributes:
        ids: of the utterances that are in it, by row.
        buffers: prepared waveforms, (row, sample).
        n_frames: (row,).
        labels: (row, symbol).
        n_labels: (row,).
        seconds: of speech in it.
        failed: reasons by id for audio that could not be decoded.
    """

    ids: tuple[str, ...]
    buffers: np.ndarray
    n_frames: np.ndarray
    labels: np.ndarray
    n_labels: np.ndarray
    seconds: float
    failed: dict[str, str]


class Loader:
    """Plans the batches of any epoch and reads them.

    Args:
        examples: utterances, in an order that does not change.
        front_end: how waveforms are prepared.
        augmentation: how they are varied.
        frames_per_batch: frames in a batch, padding included.
        epochs: how often each shape is used, which is what pays for compiling it.
        seed: of order and augmentation.
        devices: a batch's rows are a multiple of this.
        workers: decoding threads.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        front_end: FrontEnd,
        augmentation: Augmentation,
        frames_per_batch: int,
        epochs: int,
        seed: int,
        devices: int = 1,
        workers: int = 2,
    ) -> None:
        self.examples, self.front_end = tuple(examples), front_end
        self.augmentation, self.seed, self.workers = augmentation, seed, workers
        self.devices = devices
        self._frames = np.array([example.frames for example in self.examples])
        slowest = np.ceil(self._frames / (1.0 - augmentation.speed)).astype(int) + 1
        policy = BatchPolicy(frames_per_batch, compile_cost=_COMPILE_COST // epochs)
        lengths = slowest if augmentation.speed else self._frames
        self.buckets = choose_buckets(lengths, policy)
        self._edges = np.array([bucket.frames for bucket in self.buckets])
        symbols = np.array([len(example.transcript.labels) for example in self.examples])
        fastest = np.floor(self._frames / (1.0 + augmentation.speed))
        self._symbols = [
            int(-(-max(1, symbols[fastest <= edge].max(initial=1)) // 8) * 8)
            for edge in self._edges
        ]

    def plan(self, epoch: int) -> list[Planned]:
        """Batches of an epoch, in the order in which they are trained on."""
        generator = np.random.default_rng([self.seed, 2, epoch])
        speeds = np.array([self._speed(index, epoch) for index in range(len(self.examples))])
        frames = np.array(
            [
                self._frames[i] if speed == 1.0 else frame_count(self._length(i, speed))
                for i, speed in enumerate(speeds)
            ]
        )
        held = np.searchsorted(self._edges, frames)
        planned: list[Planned] = []
        for index, bucket in enumerate(self.buckets):
            members = generator.permutation(np.flatnonzero(held == index))
            for start in range(0, len(members), bucket.rows):
                chosen = members[start : start + bucket.rows]
                planned.append(
                    Planned(
                        bucket,
                        self._symbols[index],
                        tuple(int(i) for i in chosen),
                        tuple(float(s) for s in speeds[chosen]),
                    )
                )
        return [planned[i] for i in generator.permutation(len(planned))]

    def _length(self, index: int, speed: float) -> int:
        """Samples at 16 kHz of a changed speed, or a few more: soxr decides to the last sample."""
        return int(self.examples[index].duration_s * SAMPLE_RATE / speed) + 2

    def _speed(self, index: int, epoch: int) -> float:
        """As drawn, or the recording's own where the transcript would no longer fit."""
        if not self.augmentation.speed:
            return 1.0
        factor = speed_factor(
            self.augmentation, np.random.default_rng([self.seed, 3, epoch, index])
        )
        example = self.examples[index]
        fits = example.transcript.min_frames <= int(self._frames[index] / factor) - 1
        return factor if fits else 1.0

    def batches(self, planned: Sequence[Planned], epoch: int) -> Iterator[Batch]:
        """The batches with their audio, in order; a few are read ahead."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            waiting: deque[tuple[Planned, list[Future[np.ndarray | str]]]] = deque()
            try:
                for one in planned:
                    jobs = [
                        pool.submit(self._samples, index, speed, epoch)
                        for index, speed in zip(one.members, one.speeds, strict=True)
                    ]
                    waiting.append((one, jobs))
                    if len(waiting) > _BATCHES_AHEAD:
                        yield self._filled(*waiting.popleft())
                while waiting:
                    yield self._filled(*waiting.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _samples(self, index: int, speed: float, epoch: int) -> np.ndarray | str:
        """A prepared waveform, or why there is none."""
        generator = np.random.default_rng([self.seed, 4, epoch, index])
        path, start, end = self.examples[index].audio
        try:
            samples = samples_for(read_clip(path, start=start, end=end), self.front_end)
            samples = change_speed(samples, speed)
            samples = add_noise(samples, self.augmentation, generator)
            return self.front_end.prepare(samples)
        except AudioError as error:
            return str(error)

    def _filled(self, planned: Planned, jobs: Sequence[Future[np.ndarray | str]]) -> Batch:
        # Which utterances run together does not depend on the devices: empty rows fill up.
        rows = -(-planned.bucket.rows // self.devices) * self.devices
        frames = planned.bucket.frames
        prepared: list[np.ndarray] = []
        kept: list[int] = []
        failed: dict[str, str] = {}
        for index, job in zip(planned.members, jobs, strict=True):
            samples = job.result()
            if isinstance(samples, str):
                failed[self.examples[index].id] = samples
            else:
                prepared.append(samples)
                kept.append(index)
        n_frames, n_labels = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        labels = np.zeros((rows, planned.symbols), np.int32)
        for row, (index, samples) in enumerate(zip(kept, prepared, strict=True)):
            target = self.examples[index].transcript.labels
            n_frames[row] = min(frames, frame_count(_unpadded(samples)))
            n_labels[row] = len(target)
            labels[row, : len(target)] = target
        return Batch(
            ids=tuple(self.examples[index].id for index in kept),
            buffers=fill_buffers(prepared, rows=rows, frames=frames),
            n_frames=n_frames,
            labels=labels,
            n_labels=n_labels,
            seconds=sum(_unpadded(samples) for samples in prepared) / SAMPLE_RATE,
            failed=failed,
        )


def _unpadded(prepared: np.ndarray) -> int:
    """Samples of the utterance itself in a prepared waveform."""
    return len(prepared) - N_FFT
