"""The stages that are compared, and what they work on."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pandas as pd
from _timing import Contest

from featurestore import egemaps
from featurestore.audio import load_audio
from featurestore.batching import Batch, BatchPolicy, batches, choose_buckets
from featurestore.encoder import Encoder
from featurestore.extract import Extracted, Request, collect, dispatch
from featurestore.frontend import fill_buffers, frame_count, mfcc_of_padded
from featurestore.ingest import ingest
from featurestore.survey import segment, survey
from featurestore.types import COEFFICIENTS, HOP_LENGTH, SAMPLE_RATE

if TYPE_CHECKING:
    from torch_reference import Reference

THREADS = os.cpu_count() or 1
TOLERANCE = 1e-4  # between the two networks, absolute
NO_TORCH = "not measured: pip install 'featurestore[bench]'"

Segment = tuple[str, float, float]  # path, start and end in seconds
# MFCC (row, frame, 20) and frames (row,) to gates and statistics.
Network = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]


@dataclass
class Bench:
    """What the stages work on; whatever several of them need is made once.

    Attributes:
        table: manifest rows.
        encoder: our network.
        reference: the same in PyTorch; None if it is not installed.
    """

    table: pd.DataFrame
    encoder: Encoder
    reference: Reference | None

    @cached_property
    def segments(self) -> list[Segment]:
        """Path, start and end of every utterance."""
        return [segment(row) for row in self.table.to_dict("records")]

    @cached_property
    def samples(self) -> list[np.ndarray]:
        """Decoded utterances at 16 kHz."""
        return [load_audio(path, start=start, end=end) for path, start, end in self.segments]

    @property
    def audio_s(self) -> float:
        """Seconds of audio."""
        return math.fsum(len(samples) for samples in self.samples) / SAMPLE_RATE

    @cached_property
    def coefficients(self) -> list[np.ndarray]:
        """Librosa's MFCC of every utterance, (frame, 20)."""
        return [librosa_mfcc(samples) for samples in self.samples]

    @cached_property
    def batches(self) -> list[Batch]:
        """Which utterances run together."""
        return plan([frame_count(len(samples)) for samples in self.samples])

    @cached_property
    def padded(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """MFCC (row, frame, 20) and frames (row,) of every batch."""
        made = []
        for batch in self.batches:
            shape = (batch.bucket.rows, batch.bucket.frames, COEFFICIENTS)
            inputs, n_frames = np.zeros(shape, np.float32), np.zeros(shape[0], np.int32)
            for row, member in enumerate(batch.members):
                n_frames[row] = len(self.coefficients[member])
                inputs[row, : n_frames[row]] = self.coefficients[member]
            made.append((inputs, n_frames))
        return made


@dataclass(frozen=True)
class Stage:
    """One comparison.

    Attributes:
        title: what is done, as in the table.
        reference: what it is compared with.
        contest: makes the two contestants.
        compiles: whether our first run compiles.
        needs: a package that our side cannot do without.
        slow: fewer files and runs; works in processes of its own.
    """

    title: str
    reference: str
    contest: Callable[[Bench], Contest]
    compiles: bool
    needs: str
    slow: bool


STAGES: list[Stage] = []


def stage(
    title: str, *, reference: str, compiles: bool = False, needs: str = "", slow: bool = False
) -> Callable[[Callable[[Bench], Contest]], Callable[[Bench], Contest]]:
    """Register a comparison."""

    def register(contest: Callable[[Bench], Contest]) -> Callable[[Bench], Contest]:
        STAGES.append(Stage(title, reference, contest, compiles, needs, slow))
        return contest

    return register


def librosa_load(path: str, start: float, end: float) -> np.ndarray:
    offset = 0.0 if math.isnan(start) else start
    duration = None if math.isnan(end) else end - offset
    samples, _ = librosa.load(path, sr=SAMPLE_RATE, mono=True, offset=offset, duration=duration)
    return samples


def librosa_mfcc(samples: np.ndarray) -> np.ndarray:
    coefficients = librosa.feature.mfcc(
        y=samples,
        sr=SAMPLE_RATE,
        n_mfcc=COEFFICIENTS,
        n_fft=2048,
        hop_length=HOP_LENGTH,
        pad_mode="reflect",
    )
    return np.ascontiguousarray(coefficients.T, np.float32)


def plan(lengths: list[int]) -> list[Batch]:
    return batches(lengths, choose_buckets(lengths, BatchPolicy()))


@stage("decode and resample to 16 kHz, one thread", reference="librosa.load")
def decoding(bench: Bench) -> Contest:
    def ours(_: Path) -> None:
        for path, start, end in bench.segments:
            load_audio(path, start=start, end=end)

    def theirs(_: Path) -> None:
        for one in bench.segments:
            librosa_load(*one)

    return Contest(bench.audio_s, ours, theirs)


@stage("MFCC", reference="librosa.feature.mfcc, file by file", compiles=True)
def front_end(bench: Bench) -> Contest:
    prepare = bench.encoder.front_end.prepare

    def run(compiled: Any, batch: Batch) -> np.ndarray:
        prepared = [prepare(bench.samples[member]) for member in batch.members]
        rows, frames = batch.bucket.rows, batch.bucket.frames
        n_frames = np.zeros(rows, np.int32)
        n_frames[: len(prepared)] = [frame_count(len(bench.samples[i])) for i in batch.members]
        buffers = fill_buffers(prepared, rows=rows, frames=frames)
        return np.asarray(compiled(buffers, n_frames))

    compiled = jax.jit(jax.vmap(mfcc_of_padded))

    def ours(_: Path) -> None:
        for batch in bench.batches:
            run(compiled, batch)

    def theirs(_: Path) -> None:
        for samples in bench.samples:
            librosa_mfcc(samples)

    batch = bench.batches[0]
    expected = [bench.coefficients[member] for member in batch.members]
    found = run(jax.vmap(mfcc_of_padded), batch)  # leaves the timed function uncompiled
    apart = [np.abs(row[: len(e)] - e).max() for row, e in zip(found, expected, strict=False)]
    return Contest(bench.audio_s, ours, theirs, float(max(apart)))


def _network(encoder: Encoder, variables: Any, coefficients: Any, n_frames: Any) -> tuple[Any, Any]:
    """Gates (layer, frame, unit) and statistics (4, layer, unit) of each padded utterance."""
    found = encoder.by_layer(variables, coefficients, n_frames, captures=("gate",))["gate"]  # type: ignore[attr-defined]
    gates, statistics = zip(*found, strict=True)
    return jnp.stack(gates, axis=1), jnp.stack(statistics, axis=2).swapaxes(0, 1)


def network_difference(bench: Bench, network: Network, reference: Reference) -> float:
    """Largest absolute difference between the two networks over all batches and their frames.

    Raises:
        RuntimeError: more than `TOLERANCE`, so that timing them would compare different work.
    """
    largest = 0.0
    for inputs, n_frames in bench.padded:
        used = np.count_nonzero(n_frames)
        ours = [np.asarray(x) for x in network(inputs, n_frames)]
        theirs = [x.cpu().numpy() for x in reference(inputs[:used], n_frames[:used])]
        for row, count in enumerate(n_frames[:used]):
            gate = theirs[0][row].transpose(0, 2, 1)
            largest = max(
                largest,
                np.abs(ours[0][row, :, :count] - gate[:, :count]).max(),
                np.abs(ours[1][row] - theirs[1][:, row]).max(),
            )
    if not largest <= TOLERANCE:
        raise RuntimeError(f"the two networks differ by {largest:.2g}, more than {TOLERANCE:g}")
    return float(largest)


def _against_network(bench: Bench, theirs: Callable[[Reference], object]) -> Contest:
    compiled = jax.jit(functools.partial(_network, bench.encoder))

    def ours(_: Path) -> None:
        for inputs, n_frames in bench.padded:
            jax.block_until_ready(compiled(bench.encoder.variables, inputs, n_frames))

    reference = bench.reference
    if reference is None:
        return Contest(bench.audio_s, ours, NO_TORCH)
    # A function of its own, so that the first timed run still has everything to compile.
    checked = jax.jit(functools.partial(_network, bench.encoder, bench.encoder.variables))
    difference = network_difference(bench, checked, reference)
    return Contest(bench.audio_s, ours, lambda _: theirs(reference), difference)


@stage("network, padded batches", reference="PyTorch, the same batches", compiles=True)
def network_in_batches(bench: Bench) -> Contest:
    def theirs(reference: Reference) -> None:
        for inputs, n_frames in bench.padded:
            # PyTorch needs no fixed shape: rows that hold no utterance are spared it.
            used = np.count_nonzero(n_frames)
            reference(inputs[:used], n_frames[:used])

    return _against_network(bench, theirs)


@stage("network, padded batches", reference="PyTorch, file by file", compiles=True)
def network_by_file(bench: Bench) -> Contest:
    def theirs(reference: Reference) -> None:
        for coefficients in bench.coefficients:
            reference(coefficients[None])

    return _against_network(bench, theirs)


REQUEST = Request(captures=("gate",), mfcc=False, frames=True)


def extract_in_memory(bench: Bench) -> list[Extracted]:
    """Headers, decoding in threads, MFCC and network of every utterance, one batch ahead."""
    end = bench.encoder.front_end
    measured, _ = survey(bench.table, end, lambda _: None)
    lengths = [measured[id].frames for id in bench.table["id"]]

    def prepared(member: int) -> np.ndarray:
        path, start, stop = bench.segments[member]
        return end.prepare(load_audio(path, start=start, end=stop))

    results: list[Extracted] = []
    running: tuple[Any, list[int]] | None = None
    with ThreadPoolExecutor(THREADS) as pool:
        planned = plan(lengths)
        decoded = [[pool.submit(prepared, i) for i in batch.members] for batch in planned]
        for batch, futures in zip(planned, decoded, strict=True):
            counts = [lengths[i] for i in batch.members]
            waveforms = [future.result() for future in futures]
            started = dispatch(
                bench.encoder,
                REQUEST,
                bucket=batch.bucket,
                prepared=waveforms,
                n_frames=counts,
            )
            if running is not None:
                results += collect(running[0], n_frames=running[1])
            running = started, counts
    if running is not None:
        results += collect(running[0], n_frames=running[1])
    return results


@stage(
    "files to float16 frames and statistics in memory",
    reference="librosa + PyTorch, file by file",
    compiles=True,
)
def whole_path(bench: Bench) -> Contest:
    def ours(_: Path) -> None:
        extract_in_memory(bench)

    reference = bench.reference
    if reference is None:
        return Contest(bench.audio_s, ours, NO_TORCH)

    def theirs(_: Path) -> None:
        kept = []
        for one in bench.segments:
            kept.append(reference.stored(librosa_mfcc(librosa_load(*one))))

    return Contest(bench.audio_s, ours, theirs)


@stage(
    "files to a Zarr store (`ingest`)",
    reference="librosa + PyTorch, file by file, to .npy files",
)
def to_disk(bench: Bench) -> Contest:
    def ours(folder: Path) -> None:
        store = folder / "store"
        ingest(bench.table, store, encoder=bench.encoder, views=("gcu",), progress=False)

    reference = bench.reference
    if reference is None:
        return Contest(bench.audio_s, ours, NO_TORCH)

    def theirs(folder: Path) -> None:
        for index, one in enumerate(bench.segments):
            frames, pooled = reference.stored(librosa_mfcc(librosa_load(*one)))
            np.save(folder / f"{index}.frames.npy", frames)
            np.save(folder / f"{index}.pooled.npy", pooled)

    return Contest(bench.audio_s, ours, theirs)


@stage(
    "eGeMAPS, one process per core",
    reference="opensmile, file by file",
    needs="opensmile",
    slow=True,
)
def hand_made(bench: Bench) -> Contest:
    import opensmile

    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=opensmile.FeatureLevel.Functionals,
    )

    def ours(_: Path) -> None:
        list(egemaps.functionals_of_many(bench.segments, workers=THREADS))

    def theirs(_: Path) -> None:
        for path, start, end in bench.segments:
            smile.process_file(
                path,
                start=None if math.isnan(start) else start,
                end=None if math.isnan(end) else end,
            )

    return Contest(bench.audio_s, ours, theirs)
