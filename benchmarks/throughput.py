"""Real-time factors of every stage, against librosa and PyTorch doing the same.

    python benchmarks/throughput.py MANIFEST [--utterances 400] [--repeats 5]
                                    [--json FILE] [--markdown FILE]

MANIFEST is what `featurestore corpus` writes. The utterances are spread evenly over it. Both sides
run in turns in this one process, after a first run that warms caches up and compiles; compilation
is reported apart. Both use every core (`torch.set_num_threads(os.cpu_count())`) unless the stage
says otherwise, and the GPU if JAX has one. Without PyTorch or openSMILE what needs them is left out
and said so.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import librosa
import numpy as np
import pandas as pd
from _report import Row, machine_facts, to_markdown
from _timing import Contest, alternate

from featurestore import egemaps
from featurestore.audio import load_audio, probe
from featurestore.batching import Batch, BatchPolicy, batches, choose_buckets
from featurestore.checkpoint import load_weights
from featurestore.corpus import read_manifest
from featurestore.encoder import Encoder, GCUNetwork, load_encoder
from featurestore.extract import Extracted, Request, collect, dispatch
from featurestore.frontend import fill_buffers, frame_count, mfcc_of_padded
from featurestore.ingest import ingest
from featurestore.kernels import masked_statistics
from featurestore.survey import segment, survey
from featurestore.types import COEFFICIENTS, HOP_LENGTH, SAMPLE_RATE

if TYPE_CHECKING:
    from torch_reference import Reference

THREADS = os.cpu_count() or 1
TOLERANCE = 1e-4  # between the two networks, absolute
NO_TORCH = "not measured: pip install 'featurestore[bench]'"
SLOW_UTTERANCES, SLOW_REPEATS = 60, 2

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
        slow: fewer files and runs.
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
    compiled = jax.jit(jax.vmap(mfcc_of_padded))
    prepare = bench.encoder.front_end.prepare

    def run(batch: Batch) -> np.ndarray:
        prepared = [prepare(bench.samples[member]) for member in batch.members]
        rows, frames = batch.bucket.rows, batch.bucket.frames
        n_frames = np.zeros(rows, np.int32)
        n_frames[: len(prepared)] = [frame_count(len(bench.samples[i])) for i in batch.members]
        buffers = fill_buffers(prepared, rows=rows, frames=frames)
        return np.asarray(compiled(buffers, n_frames))

    def ours(_: Path) -> None:
        for batch in bench.batches:
            run(batch)

    def theirs(_: Path) -> None:
        for samples in bench.samples:
            librosa_mfcc(samples)

    batch = bench.batches[0]
    expected = [bench.coefficients[member] for member in batch.members]
    found = run(batch)
    apart = [np.abs(row[: len(e)] - e).max() for row, e in zip(found, expected, strict=False)]
    return Contest(bench.audio_s, ours, theirs, float(max(apart)))


def _network(variables: Any, coefficients: jax.Array, n_frames: jax.Array) -> tuple[Any, Any]:
    """Gates (layer, frame, unit) and statistics (4, layer, unit) of one padded utterance."""
    gate = GCUNetwork().apply(variables, coefficients, n_frames)["gate"]
    return gate, masked_statistics(gate, n_frames)


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
    compiled = jax.jit(jax.vmap(_network, in_axes=(None, 0, 0)))

    def ours(_: Path) -> None:
        for inputs, n_frames in bench.padded:
            jax.block_until_ready(compiled(bench.encoder.variables, inputs, n_frames))

    reference = bench.reference
    if reference is None:
        return Contest(bench.audio_s, ours, NO_TORCH)
    # A function of its own, so that the first timed run still has everything to compile.
    checked = jax.jit(jax.vmap(functools.partial(_network, bench.encoder.variables)))
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
                bench.encoder.variables,
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
        kept = [reference.stored(librosa_mfcc(librosa_load(*one))) for one in bench.segments]
        assert len(kept) == len(bench.segments)

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


def spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, spread evenly."""
    rows = np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int)
    return table.iloc[rows].reset_index(drop=True)


def load_reference(tensors: Mapping[str, np.ndarray]) -> Reference | None:
    """The network in PyTorch, on the GPU if JAX is on one too; None without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch
    from torch_reference import Reference

    gpu = jax.devices()[0].platform == "gpu" and torch.cuda.is_available()
    return Reference(tensors, device="cuda" if gpu else "cpu", threads=THREADS)


def measure(one: Stage, bench: Bench, *, repeats: int, scratch: Path | None) -> Row:
    """Run a stage."""
    if one.slow:
        bench = Bench(spread(bench.table, SLOW_UTTERANCES), bench.encoder, bench.reference)
        repeats = min(repeats, SLOW_REPEATS)
    contest = one.contest(bench)
    ours, theirs = alternate(contest, repeats=repeats, scratch=scratch)
    return Row(
        stage=one.title,
        reference=one.reference,
        utterances=len(bench.table),
        audio_s=contest.audio_s,
        ours=ours,
        theirs=theirs,
        missing=contest.theirs if isinstance(contest.theirs, str) else "",
        difference=contest.difference,
        compiles=one.compiles,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="as written by `featurestore corpus`")
    parser.add_argument("--utterances", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side")
    parser.add_argument("--weights", default="random:0", help="they do not change the speed")
    parser.add_argument(
        "--scratch", type=Path, help="folder on the disk that stores are written to"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.utterances < 1 or options.repeats < 1:
        parser.error("--utterances and --repeats must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    options = parse(arguments)
    weights = load_weights(options.weights)
    reference = load_reference(weights.tensors)
    table = spread(read_manifest(options.manifest), options.utterances)
    bench = Bench(table, load_encoder(weights), reference)
    report: dict[str, Any] = {
        "machine": machine_facts(
            torch_device=reference.device if reference else None, threads=THREADS
        ),
        "corpus": {
            "utterances": len(table),
            "audio_s": bench.audio_s,
            "rates": sorted({probe(path).rate for path, _, _ in bench.segments}),
        },
        "repeats": options.repeats,
        "left_out": [],
    }
    rows: list[Row] = []
    for one in STAGES:
        if one.needs and importlib.util.find_spec(one.needs) is None:
            report["left_out"].append(f"{one.title}: pip install {one.needs}")
            continue
        print(f"{one.title}, and {one.reference} ...", file=sys.stderr, flush=True)
        rows.append(measure(one, bench, repeats=options.repeats, scratch=options.scratch))
    markdown = to_markdown(report, rows)
    print(markdown)
    if options.markdown:
        options.markdown.write_text(markdown, encoding="utf-8")
    if options.json:
        report["rows"] = [row.to_dict() for row in rows]
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
