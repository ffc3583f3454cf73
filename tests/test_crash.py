"""Ingests that are killed, interrupted and starved, and what is left of them."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import trials
from crashing import CONFIG, Tiny
from forks import Forks, forks
from synthetic import write_corpus

import featurestore as fs
from featurestore.errors import StoreError
from featurestore.ingest import run_plan
from featurestore.planning import plan_ingest
from featurestore.storage.local import LocalPlace

KILLS = trials(50)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """720 utterances of a few files, in 6 columns."""
    folder = tmp_path_factory.mktemp("corpus")
    few = write_corpus(folder, durations=[0.3, 0.5, 0.7, 0.9, 1.1, 1.3])
    many = [few.assign(id=few["id"] + f"-{k}") for k in range(120)]
    return pd.concat(many, ignore_index=True)


@pytest.fixture(scope="module")
def table(manifest: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    manifest.to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks("crashing", tmp_path_factory.mktemp("server") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def whole(server: Forks, table: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted store, made like the others."""
    path = tmp_path_factory.mktemp("whole") / "store"
    server.start("ingest", table, str(path))
    assert not server.wait()
    assert fs.verify(path).sound
    return path


def contents(store: Path) -> dict[str, bytes]:
    """Arrays, tables, plans and labels: everything but when it was made."""
    found = {}
    for pattern in ("views/*/parts/**/*", "views/*/ledger/*/plan.*", "manifest/*", "**/view.json"):
        for path in store.glob(pattern):
            if path.is_file():
                found[path.relative_to(store).as_posix()] = path.read_bytes()
    return found


def records(store: Path) -> dict[str, bytes]:
    """Ledger records of columns."""
    paths = store.glob("views/*/ledger/*/0*.json")
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in paths}


def unrecorded(store: Path) -> int:
    """Columns that have a shard and no record: their work is lost."""
    done = set(records(store))
    begun = {
        f"views/{shard.parts[-9]}/ledger/{shard.parts[-7][:-5]}/{int(shard.parts[-2]):05d}.json"
        for shard in (path.resolve() for path in store.glob("views/*/parts/*/frames/gate/c/*/*/*"))
    }
    return len(begun - done)


def test_an_ingest_killed_at_any_moment_is_resumed_to_the_last_bit(
    server: Forks, table: str, whole: Path, tmp_path: Path
) -> None:
    expected = contents(whole)
    began = time.monotonic()
    server.start("ingest", table, str(tmp_path / "timed"))
    first = _first_record(tmp_path / "timed") - began
    assert not server.wait()
    duration = time.monotonic() - began
    moments = random.Random(0)
    interrupted = 0
    for trial in range(KILLS):
        store = tmp_path / f"store-{trial}"
        pid = server.start("ingest", table, str(store))
        if trial % 2:  # anywhere, or while columns are written
            time.sleep(duration * moments.random())
        else:
            _first_record(store)
            time.sleep(0.9 * (duration - first) * moments.random())
        if _alive(pid):
            os.killpg(pid, signal.SIGKILL)
        server.wait()
        before = records(store)
        interrupted += 0 < len(before) < len(records(whole))
        # One column is computed while another is written.
        assert unrecorded(store) <= 1
        if store.exists() and before and not list(store.glob("views/*/ledger/*/complete.json")):
            with pytest.raises(StoreError, match="Run the same 'featurestore ingest' again"):
                fs.open_store(store).pooled("tiny")
        server.start("ingest", table, str(store))
        assert not server.wait()
        after = records(store)
        # What was committed was not made again: its record says when it was made.
        assert {name: after[name] for name in before} == before
        assert contents(store) == expected
        shutil.rmtree(store)
    assert interrupted >= KILLS / 5, "nearly all kills came before or after the work"


def _first_record(store: Path) -> float:
    deadline = time.monotonic() + 60
    while not records(store):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return time.monotonic()


def _alive(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def test_every_object_is_on_the_disk_before_its_record(
    manifest: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    create = LocalPlace.create

    def checked(self: LocalPlace, key: str, data: bytes) -> bool:
        if key[:5].isdigit():
            record = self.path / key
            shards = [
                path
                for path in (record.parents[2] / "parts" / f"{record.parent.name}.zarr").rglob("*")
                if path.is_file() and f"/c/0/{int(key[:5])}/0" in f"{path}"
            ]
            assert shards, "a record without shards"
            for path in shards:
                assert str(path) in synced
                assert str(path.parent) in synced, "a name that a power cut may lose"
        return create(self, key, data)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(LocalPlace, "create", checked)
    fs.ingest(manifest, tmp_path / "store", encoder=Tiny(), config=CONFIG)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_cleanly_and_what_is_committed_stays(
    server: Forks, manifest: pd.DataFrame, times: int, tmp_path: Path
) -> None:
    many = pd.concat([manifest.assign(id=manifest["id"] + f"+{k}") for k in range(4)])
    fs.write_manifest(many.reset_index(drop=True), tmp_path / "manifest.csv")
    arguments = ["ingest", str(tmp_path / "manifest.csv"), str(tmp_path / "store")]
    arguments += ["--views", "mfcc", "--quiet"]
    pid = server.start("cli", *arguments)
    while not records(tmp_path / "store"):
        time.sleep(0.002)
    for _ in range(times):
        os.kill(pid, signal.SIGINT)
        time.sleep(0.02)
    said = server.wait()
    assert "stopped: what is written is safe; run the same command again to go on" in said
    assert "Traceback" not in said
    before = records(tmp_path / "store")
    if times == 1:
        assert "stopping after the columns in hand" in said
        # Nothing was begun and dropped: every shard has its record.
        shards = list((tmp_path / "store").glob("views/*/parts/*/frames/mfcc/c/*/0"))
        assert len(shards) == len(before)
    server.start("cli", *arguments)
    assert "set aside       none" in server.wait()
    after = records(tmp_path / "store")
    assert {name: after[name] for name in before} == before
    assert fs.verify(tmp_path / "store").sound


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_in_the_middle(
    small_disk: Path, manifest: pd.DataFrame, whole: Path
) -> None:
    store = small_disk / "store"
    plan = plan_ingest(manifest, store, encoder=Tiny(), config=CONFIG)
    with pytest.raises(OSError, match="No space left"):  # but for what three columns need
        (small_disk / "filler").write_bytes(bytes(80 << 20))
    size = (small_disk / "filler").stat().st_size
    os.truncate(small_disk / "filler", size - plan.bytes_to_write // 2)
    with pytest.raises(StoreError, match=r"No space left on device.*run the same ingest again"):
        run_plan(plan)
    assert 0 < len(records(store)) < len(records(whole))
    (small_disk / "filler").unlink()
    fs.ingest(manifest, store, encoder=Tiny(), config=CONFIG)
    assert contents(store) == contents(whole)
    assert not list(store.rglob(".*.partial"))


@pytest.mark.parametrize("failing", range(3, 40, 6))
def test_a_write_that_fails_anywhere_loses_nothing(
    failing: int,
    manifest: pd.DataFrame,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0
    write, create = LocalPlace.write, LocalPlace.create

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "write", lambda *given: (count(), write(*given))[1])
        patch.setattr(LocalPlace, "create", lambda *given: (count(), create(*given))[1])
        with pytest.raises(StoreError, match="No space left"):
            fs.ingest(manifest, tmp_path / "store", encoder=Tiny(), config=CONFIG)
    fs.ingest(manifest, tmp_path / "store", encoder=Tiny(), config=CONFIG)
    assert contents(tmp_path / "store") == contents(whole)


def test_a_store_that_cannot_be_written_to_is_read(
    small_disk: Path, manifest: pd.DataFrame, whole: Path
) -> None:
    store = small_disk / "store"
    shutil.copytree(whole, store)
    more = pd.concat([manifest, manifest.iloc[:1].assign(id="new")], ignore_index=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        assert fs.verify(store).sound
        assert len(fs.open_store(store).pooled("tiny")["id"]) == len(manifest)
        with pytest.raises(StoreError, match=r"Read-only file system"):
            fs.ingest(more, store, encoder=Tiny(), config=CONFIG)
        with pytest.raises(StoreError, match=r"Read-only file system"):
            fs.forget(store, speakers=["s0"])
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert contents(store) == contents(whole)


def test_a_file_is_no_store(manifest: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    for call in (
        lambda path: fs.ingest(manifest, path, encoder=Tiny(), config=CONFIG),
        fs.open_store,
        fs.verify,
        lambda path: fs.forget(path, speakers=["s0"]),
    ):
        with pytest.raises(StoreError, match="is a file, not the folder of a feature store"):
            call(tmp_path / "store")
    assert (tmp_path / "store").read_text() == "not a folder"
