"""What an ingest will do, worked out before it does anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.corpus import read_manifest, validate_manifest
from featurestore.encoder import AudioFrontEnd, Encoder, load_encoder
from featurestore.errors import StoreError
from featurestore.holdings import Holdings, changed_audio, holdings
from featurestore.jobs import Job, amounts_of, batching_of, memory_of
from featurestore.progress import progress_bar
from featurestore.setup import IngestConfig, Setup, set_up
from featurestore.storage import Place, as_place
from featurestore.store.ledger import Part, read_views
from featurestore.store.plan import PartPlan, plan_part
from featurestore.store.rows import merge_rows, read_rows, rows_version
from featurestore.store.tombstones import read_tombstones
from featurestore.survey import Headers, Measured, measure, read_headers
from featurestore.weights import Weights


@dataclass(frozen=True)
class Skipped:
    """An utterance that could not be read, in which views, and why."""

    id: str
    path: str
    views: tuple[str, ...]
    reason: str


_INTERNAL = ("seen", "setup", "rows", "jobs")


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
        compilations: programs that are compiled, one per bucket and set of views; those that an
            earlier run has compiled on this machine are only loaded.
        memory_bytes: about how much memory the run takes on top of the process and its programs
            (`featurestore.memory`); None for an encoder that does not tell.
        relabelled: stored utterances whose speaker, text or labels the manifest changes.
        replaced: stored utterances whose audio is another one now, and is ingested anew.
        forgotten: rows of the manifest that are left out, since they were forgotten on request.
        readmit: whether the marks of forgotten rows are taken back.
        skipped: what cannot be read, as far as headers tell.
        seen: version of the store that this was worked out for.
    """

    store: str
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
    memory_bytes: int | None
    relabelled: int
    replaced: tuple[str, ...]
    forgotten: int
    readmit: bool
    skipped: tuple[Skipped, ...]
    seen: str = field(repr=False)
    setup: Setup = field(repr=False)
    rows: pd.DataFrame = field(repr=False)
    jobs: tuple[Job, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        public = {k: v for k, v in vars(self).items() if k not in _INTERNAL}
        return {**public, "skipped": [vars(one) for one in self.skipped]}


def plan_ingest(
    manifest: pd.DataFrame | str | os.PathLike[str],
    store: str | os.PathLike[str] | Place,
    *,
    encoder: Encoder | Weights | str | Path | None = None,
    config: IngestConfig | None = None,
    variant: str | None = None,
    replace: bool = False,
    readmit: bool = False,
    progress: bool | None = None,
) -> IngestPlan:
    """What `ingest` would do; writes nothing.

    Args:
        manifest: a table as from `read_corpus`, or the path or URL of one.
        store: folder or URL of the store, new or not.
        encoder: the network or what `load_encoder` takes, if its view is wanted.
        config: how features are made.
        variant: MFCC variant instead of the encoder's own.
        replace: whether stored utterances whose audio has changed are made again, instead of
            refused.
        readmit: whether speakers and utterances that were forgotten may come back.
        progress: whether to show a bar; None shows one on a terminal.

    Raises:
        ManifestError: a bad manifest, naming row and column.
        StoreError: a folder that is not a store, ids that are stored from other audio, or too
            little room on the disk.
        FeatureStoreError: a view that needs weights or openSMILE, without them.
    """
    try:
        return _plan(manifest, store, encoder, config, variant, replace, readmit, progress)
    except OSError as error:
        raise StoreError(
            f"cannot read {store}: {error.strerror or error}. What is written is safe; run the "
            "same ingest again once the cause is mended"
        ) from error


def _plan(
    manifest: pd.DataFrame | str | os.PathLike[str],
    store: str | os.PathLike[str] | Place,
    encoder: Encoder | Weights | str | Path | None,
    config: IngestConfig | None,
    variant: str | None,
    replace: bool,
    readmit: bool,
    progress: bool | None,
) -> IngestPlan:
    table = load_table(manifest)
    config = config or IngestConfig()
    named = isinstance(encoder, str | Path)  # what is only named is loaded only if it is needed
    if encoder is not None and (config.wants_network or not named):
        encoder = load_encoder(encoder)
    else:
        encoder = None
    setup = set_up(as_place(store), encoder, config, variant)
    seen = store_version(setup)
    forgotten = np.zeros(len(table), bool)
    if not readmit:
        forgotten = read_tombstones(setup.root).matches(table)
        table = table[~forgotten].reset_index(drop=True)
    held = {kind: holdings(view) for kind, view in setup.views.items()}
    mine = {view.name for view in setup.views.values()}
    stored = read_rows(setup.root)
    # Views that this ingest does not make are asked too: an id is one sound in all of them.
    others = [holdings(view) for view in read_views(setup.root) if view.name not in mine]
    replaced = changed_audio(stored, table, [*held.values(), *others])
    if replaced and not replace:
        raise StoreError(_other_audio(replaced))
    held = {kind: one.without(replaced) for kind, one in held.items()}
    rows, changed = merge_rows(stored, table)
    known = frozenset.intersection(*(one.taken for one in held.values()))
    unknown = table[~table["id"].isin(known)].reset_index(drop=True)
    with progress_bar("Reading headers", len(unknown), unit="files", show=progress) as tick:
        headers = read_headers(unknown, tick)
    measured = {end: measure(headers, end) for end in {*map(setup.front_end, setup.views)}}
    jobs = _jobs(setup, held, rows, unknown, headers, measured)
    skipped = _skipped(setup, unknown, held, headers, measured)
    facts = {
        "corpus_utterances": len(table),
        "relabelled": len(changed),
        "replaced": tuple(sorted(replaced)),
        "forgotten": int(forgotten.sum()),
        "readmit": readmit,
        "seen": seen,
    }
    plan = _describe(setup, rows, jobs, skipped, facts)
    _check_room(plan)
    return plan


def store_version(setup: Setup) -> str:
    """What changes when another process commits anything to the store."""
    views = {name: view.version() for name, view in setup.views.items()}
    return f"{rows_version(setup.root)} {views}"


def _other_audio(replaced: dict[str, str]) -> str:
    id, reason = next(iter(sorted(replaced.items())))
    return (
        f"utterance '{id}' is stored {reason} ({len(replaced)} such utterances). Give them ids of "
        "their own, use a new store, or have them made again (on the command line --replace, in "
        "Python replace=True)"
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
    held: dict[str, Holdings],
    rows: pd.DataFrame,
    unknown: pd.DataFrame,
    headers: Headers,
    measured: dict[AudioFrontEnd | None, Measured],
) -> list[Job]:
    """Parts to complete, then one part for what no part has yet; views that agree share them."""
    jobs: dict[str, Job] = {}
    index = pd.Index(rows["id"])

    def add(kind: str, part: Part, plan: PartPlan, ids: Sequence[str], frames: np.ndarray) -> None:
        todo = frozenset(column.index for column in plan.columns)
        todo -= frozenset(part.committed_columns())
        if part.name not in jobs:
            mine = rows.iloc[index.get_indexer(pd.Index(ids))].reset_index(drop=True)
            jobs[part.name] = Job(plan, mine, frames, {})
        jobs[part.name].parts[kind] = (part, todo)

    plans: dict[bytes, tuple[PartPlan, list[str], np.ndarray]] = {}
    for kind, has in held.items():
        for part in has.begun:
            add(kind, part, *part.planned())
        found = measured[setup.front_end(kind)]
        wanted = headers.readable & ~unknown["id"].isin(has.taken).to_numpy(bool)
        if kind != "egemaps":
            wanted &= found.accepted
        if wanted.any():
            key = wanted.tobytes() + found.frames.tobytes() + bytes(str(setup.width(kind)), "ascii")
            if key not in plans:
                ids, frames = list(unknown["id"][wanted]), found.frames[wanted]
                made = plan_part(
                    ids, frames, frames=setup.config.column_frames, width=setup.width(kind)
                )
                plans[key] = made, ids, frames
            plan, ids, frames = plans[key]
            add(kind, setup.views[kind].part(plan.name), plan, ids, frames)
    return list(jobs.values())


def _skipped(
    setup: Setup,
    unknown: pd.DataFrame,
    held: dict[str, Holdings],
    headers: Headers,
    measured: dict[AudioFrontEnd | None, Measured],
) -> tuple[Skipped, ...]:
    found = []

    def add(position: int, kinds: Sequence[str], reason: str) -> None:
        id = unknown["id"].iloc[position]
        missing = tuple(kind for kind in kinds if id not in held[kind].taken)
        if missing:
            found.append(Skipped(id, unknown["path"].iloc[position], missing, reason))

    for position, reason in headers.problems.items():
        add(position, tuple(held), reason)
    for hearing in setup.hearings:
        for position, reason in measured[hearing.front_end].refusals.items():
            add(position, hearing.kinds, reason)
    order = {id: i for i, id in enumerate(unknown["id"])} if found else {}
    return tuple(sorted(found, key=lambda one: order[one.id]))


def _describe(
    setup: Setup,
    rows: pd.DataFrame,
    jobs: Sequence[Job],
    skipped: tuple[Skipped, ...],
    facts: dict[str, Any],
) -> IngestPlan:
    kinds = tuple(setup.views)
    amounts = amounts_of(setup, rows, jobs)
    batching = [batching_of(setup, hearing, jobs) for hearing in setup.hearings]
    wanted, computed = (sum(getattr(one, n) for one in batching) for n in ("frames", "computed"))
    return IngestPlan(
        store=setup.root.url,
        views=tuple(view.name for view in setup.views.values()),
        utterances=amounts.utterances,
        hours=amounts.seconds / 3600,
        frames=amounts.frames,
        frame_periods_s=tuple(dict.fromkeys(setup.frame_period_s(kind) for kind in kinds)),
        columns=sum(len(job.missing(kinds)) for job in jobs),
        bytes_to_write=amounts.size,
        padding_waste=1.0 - wanted / computed if computed else 0.0,
        compilations=sum(one.programs for one in batching),
        memory_bytes=memory_of(setup, jobs),
        skipped=skipped,
        setup=setup,
        rows=rows,
        jobs=tuple(jobs),
        **facts,
    )


def _check_room(plan: IngestPlan) -> None:
    """Refuse to start what cannot fit on the disk."""
    free = plan.setup.root.free_bytes()
    if free is not None and plan.bytes_to_write > free:
        raise StoreError(
            f"the store needs about {plan.bytes_to_write / 1e9:.2f} GB, the disk of {plan.store} "
            f"has {free / 1e9:.2f} GB free; leave out the frames (frames=False, --no-frames) or "
            "give another folder"
        )
