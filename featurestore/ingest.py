"""From a manifest to a feature store: plan, run, summarise."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.batching import Bucket
from featurestore.encoder import Encoder
from featurestore.errors import StoreError
from featurestore.pipeline import Clock, Work, rows_of, run_egemaps, run_network
from featurestore.planning import IngestPlan, Job, Skipped, plan_ingest
from featurestore.progress import progress_bar
from featurestore.setup import Hearing, IngestConfig
from featurestore.store.ledger import create_store, create_view, writing
from featurestore.store.rows import read_rows, write_rows
from featurestore.store.writer import PartWriter, finish_part
from featurestore.types import VIEWS, FrameDtype
from featurestore.weights import Weights

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
        stages: busy seconds per stage, summed over the threads and processes that share it.
        skipped: what could not be read, and why.
        plan: what was planned.
    """

    store: Path
    views: tuple[str, ...]
    utterances: int
    hours: float
    relabelled: int
    seconds: float
    stages: dict[str, float]
    skipped: tuple[Skipped, ...]
    plan: IngestPlan = field(repr=False)

    @property
    def times_real_time(self) -> float:
        """Seconds of audio per second of the whole run."""
        return self.hours * 3600 / self.seconds if self.seconds else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **{k: v for k, v in vars(self).items() if k != "plan"},
            "store": str(self.store),
            "times_real_time": self.times_real_time,
            "skipped": [vars(one) for one in self.skipped],
            "plan": self.plan.to_dict(),
        }


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ingest(
    manifest: pd.DataFrame | str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    encoder: Encoder | Weights | str | Path | None = "default",
    views: str | Sequence[str] = VIEWS,
    captures: str | Sequence[str] | None = None,
    frames: bool = True,
    dtype: FrameDtype = "float16",
    variant: str | None = None,
    config: IngestConfig | None = None,
    progress: bool | None = None,
) -> IngestSummary:
    """Extract features of every utterance into a store.

    What the store already holds is left as it is, so that running the same call again completes an
    interrupted store and adds new utterances. Labels and speakers of stored utterances follow the
    manifest. Files that cannot be read are set aside with their reasons.

    Args:
        manifest: a table as from `read_corpus`, or the path of one.
        store: folder of the store, new or not.
        encoder: the network, or what `load_encoder` takes; used where its view is wanted.
        views: any of `network` (activations; the encoder's kind, such as `gcu`, will do too),
            `mfcc`, `egemaps`.
        captures: any of the encoder's capture points, for the GCU network `gate`, `skip`,
            `residual`; None takes its first one.
        frames: whether to keep every frame, besides pooled statistics.
        dtype: of the frames kept, `float16` or `float32`.
        variant: MFCC variant instead of the one that the weights were trained with.
        config: all of the above but `encoder` and `variant`, and more, in one object instead.
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
        manifest, store, encoder=encoder, config=config, variant=variant, progress=progress
    )
    return run_plan(plan, progress=progress, began=began)


def _several(names: Any) -> Any:
    """One name on its own is a list of one, not of its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def run_plan(
    plan: IngestPlan, *, progress: bool | None = None, began: float | None = None
) -> IngestSummary:
    """Do what `plan_ingest` planned.

    Args:
        plan: what to do.
        progress: whether to show bars; None shows them on a terminal.
        began: `time.perf_counter()` from which the run counts; now by default.

    Raises:
        StoreError: a full disk, or another process that is writing to the store.
        FeatureStoreError: an openSMILE process was killed.
    """
    began = time.perf_counter() if began is None else began
    run = _Run(plan, _versions(), Clock(), progress)
    try:
        create_store(plan.store)
        with writing(plan.store):
            run.begin()
            for job in plan.jobs:
                for hearing, buckets in zip(plan.setup.hearings, plan.buckets, strict=True):
                    run.network(job, hearing, buckets)
                run.egemaps(job)
            added, set_aside = _finish(plan)
    except OSError as error:
        raise StoreError(
            f"writing to {plan.store} failed: {error.strerror or error}. What is written is safe; "
            "run the same ingest again to go on once the cause is mended"
        ) from error
    return IngestSummary(
        store=plan.store,
        views=plan.views,
        utterances=len(added),
        hours=math.fsum(added.values()) / 3600,
        relabelled=plan.relabelled,
        seconds=time.perf_counter() - began,
        stages=run.clock.seconds,
        skipped=(*plan.skipped, *set_aside),
        plan=plan,
    )


@dataclass(frozen=True)
class _Run:
    """What all jobs of a run share."""

    plan: IngestPlan
    versions: dict[str, str]
    clock: Clock
    progress: bool | None

    def begin(self) -> None:
        """Put on disk what will be done, before any of it is."""
        setup = self.plan.setup
        if not self.plan.rows.equals(read_rows(setup.root)):
            write_rows(setup.root, self.plan.rows)
        for view in setup.views.values():
            create_view(setup.root, view.config, self.versions)
        for job in self.plan.jobs:
            for part, _ in job.parts.values():
                part.begin(job.plan, list(job.rows["id"]), job.frames)

    def _work(self, job: Job, kinds: Sequence[str], tick: Any) -> Work:
        parts = [job.parts[kind] for kind in kinds if kind in job.parts]
        return Work(
            columns=job.columns(kinds),
            rows=rows_of(job.rows),
            frames=job.frames,
            writers=[(PartWriter(part, job.plan), missing) for part, missing in parts],
            frame_period_s=self.plan.setup.frame_period_s(kinds[0]),
            versions=self.versions,
            clock=self.clock,
            tick=tick,
        )

    def network(self, job: Job, hearing: Hearing, buckets: Sequence[Bucket]) -> None:
        """Make the job's columns of the views that share a front end."""
        from featurestore.extract import Request

        setup = self.plan.setup
        if not job.missing(hearing.kinds):
            return
        networks = [kind for kind in hearing.kinds if kind != "mfcc"]
        with self._bar("Encoding", job, hearing.kinds) as tick:
            run_network(
                self._work(job, hearing.kinds, tick),
                encoder=setup.encoder,
                request=Request(
                    captures=(setup.config.captures or ()) if job.missing(networks) else (),
                    mfcc="mfcc" in hearing.kinds and bool(job.missing(("mfcc",))),
                    frames=setup.config.frames,
                    dtype=setup.config.dtype,
                ),
                front_end=hearing.front_end,
                buckets=buckets,
                decoders=setup.config.workers,
            )

    def egemaps(self, job: Job) -> None:
        """Make the job's columns of `egemaps`."""
        if job.missing(("egemaps",)):
            with self._bar("eGeMAPS", job, ("egemaps",)) as tick:
                run_egemaps(
                    self._work(job, ("egemaps",), tick), workers=self.plan.setup.config.workers
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


def _finish(plan: IngestPlan) -> tuple[dict[str, float], list[Skipped]]:
    """Write the utterance tables; seconds of audio by utterance added, and what was set aside."""
    added: dict[str, float] = {}
    aside: dict[tuple[str, str], list[str]] = {}
    paths: dict[str, str] = {}
    for job in plan.jobs:
        paths.update(zip(job.rows["id"], job.rows["path"], strict=True))
        for kind, (part, missing) in job.parts.items():
            for index, record in part.committed().items():
                if index in missing:
                    added.update({u["id"]: u["duration_s"] for u in record["utterances"]})
                for one in record["set_aside"]:
                    aside.setdefault((one["id"], one["reason"]), []).append(kind)
            finish_part(part, job.rows, job.plan)
    skipped = [
        Skipped(id, paths[id], tuple(kinds), reason) for (id, reason), kinds in aside.items()
    ]
    return added, skipped
