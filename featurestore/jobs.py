"""Parts to make, and what they amount to: utterances, bytes, batches, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from featurestore.batching import BatchPolicy, Bucket, batches, choose_buckets, fit_rows
from featurestore.memory import running_bytes
from featurestore.setup import Hearing, Setup
from featurestore.store.ledger import Part
from featurestore.store.plan import Column, PartPlan
from featurestore.store.schema import stored_bytes


@dataclass(frozen=True)
class Job:
    """A part, the same in every view that misses it, and the columns that each still misses.

    Attributes:
        plan: which row goes where.
        rows: manifest rows that the plan's members index.
        frames: of each row.
        parts: by view, the part's place and the columns missing there.
    """

    plan: PartPlan
    rows: pd.DataFrame
    frames: np.ndarray
    parts: dict[str, tuple[Part, frozenset[int]]]
    _fitted: dict[BatchPolicy, tuple[Bucket, ...]] = field(default_factory=dict, repr=False)

    def buckets(self, policy: BatchPolicy) -> tuple[Bucket, ...]:
        """Shapes to run: those that suit the whole part, whatever of it is missing.

        The last bits of a sum depend on the shape it is computed in, and a resumed part has to be
        what an uninterrupted one would have been.
        """
        if policy not in self._fitted:
            columns = [self.frames[column.members] for column in self.plan.columns]
            found = choose_buckets(self.frames, policy)
            self._fitted[policy] = fit_rows(found, columns, policy)
        return self._fitted[policy]

    def missing(self, kinds: Sequence[str]) -> frozenset[int]:
        """Columns that at least one of these views misses."""
        found = (columns for kind, (_, columns) in self.parts.items() if kind in kinds)
        return frozenset[int]().union(*found)

    def columns(self, kinds: Sequence[str]) -> list[Column]:
        """The same as columns, in order."""
        missing = self.missing(kinds)
        return [column for column in self.plan.columns if column.index in missing]

    def members(self, kinds: Sequence[str]) -> np.ndarray:
        """Rows in those columns."""
        held = [column.members for column in self.columns(kinds)]
        return np.concatenate(held) if held else np.array([], np.int64)


def memory_of(setup: Setup, jobs: Sequence[Job]) -> int | None:
    """Bytes that the job and front end take that take most; None where nobody knows."""
    found = [0]
    for job in jobs:
        for hearing in setup.hearings:
            kinds = [kind for kind in hearing.kinds if kind in job.parts]
            network = any(kind != "mfcc" for kind in kinds)
            # MFCC alone take less than a network that hears them.
            per_frame = getattr(setup.encoder, "bytes_per_frame", None) if network else 0
            if per_frame is None:
                return None
            parts = [(setup.views[kind].config, job.plan.layout) for kind in kinds]
            buckets = job.buckets(setup.batching(hearing)) if kinds else ()
            found.append(running_bytes(parts, buckets, bytes_per_frame=per_frame))
    return max(found)


@dataclass(frozen=True)
class Amounts:
    """How much there is to do: utterances, seconds of audio, frames of all front ends, bytes."""

    utterances: int
    seconds: float
    frames: int
    size: int


def amounts_of(setup: Setup, rows: pd.DataFrame, jobs: Sequence[Job]) -> Amounts:
    """Of all jobs together."""
    index = pd.Index(rows["id"])
    seconds = np.zeros(len(rows))
    frames = {setup.front_end(kind): np.zeros(len(rows), np.int64) for kind in setup.views}
    size = 0
    for job in jobs:
        places = index.get_indexer(pd.Index(job.rows["id"]))
        for kind, (part, _) in job.parts.items():
            members = job.members((kind,))
            counts = job.frames[members]
            frames[setup.front_end(kind)][places[members]] = counts
            seconds[places[members]] = setup.frame_period_s(kind) * counts
            size += sum(
                stored_bytes(
                    part.view.config,
                    utterances=len(column.members),
                    frames=int(job.frames[column.members].sum()),
                )
                for column in job.columns((kind,))
            )
    total = sum(int(one.sum()) for one in frames.values())
    return Amounts(int(np.count_nonzero(seconds)), float(seconds.sum()), total, size)


@dataclass(frozen=True)
class Batching:
    """What one front end has to do: frames of its utterances, and how they run together."""

    frames: int
    computed: int
    programs: int


def batching_of(setup: Setup, hearing: Hearing, jobs: Sequence[Job]) -> Batching:
    """Of all jobs of a front end together."""
    programs, frames, computed = set(), 0, 0
    for job in jobs:
        buckets = job.buckets(setup.batching(hearing))
        kinds = tuple(kind for kind in hearing.kinds if kind in job.parts)
        frames += int(job.frames[job.members(hearing.kinds)].sum())
        for column in job.columns(hearing.kinds):
            for batch in batches(job.frames[column.members], buckets):
                programs.add((batch.bucket, kinds))
                computed += batch.bucket.frames * batch.bucket.rows
    return Batching(frames, computed, len(programs))
