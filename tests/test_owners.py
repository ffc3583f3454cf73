"""One writer at a time: leases, and two ingests that begin together."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import trials
from object_server import FaultyProxy, first, pointed_at, s3_server
from synthetic import write_corpus

import featurestore as fs
from featurestore.errors import StoreError
from featurestore.setup import IngestConfig
from featurestore.storage import Place, as_place, bucket, locks
from featurestore.storage.locks import LEASE, LeaseTiming, Owner, leased, this_process
from featurestore.storage.objects import FsspecPlace, ObstorePlace

MFCC = IngestConfig(views=("mfcc",), column_frames=4096)
ROUNDS = trials(20)
# Not so brief that a busy machine starves the thread that renews.
BRIEF = LeaseTiming(renew_s=0.1, watch_s=1.5)
STEADY = LeaseTiming(renew_s=0.1, watch_s=10.0)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def place(server: str, request: pytest.FixtureRequest) -> ObstorePlace:
    return ObstorePlace("s3://corpora", f"leases/{request.node.name}")


def wait_for(what: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def owner_record(**values: object) -> bytes:
    record = {"token": "00ff", "host": "elsewhere", "space": "there", "pid": 1, "renewed": 3}
    return json.dumps({**record, **values}).encode()


# --- the lease ----------------------------------------------------------------------------------


def test_it_is_kept_alive_and_let_go(place: ObstorePlace) -> None:
    with leased(place, BRIEF) as owner:
        seen = {place.tagged(LEASE).tag}
        wait_for(lambda: seen.add(place.tagged(LEASE).tag) or len(seen) > 3)
        owner.check()
        assert place.owned_by(owner.token)
        values = json.loads(place.read(LEASE))
        assert (values["host"], values["pid"]) == (socket.gethostname(), os.getpid())
    assert not place.exists(LEASE)
    assert not place.owned_by(owner.token)
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_it_is_refused_while_it_is_renewed(place: ObstorePlace) -> None:
    with leased(place, BRIEF) as owner:
        for watch in (True, False):
            with (
                pytest.raises(StoreError, match=rf"another process .*{os.getpid()} on .*wait for"),
                leased(place, BRIEF, watch=watch),
            ):
                pass
        owner.check()


def test_that_of_a_dead_process_of_this_host_is_taken_at_once(place: ObstorePlace) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    place.write(LEASE, owner_record(**{**this_process(), "pid": process.pid}))
    with leased(place, LeaseTiming(5.0, 3600.0)) as owner:
        assert place.owned_by(owner.token)
    assert not place.exists(LEASE)


@pytest.mark.parametrize(
    "record", [owner_record(), owner_record(**this_process()), b"", b"not JSON", b'{"token": 5}']
)
def test_that_of_a_vanished_owner_is_taken_after_a_watch(
    place: ObstorePlace, record: bytes
) -> None:
    place.write(LEASE, record)
    with pytest.raises(StoreError, match="another process"), leased(place, BRIEF, watch=False):
        pass
    assert place.read(LEASE) == record
    began = time.monotonic()
    with leased(place, BRIEF) as owner:
        assert time.monotonic() - began >= BRIEF.watch_s
        owner.check()


def test_no_clock_is_compared(place: ObstorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record from the future or the past is only watched; the calendar may jump meanwhile."""
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with leased(place, BRIEF) as owner:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        with pytest.raises(StoreError, match="another process"), leased(place, BRIEF):
            pass
        owner.check()
    assert b"time" not in owner_record()


def test_who_was_taken_over_notices(place: ObstorePlace) -> None:
    with leased(place, BRIEF) as owner:
        place.write(LEASE, owner_record())
        wait_for(lambda: not owner.holds())
        with pytest.raises(StoreError, match=r"took this store over.*committed is safe"):
            owner.check()
        assert not place.owned_by(owner.token)
    assert place.read(LEASE) == owner_record()  # and leaves the other's alone


def test_who_cannot_give_a_sign_of_life_stops_in_time(server: str, place: ObstorePlace) -> None:
    """Before anybody may take over, and for as long as the network is away."""
    with FaultyProxy(server) as proxy, pointed_at(proxy.url), ExitStack() as stack:
        timing = LeaseTiming(0.1, 2.0)
        owner = stack.enter_context(leased(place, timing))
        proxy.fault = lambda request: "drop"
        wait_for(lambda: not owner.holds())
        with pytest.raises(StoreError):
            owner.check()
        proxy.fault = lambda request: None
        wait_for(owner.holds)  # nobody was waiting for it
        owner.check()
    assert not place.exists(LEASE)


def test_a_frozen_owner_does_not_go_on(
    place: ObstorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leased(place, LeaseTiming(1000.0, 1.5)) as owner:  # its thread does not come to run
        assert owner.holds()
        with leased(place, LeaseTiming(0.1, 1.5)) as other:
            assert not owner.holds()
            other.check()
            with pytest.raises(StoreError):
                owner.check()
    assert not place.exists(LEASE)


def test_time_asleep_counts(place: ObstorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    with leased(place, LeaseTiming(1000.0, 10.0)) as owner:
        now = locks._now
        monkeypatch.setattr(locks, "_now", lambda: now() + 11.0)
        assert not owner.holds()


@pytest.mark.parametrize("kind", ["lost", "500 late", "cut", "drop", "503"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_lost_answer_loses_it(server: str, place: ObstorePlace, kind: str, count: int) -> None:
    """Taking, renewing, taking over, one to three answers lost in a row."""
    with FaultyProxy(server) as proxy, pointed_at(proxy.url):
        proxy.fault = first(count, kind, method="PUT", path=LEASE)
        with leased(place, STEADY) as owner:
            for _ in range(2):
                proxy.fault = first(count, kind, method="PUT", path=LEASE)
                before = len(proxy.sent("PUT", LEASE))
                wait_for(lambda before=before: len(proxy.sent("PUT", LEASE)) > before + count)
                owner.check()
        assert not place.exists(LEASE)
        place.write(LEASE, owner_record())
        proxy.fault = first(count, kind, method="PUT", path=LEASE)
        with leased(place, LeaseTiming(0.1, 0.5)) as owner:
            assert place.owned_by(owner.token)
            proxy.fault = lambda request: None


@pytest.mark.parametrize("kind", ["lost", "drop"])
def test_what_others_have_made_since_is_not_removed(
    server: str, place: ObstorePlace, kind: str
) -> None:
    """The request that lets go is sent once: a second one could be for another owner's lease."""
    with FaultyProxy(server) as proxy, pointed_at(proxy.url):
        with leased(place, STEADY):
            removals = lambda: [  # noqa: E731
                one for one in proxy.requests if one.method == "DELETE" or "delete" in one.query
            ]
            proxy.fault = lambda request: kind if request.method in ("DELETE", "POST") else None
        assert len(removals()) == 1
        proxy.fault = lambda request: None
    assert place.exists(LEASE) == (kind == "drop")


def test_a_server_that_is_gone_does_not_hide_what_happened(
    server: str, place: ObstorePlace
) -> None:
    with FaultyProxy(server) as proxy, pointed_at(proxy.url):
        with pytest.raises(KeyError, match="the cause"), leased(place, BRIEF):
            _fail(proxy)
        with (
            pytest.raises(OSError, match="object store failed"),
            _impatient(),
            leased(place, BRIEF),
        ):
            pass


def _fail(proxy: FaultyProxy) -> None:
    proxy.fault = lambda request: "drop"
    raise KeyError("the cause")


@contextmanager
def _impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket, "PATIENCE", bucket.Patience(1, 0.5, 0.01, 0.02, 1.0))
        yield


@pytest.mark.parametrize("stale", [False, True], ids=["free", "dead"])
@pytest.mark.parametrize("kind", ["obstore", "s3fs", "memory"])
def test_of_many_one_gets_it(server: str, place: ObstorePlace, kind: str, stale: bool) -> None:
    if kind == "s3fs":
        pytest.importorskip("s3fs")
    urls = {"obstore": place.url, "s3fs": place.url, "memory": f"memory://{place.prefix}"}
    shared = as_place(urls[kind]) if kind == "obstore" else FsspecPlace(urls[kind])  # type: ignore[assignment]
    if stale:
        shared.write(LEASE, owner_record())
    owners: list[Owner] = []
    refused: list[StoreError] = []
    barrier, done = threading.Barrier(8), threading.Event()

    def run() -> None:
        barrier.wait()
        try:
            with leased(shared, LeaseTiming(0.1, 3.0)) as owner:
                owners.append(owner)
                done.wait()
                owner.check()
        except StoreError as error:
            refused.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(owners) + len(refused) == 8)
    done.set()
    for thread in threads:
        thread.join()
    assert len(owners) == 1
    assert len(refused) == 7
    assert not shared.exists(LEASE)


# --- two ingests that begin together ------------------------------------------------------------

_WRITER = """
import sys
sys.path[:0] = {path!r}
import warnings
warnings.simplefilter("ignore")
import featurestore as fs
from featurestore.errors import StoreError
from featurestore.setup import IngestConfig
from featurestore.storage import bucket
bucket.TIMING = bucket.LeaseTiming(0.2, 10.0)
config = IngestConfig(views=("mfcc",), column_frames=4096, workers=1)
rows = fs.read_manifest({manifest!r})
fs.ingest(rows, {warm!r}, config=config)
print("ready", flush=True)
for line in sys.stdin:
    store, kind = line.rstrip("\\n").split("\\t")
    try:
        if kind == "ingest":
            done = fs.ingest(rows, store, config=config)
            print("done", done.utterances, flush=True)
        else:
            print("done", len(fs.forget(store, speakers=["s0"]).rewritten), flush=True)
    except StoreError as error:
        print("refused", str(error).replace("\\n", " "), flush=True)
    except BaseException as error:
        print("broken", repr(error), flush=True)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = write_corpus(folder, durations=[1.5] * 6)
    many = pd.concat([rows.assign(id=rows["id"] + f"-{k:02d}") for k in range(16)])
    fs.write_manifest(many.reset_index(drop=True), folder / "manifest.csv")
    assert fs.ingest(folder / "manifest.csv", folder / "expected", config=MFCC).plan.columns > 1
    return folder


@pytest.fixture(scope="module")
def writers(server: str, corpus: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that ingest or forget on command."""
    manifest = str(corpus / "manifest.csv")
    found = [
        subprocess.Popen(
            [sys.executable, "-c",
             _WRITER.format(path=sys.path, manifest=manifest, warm=str(corpus / f"warm{number}"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for writer in found:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    yield found
    for writer in found:
        writer.communicate()


def together(
    writers: list[subprocess.Popen[str]], store: str, *kinds: str, head_start_s: float = 0.0
) -> list[str]:
    """What each says that was told to begin at the same time."""
    for writer, kind in zip(writers, kinds, strict=True):
        assert writer.stdin is not None
        writer.stdin.write(f"{store}\t{kind}\n")
        writer.stdin.flush()
        time.sleep(head_start_s)
    answers = []
    for writer in writers:
        assert writer.stdout is not None
        answers.append(writer.stdout.readline().strip())
    return answers


def contents(place: Place) -> dict[str, bytes]:
    return {key: place.read(key) for key in place.sizes() if "/parts/" in key}


_REFUSED = ("another process", "has changed since this plan", "run the same ingest again")


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_two_that_begin_together_do_no_damage(
    writers: list[subprocess.Popen[str]], corpus: Path, tmp_path: Path, where: str
) -> None:
    expected = contents(as_place(corpus / "expected"))
    for turn in range(ROUNDS):
        store = str(tmp_path / str(turn)) if where == "disk" else f"s3://corpora/race/{turn}"
        # From at the same moment to one after the other.
        head_start = 0.0 if turn % 2 else 0.02 * turn
        answers = together(writers, store, "ingest", "ingest", head_start_s=head_start)
        kinds = sorted(answer.split()[0] for answer in answers)
        assert kinds in (["done", "done"], ["done", "refused"]), answers
        added = sorted(int(one.split()[1]) for one in answers if one.startswith("done"))
        assert added in ([96], [0, 96]), answers
        for answer in answers:
            if answer.startswith("refused"):
                assert any(words in answer for words in _REFUSED), answer
        place = as_place(store)
        assert fs.verify(place).problems == ()
        assert contents(place) == expected
        assert not place.exists(LEASE)
        with place.locked() as owner:
            owner.check()
        if where == "disk":
            shutil.rmtree(store)


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_who_forgets_while_another_ingests(
    writers: list[subprocess.Popen[str]], corpus: Path, tmp_path: Path, where: str
) -> None:
    """Either may be refused; neither harms the other, and what is forgotten stays so."""
    rows = fs.read_manifest(corpus / "manifest.csv")
    for turn in range(5):
        store = str(tmp_path / str(turn)) if where == "disk" else f"s3://corpora/forget/{turn}"
        fs.ingest(rows.iloc[:30], store, config=MFCC)
        answers = together(writers, store, "ingest", "forget", head_start_s=0.05 * turn)
        assert all(answer.startswith(("done", "refused")) for answer in answers), answers
        if any(answer.startswith("refused") for answer in answers):
            answers = [together(writers[k : k + 1], store, kind)[0] for k, kind in
                       ((1, "forget"), (0, "ingest"))]  # fmt: skip
        assert fs.verify(store).problems == ()
        table = fs.open_store(store).utterances("mfcc")
        assert "s0" not in set(table["speaker"])
        assert len(table) == 64
        assert not as_place(store).exists(LEASE)
