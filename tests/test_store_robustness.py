"""Changed manifests, damaged stores and unlucky processes: nothing is lost or passed over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from synthetic import babble, write_corpus

import featurestore as fs
from featurestore.errors import FeatureStoreError, ManifestError, StoreError
from featurestore.setup import IngestConfig
from featurestore.storage import as_place
from featurestore.store.rows import read_rows
from featurestore.store.verify import repair

MFCC = IngestConfig(views=("mfcc",), column_frames=4096)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return write_corpus(tmp_path_factory.mktemp("corpus"), durations=[0.3, 0.5, 0.7, 0.9, 1.1, 1.3])


@pytest.fixture(scope="module")
def original(manifest: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    many = pd.concat([manifest.assign(id=manifest["id"] + f"-{k}") for k in range(40)])
    assert fs.ingest(many.reset_index(drop=True), path, config=MFCC).plan.columns > 1
    return path


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "store"))


def table(store: Path) -> pd.DataFrame:
    return fs.open_store(store).utterances("mfcc").set_index("id").sort_index()


def test_a_manifest_of_some_utterances_leaves_the_others_alone(
    manifest: pd.DataFrame, tmp_path: Path
) -> None:
    fs.ingest(manifest, tmp_path / "store", config=MFCC)
    before = table(tmp_path / "store")
    some = manifest.iloc[:2].assign(speaker="new", arousal=1.0)
    assert fs.ingest(some, tmp_path / "store", config=MFCC).relabelled == 2
    after = table(tmp_path / "store")
    assert list(after["speaker"][:2]) == ["new", "new"]
    pd.testing.assert_frame_equal(after.iloc[2:], before.iloc[2:])


def test_numbers_do_not_become_text_under_unlisted_utterances(
    manifest: pd.DataFrame, tmp_path: Path
) -> None:
    fs.ingest(manifest, tmp_path / "store", config=MFCC)
    as_text = manifest.assign(valence="high")
    with pytest.raises(ManifestError, match="valence"):
        fs.ingest(as_text, tmp_path / "store", config=MFCC)
    coded = manifest.assign(emotion=np.arange(6.0))
    with pytest.raises(StoreError, match=r"'emotion' holds text in the store and numbers"):
        fs.ingest(coded.iloc[:3], tmp_path / "store", config=MFCC)
    fs.ingest(coded, tmp_path / "store", config=MFCC)
    assert list(table(tmp_path / "store")["emotion"]) == list(range(6))


def test_an_id_cannot_come_to_mean_another_recording(
    manifest: pd.DataFrame, tmp_path: Path
) -> None:
    fs.ingest(manifest, tmp_path / "store", config=MFCC)
    soundfile.write(tmp_path / "other.wav", babble(2.0), 16_000)
    other = manifest.copy()
    other.loc[3, "path"] = str(tmp_path / "other.wav")
    with pytest.raises(StoreError, match=r"'u003' is stored from other audio than its file"):
        fs.ingest(other, tmp_path / "store", config=MFCC)
    moved = manifest.copy()
    shutil.copy(manifest["path"][3], tmp_path / "moved.wav")
    moved.loc[3, "path"] = str(tmp_path / "moved.wav")
    fs.ingest(moved, tmp_path / "store", config=MFCC)
    assert table(tmp_path / "store")["path"]["u003"] == str(tmp_path / "moved.wav")


def test_a_start_of_zero_is_no_start_at_all(manifest: pd.DataFrame, tmp_path: Path) -> None:
    fs.ingest(manifest, tmp_path / "store", config=MFCC)
    spelled = manifest.assign(start=0.0, end=np.nan)
    assert fs.ingest(spelled, tmp_path / "store", config=MFCC).utterances == 0
    with pytest.raises(StoreError, match="another segment"):
        fs.ingest(manifest.assign(start=0.1), tmp_path / "store", config=MFCC)


@pytest.mark.parametrize("name", ["slot", "gate", "mfcc", "statistic", "zarr.json", "a/b"])
def test_names_that_the_store_needs_are_refused_as_labels(
    manifest: pd.DataFrame, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        fs.ingest(manifest.assign(**{name: 1.0}), tmp_path / "store", config=MFCC)
    assert name in str(caught.value)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _damages() -> dict[str, Callable[[Path], None]]:
    def one(store: Path, pattern: str) -> Path:
        return sorted(path for path in store.glob(f"views/*/{pattern}") if path.is_file())[0]

    def named(pattern: str, do: Callable[[Path], None]) -> Callable[[Path], None]:
        return lambda store: do(one(store, pattern))

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-100])

    def rename_view(path: Path) -> None:
        path.write_text(path.read_text().replace("librosa-0.5", "librosa"))

    found = {
        "shard gone": named("parts/*/frames/mfcc/c/0/0", Path.unlink),
        "shard cut": named("parts/*/frames/mfcc/c/1/0", cut),
        "shard flipped": named("parts/*/frames/mfcc/c/0/0", _flip),
        "chunk flipped": named("parts/*/pooled/mfcc/c/2/0/0", _flip),
        "chunk gone": named("parts/*/pooled/mfcc/c/1/1/0", Path.unlink),
        "record gone": named("ledger/*/00000.json", Path.unlink),
        "plan gone": named("ledger/*/plan.json", Path.unlink),
        "mark gone": named("ledger/*/complete.json", Path.unlink),
        "view record gone": named("view.json", Path.unlink),
        "view record changed": named("view.json", rename_view),
        "array record gone": named("parts/*/frames/mfcc/zarr.json", Path.unlink),
    }
    for column in ("id", "speaker", "arousal", "emotion", "frame_start", "path"):
        found[f"{column} flipped"] = named(f"parts/*/utterances/{column}/c/0", _flip)
        found[f"{column} gone"] = named(f"parts/*/utterances/{column}/zarr.json", Path.unlink)
    return found


@pytest.mark.parametrize("damage", _damages().values(), ids=_damages())
def test_verify_notices(store: Path, damage: Callable[[Path], None]) -> None:
    assert fs.verify(store).sound
    damage(store)
    assert not fs.verify(store).sound


def test_a_lost_record_is_made_again_without_doubling_anything(store: Path, original: Path) -> None:
    (record,) = store.glob("views/*/ledger/*/00000.json")
    record.unlink()
    manifest = read_rows(as_place(original))
    assert fs.ingest(manifest, store, config=MFCC).utterances > 0
    assert fs.verify(store).sound
    pd.testing.assert_frame_equal(table(store), table(original))


def _files(store: Path) -> dict[str, bytes]:
    """Arrays and tables of a store."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.glob("views/*/parts/**/*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "damaged", ["frames/mfcc/c/1/0", "pooled/mfcc/zarr.json", "utterances/id/c/0"]
)
def test_what_is_damaged_is_made_again_after_a_repair(
    store: Path, original: Path, damaged: str
) -> None:
    (shard,) = store.glob(f"views/*/parts/*/{damaged}")
    shard.unlink()
    found = fs.verify(store)
    assert all(problem.mendable for problem in found.problems)
    assert repair(store, found) == 1
    done = fs.ingest(read_rows(as_place(original)), store, config=MFCC)
    assert done.plan.columns == len({problem.column for problem in found.problems} - {None})
    assert fs.verify(store).sound
    assert _files(store) == _files(original)


def test_what_a_kill_leaves_behind_is_no_obstacle(manifest: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".0123456789abcdef.json").write_text('{"form')
    fs.ingest(manifest, tmp_path / "store", config=MFCC)
    assert fs.verify(tmp_path / "store").sound


def test_one_ingest_at_a_time(manifest: pd.DataFrame, tmp_path: Path) -> None:
    fs.ingest(manifest.iloc[:3], tmp_path / "store", config=MFCC)
    with (
        as_place(tmp_path / "store").locked(),
        pytest.raises(StoreError, match=r"another process is writing.*process \d+ on "),
    ):
        fs.ingest(manifest, tmp_path / "store", config=MFCC)
    assert fs.ingest(manifest, tmp_path / "store", config=MFCC).utterances == 3


def test_columns_that_are_exactly_full_keep_their_coordinates(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", babble(1.0)[: 31 * 512], 16_000)  # 32 frames
    rows = pd.DataFrame({"id": [f"u{k:03d}" for k in range(300)], "path": str(tmp_path / "a.wav")})
    fs.ingest(rows, tmp_path / "store", config=MFCC)
    frames = fs.open_store(tmp_path / "store").frames("mfcc", "mfcc")
    assert frames.to_dataset(name="mfcc").chunks["frame"] == (4096, 4096, 9600 - 8192)
    names = frames["utterance"].to_numpy()
    assert (names.reshape(300, 32) == names.reshape(300, 32)[:, :1]).all()


def test_captures_are_the_same_view_in_any_order(manifest: pd.DataFrame, tmp_path: Path) -> None:
    for captures in (("skip", "gate"), ("gate", "skip")):
        fs.ingest(
            manifest.iloc[:2], tmp_path / "store", encoder="random:0", views="gcu",
            captures=captures, frames=False,
        )  # fmt: skip
    assert len(fs.open_store(tmp_path / "store").views) == 1


def test_a_killed_opensmile_process_is_explained(
    manifest: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opensmile", reason="the extra 'egemaps' is not installed")
    from featurestore import egemaps

    monkeypatch.setattr(egemaps, "_one", _die)
    with pytest.raises(FeatureStoreError, match="was killed"):
        list(egemaps.functionals_of_many([("a", 0.0, 1.0)] * 2, workers=2))


def _die(path: str, start: float, end: float) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_stopping_by_hand_says_that_nothing_is_lost(manifest: pd.DataFrame, tmp_path: Path) -> None:
    many = pd.concat([manifest.assign(id=manifest["id"] + f"-{k}") for k in range(400)])
    fs.write_manifest(many.reset_index(drop=True), tmp_path / "manifest.csv")
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import _thread, threading, featurestore.pipeline as pipeline\n"
        "take_apart = pipeline._take_apart\n"
        "def interrupted(*args):\n"
        "    take_apart(*args)\n"
        "    _thread.interrupt_main()\n"
        "pipeline._take_apart = interrupted\n"
        "sys.argv[0] = 'featurestore'\n"
        "from featurestore.cli import main; main()\n"
    )
    arguments = ["ingest", "manifest.csv", "store", "-w", "random:0", "--views", "gcu", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
