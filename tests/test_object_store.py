"""A store in a bucket is the store on a disk, whatever the network does."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from object_server import EVERY_FAULT, Fault, FaultyProxy, first, pointed_at, s3_server, some
from synthetic import write_corpus

import featurestore as fs
from featurestore.errors import StoreError
from featurestore.ingest import run_plan
from featurestore.setup import IngestConfig
from featurestore.storage import Place, as_place, bucket
from featurestore.storage.bucket import Patience
from featurestore.storage.objects import ObstorePlace
from featurestore.store.ledger import Part, read_views
from featurestore.store.rows import read_rows
from featurestore.store.verify import repair

MANIFEST = "s3://corpora/audio/manifest.csv"
MFCC = IngestConfig(views=("mfcc",), column_frames=4096)
BOTH = IngestConfig(views=("mfcc", "gcu"), column_frames=4096)
QUICK = Patience(retries=6, seconds=20.0, first_s=0.005, longest_s=0.05, timeout_s=20.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server with recordings and their manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = write_corpus(folder, durations=np.linspace(1.0, 3.0, 8).tolist(), speakers=4)
    with s3_server() as endpoint:
        audio = as_place("s3://corpora/audio")
        for path in rows["path"]:
            audio.write(Path(path).name, Path(path).read_bytes())
        rows["path"] = [f"{audio.url}/{Path(path).name}" for path in rows["path"]]
        many = pd.concat([rows.assign(id=rows["id"] + f"-{k:02d}") for k in range(20)])
        fs.write_manifest(many.reset_index(drop=True), MANIFEST)
        yield endpoint


@pytest.fixture
def store(server: str, request: pytest.FixtureRequest) -> str:
    """A URL at which nothing is."""
    name = re.sub(r"\W+", " ", request.node.name).strip()
    return f"s3://corpora/stores/{name}"


@pytest.fixture(scope="module")
def mfcc(server: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A store on a disk."""
    path = tmp_path_factory.mktemp("stores") / "mfcc"
    assert fs.ingest(MANIFEST, path, config=MFCC).plan.columns > 2
    return as_place(path)


@pytest.fixture(scope="module")
def both(server: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("stores") / "both"
    fs.ingest(MANIFEST, path, encoder="random:0", config=BOTH)
    return as_place(path)


@pytest.fixture(scope="module")
def remote(both: Place) -> str:
    """The same in a bucket, only to be read."""
    url = "s3://corpora/stores/both"
    fs.ingest(MANIFEST, url, encoder="random:0", config=BOTH)
    return url


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "PATIENCE", QUICK)


def contents(store: str | Place) -> dict[str, bytes]:
    """Arrays and tables; the records beside them say when they were made."""
    place = as_place(store)
    return {key: place.read(key) for key in place.sizes() if "/parts/" in key}


def same(store: str | Place, other: str | Place) -> None:
    """Both are sound and hold the same bytes, and nobody writes to them."""
    assert fs.verify(store).problems == ()
    assert contents(store) == contents(other)
    pd.testing.assert_frame_equal(*(read_rows(as_place(one)) for one in (store, other)))
    assert not as_place(store).exists("lock.json")


def featurestore(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of a command."""
    from featurestore.cli import main

    monkeypatch.setattr(sys, "argv", ["featurestore", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# --- what people do with one --------------------------------------------------------------------


def test_a_store_in_a_bucket_is_that_on_a_disk(both: Place, remote: str) -> None:
    same(remote, both)
    found, expected = fs.open_store(remote), fs.open_store(both)
    assert found.views == expected.views
    for view in ("mfcc", "gcu"):
        pd.testing.assert_frame_equal(found.utterances(view), expected.utterances(view))
        assert found.pooled(view).equals(expected.pooled(view))
        np.testing.assert_array_equal(found.frames(view), expected.frames(view))
    again = fs.ingest(MANIFEST, remote, encoder="random:0", config=BOTH)
    assert again.utterances == 0


def test_labels_follow_the_manifest(store: str, mfcc: Place) -> None:
    rows = fs.read_manifest(MANIFEST)
    fs.ingest(rows.assign(speaker="nobody"), store, config=MFCC)
    assert fs.ingest(rows, store, config=MFCC).relabelled == len(rows)
    place = as_place(store)
    assert len(place.names("manifest")) == 1
    assert set(fs.open_store(store).utterances("mfcc")["speaker"]) == {"s0", "s1", "s2", "s3"}


def _flip(place: Place, key: str) -> None:
    data = bytearray(place.read(key))
    data[len(data) // 2] ^= 1
    place.write(key, bytes(data))


@pytest.mark.parametrize(
    "damage", [_flip, lambda place, key: place.delete(key)], ids=["flipped", "deleted"]
)
@pytest.mark.parametrize(
    "pattern", [r"parts/.*/frames/mfcc/c/1/0", r"parts/.*/utterances/speaker/zarr.json"]
)
def test_damage_is_found_and_mended(store: str, mfcc: Place, damage, pattern: str) -> None:
    fs.ingest(MANIFEST, store, config=MFCC)
    place = as_place(store)
    (key,) = [key for key in place.sizes() if re.search(pattern, key)]
    damage(place, key)
    found = fs.verify(store)
    assert not found.sound
    assert repair(store, found) == 1
    fs.ingest(MANIFEST, store, config=MFCC)
    same(store, mfcc)


def test_a_lost_chunk_is_an_error_not_a_zero(store: str, mfcc: Place) -> None:
    fs.ingest(MANIFEST, store, config=MFCC)
    place = as_place(store)
    (key,) = [key for key in place.sizes() if key.endswith("frames/mfcc/c/1/0")]
    place.delete(key)
    with pytest.raises(StoreError, match=r"frames/mfcc/c/1/0 is missing"):
        fs.open_store(store).frames("mfcc", "mfcc").to_numpy()


def test_forget_and_compact(store: str, tmp_path: Path, mfcc: Place) -> None:
    """The same steps lead to the same bytes."""
    rows = fs.read_manifest(MANIFEST)
    for where in (store, tmp_path / "store"):
        fs.ingest(rows.iloc[:90], where, config=MFCC)
        fs.ingest(rows, where, config=MFCC)
        assert fs.forget(where, speakers=["s1"]).utterances == 40
        assert list(fs.compact(where).after.values()) == [1]
        table = fs.open_store(where).utterances("mfcc")
        assert len(table) == 120
        assert "s1" not in set(table["speaker"])
        assert fs.ingest(rows, where, config=MFCC).utterances == 0
    same(store, tmp_path / "store")


def test_the_command_line(
    remote: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert featurestore(monkeypatch, "info", remote, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["store"] == remote
    assert featurestore(monkeypatch, "verify", remote, "--quiet", "--recompute", "2") == 0
    assert "sound" in capsys.readouterr().out
    arguments = ["--target", "arousal", "--view", "mfcc", "--output", str(tmp_path / "results")]
    assert featurestore(monkeypatch, "correlate", remote, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)
    assert featurestore(monkeypatch, "ingest", MANIFEST, remote, "--views", "mfcc", "-q") == 0
    assert f"Store: {remote}" in capsys.readouterr().out


# --- what can happen to one ---------------------------------------------------------------------

_SLOWED = """
import sys, time
sys.path[:0] = {path!r}
import featurestore as fs
from featurestore.setup import IngestConfig
from featurestore.store.ledger import Part
commit = Part.commit
def slowly(self, record):
    commit(self, record)
    time.sleep(60)
Part.commit = slowly
fs.ingest({manifest!r}, {store!r}, config=IngestConfig(views=("mfcc",), column_frames=4096))
"""


def test_a_killed_ingest_goes_on(store: str, mfcc: Place) -> None:
    code = _SLOWED.format(path=sys.path, manifest=MANIFEST, store=store)
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    place = as_place(store)
    try:
        while not any(re.search(r"ledger/.*/\d{5}\.json", key) for key in place.sizes("views")):
            assert process.poll() is None
            time.sleep(0.1)
        with (
            pytest.raises(StoreError, match=rf"another process is writing.*{process.pid} on "),
            place.locked(watch=False),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert place.exists("lock.json")
    done = fs.ingest(MANIFEST, store, config=MFCC)  # at once: the kernel knows that it is dead
    assert done.plan.columns > 0
    assert 0 < done.utterances < len(fs.read_manifest(MANIFEST))
    same(store, mfcc)


@pytest.mark.parametrize("seed", range(3))
def test_an_unreliable_network_changes_nothing(
    server: str, store: str, mfcc: Place, quick: None, seed: int
) -> None:
    with FaultyProxy(server, some(0.15, seed=seed)) as proxy, pointed_at(proxy.url):
        done = fs.ingest(MANIFEST, store, config=MFCC)
        assert done.skipped == ()
        assert done.utterances == 160
        assert fs.verify(store).sound
    assert set(proxy.faults) == set(EVERY_FAULT)
    as_place(store).delete("lock.json")  # where the one request to remove it was lost
    same(store, mfcc)


@pytest.mark.parametrize("kind", EVERY_FAULT)
def test_an_answer_that_is_lost_in_every_put_in_turn(
    server: str, store: str, quick: None, kind: str
) -> None:
    """Whichever request it strikes, once each, what the request was for comes about."""
    seen: set[tuple[str, str, str]] = set()

    def once_each(request) -> str | None:
        key = (request.method, request.path, request.query.partition("=")[0])
        if key in seen or request.method == "DELETE" or "delete" in request.query:
            return None
        seen.add(key)
        return kind

    rows = fs.read_manifest(MANIFEST).iloc[:8]
    with FaultyProxy(server, once_each, delay_s=0.005) as proxy, pointed_at(proxy.url):
        fs.ingest(rows, store, config=MFCC)
        assert fs.verify(store).sound
        assert len(proxy.sent("PUT")) > 20
    assert not as_place(store).exists("lock.json")


def _down_after(part: str) -> Fault:
    """A server that is gone for good once a key with this in it was written."""
    gone: list[bool] = []

    def fault(request) -> str | None:
        if request.method == "PUT" and re.search(part, request.path):
            gone.append(True)
        return "drop" if gone else None

    return fault


@pytest.mark.parametrize(
    "after", [r"plan\.json", r"frames/mfcc/c/1/0", r"/0000\d\.json", r"utterances/id", "lock.json"]
)
def test_a_server_that_is_gone_is_said_and_nothing_is_lost(
    server: str, store: str, mfcc: Place, after: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(bucket, "PATIENCE", Patience(2, 1.0, 0.005, 0.01, 2.0))
    monkeypatch.setattr(bucket, "TIMING", bucket.LeaseTiming(0.2, 3.0))
    plan = fs.plan_ingest(MANIFEST, store, config=MFCC)
    with FaultyProxy(server, _down_after(after)) as proxy, pointed_at(proxy.url):
        with pytest.raises(StoreError, match=r"What is written is safe.*run the same") as caught:
            run_plan(plan)
        assert "\n" not in str(caught.value)
        assert store in str(caught.value)
        code = featurestore(monkeypatch, "ingest", MANIFEST, store, "--views", "mfcc", "-q")
        said = capsys.readouterr().err.strip()
        assert code == 1
        assert "\n" not in said
        assert said.startswith("error: ")
    fs.ingest(MANIFEST, store, config=MFCC)
    same(store, mfcc)


def test_a_server_that_never_was(
    server: str, store: str, quick: None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    proxy = FaultyProxy(server)
    proxy.stop()
    with pointed_at(proxy.url):
        for command in (["info", store], ["verify", store], ["ingest", MANIFEST, store]):
            assert featurestore(monkeypatch, *command) == 1
            said = capsys.readouterr().err.strip()
            assert re.fullmatch(r"error: .*cannot be reached.*", said)


@pytest.mark.parametrize(
    ("fault", "url", "expected"),
    [
        (lambda request: "403", "s3://corpora/stores/refused", "refuses access"),
        (None, "s3://misspelt/store", "there is no such bucket"),
    ],
    ids=["access denied", "no bucket"],
)
def test_what_is_refused_is_said_on_one_line(
    server: str, quick: None, fault: Fault | None, url: str, expected: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fs.write_manifest(fs.read_manifest(MANIFEST), tmp_path / "manifest.csv")
    manifest = str(tmp_path / "manifest.csv")
    with FaultyProxy(server, fault) as proxy, pointed_at(proxy.url):
        for command in (
            ["info", url], ["verify", url], ["compact", url], ["forget", url, "--speaker", "s1"],
            ["correlate", url, "--target", "arousal", "--output", str(tmp_path / "results")],
            ["ingest", manifest, url, "--views", "mfcc", "-q"],
        ):  # fmt: skip
            assert featurestore(monkeypatch, *command) == 1
            said = capsys.readouterr().err.strip()
            assert re.fullmatch(rf"error: .*{expected}.*", said), command
            assert url in said
        assert len(proxy.requests) < 100  # asking again does not help


def test_a_refused_lock_is_said(server: str, store: str, quick: None) -> None:
    """Rights to read only: nothing is written, and the reason is given."""
    read_only = lambda request: "403" if request.method != "GET" else None  # noqa: E731
    with (
        FaultyProxy(server, read_only) as proxy,
        pointed_at(proxy.url),
        pytest.raises((StoreError, PermissionError), match="refuses access"),
    ):
        fs.ingest(MANIFEST, store, config=MFCC)


# --- one request at a time ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY_FAULT)
def test_every_request_survives_every_fault(server: str, quick: None, kind: str) -> None:
    place = ObstorePlace("s3://corpora", f"faults {kind}")
    with FaultyProxy(server) as proxy, pointed_at(proxy.url):

        def struck(method: str, query: str = "") -> None:
            strike = first(2, kind, method=method)
            proxy.fault = lambda request: strike(request) if query in request.query else None

        struck("PUT")
        assert place.create("key", b"0123456789")
        struck("PUT")
        assert not place.create("key", b"0123456789")
        tag = place.tagged("key").tag
        struck("PUT")
        new = place.replace_tagged("key", b"9876543210", tag)
        assert place.tagged("key").tag == new
        struck("PUT")
        place.write("other", b"1")
        struck("GET")
        assert place.read("key") == b"9876543210"
        struck("GET")
        assert place.read("key", 2, 4) == b"76"
        struck("GET")
        assert place.read("key", -2) == b"10"
        struck("HEAD")
        assert place.exists("key")
        struck("HEAD")
        assert place.stamp("key").startswith("10-")
        struck("GET")
        assert place.sizes() == {"key": 10, "other": 1}
        struck("GET")
        assert place.names() == ["key", "other"]
        big = np.random.default_rng(0).bytes(11 << 20)
        for query in ("uploads", "partNumber", "uploadId"):
            struck("PUT" if query == "partNumber" else "POST", query)
            place.write("big", big)
            assert place.read("big") == big
        struck("POST")
        place.delete("big")
        struck("POST")
        place.delete_all("")
        proxy.fault = lambda request: None
        assert place.sizes() == {}
        assert sum(proxy.faults.values()) >= 17


def test_a_bad_request_is_not_repeated(server: str) -> None:
    place = ObstorePlace("s3://corpora", "once")
    with FaultyProxy(server) as proxy, pointed_at(proxy.url):
        for ask in (lambda: place.read("gone"), lambda: place.size("gone")):
            proxy.requests.clear()
            with pytest.raises(FileNotFoundError):
                ask()
            assert len(proxy.requests) == 1


def test_the_ledger_is_put_if_absent(store: str) -> None:
    rows = fs.read_manifest(MANIFEST).iloc[:8]
    fs.ingest(rows, store, config=MFCC)
    (view,) = read_views(as_place(store))
    (part,) = view.parts()
    assert isinstance(part, Part)
    with pytest.raises(StoreError, match=r"another process has committed .*00000\.json"):
        part.commit(part.record(0))


def test_nothing_is_left_open(server: str, store: str) -> None:
    with ExitStack() as stack:
        owner = stack.enter_context(as_place(store).locked())
        assert owner.holds()
        assert as_place(store).owned_by(owner.token)
        assert not as_place(store).owned_by("another")
    assert not as_place(store).owned_by(owner.token)
    assert as_place(store).sizes() == {}
