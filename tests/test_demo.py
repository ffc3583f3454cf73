"""The demo corpus: its labels reach the reader unchanged, and its audio follows them."""

from __future__ import annotations

import builtins
import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from featurestore.corpus import read_corpus
from featurestore.errors import FeatureStoreError

pytest.importorskip("espeakng_loader", reason="the extra 'demo' is not installed")

from featurestore.demo import UTTERANCES, write_demo_corpus


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seen: list[tuple[int, int]] = []
    root = write_demo_corpus(
        tmp_path_factory.mktemp("demo"), progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, UTTERANCES) for done in range(1, UTTERANCES + 1)]
    return root


@pytest.fixture(scope="module")
def manifest(demo: Path) -> pd.DataFrame:
    return read_corpus("iemocap", demo)


@pytest.fixture(scope="module")
def audio(manifest: pd.DataFrame) -> list[np.ndarray]:
    return [soundfile.read(path)[0] for path in manifest["path"]]


def by_speaker(manifest: pd.DataFrame, values: np.ndarray, label: str) -> np.ndarray:
    """Pearson r with a label within each speaker."""
    return np.array(
        [
            np.corrcoef(values[rows], manifest[label].to_numpy()[rows])[0, 1]
            for rows in manifest.groupby("speaker").indices.values()
        ]
    )


def fundamental(samples: np.ndarray) -> float:
    """Median pitch in Hz, from the highest autocorrelation between 60 and 400 Hz per 64 ms."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::512]
    loud = frames[np.square(frames).mean(axis=1) > 0.5 * np.square(samples).mean()]
    spectrum = np.fft.rfft(loud * np.hanning(1024), n=2048)
    lags = np.fft.irfft(np.abs(spectrum) ** 2)[:, 40:267]
    return float(np.median(16000 / (40 + lags.argmax(axis=1))))


def test_the_reader_finds_ten_speakers_who_do_not_always_wear_the_markers(
    manifest: pd.DataFrame,
) -> None:
    assert len(manifest) == UTTERANCES
    assert manifest["speaker"].nunique() == 10
    assert manifest["session"].nunique() == 5
    assert set(manifest["kind"]) == {"impro", "script"}
    assert (manifest["dialog"].str[:6] != manifest["speaker"]).mean() == 0.5
    assert "Ses05M_script01_1b" in set(manifest["dialog"])
    assert not manifest["id"].str.contains("XX").any()
    assert manifest["text"].str.contains("café").any()


def test_the_labels_are_those_of_the_files(demo: Path, manifest: pd.DataFrame) -> None:
    """Re-derives every label from the raters' own lines, independently of the reader."""
    labels = manifest.set_index("id")
    checked = 0
    for file in demo.glob("Session*/dialog/EmoEvaluation/Ses*.txt"):
        for block in file.read_text("latin-1").strip().split("\n\n")[1:]:
            name = block.split("\t")[1]
            rated = re.findall(r"A-E\d:\tval (\d); act (\d); dom  (\d);", block)
            mean = np.array(rated, dtype=float).mean(axis=0).round(4)
            row = labels.loc[name]
            assert row[["valence", "arousal", "dominance"]].tolist() == mean.tolist()
            assert len(re.findall(rf"^[CA]-{name[-4]}1:", block, re.MULTILINE)) == 2
            words = re.findall(r"C-E\d:\t([^;]+);", block)
            agreed = max(words.count(word) for word in words) > len(words) / 2
            assert (row["emotion"] != "xxx") == agreed
            checked += 1
    assert checked == len(manifest)


def test_every_category_occurs_and_labels_spread(manifest: pd.DataFrame) -> None:
    assert set(manifest["emotion"]) == {"neu", "ang", "sad", "hap", "exc", "fru", "xxx"}
    assert manifest["arousal"].std() > 1
    assert manifest["valence"].std() > 1
    assert abs(manifest["arousal"].corr(manifest["valence"])) < 0.15
    wordy = manifest["text"].str.len()
    assert abs(manifest["arousal"].corr(wordy)) < 0.2


def test_the_audio_is_speech_like_and_not_clipped(
    manifest: pd.DataFrame, audio: list[np.ndarray]
) -> None:
    info = soundfile.info(manifest["path"][0])
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    for samples in audio:
        assert 1.2 < len(samples) / 16000 < 6
        assert 0.05 < np.abs(samples).max() < 0.99
    stated = manifest["dialog_end_s"] - manifest["dialog_start_s"]
    np.testing.assert_allclose(stated, [len(samples) / 16000 for samples in audio], atol=2e-4)


def test_loudness_rate_and_pitch_follow_arousal_and_not_valence(
    manifest: pd.DataFrame, audio: list[np.ndarray]
) -> None:
    level = np.array([10 * np.log10(np.mean(samples**2)) for samples in audio])
    rate = manifest["text"].str.len().to_numpy() / [len(samples) / 16000 for samples in audio]
    pitch = np.log2([fundamental(samples) for samples in audio])
    assert by_speaker(manifest, level, "arousal").min() > 0.9
    assert by_speaker(manifest, rate, "arousal").min() > 0.6
    assert np.median(by_speaker(manifest, pitch, "arousal")) > 0.8
    for values in (level, rate, pitch):
        assert abs(by_speaker(manifest, values, "valence").mean()) < 0.25


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        files = sorted(file for file in root.rglob("*") if file.is_file())
        assert files
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    first = digest(write_demo_corpus(tmp_path / "a", utterances_per_speaker=1, seed=3))
    assert digest(write_demo_corpus(tmp_path / "b", utterances_per_speaker=1, seed=3)) == first
    assert digest(write_demo_corpus(tmp_path / "c", utterances_per_speaker=1, seed=4)) != first
    # An earlier demo corpus is replaced, whatever its size was.
    write_demo_corpus(tmp_path / "a", utterances_per_speaker=2, seed=4)
    assert digest(write_demo_corpus(tmp_path / "a", utterances_per_speaker=1, seed=3)) == first


def test_it_refuses_to_write_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FeatureStoreError, match="something else"):
        write_demo_corpus(tmp_path)
    with pytest.raises(FeatureStoreError, match="is a file"):
        write_demo_corpus(tmp_path / "thesis.tex")
    with pytest.raises(FeatureStoreError, match="at least 1"):
        write_demo_corpus(tmp_path / "new", utterances_per_speaker=0)
    with pytest.raises(FeatureStoreError, match="seed is -1"):
        write_demo_corpus(tmp_path / "new", seed=-1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_espeak_it_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **options: object) -> object:
        if name == "espeakng_loader":
            raise ImportError(name)
        return real(name, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FeatureStoreError, match=r"pip install 'featurestore\[demo\]'"):
        write_demo_corpus(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_readme_says_what_it_is(demo: Path) -> None:
    text = (demo / "README.txt").read_text("utf-8")
    assert "Synthetic" in text
    assert "nothing\nabout emotion in speech can be learned" in text
