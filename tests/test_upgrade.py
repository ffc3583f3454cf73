"""Stores of format 1 become stores of this format, and damage is not sealed in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from crashing import CONFIG, Tiny
from synthetic import write_corpus

import featurestore as fs
from featurestore.errors import StoreError
from featurestore.storage import as_place
from featurestore.store.rows import read_rows
from featurestore.store.upgrade import upgrade


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    few = write_corpus(tmp_path_factory.mktemp("corpus"), durations=[0.3, 0.5, 0.7, 0.9])
    many = pd.concat([few.assign(id=few["id"] + f"-{k}") for k in range(70)], ignore_index=True)
    path = tmp_path_factory.mktemp("new") / "store"
    for rows in (many.iloc[:100], many):
        fs.ingest(rows.reset_index(drop=True), path, encoder=Tiny(), config=CONFIG)
    return path


@pytest.fixture
def old(new: Path, tmp_path: Path) -> Path:
    """The same as featurestore 0.2 wrote it: no seals, no checksums, no stamps."""
    path = Path(shutil.copytree(new, tmp_path / "old"))
    read_rows(as_place(path)).to_parquet(path / "manifest.parquet", index=False)
    shutil.rmtree(path / "manifest")
    for record in path.rglob("*.json"):
        if record.name == "zarr.json":
            continue
        values = json.loads(record.read_bytes())
        for name in ("crc32", "objects", "sequence", "table", "digest", "certificate", "part"):
            values.pop(name, None)
        if record.stem.isdigit():
            values["versions"] = values.pop("origins")[0]["versions"]
            for row in values["utterances"]:
                del row["audio_stamp"], row["origin"]
        if record.name == "featurestore.json":
            values["version"] = 1
        record.write_text(json.dumps(values, indent=1))
    for column in path.glob("views/*/parts/*/utterances/audio_stamp"):
        shutil.rmtree(column)
    return path


def test_an_old_store_is_upgraded_in_place(old: Path, new: Path) -> None:
    with pytest.raises(StoreError, match="featurestore upgrade"):
        fs.open_store(old)
    assert upgrade(old) == 4
    assert fs.verify(old).sound
    for view, captures in {"tiny": Tiny.captures, "mfcc": ("mfcc",)}.items():
        mine, theirs = fs.open_store(old), fs.open_store(new)
        pd.testing.assert_frame_equal(mine.utterances(view), theirs.utterances(view))
        for capture in captures:
            mean = theirs.pooled(view)[capture].compute()
            assert mine.pooled(view)[capture].compute().equals(mean)
    assert fs.lineage(old, "u000-0")[0]["versions"]["zarr"]
    with pytest.raises(StoreError, match="nothing to do"):
        upgrade(old)


def test_an_interrupted_upgrade_goes_on(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featurestore.storage.local import LocalPlace

    replace, calls = LocalPlace.replace, []

    def failing(self: LocalPlace, key: str, data: bytes) -> None:
        calls.append(key)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        replace(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "replace", failing)
        with pytest.raises(StoreError, match="run the same upgrade again"):
            upgrade(old)
    upgrade(old)
    assert fs.verify(old).sound


@pytest.mark.parametrize("array", ["frames/gate/c/0/0/0", "pooled/mfcc/c/0/0/0"])
def test_damage_is_not_sealed_in(old: Path, array: str) -> None:
    (shard, *_) = sorted(old.glob(f"views/*/parts/*/{array}"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"is damaged.*featurestore 0.2 makes it again"):
        upgrade(old)
    shard.unlink()
    with pytest.raises(StoreError, match=r"is damaged"):
        upgrade(old)
