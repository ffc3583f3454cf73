"""From a manifest to a store and back, and everything that can be wrong on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import xarray as xr
from synthetic import babble, write_corpus

import featurestore as fs
from featurestore.audio import load_audio
from featurestore.encoder import Encoder
from featurestore.errors import FeatureStoreError, ManifestError, StoreError
from featurestore.ingest import run_plan
from featurestore.planning import plan_ingest
from featurestore.setup import IngestConfig

NEURAL = IngestConfig(views=("gcu", "mfcc"))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return fs.load_encoder("random:0")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    durations = [0.3, 1.0, 2.5, 0.7, 4.0, 1.1, 0.9, 3.2, 1.8]
    return write_corpus(tmp_path_factory.mktemp("corpus"), durations=durations)


@pytest.fixture(scope="module")
def store(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    fs.ingest(
        manifest,
        path,
        encoder=encoder,
        views=("gcu", "mfcc"),
        captures=("gate", "skip", "residual"),
    )
    return path


def test_the_store_holds_what_encode_gives(
    store: Path, manifest: pd.DataFrame, encoder: Encoder
) -> None:
    opened = fs.open_store(store)
    coefficients = [fs.mfcc(load_audio(path)) for path in manifest["path"]]
    expected = fs.encode(encoder, coefficients)
    pooled = opened.pooled("gcu").compute()
    position = {id: i for i, id in enumerate(pooled["id"].values)}
    for id, mfcc, out in zip(manifest["id"], coefficients, expected, strict=True):
        for capture in ("gate", "skip", "residual"):
            frames = opened.utterance("gcu", capture, id)
            np.testing.assert_allclose(frames, out[capture], atol=1e-5, rtol=2**-11)
            values = pooled[capture][:, position[id]]
            full = out[capture]
            stats = [full.mean(axis=1), full.std(axis=1), full.min(axis=1), full.max(axis=1)]
            np.testing.assert_allclose(values, stats, atol=1e-5)
        np.testing.assert_allclose(opened.utterance("mfcc", "mfcc", id), mfcc, atol=1e-3)


def test_labels_and_speakers_are_coordinates(store: Path, manifest: pd.DataFrame) -> None:
    pooled = fs.open_store(store).pooled("gcu")
    assert pooled["gate"].dims == ("statistic", "utterance", "layer", "unit")
    assert list(pooled["statistic"].values) == ["mean", "std", "min", "max"]
    rows = manifest.set_index("id").loc[list(pooled["id"].values)]
    for name in ("speaker", "emotion", "valence", "arousal"):
        assert list(pooled[name].values) == list(rows[name])
    durations = [len(load_audio(path)) / 16_000 for path in rows["path"]]
    np.testing.assert_allclose(pooled["duration_s"], durations)


def test_frames_are_lazy_and_name_their_utterance(store: Path) -> None:
    opened = fs.open_store(store)
    frames = opened.frames("gcu", "gate")
    assert frames.dims == ("layer", "frame", "unit")
    assert frames.chunks is not None
    assert frames["utterance"].chunks is not None
    assert not np.isnan(frames.to_numpy()).any()
    names = frames["utterance"].to_numpy()
    for id in np.unique(names):
        mine = np.flatnonzero(names == id)
        alone = opened.utterance("gcu", "gate", id)
        np.testing.assert_array_equal(frames[:, mine], alone)
        np.testing.assert_allclose(frames["time_s"][mine], np.arange(len(mine)) * 0.032)


def test_opening_reads_no_array_data(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = fs.open_store(store)
    opened.pooled("gcu")  # the utterance tables are read here, once
    from zarr.storage import LocalStore

    read: list[str] = []
    original = LocalStore.get

    async def spy(self: LocalStore, key: str, *args: object, **kwargs: object) -> object:
        read.append(f"{self.root}/{key}")
        return await original(self, key, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "get", spy)
    fresh = fs.open_store(store)
    assert read == []
    fresh.pooled("gcu")
    fresh.frames("gcu", "gate")
    assert not [key for key in read if "/c/" in key and "utterances" not in key]


def test_plain_xarray_reads_a_part(store: Path) -> None:
    (part,) = (store / "views").glob("gcu-*/parts/*.zarr")
    pooled = xr.open_zarr(part, group="pooled", consolidated=False)
    assert pooled["gate"].dims == ("statistic", "utterance", "layer", "unit")
    table = xr.open_zarr(part, group="utterances", consolidated=False)
    assert (table["id"].to_numpy() != "").sum() == 9


def test_ingesting_again_adds_nothing(
    store: Path, manifest: pd.DataFrame, encoder: Encoder
) -> None:
    before = sorted(path for path in store.rglob("*") if path.is_file())
    summary = fs.ingest(
        manifest,
        store,
        encoder=encoder,
        views=("gcu", "mfcc"),
        captures=("gate", "skip", "residual"),
    )
    assert summary.utterances == 0
    assert sorted(path for path in store.rglob("*") if path.is_file()) == before


def test_new_utterances_make_a_new_part_and_views_join_by_id(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    fs.ingest(manifest.iloc[:4], store, encoder=encoder, config=NEURAL)
    summary = fs.ingest(manifest, store, encoder=encoder, config=NEURAL)
    assert summary.utterances == 5
    opened = fs.open_store(store)
    for view in ("gcu", "mfcc"):
        assert sorted(opened.pooled(view)["id"].values) == list(manifest["id"])
    frames = opened.frames("mfcc", "mfcc")
    assert set(frames["utterance"].values) == set(manifest["id"])


def test_a_view_added_later_takes_the_same_utterances(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    fs.ingest(manifest, store, views=("mfcc",))
    fs.ingest(manifest, store, encoder=encoder, config=NEURAL)
    opened = fs.open_store(store)
    assert list(opened.pooled("gcu")["id"].values) == list(opened.pooled("mfcc")["id"].values)


def test_other_weights_make_another_view_which_must_then_be_named(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for weights in (encoder, "random:1"):
        fs.ingest(manifest.iloc[:2], store, encoder=weights, views=("gcu",), frames=False)
    opened = fs.open_store(store)
    first, second = opened.views
    with pytest.raises(StoreError, match=rf"several 'gcu' views.*{first}"):
        opened.pooled("gcu")
    assert not np.array_equal(opened.pooled(first)["gate"], opened.pooled(second)["gate"])
    with pytest.raises(StoreError, match="without frames"):
        opened.frames(first, "gate")


def test_labels_follow_the_manifest(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    fs.ingest(manifest, store, encoder=encoder, config=NEURAL)
    corrected = manifest.copy()
    corrected.loc[2, "arousal"] = np.nan
    corrected.loc[3, "speaker"] = "someone else"
    corrected["rater"] = "r1"
    summary = fs.ingest(corrected, store, encoder=encoder, config=NEURAL)
    assert summary.utterances == 0
    assert summary.relabelled == 9
    table = fs.open_store(store).utterances("gcu").set_index("id").loc[list(manifest["id"])]
    np.testing.assert_array_equal(table["arousal"], corrected["arousal"])
    assert list(table["speaker"]) == list(corrected["speaker"])
    assert set(table["rater"]) == {"r1"}
    assert fs.ingest(corrected, store, encoder=encoder, config=NEURAL).relabelled == 0
    assert fs.verify(store).sound


def test_a_stored_id_cannot_become_another_segment(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    segments = manifest.iloc[[4]].assign(start=0.5, end=2.0)
    fs.ingest(segments, tmp_path / "store", encoder=encoder, config=NEURAL)
    with pytest.raises(StoreError, match=r"u004.*another segment"):
        fs.ingest(segments.assign(start=0.6), tmp_path / "store", encoder=encoder, config=NEURAL)


def test_segments_are_cut_out_of_their_file(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    path = manifest["path"][4]
    rows = {"id": ["a", "b"], "path": path, "start": [0.0, 1.25], "end": [1.25, np.nan]}
    fs.ingest(pd.DataFrame(rows), tmp_path / "store", encoder=encoder, config=NEURAL)
    opened = fs.open_store(tmp_path / "store")
    samples = load_audio(path)
    for id, part in (("a", samples[:20_000]), ("b", samples[20_000:])):
        expected = fs.mfcc(part)
        np.testing.assert_allclose(opened.utterance("mfcc", "mfcc", id), expected, atol=1e-3)


def _bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be read, by id, with a word of the reason."""
    good = babble(1.0)
    files: dict[str, tuple[Path, str]] = {}

    def add(id: str, name: str, reason: str) -> Path:
        files[id] = (folder / name, reason)
        return folder / name

    add("missing", "missing.wav", "not found")
    add("empty", "empty.wav", "empty file").touch()
    cut = add("truncated", "truncated.flac", "truncated")
    soundfile.write(cut, good, 16_000)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    cut = add("truncated-wav", "truncated.wav", "truncated")
    soundfile.write(cut, good, 16_000)
    cut.write_bytes(cut.read_bytes()[:9_000])
    soundfile.write(add("zero", "zero.wav", "no samples"), good[:0], 16_000)
    broken = good.copy()
    broken[1234] = np.nan
    soundfile.write(add("nan", "nan.wav", "not a finite"), broken, 16_000, subtype="FLOAT")
    jpeg = b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256)) * 8
    add("jpeg", "picture.wav", "not a readable audio").write_bytes(jpeg)
    soundfile.write(add("short", "short.wav", "at least 1025"), good[:1024], 16_000)
    add("folder", "folder.wav", "a folder").mkdir()
    return files


def _odd_files(folder: Path) -> dict[str, Path]:
    """Files that are unusual but fine."""
    good = babble(1.0)
    files = {
        "silent": folder / "silent.wav",
        "eight": folder / "eight.wav",
        "8k": folder / "8k.wav",
        "96k": folder / "96k.wav",
        "ünï 名前": folder / "ünï 名前 'quoted'.wav",
        "long": folder / f"{'n' * 246}.wav",
    }
    soundfile.write(files["silent"], np.zeros(16_000), 16_000)
    soundfile.write(files["eight"], np.repeat(good[:, None], 8, axis=1), 16_000)
    soundfile.write(files["8k"], babble(1.0, rate=8_000), 8_000)
    soundfile.write(files["96k"], babble(1.0, rate=96_000), 96_000)
    soundfile.write(files["ünï 名前"], good, 16_000)
    soundfile.write(files["long"], good, 16_000)
    return files


def test_bad_files_are_set_aside_and_the_rest_completes(encoder: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("opensmile", reason="the extra 'egemaps' is not installed")
    bad, odd = _bad_files(tmp_path), _odd_files(tmp_path)
    rows = [{"id": id, "path": str(path)} for id, (path, _) in bad.items()]
    rows += [{"id": id, "path": str(path)} for id, path in odd.items()]
    table = pd.DataFrame(rows).assign(speaker="s")
    summary = fs.ingest(table, tmp_path / "store", encoder=encoder)
    reasons = {one.id: one for one in summary.skipped if "gcu" in one.views}
    assert set(reasons) == set(bad)
    for id, (path, word) in bad.items():
        assert word in reasons[id].reason
        assert reasons[id].path == str(path)
    opened = fs.open_store(tmp_path / "store")
    for view in ("gcu", "mfcc"):
        pooled = opened.pooled(view).compute()
        assert sorted(pooled["id"].values) == sorted(odd)
        assert all(np.isfinite(values).all() for values in pooled.values())
    # openSMILE takes what is too short for a reflection; views join by id, not by position.
    assert sorted(opened.features("egemaps")["id"].values) == sorted([*odd, "short"])
    again = fs.ingest(table, tmp_path / "store", encoder=encoder)
    assert again.utterances == 0
    assert {one.id for one in again.skipped} == set(bad)
    assert fs.verify(tmp_path / "store").sound


def test_a_corpus_of_bad_files_only_leaves_an_empty_sound_store(
    encoder: Encoder, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "a.flac", babble(1.0), 16_000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    table = pd.DataFrame({"path": [str(tmp_path / "a.flac")], "speaker": ["s"]})
    summary = fs.ingest(table, tmp_path / "store", encoder=encoder, config=NEURAL)
    assert len(summary.skipped) == 1
    assert fs.verify(tmp_path / "store").sound
    with pytest.raises(StoreError, match="holds no utterances"):
        fs.open_store(tmp_path / "store").pooled("gcu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(id=["a", "b", "a", *t["id"][3:]]), ("'a'", "row 1", "row 3")),
        (lambda t: t.assign(speaker=["s", "", *t["speaker"][2:]]), ("speaker", "row 2")),
        (
            lambda t: t.assign(arousal=[3.0, "loud", *t["arousal"][2:]]),
            ("arousal", "row 2", "loud"),
        ),
        (lambda t: t.drop(columns="path"), ("path",)),
    ],
)
def test_a_bad_manifest_is_refused_before_any_work(
    manifest: pd.DataFrame,
    encoder: Encoder,
    tmp_path: Path,
    change: object,
    words: tuple[str, ...],
) -> None:
    with pytest.raises(ManifestError) as error:
        fs.ingest(change(manifest), tmp_path / "store", encoder=encoder, config=NEURAL)  # type: ignore[operator]
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "store").exists()


def test_a_plan_says_what_will_happen_and_writes_nothing(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    plan = plan_ingest(manifest, tmp_path / "store", encoder=encoder, config=NEURAL)
    assert not (tmp_path / "store").exists()
    samples = [len(load_audio(path)) for path in manifest["path"]]
    frames = sum(1 + n // 512 for n in samples)
    assert (plan.utterances, plan.frames) == (9, frames)
    assert plan.hours == pytest.approx(sum(samples) / 16_000 / 3600, rel=0.05)
    assert 0 <= plan.padding_waste < 1
    assert plan.compilations >= 1
    summary = run_plan(plan)
    written = sum(
        array.stat().st_size
        for kind in ("frames", "pooled")
        for array in (tmp_path / "store").rglob(f"{kind}/*/c/**/*")
        if array.is_file()
    )
    assert summary.utterances == 9
    assert plan.bytes_to_write == pytest.approx(written, rel=0.01)


def test_a_full_disk_is_noticed_before_the_work(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(StoreError, match=r"GB free"):
        fs.ingest(manifest, tmp_path / "store", encoder=encoder, config=NEURAL)


def test_a_disk_that_fills_up_loses_nothing(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.store.writer import PartWriter

    config = IngestConfig(views=("gcu",), column_frames=4096)
    table = pd.concat(
        [manifest.assign(id=manifest["id"] + f"-{k}") for k in range(20)], ignore_index=True
    )
    original, calls = PartWriter.write, []

    def full_at_the_second(self: PartWriter, *args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "write", full_at_the_second)
        with pytest.raises(StoreError, match=r"No space left.*run the same ingest again"):
            fs.ingest(table, tmp_path / "store", encoder=encoder, config=config)
    with pytest.raises(StoreError, match=r"incomplete: 1 of \d columns"):
        fs.open_store(tmp_path / "store").pooled("gcu")
    assert not fs.verify(tmp_path / "store").sound
    fs.ingest(table, tmp_path / "store", encoder=encoder, config=config)
    assert fs.verify(tmp_path / "store").sound
    assert len(fs.open_store(tmp_path / "store").pooled("gcu")["id"]) == len(table)


def test_views_that_do_not_exist_are_refused(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(FeatureStoreError, match="unknown view 'gru'; accepted: network, gcu, "):
        fs.ingest(manifest, tmp_path / "store", encoder=encoder, views=("gru",))
    with pytest.raises(FeatureStoreError, match="unknown capture 'hidden'; accepted: gate, "):
        fs.ingest(manifest, tmp_path / "store", encoder=encoder, captures="hidden")
    with pytest.raises(FeatureStoreError, match="needs weights"):
        fs.ingest(manifest, tmp_path / "store", encoder=None, views=("gcu",))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(StoreError, match="not a feature store"):
        fs.ingest(manifest, tmp_path / "other", views=("mfcc",))
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_verify_notices_what_was_damaged(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    fs.ingest(manifest, store, encoder=encoder, config=NEURAL)
    assert fs.verify(store).sound
    shard = next(iter(store.rglob("frames/gate/c/7/0/0")))
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    (problem,) = fs.verify(store).problems
    assert "frames/gate" in problem.what
    data[5000] ^= 1
    shard.write_bytes(data)
    assert fs.verify(store).sound
    next(iter(store.rglob("pooled/mfcc/c/1/0/0"))).unlink()
    (problem,) = fs.verify(store).problems
    assert "missing" in problem.what


def _script(folder: Path, body: str) -> list[str]:
    path = folder / "script.py"
    prologue = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
    path.write_text(prologue + textwrap.dedent(body))
    return [sys.executable, str(path)]


def test_a_killed_ingest_is_completed_bit_for_bit(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    table = pd.concat(
        [manifest.assign(id=manifest["id"] + f"-{k}") for k in range(30)], ignore_index=True
    )
    fs.write_manifest(table, tmp_path / "manifest.csv")
    config = IngestConfig(views=("gcu", "mfcc"), column_frames=4096)
    command = _script(
        tmp_path,
        f"""
        import featurestore as fs
        from featurestore.setup import IngestConfig
        fs.ingest({str(tmp_path / "manifest.csv")!r}, {str(tmp_path / "killed")!r},
                  encoder="random:0",
                  config=IngestConfig(views=("gcu", "mfcc"), column_frames=4096))
        """,
    )
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("ledger/*/00000.json")):
        assert process.poll() is None, "the ingest ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(StoreError, match="incomplete"):
        fs.open_store(tmp_path / "killed").pooled("gcu")
    fs.ingest(table, tmp_path / "killed", encoder=encoder, config=config)
    fs.ingest(table, tmp_path / "whole", encoder=encoder, config=config)
    assert fs.verify(tmp_path / "killed").sound
    for whole in (tmp_path / "whole").rglob("c/**/*"):
        if whole.is_file():
            resumed = tmp_path / "killed" / whole.relative_to(tmp_path / "whole")
            assert resumed.read_bytes() == whole.read_bytes()


_PEAK = """
import resource, pandas as pd
import featurestore as fs
from featurestore.batching import BatchPolicy
from featurestore.setup import IngestConfig
base = pd.read_csv({manifest!r})
table = pd.concat([base.assign(id=base["id"] + f"-{{k}}") for k in range({times})],
                  ignore_index=True)
# One compiled shape for both sizes: each further one takes some 10 MB, however large the corpus.
config = IngestConfig(views=("gcu", "mfcc"), column_frames=4096,
                      batching=BatchPolicy(compile_cost=10**9))
summary = fs.ingest(table, {store!r}, encoder="random:0", config=config)
assert summary.utterances == len(table)
print(summary.plan.columns, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
def test_peak_memory_does_not_grow_with_the_corpus(manifest: pd.DataFrame, tmp_path: Path) -> None:
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    peaks = []
    for times in (28, 280):
        body = _PEAK.format(
            manifest=str(tmp_path / "manifest.csv"), times=times, store=str(tmp_path / f"s{times}")
        )
        done = subprocess.run(_script(tmp_path, body), check=True, capture_output=True, text=True)
        columns, peak = map(int, done.stdout.split())
        assert columns >= 4  # more columns than are ever in memory at once
        peaks.append(peak)
    assert peaks[1] < 1.10 * peaks[0]
