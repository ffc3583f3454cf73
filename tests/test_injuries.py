"""Two hundred injuries: `verify` finds every one, and nothing injured is read as if whole."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import trials
from crashing import CONFIG, Tiny
from synthetic import write_corpus

import featurestore as fs
from featurestore.errors import StoreError

INJURIES = trials(260)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of two parts each, a forgotten utterance, frames in more than one column."""
    few = write_corpus(tmp_path_factory.mktemp("corpus"), durations=[0.3, 0.5, 0.7, 0.9])
    many = pd.concat([few.assign(id=few["id"] + f"-{k}") for k in range(90)], ignore_index=True)
    path = tmp_path_factory.mktemp("stores") / "store"
    fs.ingest(many.iloc[:280], path, encoder=Tiny(), config=CONFIG)
    fs.ingest(many, path, encoder=Tiny(), config=CONFIG)
    fs.forget(path, utterances=[many["id"][0]])
    assert fs.verify(path).sound
    return path


@dataclass(frozen=True)
class Reading:
    """Everything that a store gives out, or how it refused."""

    given: dict[str, object]

    @staticmethod
    def of(path: Path) -> Reading:
        values: dict[str, object] = {}

        def take(name: str, read: Callable[[], object]) -> None:
            try:
                values[name] = read()
            except Exception as error:  # damage shows in whatever the codec raises
                values[name] = error

        try:
            opened = fs.open_store(path)
        except StoreError as error:
            return Reading({"open": error})
        for view in ("tiny", "mfcc"):
            take(f"{view} table", lambda view=view: opened.utterances(view))
            take(f"{view} pooled", lambda view=view: opened.pooled(view).compute())
            for capture in Tiny.captures if view == "tiny" else ("mfcc",):
                take(
                    f"{view} {capture}",
                    lambda view=view, capture=capture: opened.frames(view, capture).compute(),
                )
        return Reading(values)

    def lies(self, truth: Reading) -> list[str]:
        """What is given out and is not the truth."""
        found = []
        for name, value in self.given.items():
            if isinstance(value, Exception):
                continue
            other = truth.given[name]
            if isinstance(value, pd.DataFrame):
                same = value.equals(other)
            else:
                same = value.identical(other)  # type: ignore[attr-defined]
            if not same:
                found.append(name)
        return found


def _flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _cut(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def _delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def _grow(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes(chance.randrange(1, 100)))


def _swap(path: Path, chance: random.Random) -> None:
    """Another file of the same kind in its place: every checksum inside it is right."""
    world = next(folder for folder in path.parents if folder.name == "world")
    others = [
        other
        for other in sorted(world.rglob(path.name))
        if other != path and other.is_file() and other.read_bytes() != path.read_bytes()
    ]
    if others:
        shutil.copy(chance.choice(others), path)
    else:
        path.unlink()


def _edit(path: Path, chance: random.Random) -> None:
    """A number of a record, as somebody with an editor would change it."""
    text = path.read_text()
    places = [i for i, letter in enumerate(text) if letter.isdigit()]
    place = chance.choice(places)
    digit = str((int(text[place]) + chance.randrange(1, 10)) % 10)
    path.write_text(text[:place] + digit + text[place + 1 :])


def _kind(path: Path) -> str:
    """Which of the store's kinds of file it is."""
    text = path.as_posix()
    for kind in ("frames", "pooled", "utterances"):
        if f"/{kind}/" in text:
            return f"{kind} {'metadata' if path.name == 'zarr.json' else 'chunk'}"
    if "/ledger/" in text:
        return "column record" if path.stem.isdigit() else path.name
    if "/manifest/" in text or "/tombstones/" in text:
        return path.parent.name
    return path.name


def test_every_injury_is_found_and_nothing_injured_is_read(store: Path, tmp_path: Path) -> None:
    truth = Reading.of(store)
    assert not [one for one in truth.given.values() if isinstance(one, Exception)]
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name != ".lock"]
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(_kind(path.relative_to(store.parent)), []).append(path)
    assert len(kinds) >= 13
    chance = random.Random(7)
    # Beside it another store of the same configuration, to take files from.
    few = write_corpus(tmp_path, durations=[0.4, 0.6, 0.8])
    foreign = tmp_path / "world" / "foreign"
    fs.ingest(few, foreign, encoder=Tiny(), config=CONFIG)
    fs.forget(foreign, utterances=["u001"])
    copy = Path(shutil.copytree(store, tmp_path / "world" / "store"))
    injuries = 0
    while injuries < INJURIES:
        for kind, members in kinds.items():
            injury = chance.choice([_flip, _flip, _cut, _delete, _grow, _swap])
            if kind.endswith((".json", "record")) and chance.random() < 0.5:
                injury = _edit
            original = chance.choice(members)
            path = copy / original.relative_to(store)
            injury(path, chance)
            what = f"{injury.__name__} {path.relative_to(copy)}"
            if path.exists() and path.read_bytes() == original.read_bytes():
                continue
            injuries += 1
            assert not _sound(copy), f"not noticed: {what}"
            lies = Reading.of(copy).lies(truth)
            # A chunk that is whole and valid in itself only `verify` compares with its record.
            assert not lies or (injury is _swap and kind in ("frames chunk", "pooled chunk")), (
                f"read as if it were whole: {lies} after {what}"
            )
            shutil.copy2(original, path)
    assert fs.verify(copy).sound


def _sound(path: Path) -> bool:
    try:
        return fs.verify(path).sound
    except StoreError:
        return False


def test_a_foreign_zarr_in_place_of_a_part(store: Path, tmp_path: Path) -> None:
    import zarr

    copy = Path(shutil.copytree(store, tmp_path / "store"))
    part = sorted(copy.glob("views/tiny-*/parts/*"))[0]
    other = sorted(copy.glob("views/mfcc-*/parts/*"))[0]
    shutil.rmtree(part)
    shutil.copytree(other, part)
    assert not fs.verify(copy).sound
    with pytest.raises(StoreError):
        fs.open_store(copy).pooled("tiny").compute()
    shutil.rmtree(part)
    group = zarr.open_group(part, mode="w", zarr_format=3)
    group.create_array("pooled/gate", data=np.zeros((4, 128, 3, 16), np.float32))
    assert not fs.verify(copy).sound
    with pytest.raises(StoreError):
        fs.open_store(copy).pooled("tiny").compute()


def test_a_deleted_shard_raises_and_what_does_not_need_it_is_read(
    store: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    next(iter(copy.glob("views/tiny-*/parts/*/frames/gate/c/1/0/0"))).unlink()
    opened = fs.open_store(copy)
    with pytest.raises(StoreError, match=r"frames/gate/c/1/0/0 is missing.*featurestore verify"):
        opened.frames("tiny", "gate").compute()
    assert np.isfinite(opened.frames("tiny", "skip").compute()).all()
    assert np.isfinite(opened.pooled("tiny")["gate"].compute()).all()


def test_statistics_that_are_not_those_of_the_frames(store: Path, tmp_path: Path) -> None:
    """Written by this package's own means, so that every checksum is right."""
    from featurestore.storage import as_place
    from featurestore.storage.arrays import PlaceStore
    from featurestore.store.ledger import read_views

    copy = Path(shutil.copytree(store, tmp_path / "store"))
    (view,) = [view for view in read_views(as_place(copy)) if view.config.kind == "tiny"]
    part = view.parts()[0]
    import zarr

    for statistic, factor in ((0, 1.001), (1, 1.01), (2, 1.001), (3, 1.001)):
        record = part.record(0)
        arrays = PlaceStore(part.arrays)
        pooled = zarr.open_array(arrays, path="pooled/gate", mode="r+")
        before = np.asarray(pooled[statistic, :128])
        pooled[statistic, :128] = np.where(np.abs(before) > 0.1, before * factor, before)
        changed = {**record, "objects": {**record["objects"], **arrays.written}}
        part.uncommit(0)
        part.commit(changed)
        found = fs.verify(copy).problems
        assert found
        assert all("is not that of its frames" in problem.what for problem in found)
        pooled[statistic, :128] = before
        part.uncommit(0)
        part.commit(record)
        assert fs.verify(copy).sound
