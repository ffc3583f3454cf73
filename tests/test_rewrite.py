"""Parts that are merged, cleared of a speaker, and replaced: the rest stays what it was."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import xarray as xr
from conftest import trials
from crashing import CONFIG, Tiny
from forks import Forks, forks
from synthetic import babble, write_corpus

import featurestore as fs
from featurestore.errors import StoreError
from featurestore.ingest import IngestSummary
from featurestore.setup import IngestConfig

VIEWS = {"tiny": Tiny.captures, "mfcc": ("mfcc",)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    few = write_corpus(
        tmp_path_factory.mktemp("corpus"), durations=[0.3, 0.5, 0.7, 0.9, 1.1, 1.3], speakers=4
    )
    many = [few.assign(id=few["speaker"] + "-" + few["id"] + f"-{k}") for k in range(60)]
    return pd.concat(many, ignore_index=True)


def ingest(
    manifest: pd.DataFrame, store: Path, *, replace: bool = False, readmit: bool = False
) -> IngestSummary:
    return fs.ingest(
        manifest, store, encoder=Tiny(), config=CONFIG, replace=replace, readmit=readmit
    )


@pytest.fixture(scope="module")
def at_once(manifest: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("at-once") / "store"
    ingest(manifest, path)
    return path


@pytest.fixture(scope="module")
def instalments(manifest: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five of them, in no particular order."""
    path = tmp_path_factory.mktemp("instalments") / "store"
    order = np.random.default_rng(0).permutation(len(manifest))
    for rows in np.array_split(order, 5):
        ingest(manifest.iloc[np.sort(rows)].reset_index(drop=True), path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks("crashing", tmp_path_factory.mktemp("server") / "log") as started:
        yield started


def everything(store: Path) -> dict[str, xr.DataArray]:
    """Frames and statistics of all utterances, sorted by id."""
    opened = fs.open_store(store)
    found = {}
    for view, captures in VIEWS.items():
        pooled = opened.pooled(view).compute()
        for capture in captures:
            found[f"{view} {capture}"] = pooled[capture].sortby("id")
            frames = opened.frames(view, capture).compute()
            place = np.argsort(frames["utterance"].to_numpy(), kind="stable")
            found[f"{view} {capture} frames"] = frames.isel(frame=place)
    return found


def same(one: dict[str, xr.DataArray], other: dict[str, xr.DataArray], *, atol: float) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        # Statistics of activations are float32 of unrounded values below 1.
        close = min(atol, 1e-5) if name in ("tiny gate", "tiny skip") else atol
        xr.testing.assert_allclose(values, other[name], rtol=0, atol=close)
        for coordinate in values.coords:
            assert values[coordinate].equals(other[name][coordinate]), (name, coordinate)


def ids(store: Path) -> list[str]:
    """In the order in which the store gives them out."""
    return list(fs.open_store(store).utterances("tiny")["id"])


def test_five_instalments_compacted_are_one_ingest(
    instalments: Path, at_once: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(instalments, tmp_path / "store"))
    before = everything(store)
    assert sorted(ids(store)) == sorted(ids(at_once))
    # Batches of other shapes: the last bit of a float32 may differ, and with it that of a float16.
    same(before, everything(at_once), atol=1e-3)
    done = fs.compact(store, column_frames=CONFIG.column_frames)
    assert set(done.before.values()) == {5}
    assert set(done.after.values()) == {1}
    assert fs.verify(store).sound
    same(everything(store), before, atol=0)
    assert ids(store) == ids(at_once)
    assert [path.name for path in sorted(store.glob("views/*/parts/*"))] == [
        path.name for path in sorted(at_once.glob("views/*/parts/*"))
    ]
    for table in at_once.glob("views/*/parts/*/utterances/*/c/0"):
        assert (store / table.relative_to(at_once)).read_bytes() == table.read_bytes()
    assert set(fs.compact(store).before.values()) == {1}


def test_nothing_is_computed_twice(
    manifest: pd.DataFrame, instalments: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(instalments, tmp_path / "store"))
    fs.compact(store)
    summary = ingest(manifest, store)
    assert summary.utterances == 0
    more = pd.concat([manifest, manifest.iloc[:3].assign(id=["x", "y", "z"])], ignore_index=True)
    summary = ingest(more, store)
    assert summary.plan.utterances == 3


def test_lineage_survives_compaction(instalments: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(instalments, tmp_path / "store"))
    some = ids(store)[::50]
    before = {id: fs.lineage(store, id) for id in some}
    fs.compact(store)
    for id in some:
        for old, new in zip(before[id], fs.lineage(store, id), strict=True):
            moved = {"part", "column", "row", "frames"}
            assert {k: v for k, v in old.items() if k not in moved} == {
                k: v for k, v in new.items() if k not in moved
            }
            assert new["weights"] == ("tiny-1" if new["kind"] == "tiny" else "")
            assert new["audio"]["path"]
            assert new["versions"]["zarr"]
            assert new["made_at"] > "2020"


def rows_of(store: Path, wanted: list[str]) -> list[bytes]:
    """Byte patterns of utterances: their frames in float16 and their statistics, as stored."""
    opened = fs.open_store(store)
    patterns = []
    for id in wanted:
        for view, captures in VIEWS.items():
            for capture in captures:
                frames = opened.utterance(view, capture, id)
                array = frames.to_numpy()
                patterns += [layer[:4].tobytes() for layer in np.atleast_3d(array)]
                mean = opened.pooled(view)[capture]
                row = int(np.flatnonzero(mean["id"].to_numpy() == id)[0])
                patterns.append(mean[0, row].to_numpy().tobytes())
    return patterns


def search(store: Path, patterns: list[bytes]) -> list[str]:
    """Files of a store that hold any of these bytes."""
    found = []
    for path in store.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found += [path.name for pattern in patterns if pattern in data]
    return found


def unique_corpus(folder: Path) -> pd.DataFrame:
    """No two utterances alike, so that what is left of one is its own."""
    few = write_corpus(folder, durations=[0.3 + 0.01 * k for k in range(80)], speakers=4)
    who = few["speaker"].replace({f"s{k}": f"voice-{k}" for k in range(4)})
    return few.assign(speaker=who, id=who + "-" + few["id"])


def test_a_forgotten_speaker_leaves_no_byte(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    manifest = unique_corpus(tmp_path / "corpus")
    store = tmp_path / "store"
    half = manifest["id"].isin(manifest["id"][::3])
    ingest(manifest[half].reset_index(drop=True), store)
    ingest(manifest, store)
    gone = list(manifest["id"][manifest["speaker"] == "voice-1"])
    names = [id.encode() for id in gone]
    mine = manifest["path"][manifest["speaker"] == "voice-1"]
    paths = [path.rpartition("/")[2].encode() for path in mine]
    digests = [fs.lineage(store, id)[0]["audio"]["sha256"].encode() for id in gone]
    patterns = rows_of(store, gone)
    before = everything(store)
    assert search(store, patterns)
    assert search(store, names)
    state = fs.store_state(store)

    done = fs.forget(store, speakers=["voice-1"])

    assert done.utterances == len(gone)
    assert fs.forget(store, speakers=["voice-1"]).utterances == 0
    assert not search(store, [*patterns, *names, *paths, *digests, b"voice-1"])
    assert fs.verify(store).sound
    assert fs.store_state(store) != state
    for name, values in everything(store).items():
        kept = before[name]
        axis = "frame" if "frames" in name else "utterance"
        key = "utterance" if "frames" in name else "id"
        kept = kept.isel({axis: ~np.isin(kept[key].to_numpy().astype(str), gone)})
        assert values.identical(kept)

    # The old manifest does not bring the speaker back, nor under another name.
    again = ingest(manifest, store)
    assert again.utterances == 0
    assert again.plan.forgotten == len(gone)
    renamed = manifest.assign(speaker=manifest["speaker"].replace("voice-1", "somebody"))
    assert ingest(renamed, store).plan.forgotten == len(gone)
    other_ids = manifest.assign(id=manifest["id"] + "-new")
    mine = other_ids[other_ids["speaker"] == "voice-1"].reset_index(drop=True)
    assert ingest(mine, store).plan.forgotten == len(mine)
    assert not search(store, [*patterns, *names, b"somebody"])
    # Unless it is told to.
    back = ingest(manifest, store, readmit=True)
    assert back.utterances == len(gone)
    assert fs.verify(store).sound
    same(everything(store), before, atol=1e-3)
    assert ingest(manifest, store).plan.forgotten == 0


def test_an_utterance_is_forgotten_alone(at_once: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(at_once, tmp_path / "store"))
    everyone = ids(store)
    fs.forget(store, utterances=everyone[:2])
    assert ids(store) == [id for id in everyone if id not in everyone[:2]]
    with pytest.raises(StoreError, match="no utterance 'nobody'"):
        fs.forget(store, utterances=["nobody"])
    with pytest.raises(StoreError, match=r"no speaker 'x'; it has: s0, s1, s2, s3"):
        fs.forget(store, speakers=["x"])
    with pytest.raises(StoreError, match="nobody to forget"):
        fs.forget(store)


def test_everybody_can_be_forgotten(at_once: Path, manifest: pd.DataFrame, tmp_path: Path) -> None:
    store = Path(shutil.copytree(at_once, tmp_path / "store"))
    fs.forget(store, speakers=["s0", "s1", "s2", "s3"])
    assert fs.verify(store).sound
    assert not list(store.glob("views/*/parts/*"))
    with pytest.raises(StoreError, match="holds no utterances"):
        fs.open_store(store).pooled("tiny")
    assert ingest(manifest, store, readmit=True).utterances == len(manifest)


def test_an_unfinished_ingest_is_forgotten_in_too(
    server: Forks, manifest: pd.DataFrame, at_once: Path, tmp_path: Path
) -> None:
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    store = tmp_path / "store"
    pid = server.start("ingest", str(tmp_path / "manifest.csv"), str(store))
    while not list(store.glob("views/*/ledger/*/00000.json")):
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    server.wait()
    with pytest.raises(StoreError, match="unfinished ingest"):
        fs.compact(store)
    fs.forget(store, speakers=["s2"])
    names = [id.encode() for id in manifest["id"][manifest["speaker"] == "s2"]]
    assert not search(store, names)
    assert fs.verify(store).sound
    ingest(manifest, store)
    kept = manifest[manifest["speaker"] != "s2"]
    assert sorted(ids(store)) == sorted(kept["id"])
    assert fs.verify(store).sound


@pytest.mark.parametrize("work", ["compact", "forget"])
def test_upkeep_killed_at_any_moment_loses_nothing(
    server: Forks, instalments: Path, work: str, tmp_path: Path
) -> None:
    arguments = ["s3"] if work == "forget" else []
    finished = Path(shutil.copytree(instalments, tmp_path / "finished"))
    began = time.monotonic()
    server.start(work, str(finished), *arguments)
    assert not server.wait()
    duration = time.monotonic() - began
    before, after = everything(instalments), everything(finished)
    chance = random.Random(1)
    for trial in range(trials(12)):
        store = Path(shutil.copytree(instalments, tmp_path / f"store-{trial}"))
        pid = server.start(work, str(store), *arguments)
        time.sleep(duration * chance.random())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        server.wait()
        # Every view is what it was or what it is to be, whatever lies about besides.
        found = everything(store)
        for name, values in found.items():
            axis, key = ("frame", "utterance") if "frames" in name else ("utterance", "id")
            there = values[key].to_numpy().astype(str)
            kept = ~np.char.startswith(there, "s3-") if work == "forget" else np.isin(there, there)
            assert values.isel({axis: kept}).identical(after[name])
            old = before[name]
            same_rows = np.isin(old[key].to_numpy().astype(str), there)
            assert values.identical(old.isel({axis: same_rows}))
        server.start(work, str(store), *arguments)
        assert not server.wait()
        assert fs.verify(store).sound
        assert all(values.identical(after[name]) for name, values in everything(store).items())
        shutil.rmtree(store)


def test_other_audio_under_an_old_id(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    manifest = unique_corpus(tmp_path / "corpus")
    store = tmp_path / "store"
    ingest(manifest, store)
    before = everything(store)
    victim = manifest.iloc[7]
    samples, rate = soundfile.read(victim["path"])
    os.utime(victim["path"])  # touched, and the same sound
    assert ingest(manifest, store).utterances == 0
    soundfile.write(victim["path"], -samples[::-1], rate)  # as long as it was
    with pytest.raises(StoreError, match=rf"utterance '{victim['id']}' is stored.*--replace"):
        ingest(manifest, store)
    assert all(values.identical(before[name]) for name, values in everything(store).items())
    done = ingest(manifest, store, replace=True)
    assert done.plan.replaced == (victim["id"],)
    assert done.utterances == 1
    assert fs.verify(store).sound
    now = fs.open_store(store).utterance("mfcc", "mfcc", victim["id"])
    expected = fs.mfcc((-samples[::-1]).astype(np.float32))
    np.testing.assert_allclose(now, expected, atol=2e-2)
    assert ingest(manifest, store).utterances == 0


def test_a_replaced_utterance_leaves_the_views_that_are_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    manifest = unique_corpus(tmp_path / "corpus").iloc[:20]
    store = tmp_path / "store"
    ingest(manifest, store)
    soundfile.write(manifest["path"][3], babble(0.5, seed=99), 16_000)
    only = IngestConfig(views=("mfcc",), column_frames=4096)
    with pytest.raises(StoreError, match="other audio than its file holds now"):
        fs.ingest(manifest, store, config=only)
    fs.ingest(manifest, store, config=only, replace=True)
    assert fs.verify(store).sound
    assert manifest["id"][3] not in ids(store)
    assert manifest["id"][3] in list(fs.open_store(store).utterances("mfcc")["id"])
    assert ingest(manifest, store).utterances == 1


def test_a_store_read_while_it_is_compacted_raises_and_does_not_lie(
    instalments: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(instalments, tmp_path / "store"))
    lazy = fs.open_store(store).frames("tiny", "gate")
    fs.compact(store)
    with pytest.raises(StoreError, match="is missing"):
        lazy.compute()


def test_views_of_other_kinds_are_rewritten_as_well(tmp_path: Path) -> None:
    pytest.importorskip("opensmile", reason="the extra 'egemaps' is not installed")
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", babble(1.0, seed=ord(name)), 16_000)
    rows = pd.DataFrame(
        {"path": [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")], "speaker": ["x", "y"]}
    )
    store = tmp_path / "store"
    config = IngestConfig(views=("egemaps",), workers=1)
    for part in (rows.iloc[:1], rows.iloc[1:]):
        fs.ingest(part.reset_index(drop=True), store, config=config)
    before = fs.open_store(store).features().compute()
    fs.compact(store)
    assert fs.open_store(store).features().compute().sortby("id").identical(before.sortby("id"))
    fs.forget(store, speakers=["x"])
    assert list(fs.open_store(store).features()["id"]) == ["b"]
    assert fs.verify(store).sound
