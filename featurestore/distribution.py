"""The columns of a plan on the workers of a dask cluster.

A column is a task. A worker decodes, computes and writes the column's own shards, and sends back
its records, never arrays; whoever holds the store's lock puts them into the ledger. A worker that
is lost takes nothing with it: dask gives its columns to another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featurestore.batching import Bucket
from featurestore.encoder import AudioFrontEnd, Encoder
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.extract import Request
from featurestore.pipeline import Clock, Rows, Work, run_egemaps, run_network
from featurestore.storage import Place
from featurestore.store.ledger import Part
from featurestore.store.plan import Column, Layout
from featurestore.store.writer import PartWriter

if TYPE_CHECKING:
    from distributed import Client

_AHEAD = 2  # columns per worker thread that are handed out: one to do, one to go on with
_MISSING = (
    "a cluster needs dask.distributed: pip install 'featurestore[cluster]', or leave out "
    "--scheduler"
)


@dataclass(frozen=True)
class Columns:
    """What all columns of a job share.

    Attributes:
        root: the store.
        token: of the lock's owner; without it nobody may write.
        parts: one per view, with its size.
        request: what the device makes; None for eGeMAPS.
        front_end: how it hears; None for eGeMAPS.
        buckets: shapes to run.
        frame_period_s: seconds between frames.
    """

    root: Place
    token: str
    parts: tuple[tuple[Part, Layout], ...]
    request: Request | None
    front_end: AudioFrontEnd | None
    buckets: tuple[Bucket, ...]
    frame_period_s: float


@dataclass(frozen=True)
class Made:
    """What a worker sends back.

    Attributes:
        records: of the column in each part, in the order of `Columns.parts`.
        stages: busy seconds.
        seconds: of audio.
    """

    records: tuple[tuple[int, dict[str, Any]], ...]
    stages: dict[str, float]
    seconds: float


def make_column(
    columns: Columns,
    column: Column,
    wanted: Sequence[int],
    rows: pd.DataFrame,
    frames: np.ndarray,
    encoder: Encoder | None,
) -> Made:
    """Make a column; runs on a worker.

    Args:
        columns: what it shares with others.
        column: which; `members` index `rows`.
        wanted: parts that miss it.
        rows: manifest rows of its utterances.
        frames: of each.
        encoder: the network, if it is wanted.

    Raises:
        StoreError: the process that plans lost the store to another one.
    """
    from featurestore.ingest import origin_of

    done: list[tuple[int, dict[str, Any]]] = []
    seconds = [0.0]
    writers = [PartWriter(*columns.parts[i], create=False) for i in wanted]

    def commit(part: Part, record: dict[str, Any]) -> None:
        done.append((next(i for i in wanted if columns.parts[i][0] == part), record))

    def may_write() -> None:
        if not columns.root.owned_by(columns.token):
            raise StoreError(f"{columns.root} belongs to another process now; nothing was written")

    def tick(amount: float) -> None:
        seconds[0] += amount

    may_write()
    kind = "egemaps" if columns.request is None else "network"
    clock = Clock()
    work = Work(
        columns=[column],
        rows=Rows(rows),
        frames=frames,
        writers=[(writer, frozenset({column.index})) for writer in writers],
        frame_period_s=columns.frame_period_s,
        origin=lambda: origin_of(kind),
        before_writing=may_write,
        commit=commit,
        clock=clock,
        tick=tick,
    )
    if columns.request is None or columns.front_end is None:
        run_egemaps(work, workers=1)
    else:
        run_network(
            work,
            encoder=encoder,
            request=columns.request,
            front_end=columns.front_end,
            buckets=columns.buckets,
            decoders=2,
        )
    return Made(tuple(done), clock.seconds, seconds[0])


def run_on_cluster(
    client: Client,
    work: Work,
    columns: Columns,
    *,
    rows: pd.DataFrame,
    encoder: Encoder | None,
) -> None:
    """Have a cluster make every column of `work`, and commit the records as they come.

    Only a few columns per worker are handed out at a time, so that neither the graph nor the
    memory of the scheduler grows with the corpus.

    Args:
        client: of the cluster.
        work: columns, and where their records go.
        columns: what the workers have to know.
        rows: manifest rows that `Column.members` index.
        encoder: the network, if it is wanted.

    Raises:
        FeatureStoreError: no workers, or a column that killed several of them.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    shared = client.scatter(encoder) if encoder is not None else None
    missing = [writing for _, writing in work.writers]
    todo = iter(work.columns)
    running = as_completed()
    resources = _resources(client)

    def hand_out(count: int) -> None:
        for column in itertools.islice(todo, count):
            if work.stopped():
                return
            wanted = [i for i, columns_ in enumerate(missing) if column.index in columns_]
            members = column.members
            local = replace(column, members=np.arange(len(members)))
            running.add(
                client.submit(
                    make_column,
                    columns,
                    local,
                    wanted,
                    rows.iloc[members].reset_index(drop=True),
                    work.frames[members],
                    shared,
                    pure=False,
                    resources=resources,
                    key=f"column-{columns.parts[0][0].name}-{column.index}-{columns.token}",
                )
            )

    hand_out(_AHEAD * _threads(client))
    for future in running:
        try:
            made: Made = future.result()
        except KilledWorker as error:
            raise FeatureStoreError(
                f"a column killed every worker that tried it ({error}), probably for want of "
                "memory. What is committed is safe; give workers more memory, or run the same "
                "ingest again with smaller columns"
            ) from error
        for index, record in made.records:
            work.before_writing()
            work.commit(columns.parts[index][0], record)
        for stage, seconds in made.stages.items():
            work.clock.add(stage, seconds)
        work.tick(made.seconds)
        future.release()
        hand_out(1)


def _threads(client: Client) -> int:
    threads = sum(client.nthreads().values())
    if not threads:
        client.wait_for_workers(1, timeout=60)
        threads = sum(client.nthreads().values())
    return max(1, threads)


def _resources(client: Client) -> dict[str, float] | None:
    """One GPU per column where workers declare GPUs, so that none runs two at once."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    has = [worker["resources"].get("GPU", 0) for worker in workers]
    return {"GPU": 1.0} if has and all(has) else None


@contextmanager
def cluster(scheduler: str) -> Iterator[Client]:
    """A client of a dask cluster, which is started for the block if need be.

    Args:
        scheduler: `local` or `local:N` for N processes of this machine (half as many as it has
        cores
            by default), or the address of a scheduler that runs, such as `tcp://host:8786`.

    Raises:
        FeatureStoreError: dask.distributed is not installed, or nobody answers at the address.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise FeatureStoreError(_MISSING) from None
    kind, _, count = scheduler.partition(":")
    if kind == "local":
        workers = _count(scheduler, count)
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:8787",
                host="127.0.0.1",
            ) as started,
            Client(started) as client,
        ):
            yield client
        return
    try:
        client = Client(scheduler, timeout=30)
    except (OSError, ValueError, TimeoutError) as error:
        raise FeatureStoreError(
            f"no dask scheduler answers at '{scheduler}' ({error}); start one with 'dask "
            "scheduler', or use --scheduler local"
        ) from None
    with client:
        yield client


def _count(scheduler: str, text: str) -> int:
    from featurestore.setup import cores

    if not text:
        return max(1, cores() // 2)
    if not text.isdigit() or not int(text):
        raise FeatureStoreError(f"'{scheduler}': give a number of processes, such as local:4")
    return int(text)
