"""The columns of a plan on the workers of a dask cluster.

A column is a task. A worker decodes, computes and writes the column's own shards, and sends back
its records, never arrays; whoever holds the store's lock puts them into the ledger. A worker that
is lost takes nothing with it: dask gives its columns to another.
"""

from __future__ import annotations

import functools
import signal
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featurestore import __version__
from featurestore.batching import Bucket
from featurestore.columns import Clock, Rows, Work
from featurestore.encoder import AudioFrontEnd, Encoder
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.extract import Request
from featurestore.hardware import compute_alike, cores
from featurestore.pipeline import run_egemaps, run_network
from featurestore.storage import Place
from featurestore.storage.locks import new_token
from featurestore.store.ledger import Part
from featurestore.store.plan import Column, Layout
from featurestore.store.records import is_free
from featurestore.store.writer import PartWriter

if TYPE_CHECKING:
    from distributed import Client, Future

_AHEAD = 2  # columns per worker thread that are handed out: one to do, one to go on with
_LOOK_S = 2.0  # between looks at which workers there are
_PATIENCE_S = 600.0  # without any worker
_CONNECT_S = 10.0
_DASHBOARD = 8787
_MISSING = (
    "a cluster needs dask.distributed: pip install 'featurestore[cluster]', or leave out "
    "--scheduler"
)
_SAFE = "What is committed is safe; run the same ingest again to go on"


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
        version: of featurestore, which has to be that of the workers.
    """

    root: Place
    token: str
    parts: tuple[tuple[Part, Layout], ...]
    request: Request | None
    front_end: AudioFrontEnd | None
    buckets: tuple[Bucket, ...]
    frame_period_s: float
    version: str = __version__

    @property
    def kind(self) -> str:
        """What runs: the network (or MFCC alone), or openSMILE."""
        return "egemaps" if self.request is None else "network"


@dataclass(frozen=True)
class Made:
    """What a worker sends back.

    Attributes:
        records: of the column, each with its part's position in `Columns.parts`.
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
    network: bytes | None,
) -> Made:
    """Make a column; runs on a worker.

    Args:
        columns: what it shares with others.
        column: which; `members` index `rows`.
        wanted: parts that miss it.
        rows: manifest rows of its utterances.
        frames: of each.
        network: the encoder, pickled, if it is wanted.

    Raises:
        StoreError: the process that plans lost the store to another one, or the store is not to be
            seen from here.
        FeatureStoreError: this worker runs another version of featurestore.
    """
    from featurestore.ingest import origin_of

    compute_alike()  # again: a worker may have been bound to a core since it was started
    _check_worker(columns)
    done: list[tuple[int, dict[str, Any]]] = []
    seconds: list[float] = []
    clock = Clock()
    writers = [PartWriter(*columns.parts[i], create=False) for i in wanted]

    def may_write() -> None:
        if not columns.root.owned_by(columns.token):
            raise StoreError(
                f"{columns.root} belongs to another process now; this worker wrote nothing more"
            )

    def commit(part: Part, record: dict[str, Any]) -> None:
        done.append((next(i for i in wanted if columns.parts[i][0] == part), record))

    work = Work(
        columns=[column],
        rows=Rows(rows),
        frames=frames,
        writers=[(writer, frozenset({column.index})) for writer in writers],
        frame_period_s=columns.frame_period_s,
        origin=lambda: origin_of(columns.kind),
        before_writing=may_write,
        commit=commit,
        clock=clock,
        tick=seconds.append,
    )
    if columns.request is None or columns.front_end is None:
        run_egemaps(work, workers=1)
    else:
        run_network(
            work,
            encoder=None if network is None else _unpacked(network),
            request=columns.request,
            front_end=columns.front_end,
            buckets=columns.buckets,
            decoders=2,
        )
    return Made(tuple(done), clock.seconds, sum(seconds))


def _check_worker(columns: Columns) -> None:
    """Refuse to work where it would go wrong, before it does."""
    host = socket.gethostname()
    if columns.version != __version__:
        raise FeatureStoreError(
            f"the worker on {host} has featurestore {__version__}, and the ingest was planned with "
            f"{columns.version}; install the same version everywhere"
        )
    if columns.root.owned_by(columns.token):
        return
    if is_free(columns.root):
        raise StoreError(
            f"the worker on {host} does not see the store {columns.root}; put it on a file system "
            "that all workers share under the same path, or in an object store"
        )
    raise StoreError(f"{columns.root} belongs to another process now; this worker wrote nothing")


@functools.lru_cache(maxsize=1)  # once per process, not once per column
def _unpacked(network: bytes) -> Encoder:
    from distributed.protocol.pickle import loads

    return loads(network)


def _packed(encoder: Encoder) -> bytes:
    """An encoder as bytes, so that it becomes arrays on the workers and not in the scheduler."""
    from distributed.protocol.pickle import dumps

    try:
        return dumps(encoder)
    except Exception as error:  # whatever its author has put into it
        raise FeatureStoreError(
            f"encoder '{encoder.name}' cannot be sent to other processes: {error}. Make it "
            "picklable, or ingest without a cluster"
        ) from error


def _same(network: bytes) -> bytes:
    return network


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
    memory of the scheduler grows with the corpus; workers that join later get theirs.

    Args:
        client: of the cluster.
        work: columns, and where their records go.
        columns: what the workers have to know.
        rows: manifest rows that `Column.members` index.
        encoder: the network, if it is wanted.

    Raises:
        FeatureStoreError: no workers, a cluster that went away, or a column that killed several
            workers.
        Exception: whatever a column raised, such as StoreError, or OSError for a full disk.
    """
    tasks = _Tasks(client, work, columns, rows, encoder)
    try:
        for made in tasks.made():
            for index, record in made.records:
                work.commit(columns.parts[index][0], record)
            for stage, seconds in made.stages.items():
                work.clock.add(stage, seconds)
            work.tick(made.seconds)
    finally:
        tasks.cancel()


class _Tasks:
    """Columns on their way: handed out a few at a time, taken back as they are made."""

    def __init__(
        self,
        client: Client,
        work: Work,
        columns: Columns,
        rows: pd.DataFrame,
        encoder: Encoder | None,
    ) -> None:
        from distributed import as_completed

        if client.asynchronous:
            raise FeatureStoreError("the client is asynchronous; give one made by Client(address)")
        self._client = client
        self._work = work
        self._columns = columns
        self._rows = rows[[n for n in ("id", "path", "start", "end") if n in rows]]
        self._todo = iter(work.columns)
        self._run = new_token()
        self._out: set[Future] = set()
        self._completed = as_completed()
        self._seen = time.monotonic()
        self._network = None if encoder is None else self._send(_packed(encoder))

    def _send(self, network: bytes) -> Future:
        # A task and not scattered data: what a lost worker held can be made again.
        import dask

        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            return self._client.submit(_same, network, key=f"encoder-{self._run}")

    def made(self) -> Iterator[Made]:
        """Columns as they are made, in any order.

        Raises:
            FeatureStoreError: see `run_on_cluster`.
        """
        while True:
            with _talking(self._client):
                self._hand_out()
            if not self._out:
                return
            future = self._next()
            self._out.discard(future)
            yield self._result(future)
            future.release()

    def _hand_out(self) -> None:
        """Give every worker thread enough to do, and those to come something to start with."""
        workers = [
            one
            for one in self._client.scheduler_info(n_workers=-1)["workers"].values()
            if one.get("status", "running") == "running"
        ]
        if workers:
            self._seen = time.monotonic()
        # One GPU per column where workers declare GPUs, so that none runs two at once.
        gpus = [worker["resources"].get("GPU", 0) for worker in workers]
        resources = {"GPU": 1.0} if gpus and all(gpus) else None
        wanted = _AHEAD * max(1, sum(worker["nthreads"] for worker in workers))
        while len(self._out) < wanted and not self._work.stopped():
            column = next(self._todo, None)
            if column is None:
                return
            self._submit(column, resources)

    def _submit(self, column: Column, resources: dict[str, float] | None) -> None:
        members = column.members
        future = self._client.submit(
            make_column,
            self._columns,
            replace(column, members=np.arange(len(members))),
            [i for i, (_, missing) in enumerate(self._work.writers) if column.index in missing],
            self._rows.iloc[members].reset_index(drop=True),
            self._work.frames[members],
            self._network,
            pure=False,
            resources=resources,
            key=f"{self._columns.kind}-column-{column.index}-{self._run}",
        )
        self._out.add(future)
        self._completed.add(future)

    def _next(self) -> Future:
        """Wait for a column; meanwhile look for new workers, and whether there are any."""
        looked = time.monotonic()
        while not self._completed.has_ready():
            time.sleep(0.02)
            if time.monotonic() - looked > _LOOK_S:
                with _talking(self._client):
                    self._hand_out()
                looked = time.monotonic()
                if looked - self._seen > _PATIENCE_S:
                    raise FeatureStoreError(
                        f"the cluster has had no running worker for {_PATIENCE_S / 60:.0f} "
                        f"minutes; see {self._client.dashboard_link}. {_SAFE}"
                    )
        return next(self._completed)

    def _result(self, future: Future) -> Made:
        from distributed.scheduler import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            raise FeatureStoreError(
                f"a column killed every worker that tried it ({error}), probably for want of "
                "memory. Give workers more memory, or use smaller columns (column_frames). "
                f"{_SAFE}"
            ) from error
        except CancelledError as error:
            raise FeatureStoreError(
                f"the cluster let go of the work: {_reason(error)}. {_SAFE}"
            ) from error
        except ImportError as error:
            raise FeatureStoreError(
                f"a worker cannot run featurestore: {error}. Install the same packages everywhere"
            ) from error

    def cancel(self) -> None:
        """Let go of what is still out, after an error; on success nothing is."""
        with suppress(Exception):  # the cluster may be what has failed
            if self._out:
                self._client.cancel(list(self._out), force=True)
        self._out.clear()


def _reason(error: BaseException) -> str:
    return getattr(error, "reason", None) or str(error) or "it was restarted or closed"


@contextmanager
def _talking(client: Client) -> Iterator[None]:
    """The connection's own errors are OSErrors too, but say nothing of the store's disk."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and client.status == "running":
            raise
        raise FeatureStoreError(
            f"the cluster's scheduler does not answer any more ({_reason(error)}). {_SAFE}"
        ) from error


@contextmanager
def cluster(scheduler: str) -> Iterator[Client]:
    """A client of a dask cluster, which is started for the block if need be.

    Args:
        scheduler: `local` or `local:N` for N processes of this machine (half as many as it has
            cores by default), or the address of a scheduler that runs, such as `tcp://host:8786`.

    Raises:
        FeatureStoreError: dask.distributed is not installed, or nobody answers at the address.
    """
    try:
        from distributed import Client
    except ImportError:
        raise FeatureStoreError(_MISSING) from None
    kind, _, count = scheduler.partition(":")
    if kind == "local":
        with _local_cluster(_count(scheduler, count)) as started, Client(started) as client:
            yield client
        return
    try:
        client = Client(scheduler, timeout=_CONNECT_S)
    except (OSError, ValueError, RuntimeError) as error:
        raise FeatureStoreError(
            f"no dask scheduler answers at '{scheduler}' ({_reason(error)}); start one with 'dask "
            "scheduler', or use --scheduler local"
        ) from None
    with client:
        yield client


def _local_cluster(workers: int) -> Any:
    from distributed import LocalCluster

    with warnings.catch_warnings():
        # The usual port where it is free; which one it is is said anyway.
        warnings.filterwarnings("ignore", message="(?s)Port .* is already in use")
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=f"127.0.0.1:{_DASHBOARD}",
            # As without a cluster: a limit would pause for good a worker whose network is large.
            memory_limit=0,
            preload="featurestore.distribution",
        )


def dask_setup(worker: Any) -> None:
    """What dask calls in a worker that was started with this module as a preload.

    Ctrl-C reaches all processes of a terminal; what to do about it is for the client to say.
    """
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _count(scheduler: str, text: str) -> int:
    if not text:
        return max(1, cores() // 2)
    if not text.isdigit() or not int(text):
        raise FeatureStoreError(f"'{scheduler}': give a number of processes, such as local:4")
    return int(text)
