"""What an ingest will do, worked out before it does anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.batching import Batch, Bucket, batches, choose_buckets, padding_waste
from featurestore.corpus import read_manifest, validate_manifest
from featurestore.encoder import AudioFrontEnd, Encoder, load_encoder
from featurestore.errors import StoreError
from featurestore.progress import progress_bar
from featurestore.setup import Hearing, IngestConfig, Setup, set_up
from featurestore.store.ledger import Part, View
from featurestore.store.plan import Column, PartPlan, plan_part
from featurestore.store.rows import merge_rows, moved_files, moved_segments, read_rows
from featurestore.store.schema import stored_bytes
from featurestore.survey import Measured, measure, read_headers
from featurestore.weights import Weights


@dataclass(frozen=True)
class Skipped:
    """An utterance that could not be read, in which views, and why."""

    id: str
    path: str
    views: tuple[str, ...]
    reason: str


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
        return np.array([i for column in self.columns(kinds) for i in column.members], int)


_INTERNAL = ("setup", "rows", "jobs", "buckets")


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest will do, known before it does anything.

    Attributes:
        store: where the features go.
        views: names of the views.
        corpus_utterances: rows of the manifest.
        utterances: of which some view still misses this many.
        hours: of audio in those, to a frame per utterance.
        frames: to compute for those, by every front end that some view still needs.
        frame_periods_s: seconds between the frames of each front end.
        columns: units of work.
        bytes_to_write: about how much disk they take.
        padding_waste: share of computed frames that are padding, 0 to 1.
        compilations: programs that are compiled, one per bucket and set of views.
        relabelled: stored utterances whose speaker, text or labels the manifest changes.
        skipped: what cannot be read, as far as headers tell.
    """

    store: Path
    views: tuple[str, ...]
    corpus_utterances: int
    utterances: int
    hours: float
    frames: int
    frame_periods_s: tuple[float, ...]
    columns: int
    bytes_to_write: int
    padding_waste: float
    compilations: int
    relabelled: int
    skipped: tuple[Skipped, ...]
    setup: Setup = field(repr=False)
    rows: pd.DataFrame = field(repr=False)
    jobs: tuple[Job, ...] = field(repr=False)
    buckets: tuple[tuple[Bucket, ...], ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        public = {k: v for k, v in vars(self).items() if k not in _INTERNAL}
        return {
            **public,
            "store": str(self.store),
            "skipped": [vars(one) for one in self.skipped],
        }


@dataclass(frozen=True)
class _Held:
    """What a view has already: utterances that are whole, with seconds, and parts begun."""

    seconds: dict[str, float]
    begun: tuple[tuple[Part, PartPlan, list[str], np.ndarray], ...]

    @property
    def taken(self) -> frozenset[str]:
        """Utterances that need no new plan."""
        return frozenset(self.seconds).union(*(ids for _, _, ids, _ in self.begun))


def _held(view: View) -> _Held:
    seconds: dict[str, float] = {}
    begun = []
    for part in view.parts():
        plan, ids, frames = part.planned()
        records = part.committed()
        for record in records.values():
            seconds.update({row["id"]: row["duration_s"] for row in record["utterances"]})
        # A part that lost a record is made whole again, although it was complete once.
        if not part.complete or len(records) < len(plan.columns):
            begun.append((part, plan, ids, frames))
    return _Held(seconds, tuple(begun))


def plan_ingest(
    manifest: pd.DataFrame | str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    encoder: Encoder | Weights | str | Path | None = None,
    config: IngestConfig | None = None,
    variant: str | None = None,
    progress: bool | None = None,
) -> IngestPlan:
    """What `ingest` would do; writes nothing.

    Args:
        manifest: a table as from `read_corpus`, or the path of one.
        store: folder of the store, new or not.
        encoder: the network or what `load_encoder` takes, if its view is wanted.
        config: how features are made.
        variant: MFCC variant instead of the encoder's own.
        progress: whether to show a bar; None shows one on a terminal.

    Raises:
        ManifestError: a bad manifest, naming row and column.
        StoreError: a folder that is not a store, ids that are stored from other audio, or too
            little room on the disk.
        FeatureStoreError: a view that needs weights or openSMILE, without them.
    """
    table = load_table(manifest)
    config = config or IngestConfig()
    named = isinstance(encoder, str | Path)  # what is only named is loaded only if it is needed
    if encoder is not None and (config.wants_network or not named):
        encoder = load_encoder(encoder)
    else:
        encoder = None
    setup = set_up(Path(store), encoder, config, variant)
    held = {kind: _held(view) for kind, view in setup.views.items()}
    stored = read_rows(setup.root)
    _check_same_audio(stored, table, held)
    rows, changed = merge_rows(stored, table)
    known = frozenset.intersection(*(one.taken for one in held.values()))
    unknown = table[~table["id"].isin(known)]
    with progress_bar("Reading headers", len(unknown), unit="files", show=progress) as tick:
        headers, problems = read_headers(unknown, tick)
    measured = {
        end: {id: measure(header, end) for id, header in headers.items()}
        for end in {*map(setup.front_end, setup.views)}
    }
    jobs = _jobs(setup, held, rows, table, measured)
    skipped = _skipped(setup, table, held, measured, problems)
    plan = _describe(setup, table, rows, jobs, skipped, len(changed))
    _check_room(plan)
    return plan


def _check_same_audio(stored: pd.DataFrame, table: pd.DataFrame, held: dict[str, _Held]) -> None:
    """Refuse ids that stand for one sound in the store and for another in the manifest."""
    taken = frozenset[str]().union(*(one.taken for one in held.values()))
    moved = moved_segments(stored, table, taken)
    if moved:
        raise StoreError(
            f"utterance '{moved[0]}' is stored as another segment of its file ({len(moved)} such "
            "utterances); give new segments ids of their own, or use a new store"
        )
    seconds = {id: value for one in held.values() for id, value in one.seconds.items()}
    elsewhere = table[table["id"].isin(moved_files(stored, table, frozenset(seconds)))]
    headers, _ = read_headers(elsewhere, lambda amount: None)
    for id, found in headers.items():
        if abs(found.duration_s - seconds[id]) > 1e-6:
            raise StoreError(
                f"utterance '{id}' is stored from another file: {seconds[id]:.3f} s of audio, in "
                f"this manifest {found.duration_s:.3f} s; give it another id, or use a new store"
            )


def load_table(manifest: pd.DataFrame | str | os.PathLike[str]) -> pd.DataFrame:
    """A validated manifest from a table or the path of one.

    Raises:
        ManifestError: a bad manifest, naming row and column.
    """
    if isinstance(manifest, pd.DataFrame):
        return validate_manifest(manifest)
    return read_manifest(manifest)


def _jobs(
    setup: Setup,
    held: dict[str, _Held],
    rows: pd.DataFrame,
    table: pd.DataFrame,
    measured: dict[AudioFrontEnd | None, dict[str, Measured]],
) -> list[Job]:
    """Parts to complete, then one part for what no part has yet; views that agree share them."""
    jobs: dict[str, Job] = {}
    by_id = rows.set_index("id", drop=False)

    def add(kind: str, part: Part, plan: PartPlan, ids: Sequence[str], frames: np.ndarray) -> None:
        todo = frozenset(column.index for column in plan.columns) - frozenset(part.committed())
        mine = by_id.loc[list(ids)].reset_index(drop=True)
        job = jobs.setdefault(part.name, Job(plan, mine, frames, {}))
        job.parts[kind] = (part, todo)

    for kind, has in held.items():
        for begun in has.begun:
            add(kind, *begun)
        taken, found = has.taken, measured[setup.front_end(kind)]
        ids = [
            id
            for id in table["id"]
            if id in found and id not in taken and (kind == "egemaps" or not found[id].refusal)
        ]
        if ids:
            frames = np.array([found[id].frames for id in ids], int)
            plan = plan_part(
                ids, frames, frames=setup.config.column_frames, width=setup.width(kind)
            )
            add(kind, setup.views[kind].part(plan.name), plan, ids, frames)
    return list(jobs.values())


def _skipped(
    setup: Setup,
    table: pd.DataFrame,
    held: dict[str, _Held],
    measured: dict[AudioFrontEnd | None, dict[str, Measured]],
    problems: dict[str, str],
) -> tuple[Skipped, ...]:
    found = []
    for id, path in zip(table["id"], table["path"], strict=True):
        missing = tuple(kind for kind in held if id not in held[kind].taken)
        if id in problems:
            found.append(Skipped(id, path, missing, problems[id]))
            continue
        for hearing in setup.hearings:
            refused = tuple(kind for kind in missing if kind in hearing.kinds)
            one = measured[hearing.front_end].get(id)
            if one is not None and one.refusal:
                found.append(Skipped(id, path, refused, one.refusal))
    return tuple(skipped for skipped in found if skipped.views)


def _describe(
    setup: Setup,
    table: pd.DataFrame,
    rows: pd.DataFrame,
    jobs: Sequence[Job],
    skipped: tuple[Skipped, ...],
    relabelled: int,
) -> IngestPlan:
    kinds = tuple(setup.views)
    todo, seconds, size = _amounts(setup, jobs)
    batching = [_batching(setup, hearing, jobs) for hearing in setup.hearings]
    return IngestPlan(
        store=setup.root,
        views=tuple(view.name for view in setup.views.values()),
        corpus_utterances=len(table),
        utterances=len(seconds),
        hours=sum(seconds.values()) / 3600,
        frames=sum(todo.values()),
        frame_periods_s=tuple(dict.fromkeys(setup.frame_period_s(kind) for kind in kinds)),
        columns=sum(len(job.missing(kinds)) for job in jobs),
        bytes_to_write=size,
        padding_waste=padding_waste(
            [length for one in batching for length in one.lengths],
            [batch for one in batching for batch in one.planned],
        ),
        compilations=sum(one.programs for one in batching),
        relabelled=relabelled,
        skipped=skipped,
        setup=setup,
        rows=rows,
        jobs=tuple(jobs),
        buckets=tuple(one.buckets for one in batching),
    )


def _amounts(
    setup: Setup, jobs: Sequence[Job]
) -> tuple[dict[tuple[AudioFrontEnd | None, str], int], dict[str, float], int]:
    """Frames still to make by front end and utterance, their seconds by utterance, and bytes."""
    todo: dict[tuple[AudioFrontEnd | None, str], int] = {}
    seconds: dict[str, float] = {}
    size = 0
    for job in jobs:
        for kind, (part, _) in job.parts.items():
            end, period = setup.front_end(kind), setup.frame_period_s(kind)
            members = job.members((kind,))
            ids, frames = job.rows["id"].iloc[members], job.frames[members].tolist()
            todo.update(zip(((end, id) for id in ids), frames, strict=True))
            seconds.update(zip(ids, (period * count for count in frames), strict=True))
            for column in job.columns((kind,)):
                size += stored_bytes(
                    part.view.config,
                    utterances=len(column.members),
                    frames=int(job.frames[list(column.members)].sum()),
                )
    return todo, seconds, size


@dataclass(frozen=True)
class _Batching:
    """What one front end has to do: frames of its utterances, and how they run together."""

    buckets: tuple[Bucket, ...]
    lengths: np.ndarray
    planned: list[Batch]
    programs: int


def _batching(setup: Setup, hearing: Hearing, jobs: Sequence[Job]) -> _Batching:
    columns = [(job, column) for job in jobs for column in job.columns(hearing.kinds)]
    per_column = [job.frames[list(column.members)] for job, column in columns]
    every = np.concatenate(per_column) if per_column else np.array([], int)
    buckets = choose_buckets(every, setup.batching(hearing))
    batched = [batches(frames, buckets) for frames in per_column]
    programs = {
        (batch.bucket, tuple(kind for kind in hearing.kinds if job.missing((kind,))))
        for (job, _), planned in zip(columns, batched, strict=True)
        for batch in planned
    }
    every_batch = [batch for planned in batched for batch in planned]
    return _Batching(buckets, every, every_batch, len(programs))


def _check_room(plan: IngestPlan) -> None:
    """Refuse to start what cannot fit on the disk."""
    folder = plan.store.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if plan.bytes_to_write > free:
        raise StoreError(
            f"the store needs about {plan.bytes_to_write / 1e9:.2f} GB, {folder} has "
            f"{free / 1e9:.2f} GB free; leave out the frames (frames=False, --no-frames) or "
            "give another folder"
        )
