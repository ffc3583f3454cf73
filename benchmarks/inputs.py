"""What the stages work on; whatever several of them need is made once."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from featurestore.audio import load_audio
from featurestore.batching import Batch, BatchPolicy, batches, choose_buckets, fit_rows
from featurestore.benchmarks.librosa_reference import librosa_mfcc
from featurestore.benchmarks.speech import spread
from featurestore.encoder import Encoder
from featurestore.hardware import cores
from featurestore.ingest import ingest
from featurestore.setup import IngestConfig
from featurestore.store.plan import plan_part
from featurestore.store.reader import Store, open_store
from featurestore.survey import segment
from featurestore.types import COEFFICIENTS, SAMPLE_RATE

THREADS = cores()
TARGET = "loudness_db"  # a label that any corpus has
COPIES = 4  # of every utterance in the store that is read from
_FOLDS = 10  # groups of utterances where speakers are unknown

Segment = tuple[str, float, float]  # path, start and end in seconds; NaN is the end of the file
# MFCC (row, frame, 20) and frames (row,) to statistics (row, 4, layer, unit).
Network = Callable[[np.ndarray, np.ndarray], Any]


def absent(*packages: str, extra: str = "bench") -> str:
    """Why something cannot be measured, if one of these packages is not installed; else nothing."""
    if all(importlib.util.find_spec(name) for name in packages):
        return ""
    return f"not measured: pip install 'featurestore[{extra}]'"


@dataclass
class Inputs:
    """What the stages work on.

    Attributes:
        table: manifest rows.
        encoder: our network.
        tensors: its weights as they were trained.
        folder: to keep stores in, on the disk that is measured.
        quick: whether everything is to be as small as it gets.
        compiled: seconds of compilation, by what was compiled.
    """

    table: pd.DataFrame
    encoder: Encoder
    tensors: Mapping[str, np.ndarray]
    folder: Path
    quick: bool = False
    compiled: dict[str, float] = field(default_factory=dict)
    _fewer: dict[int, Inputs] = field(default_factory=dict, repr=False)

    def fewer(self, count: int) -> Inputs:
        """Inputs of their own for at most `count` utterances; these where there are no more."""
        if len(self.table) <= count:
            return self
        if count not in self._fewer:
            folder = self.folder / f"of-{count}"
            folder.mkdir()
            table = spread(self.table, count)
            self._fewer[count] = Inputs(table, self.encoder, self.tensors, folder, self.quick)
        return self._fewer[count]

    @cached_property
    def segments(self) -> list[Segment]:
        """Path, start and end of every utterance."""
        return [segment(row) for row in self.table.to_dict("records")]

    @cached_property
    def samples(self) -> list[np.ndarray]:
        """Decoded utterances at 16 kHz."""
        return [load_audio(path, start=start, end=end) for path, start, end in self.segments]

    @cached_property
    def audio_s(self) -> float:
        """Seconds of audio."""
        return math.fsum(len(samples) for samples in self.samples) / SAMPLE_RATE

    @cached_property
    def coefficients(self) -> list[np.ndarray]:
        """Librosa's MFCC of every utterance, (frame, 20)."""
        return [librosa_mfcc(samples) for samples in self.samples]

    @cached_property
    def batches(self) -> list[Batch]:
        """Which utterances run together, as in the ingest."""
        end, policy = self.encoder.front_end, BatchPolicy()
        lengths = np.array([end.frame_count(len(samples)) for samples in self.samples])
        width = len(self.encoder.layer_names) * self.encoder.units
        columns = plan_part(self.table["id"].tolist(), lengths, frames=None, width=width).columns
        groups = [lengths[column.members] for column in columns]
        buckets = fit_rows(choose_buckets(lengths, policy), groups, policy)
        return [
            Batch(batch.bucket, tuple(int(column.members[i]) for i in batch.members))
            for column, group in zip(columns, groups, strict=True)
            for batch in batches(group, buckets)
        ]

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

    @cached_property
    def network(self) -> Network:
        """Our network with pooled statistics alone, compiled for every batch."""
        return self.network_of("network", self.encoder)

    def network_of(self, name: str, encoder: Any) -> Network:
        """The same of the network in other arithmetic.

        Args:
            name: under which the seconds of compiling are kept.
            encoder: the GCU network.
        """

        def pooled(variables: Any, coefficients: Any, n_frames: Any) -> Any:
            found = encoder.by_layer(
                variables, coefficients, n_frames, captures=("gate",), frames=False
            )
            return jnp.stack([one for _, one in found["gate"]], axis=2).swapaxes(0, 1)

        return self.compile(name, pooled, self.padded, encoder.variables)

    def compile(
        self,
        name: str,
        function: Callable[..., Any],
        examples: list[tuple[np.ndarray, np.ndarray]],
        *before: Any,
    ) -> Callable[[np.ndarray, np.ndarray], Any]:
        """A function compiled for the shapes of all examples, and the seconds that took.

        Args:
            name: under which the seconds are kept.
            function: to compile.
            examples: its last two arguments.
            before: its first arguments, always the same.
        """
        began, programs = time.perf_counter(), {}
        for arrays in examples:
            shape = arrays[0].shape
            if shape not in programs:
                programs[shape] = jax.jit(function).lower(*before, *arrays).compile()
        self.compiled[name] = time.perf_counter() - began
        return lambda first, second: programs[first.shape](*before, first, second)

    @cached_property
    def labelled(self) -> pd.DataFrame:
        """The rows with a label that can be predicted and speakers that can be held out."""
        table = self.table.copy()
        power = [float(np.mean(np.square(samples, dtype=np.float64))) for samples in self.samples]
        table[TARGET] = 10 * np.log10(np.maximum(power, 1e-12))
        if (
            "speaker" not in table
            or (table["speaker"] == "").any()
            or table["speaker"].nunique() < 2
        ):
            table["speaker"] = [f"fold{index % _FOLDS}" for index in range(len(table))]
        return table

    def ingest(self, store: Path, *, frames: bool, precision: str = "parity") -> None:
        """Our whole ingest of the network's view, as users run it."""
        config = IngestConfig(views=("network",), frames=frames, precision=precision)
        ingest(self.table, store, encoder=self.encoder, config=config, progress=False)

    @cached_property
    def store(self) -> Path:
        """A store with statistics of the network and of MFCC."""
        path = self.folder / "statistics"
        config = IngestConfig(views=("network", "mfcc"), frames=False)
        ingest(self.labelled, path, encoder=self.encoder, config=config, progress=False)
        return path

    @cached_property
    def opened(self) -> Store:
        """`store`, opened."""
        return open_store(self.store)

    @cached_property
    def copies(self) -> int:
        """How often `frames` holds every utterance."""
        return 1 if self.quick else COPIES

    @cached_property
    def frames(self) -> Store:
        """A store with every frame, large enough to read from."""
        table = pd.concat(
            [self.table.assign(id=self.table["id"] + f"-{copy}") for copy in range(self.copies)],
            ignore_index=True,
        )
        path, views = self.folder / "frames", ("network",)
        ingest(table, path, encoder=self.encoder, views=views, progress=False)
        return open_store(path)

    @cached_property
    def pooled(self) -> dict[str, np.ndarray]:
        """Statistics (4, layer, unit) of each utterance by our ingest without frames."""
        began = time.perf_counter()
        self.ingest(self.folder / "pooled", frames=False)
        self.compiled["first ingest, work included"] = time.perf_counter() - began
        found = open_store(self.folder / "pooled").pooled("network")["gate"].load()
        values = found.transpose("utterance", "statistic", "layer", "unit").to_numpy()
        return dict(zip(found["id"].to_numpy().tolist(), values, strict=True))
