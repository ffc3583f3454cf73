"""From a manifest to a feature store: plan, run, summarise."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from featurestore.batching import Bucket
from featurestore.certificate import certify
from featurestore.columns import Clock, Rows, Work
from featurestore.encoder import Encoder
from featurestore.errors import StoreError
from featurestore.extract import Request
from featurestore.hardware import processor
from featurestore.jobs import Job
from featurestore.pipeline import run_egemaps, run_network
from featurestore.planning import IngestPlan, Skipped, plan_ingest, store_version
from featurestore.progress import progress_bar
from featurestore.setup import Hearing, IngestConfig
from featurestore.storage import Place
from featurestore.storage.locks import Owner
from featurestore.store.ledger import Part, create_view, read_views
from featurestore.store.records import create_store, owned
from featurestore.store.rewrite import drop_utterances
from featurestore.store.rows import read_rows, write_rows
from featurestore.store.tombstones import read_tombstones, remove_tombstones
from featurestore.store.tombstones import readmit as take_back
from featurestore.store.writer import Origin, PartWriter, finish_part, read_committed
from featurestore.types import VIEWS, FrameDtype
from featurestore.weights import Weights

if TYPE_CHECKING:
    from distributed import Client

_VERSIONED = (
    "featurestore",
    "jax",
    "flax",
    "librosa",
    "numpy",
    "opensmile",
    "soundfile",
    "soxr",
    "zarr",
)


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did.

    Attributes:
        store: where the features are.
        views: names of the views.
        utterances: added by this run to at least one view.
        hours: of audio in those.
        relabelled: utterances already stored whose labels followed the manifest.
        seconds: wall-clock time of the whole run.
        stages: seconds per stage, summed over the threads that share it. `network` is what batches
            spent on the device, two at a time; `wait: device`, `wait: decoding` and `eGeMAPS` are
            seconds in which nothing else was left to do.
        skipped: what could not be read, and why.
        stopped: whether it was asked to stop before the end; the same ingest goes on from there.
        plan: what was planned.
    """

    store: str
    views: tuple[str, ...]
    utterances: int
    hours: float
    relabelled: int
    seconds: float
    stages: dict[str, float]
    skipped: tuple[Skipped, ...]
    stopped: bool
    plan: IngestPlan = field(repr=False)

    @property
    def times_real_time(self) -> float:
        """Seconds of audio per second of the whole run."""
        return self.hours * 3600 / self.seconds if self.seconds else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **{k: v for k, v in vars(self).items() if k != "plan"},
            "times_real_time": self.times_real_time,
            "skipped": [vars(one) for one in self.skipped],
            "plan": self.plan.to_dict(),
        }


def library_versions() -> dict[str, str]:
    """Versions of what makes features, where it is installed."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def origin_of(view: str) -> dict[str, Any]:
    """How rows of a view that are finished now were made."""
    if view == "egemaps":
        device = f"cpu: {processor()}"
    else:
        import jax

        found = jax.devices()[0]
        name = processor() if found.platform == "cpu" else found.device_kind
        device = f"{found.platform}: {name}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return asdict(Origin(library_versions(), device, now))


def ingest(
    manifest: pd.DataFrame | str | os.PathLike[str],
    store: str | os.PathLike[str] | Place,
    *,
    encoder: Encoder | Weights | str | Path | None = "default",
    views: str | Sequence[str] = VIEWS,
    captures: str | Sequence[str] | None = None,
    frames: bool = True,
    dtype: FrameDtype = "float16",
    variant: str | None = None,
    config: IngestConfig | None = None,
    replace: bool = False,
    readmit: bool = False,
    client: Client | None = None,
    progress: bool | None = None,
) -> IngestSummary:
    """Extract features of every utterance into a store.

    What the store already holds is left as it is, so that running the same call again completes an
    interrupted store and adds new utterances. Labels and speakers of stored utterances follow the
    manifest. Files that cannot be read are set aside with their reasons.

    Args:
        manifest: a table as from `read_corpus`, or the path of one.
        store: folder or URL (`s3://bucket/prefix`) of the store, new or not.
        encoder: the network, or what `load_encoder` takes; used where its view is wanted.
        views: any of `network` (activations; the encoder's kind, such as `gcu`, will do too),
            `mfcc`, `egemaps`.
        captures: any of the encoder's capture points, for the GCU network `gate`, `skip`,
            `residual`; None takes its first one.
        frames: whether to keep every frame, besides pooled statistics.
        dtype: of the frames kept, `float16`, `float32`, or `int8` for an archive.
        variant: MFCC variant instead of the one that the weights were trained with.
        config: all of the above but `encoder` and `variant`, and more, in one object instead.
        replace: whether stored utterances whose audio has changed are made again.
        readmit: whether speakers and utterances that were forgotten may come back.
        client: of a dask cluster whose workers do the work; without one this process does.
        progress: whether to show bars; None shows them on a terminal.

    Raises:
        ManifestError: a bad manifest, naming row and column, before any work.
        CheckpointError: weights that cannot be used.
        StoreError: a folder that is not a store, ids stored from other audio, a full disk.
        FeatureStoreError: a view that needs weights or openSMILE, without them; an unknown view or
            capture; an object that is not an encoder.
    """
    began = time.perf_counter()
    if config is None:
        chosen = None if captures is None else _several(captures)
        config = IngestConfig(_several(views), chosen, frames, dtype)
    plan = plan_ingest(
        manifest,
        store,
        encoder=encoder,
        config=config,
        variant=variant,
        replace=replace,
        readmit=readmit,
        progress=progress,
    )
    return run_plan(plan, client=client, progress=progress, began=began)


def _several(names: Any) -> Any:
    """One name on its own is a list of one, not of its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def run_plan(
    plan: IngestPlan,
    *,
    client: Client | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: bool | None = None,
    began: float | None = None,
) -> IngestSummary:
    """Do what `plan_ingest` planned.

    Args:
        plan: what to do.
        client: of a dask cluster whose workers do the work; without one this process does.
        stopped: asked before every column whether to end after those begun.
        progress: whether to show bars; None shows them on a terminal.
        began: `time.perf_counter()` from which the run counts; now by default.

    Raises:
        StoreError: a full disk, or another process that is writing to the store.
        FeatureStoreError: an openSMILE process or a worker was killed.
    """
    began = time.perf_counter() if began is None else began
    clock = Clock()
    with _making(plan.setup.root) as owner:
        if store_version(plan.setup) != plan.seen:
            raise StoreError(
                f"{plan.store} has changed since this plan was made: another process wrote to it. "
                "Run the same ingest again"
            )
        run = _Run(plan, owner, clock, stopped, client, progress)
        run.begin()
        for job in plan.jobs:
            run.job(job)
        added, set_aside = _finish(run)
        ended_early = stopped() and any(
            len(part.committed_columns()) < len(job.plan.columns)
            for job in plan.jobs
            for part, _ in job.parts.values()
            if part.begun
        )
    return IngestSummary(
        store=plan.store,
        views=plan.views,
        utterances=len(added),
        hours=math.fsum(added.values()) / 3600,
        relabelled=plan.relabelled,
        seconds=time.perf_counter() - began,
        stages=clock.seconds,
        skipped=(*plan.skipped, *set_aside),
        stopped=ended_early,
        plan=plan,
    )


@contextmanager
def _making(root: Place) -> Iterator[Owner]:
    """Own a store, which is made if it is not there."""
    with owned(root, again="ingest") as owner:
        create_store(root)
        yield owner


@dataclass(frozen=True)
class _Run:
    """What all jobs of a run share."""

    plan: IngestPlan
    owner: Owner
    clock: Clock
    stopped: Callable[[], bool]
    client: Client | None
    progress: bool | None
    abandoned: Callable[[], bool] = lambda: False

    def begin(self) -> None:
        """Put on disk what will be done, before any of it is."""
        setup = self.plan.setup
        empty = take_back(setup.root, self.plan.rows) if self.plan.readmit else []
        if empty or not self.plan.rows.equals(read_rows(setup.root)):
            left = set(read_tombstones(setup.root).names) - set(empty)
            write_rows(setup.root, self.plan.rows, tombstones=sorted(left))
            remove_tombstones(setup.root, empty)
        for view in setup.views.values():
            create_view(setup.root, view.config).sweep()
        if self.plan.replaced:
            for view in read_views(setup.root):
                view.sweep()
                drop_utterances(view, self.plan.replaced, self.plan.rows)
        for job in self.plan.jobs:
            for part, _ in job.parts.values():
                part.begin(job.plan, job.rows["id"].to_numpy(object), job.frames)

    def commit(self, part: Part, record: Mapping[str, Any]) -> None:
        """Put a column's record into the ledger."""
        self.owner.check()
        part.commit(dict(record))

    def job(self, job: Job) -> None:
        """Make the columns that some view still misses; openSMILE works beside the network."""
        if self.client is not None or not job.missing(("egemaps",)):
            self._networks(job)
            self._egemaps(job)
            return
        left = threading.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="eGeMAPS") as beside:
            aside = dataclasses.replace(self, abandoned=left.is_set)
            smile = beside.submit(aside._egemaps, job)

            def stopped() -> bool:
                return self.stopped() or (smile.done() and smile.exception() is not None)

            try:
                dataclasses.replace(self, stopped=stopped)._networks(job)
                smile.result()
            except BaseException:
                left.set()  # it ends after the utterance in hand
                raise

    def _networks(self, job: Job) -> None:
        for hearing in self.plan.setup.hearings:
            if job.missing(hearing.kinds):
                with self._bar("Encoding", job, hearing.kinds) as tick:
                    self._network(job, hearing, tick)

    def _work(self, job: Job, kinds: Sequence[str], tick: Any) -> Work:
        parts = [job.parts[kind] for kind in kinds if kind in job.parts]
        return Work(
            columns=job.columns(kinds),
            rows=Rows(job.rows),
            frames=job.frames,
            writers=[(PartWriter(part, job.plan.layout), missing) for part, missing in parts],
            frame_period_s=self.plan.setup.frame_period_s(kinds[0]),
            origin=lambda: origin_of(kinds[0]),
            before_writing=self.owner.check,
            commit=self.commit,
            clock=self.clock,
            tick=tick,
            stopped=self.stopped,
            abandoned=self.abandoned,
        )

    def _network(self, job: Job, hearing: Hearing, tick: Any) -> None:
        setup = self.plan.setup
        buckets = job.buckets(setup.batching(hearing))
        networks = [kind for kind in hearing.kinds if kind != "mfcc" and kind in job.parts]
        # Views that were begun together stay together: another program may give other last bits.
        request = Request(
            captures=(setup.config.captures or ()) if networks else (),
            mfcc="mfcc" in hearing.kinds and "mfcc" in job.parts,
            frames=setup.config.frames,
            dtype=setup.config.dtype,
            scales=next((setup.views[kind].config.scales for kind in networks), ()),
        )
        if self.client is not None:
            self._distributed(job, hearing.kinds, tick, request, hearing, buckets)
            return
        run_network(
            self._work(job, hearing.kinds, tick),
            encoder=setup.encoder,
            request=request,
            front_end=hearing.front_end,
            buckets=buckets,
            decoders=setup.config.workers,
        )

    def _egemaps(self, job: Job) -> None:
        if not job.missing(("egemaps",)):
            return
        with self._bar("eGeMAPS", job, ("egemaps",)) as tick:
            if self.client is not None:
                self._distributed(job, ("egemaps",), tick, None, None, ())
                return
            work = self._work(job, ("egemaps",), tick)
            run_egemaps(work, workers=self.plan.setup.config.workers)

    def _distributed(
        self,
        job: Job,
        kinds: Sequence[str],
        tick: Any,
        request: Request | None,
        hearing: Hearing | None,
        buckets: Sequence[Bucket],
    ) -> None:
        """The same columns by the workers of a cluster."""
        from featurestore.distribution import Columns, run_on_cluster

        work = self._work(job, kinds, tick)
        assert self.client is not None
        run_on_cluster(
            self.client,
            work,
            Columns(
                root=self.plan.setup.root,
                token=self.owner.token,
                parts=tuple(
                    (job.parts[kind][0], job.plan.layout) for kind in kinds if kind in job.parts
                ),
                request=request,
                front_end=hearing.front_end if hearing else None,
                buckets=tuple(buckets),
                frame_period_s=work.frame_period_s,
            ),
            rows=job.rows,
            encoder=self.plan.setup.encoder if request and request.captures else None,
        )

    def _bar(self, title: str, job: Job, kinds: Sequence[str]) -> Any:
        period = self.plan.setup.frame_period_s(kinds[0])
        seconds = float(job.frames[job.members(kinds)].sum()) * period
        return progress_bar(
            title,
            seconds,
            unit="h",
            scale=3600,
            rate=lambda speed: f"{speed:,.0f}x real time",
            show=self.progress,
        )


def _finish(run: _Run) -> tuple[dict[str, float], list[Skipped]]:
    """Complete the parts that can be; seconds by utterance added, and what was set aside."""
    plan = run.plan
    added: dict[str, float] = {}
    aside: dict[tuple[str, str], list[str]] = {}
    for job in plan.jobs:
        for kind, (part, missing) in job.parts.items():
            found = read_committed(part)
            new = found.table[found.table["column"].isin(list(missing))]
            added.update(zip(new["id"], new["duration_s"], strict=True))
            for one in found.set_aside:
                aside.setdefault((one.id, one.reason), []).append(kind)
            if len(part.committed_columns()) == len(job.plan.columns):
                run.owner.check()
                certificate = certify(plan.setup, part, job.rows, found.table)
                finish_part(part, job.rows, job.plan, found, certificate=certificate)
    wanted = plan.rows[plan.rows["id"].isin([id for id, _ in aside])]
    paths = dict(zip(wanted["id"], wanted["path"], strict=True))
    skipped = [
        Skipped(id, paths[id], tuple(kinds), reason) for (id, reason), kinds in aside.items()
    ]
    return added, skipped
