"""The same store from any cluster, whoever of its processes dies."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from object_server import s3_server
from synthetic import write_corpus

import featurestore as fs
from featurestore import distribution
from featurestore.analysis.scores import summarise
from featurestore.columns import Clock, Rows, Work
from featurestore.distribution import Columns, cluster, make_column
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.ingest import IngestSummary, run_plan
from featurestore.planning import IngestPlan, plan_ingest
from featurestore.setup import IngestConfig
from featurestore.storage import as_place
from featurestore.storage.local import LocalPlace
from featurestore.store.plan import Column

distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")

# Connections that end with a process leave sockets to the garbage collector, in dask.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Files = dict[str, bytes]


@pytest.fixture(scope="module", autouse=True)
def _sockets() -> Iterator[None]:
    yield
    gc.collect()  # here, where nobody minds


def config(*views: str) -> IngestConfig:
    return IngestConfig(views=views or ("gcu", "mfcc"), column_frames=4096)


def files(store: Path, views: str = "*") -> Files:
    """Arrays and tables of a store."""
    found = {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.glob(f"views/{views}/parts/**/*")
        if path.is_file()
    }
    assert found
    return found


def committed(store: Path) -> list[Path]:
    return [path for path in store.glob("views/*/ledger/*/*.json") if path.stem.isdigit()]


def ingest(manifest: pd.DataFrame, store: Path | str, *views: str, **options: Any) -> IngestSummary:
    return fs.ingest(manifest, store, encoder="random:0", config=config(*views), **options)


def plan(manifest: pd.DataFrame, store: Path, *views: str) -> IngestPlan:
    return plan_ingest(manifest, store, encoder="random:0", config=config(*views))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    few = write_corpus(tmp_path_factory.mktemp("corpus"), durations=[1.7, 3.3, 1.7, 3.3])
    many = pd.concat([few.assign(id=few["id"] + f"-{k}") for k in range(80)])
    return many.reset_index(drop=True)


@pytest.fixture(scope="module")
def local(manifest: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pipeline makes without a cluster."""
    store = tmp_path_factory.mktemp("local") / "store"
    assert 6 <= ingest(manifest, store).plan.columns <= 10
    return store


@pytest.fixture(scope="module")
def two() -> Iterator[distributed.Client]:
    with cluster("local:2") as client:
        yield client


class Executed(distributed.WorkerPlugin):
    """Writes down which process began which column."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.name = f"executed-{log}"

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        if finish == "executing" and "-column-" in str(key):
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {key}\n")

    def begun(self) -> list[tuple[int, str]]:
        lines = (line.split() for line in self.log.read_text().splitlines())
        return [(int(pid), key) for pid, key in lines]


@pytest.mark.parametrize(
    ("workers", "views"), [(1, ("mfcc",)), (2, ("gcu", "mfcc")), (4, ("mfcc",))]
)
def test_any_number_of_workers_makes_the_same_files(
    manifest: pd.DataFrame,
    local: Path,
    tmp_path: Path,
    workers: int,
    views: tuple[str, ...],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks: list[float] = []

    @contextmanager
    def bar(title: str, total: float, **_: Any) -> Iterator[Callable[[float], None]]:
        yield ticks.append

    monkeypatch.setattr(sys.modules["featurestore.ingest"], "progress_bar", bar)
    if workers == 2:
        done = ingest(manifest, tmp_path / "store", *views, client=request.getfixturevalue("two"))
    else:
        with cluster(f"local:{workers}") as client:
            assert len(client.nthreads()) == workers
            done = ingest(manifest, tmp_path / "store", *views, client=client)
    assert files(tmp_path / "store") == files(local, "*" if "gcu" in views else "mfcc*")
    assert fs.verify(tmp_path / "store").sound
    assert done.utterances == len(manifest)
    assert {"compile", "decode", "network", "write"} <= set(done.stages)
    assert len(ticks) == done.plan.columns
    assert sum(ticks) == pytest.approx(done.plan.frames * done.plan.frame_periods_s[0])


def test_opensmile_too(manifest: pd.DataFrame, two: distributed.Client, tmp_path: Path) -> None:
    pytest.importorskip("opensmile", reason="the extra 'egemaps' is not installed")
    some = manifest.groupby(manifest["path"]).head(15).reset_index(drop=True)
    views = ("mfcc", "egemaps")
    for name, client in (("local", None), ("cluster", two)):
        ingest(some, tmp_path / name, *views, client=client)
    assert files(tmp_path / "cluster") == files(tmp_path / "local")
    assert fs.verify(tmp_path / "cluster").sound


def test_a_bucket(manifest: pd.DataFrame, local: Path) -> None:
    pytest.importorskip("obstore", reason="the extra 's3' is not installed")
    with s3_server(), cluster("local:2") as client:
        ingest(manifest, "s3://corpora/store", "mfcc", client=client)
        place = as_place("s3://corpora/store")
        keys = [key for key in place.sizes("views") if "/parts/" in key]
        assert {key: place.read(key) for key in keys} == files(local, "mfcc*")
        assert fs.verify(place.url).sound


@contextmanager
def standing(folder: Path, *, workers: int, nanny: bool) -> Iterator[str]:
    """A scheduler and workers that somebody else has started, somewhere else."""
    (folder / "elsewhere").mkdir(parents=True)
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {
        "cwd": folder / "elsewhere",
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        "stdout": subprocess.DEVNULL,
        "stderr": (folder / "log").open("w"),
    }
    scheduler = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    worker = ["--nthreads", "1", "--host", "127.0.0.1", "--memory-limit", "0", "--no-dashboard"]
    if not nanny:
        worker.append("--no-nanny")
    known = ["--scheduler-file", str(file)]
    started = [subprocess.Popen([*dask, "scheduler", *scheduler, *known], **quiet)]
    started += [
        subprocess.Popen([*dask, "worker", *worker, *known], **quiet) for _ in range(workers)
    ]
    try:
        until = time.monotonic() + 60
        while not file.exists() or not file.stat().st_size:
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.05)
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)
            address = client.scheduler.address
        yield address
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
        quiet["stderr"].close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two workers without nannies; tests that kill them have their own."""
    with standing(tmp_path_factory.mktemp("standing"), workers=2, nanny=False) as found:
        yield found


@pytest.mark.parametrize("nanny", [False, True], ids=["gone for good", "started again"])
def test_a_killed_worker_costs_what_it_had_in_hand(
    manifest: pd.DataFrame, local: Path, tmp_path: Path, nanny: bool
) -> None:
    log = Executed(tmp_path / "log")
    killed: list[int] = []
    with (
        standing(tmp_path / "cluster", workers=2, nanny=nanny) as address,
        distributed.Client(address) as client,
    ):
        client.register_plugin(log)
        planned = plan(manifest, tmp_path / "store", "mfcc")

        def kill() -> bool:
            if not killed and committed(tmp_path / "store"):
                killed.append(log.begun()[-1][0])  # it has just begun a column
                os.kill(killed[0], signal.SIGKILL)
            return False

        run_plan(planned, client=client, stopped=kill)
    begun = log.begun()
    keys = [key for _, key in begun]
    twice = {key for key in keys if keys.count(key) > 1}
    assert len(set(keys)) == planned.columns
    assert killed
    assert len(twice) <= 2  # what it was at, and what it had not handed over
    assert twice <= {key for pid, key in begun if pid == killed[0]}
    assert len(keys) == planned.columns + len(twice)
    assert files(tmp_path / "store") == files(local, "mfcc*")
    assert fs.verify(tmp_path / "store").sound


CLI = [sys.executable, "-c", "from featurestore.cli import main; main()"]


def test_a_scheduler_by_its_address(
    manifest: pd.DataFrame, local: Path, address: str, tmp_path: Path
) -> None:
    fs.write_manifest(manifest, tmp_path / "manifest.csv")
    done = subprocess.run(
        [*CLI, "ingest", "manifest.csv", "store", "-w", "random:0", "--views", "mfcc", "-q",
         "--scheduler", address],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cluster: 2 workers, dashboard http://" in done.stderr
    assert fs.verify(tmp_path / "store").sound


def test_analyses_by_the_command_line(local: Path, address: str, tmp_path: Path) -> None:
    for command in ("correlate -t arousal", "evaluate -t arousal --features 5"):
        name, *options = command.split()
        for folder, more in (("here", []), ("there", ["--scheduler", address])):
            done = subprocess.run(
                [*CLI, name, local, *options, *more, "-o", tmp_path / folder],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert ("cluster: 2 workers" in done.stderr) == bool(more)
    here, there = (sorted((tmp_path / name).glob("*.csv")) for name in ("here", "there"))
    assert len(here) == len(there) > 1
    assert [one.read_bytes() for one in here] == [one.read_bytes() for one in there]


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("tcp://127.0.0.1:1", "no dask scheduler answers at 'tcp://127.0.0.1:1'"),
        ("nonsense://x", "no dask scheduler answers at 'nonsense://x'"),
        ("local:many", "'local:many': give a number"),
        ("local:0", "'local:0': give a number"),
    ],
)
def test_what_cannot_be_reached_is_named(
    monkeypatch: pytest.MonkeyPatch, scheduler: str, said: str
) -> None:
    monkeypatch.setattr(distribution, "_CONNECT_S", 0.5)
    with pytest.raises(FeatureStoreError, match=said), cluster(scheduler):
        pass


def test_without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    needed = r"pip install 'featurestore\[cluster\]'"
    with pytest.raises(FeatureStoreError, match=needed), cluster("local"):
        pass


def test_stopping_commits_what_is_in_hand(
    manifest: pd.DataFrame, local: Path, two: distributed.Client, tmp_path: Path
) -> None:
    planned = plan(manifest, tmp_path / "store", "mfcc")
    done = run_plan(planned, client=two, stopped=lambda: bool(committed(tmp_path / "store")))
    assert done.stopped
    # Two workers with two columns each, and not one more once a column is committed.
    assert len(committed(tmp_path / "store")) == 4
    assert 0 < done.utterances < len(manifest)
    assert (
        ingest(manifest, tmp_path / "store", "mfcc").utterances == len(manifest) - done.utterances
    )
    assert files(tmp_path / "store") == files(local, "mfcc*")


_CLIENT = """
import sys
import pandas as pd
import featurestore as fs
from distributed import Client
from featurestore.setup import IngestConfig
with Client(sys.argv[1]) as client:
    fs.ingest("manifest.csv", "store", config=IngestConfig(views=("mfcc",), column_frames=4096),
              client=client)
"""


def test_a_killed_client_is_no_obstacle(
    manifest: pd.DataFrame, local: Path, address: str, tmp_path: Path
) -> None:
    fs.write_manifest(manifest, tmp_path / "manifest.csv")
    client = subprocess.Popen([sys.executable, "-c", _CLIENT, address], cwd=tmp_path)
    while not committed(tmp_path / "store"):
        assert client.poll() is None
        time.sleep(0.002)
    client.kill()
    client.wait()
    left = len(committed(tmp_path / "store"))
    done = ingest(manifest, tmp_path / "store", "mfcc")  # while its workers may still be at it
    assert done.plan.columns == done.plan.jobs[0].plan.layout.columns - left > 0
    assert files(tmp_path / "store") == files(local, "mfcc*")
    assert fs.verify(tmp_path / "store").sound


def test_ctrl_c_leaves_the_workers_alone(
    manifest: pd.DataFrame, local: Path, tmp_path: Path
) -> None:
    fs.write_manifest(manifest, tmp_path / "manifest.csv")
    (tmp_path / "run.py").write_text(
        "from featurestore.cli.ingest import run_ingest\n"
        "from featurestore.setup import IngestConfig\n"
        "if __name__ == '__main__':\n"
        "    run_ingest('manifest.csv', 'store', weights='random:0', scheduler='local:1',\n"
        "               config=IngestConfig(views=('mfcc',), column_frames=4096))\n"
    )
    path = os.pathsep.join([str(Path(fs.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    running = subprocess.Popen(
        [sys.executable, "run.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not committed(tmp_path / "store"):
        assert running.poll() is None, running.communicate()
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert "stopping after the columns in hand" in said
    assert "stopped: what is written is safe" in said
    assert "Restarting worker" not in said
    assert len(committed(tmp_path / "store")) >= 2
    ingest(manifest, tmp_path / "store", "mfcc")
    assert files(tmp_path / "store") == files(local, "mfcc*")


def columns_of(planned: IngestPlan, **changes: Any) -> tuple[Columns, list[Any]]:
    """What `make_column` takes of a plan's first column, begun in the store."""
    (job,) = planned.jobs
    (part, _) = job.parts["mfcc"]
    (hearing,) = planned.setup.hearings
    part.begin(job.plan, job.rows["id"].to_numpy(object), job.frames)
    shared = Columns(
        root=planned.setup.root,
        token="",
        parts=((part, job.plan.layout),),
        request=fs.extract.Request((), mfcc=True, frames=True),
        front_end=hearing.front_end,
        buckets=job.buckets(planned.setup.batching(hearing)),
        frame_period_s=0.032,
    )
    column = job.plan.columns[0]
    local = replace(column, members=np.arange(len(column.members)))
    rows = job.rows.iloc[column.members].reset_index(drop=True)
    return replace(shared, **changes), [local, [0], rows, job.frames[column.members], None]


def test_whoever_lost_the_store_does_not_write(manifest: pd.DataFrame, tmp_path: Path) -> None:
    fs.ingest(manifest.iloc[:3], tmp_path / "store", config=config("mfcc"))
    before = files(tmp_path / "store")
    columns, rest = columns_of(plan(manifest, tmp_path / "store", "mfcc"))
    with as_place(tmp_path / "store").locked() as owner:
        stale = replace(columns, token="that of a process that was killed")
        with pytest.raises(StoreError, match="belongs to another process now"):
            make_column(stale, *rest)
        assert files(tmp_path / "store") == before
        other = replace(columns, token=owner.token, version="0.0.1")
        with pytest.raises(FeatureStoreError, match=r"planned with 0\.0\.1; install the same"):
            make_column(other, *rest)
        nowhere = replace(columns, root=as_place(tmp_path / "not mounted"), token=owner.token)
        with pytest.raises(StoreError, match="does not see the store"):
            make_column(nowhere, *rest)
        assert files(tmp_path / "store") == before


def full_disk(self: Any, key: str, *pieces: bytes | memoryview) -> None:
    if "/c/" in key:
        raise OSError(errno.ENOSPC, "No space left on device", key)
    _write(self, key, *pieces)


_write = LocalPlace.write


def fill_disk(full: bool) -> None:
    LocalPlace.write = full_disk if full else _write  # type: ignore[method-assign]


def test_a_full_disk_reads_as_it_does_without_a_cluster(
    manifest: pd.DataFrame, local: Path, two: distributed.Client, tmp_path: Path
) -> None:
    said = []
    for name, client in (("local", None), ("cluster", two)):
        fill_disk(client is None)
        two.run(fill_disk, client is not None)
        try:
            with pytest.raises(StoreError, match="No space left on device") as caught:
                ingest(manifest, tmp_path / name, "mfcc", client=client)
        finally:
            fill_disk(False)
            two.run(fill_disk, False)
        said.append(str(caught.value).replace(str(tmp_path / name), "STORE"))
    assert said[0] == said[1]
    ingest(manifest, tmp_path / "cluster", "mfcc", client=two)
    assert files(tmp_path / "cluster") == files(local, "mfcc*")


@pytest.mark.filterwarnings("ignore::featurestore.analysis.features.AnalysisWarning")
def test_analyses_read_on_the_workers(local: Path, address: str, tmp_path: Path) -> None:
    def results() -> list[Any]:
        store = fs.open_store(local)
        table = fs.evaluate(store, targets=("arousal",), features=5)
        return [
            fs.correlate(store, target="arousal", view="gcu"),
            summarise(table),
        ]

    here = results()
    with distributed.Client(address) as client:
        there = results()
        kinds = client.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.task_prefixes))
    assert "block_moments" in kinds
    np.testing.assert_array_equal(here[0].r, there[0].r)
    pd.testing.assert_frame_equal(here[1], there[1])


def test_the_dashboard_answers_on_whatever_port_is_free(
    monkeypatch: pytest.MonkeyPatch, two: distributed.Client
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(distribution, "_DASHBOARD", taken.getsockname()[1])
        with cluster("local:1") as client:
            assert client.dashboard_link != two.dashboard_link
            for one in (client, two):
                with urllib.request.urlopen(one.dashboard_link) as answer:
                    assert one.dashboard_link.endswith("/status")
                    assert answer.status == 200


def test_one_core_computes_what_several_do(
    manifest: pd.DataFrame, local: Path, tmp_path: Path
) -> None:
    def pin() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("processes cannot be bound to a core here")
    with cluster("local:1") as client:
        client.run(pin)
        ingest(manifest, tmp_path / "store", client=client)
    assert files(tmp_path / "store") == files(local)


def test_a_cluster_without_workers(
    manifest: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(distribution, "_LOOK_S", 0.1)
    with (
        distributed.LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as started,
        distributed.Client(started) as client,
        pytest.raises(FeatureStoreError, match="has had no running worker"),
    ):
        ingest(manifest, tmp_path / "store", "mfcc", client=client)


def test_a_cluster_that_goes_away(manifest: pd.DataFrame, local: Path, tmp_path: Path) -> None:
    with cluster("local:1") as client:

        def close() -> bool:
            if committed(tmp_path / "store"):
                client.cluster.close()
            return False

        with pytest.raises(FeatureStoreError, match="run the same ingest again to go on"):
            run_plan(plan(manifest, tmp_path / "store", "mfcc"), client=client, stopped=close)
    ingest(manifest, tmp_path / "store", "mfcc")
    assert files(tmp_path / "store") == files(local, "mfcc*")


class _Fake:
    """As much of a client as handing out takes."""

    asynchronous = False

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.resources: dict[str, float] = {}
        self.submitted: list[dict[str, Any]] = []

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {i: {"nthreads": n, "resources": self.resources}
                            for i, n in enumerate(self.threads)}}  # fmt: skip

    def submit(self, *arguments: Any, **options: Any) -> object:
        self.submitted.append(options)
        return object()


def test_workers_that_join_later_get_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Completed:
        def add(self, future: object) -> None:
            pass

    monkeypatch.setattr(distributed, "as_completed", Completed)
    rows = pd.DataFrame({"id": list("abcdefghijklmnop"), "path": "x"})
    work = Work(
        columns=[Column(k, 0, np.array([k])) for k in range(len(rows))],
        rows=Rows(rows), frames=np.ones(len(rows), int), writers=[], frame_period_s=1.0,
        origin=dict, before_writing=lambda: None, commit=lambda part, record: None,
        clock=Clock(), tick=lambda seconds: None,
    )  # fmt: skip
    columns = Columns(as_place("store"), "", (), None, None, (), 1.0)
    client = _Fake()
    tasks = distribution._Tasks(client, work, columns, rows, None)  # type: ignore[arg-type]
    # A cluster that scales with its work has to be given some first.
    for threads, submitted in (([], 2), ([1], 2), ([1, 1, 1], 6), ([1, 4], 10), ([9], 16)):
        client.threads = threads
        tasks._hand_out()
        assert len(client.submitted) == submitted
    assert client.submitted[0]["resources"] is None
    gpu = _Fake()
    gpu.threads, gpu.resources = [1, 1], {"GPU": 1}
    distribution._Tasks(gpu, work, columns, rows, None)._hand_out()  # type: ignore[arg-type]
    assert [one["resources"] for one in gpu.submitted] == [{"GPU": 1.0}] * 4


def test_an_encoder_that_cannot_be_sent(two: distributed.Client) -> None:
    class Stubborn:
        name = "stubborn"

        def __reduce__(self) -> Any:
            raise TypeError("it holds a socket")

    with pytest.raises(FeatureStoreError, match=r"'stubborn' cannot be sent .*it holds a socket"):
        distribution._packed(Stubborn())  # type: ignore[arg-type]
