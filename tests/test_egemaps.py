"""eGeMAPS against openSMILE itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import shared
from synthetic import babble

import featurestore as fs
from featurestore.egemaps import feature_names, functionals
from featurestore.errors import AudioError

opensmile = pytest.importorskip("opensmile", reason="the extra 'egemaps' is not installed")


@pytest.fixture(scope="module")
def smile() -> object:
    return opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=opensmile.FeatureLevel.Functionals,
    )


def test_the_names_are_opensmiles(smile: object) -> None:
    assert list(feature_names()) == smile.feature_names  # type: ignore[attr-defined]
    assert len(feature_names()) == 88


@pytest.mark.parametrize(("rate", "suffix"), [(16_000, "wav"), (44_100, "flac"), (8_000, "wav")])
def test_a_file_gives_what_process_file_gives(
    smile: object, tmp_path: Path, rate: int, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, babble(2.0, rate=rate), rate)
    expected = smile.process_file(str(path)).to_numpy()[0]  # type: ignore[attr-defined]
    values, duration, _ = functionals(str(path), 0.0, float("nan"))
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert duration == 2.0
    part = smile.process_file(str(path), start=0.5, end=1.5).to_numpy()[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(functionals(str(path), 0.5, 1.5)[0], part, rtol=1e-6)


def test_channels_are_averaged(smile: object, tmp_path: Path) -> None:
    left, right = babble(1.0, seed=1), babble(1.0, seed=2)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    mixed = smile.process_signal((left + right) / 2, 16_000).to_numpy()[0]  # type: ignore[attr-defined]
    values, _, _ = functionals(str(tmp_path / "two.wav"), 0.0, float("nan"))
    np.testing.assert_allclose(values, mixed, rtol=1e-4, atol=1e-4)


def test_too_short_a_clip_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", babble(0.02), 16_000)
    with pytest.raises(AudioError, match="too short for eGeMAPS"):
        functionals(str(tmp_path / "a.wav"), 0.0, float("nan"))


def test_the_store_equals_process_file_on_real_speech(smile: object, tmp_path: Path) -> None:
    manifest = fs.read_corpus("ravdess", shared("speech", "ravdess"))
    chosen = manifest.iloc[:: len(manifest) // 30].reset_index(drop=True)
    summary = fs.ingest(chosen, tmp_path / "store", views=("egemaps",))
    assert summary.utterances == len(chosen)
    features = fs.open_store(tmp_path / "store").features("egemaps").compute()
    by_id = pd.DataFrame(features.values, index=features["id"].values, columns=feature_names())
    for id, path in zip(chosen["id"], chosen["path"], strict=True):
        expected = smile.process_file(path)  # type: ignore[attr-defined]
        np.testing.assert_allclose(by_id.loc[id], expected.to_numpy()[0], rtol=1e-6)
