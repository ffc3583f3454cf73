"""A corpus whose truth is known, through the whole system; and real speech, where it is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import shared

import featurestore as fs
from featurestore.analysis.scores import summarise


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, fs.Store]:
    pytest.importorskip("espeakng_loader", reason="the extra 'demo' is not installed")
    from featurestore.demo import write_demo_corpus

    root = tmp_path_factory.mktemp("demo")
    write_demo_corpus(root / "corpus")
    manifest = fs.read_corpus("iemocap", root / "corpus")
    fs.ingest(manifest, root / "store", encoder="random:0", views=("gcu", "mfcc"), frames=False)
    return manifest, fs.open_store(root / "store")


def test_the_heat_map_finds_the_arousal_that_drives_the_voice(
    demo: tuple[pd.DataFrame, fs.Store],
) -> None:
    _, store = demo
    arousal = fs.correlate(store, target="arousal", by="speaker")
    valence = fs.correlate(store, target="valence", by="speaker")
    assert arousal["r"].dims == ("speaker", "layer", "unit")
    assert arousal["r"].shape == (10, 15, 128)
    strength = {
        name: np.abs(data["r"]).mean(("layer", "unit"))
        for name, data in (("arousal", arousal), ("valence", valence))
    }
    # 40 utterances per speaker: |r| of unrelated values is 0.13 on average.
    assert (strength["arousal"] > 0.4).all()
    assert (strength["valence"] < 0.3).all()
    pooled = fs.correlate(store, target="arousal")
    assert np.abs(pooled["r"]).max() > 0.75


def test_held_out_speakers_arousal_is_predicted_and_their_valence_is_not(
    demo: tuple[pd.DataFrame, fs.Store],
) -> None:
    manifest, store = demo
    with pytest.warns(UserWarning, match="eGeMAPS"):
        results = fs.evaluate(store, table=1)
    ccc = summarise(results).set_index(["feature_set", "target"])["ccc_mean"]
    assert ccc["100 best of all units", "arousal"] > 0.6
    assert ccc["MFCC mean + std", "arousal"] > 0.6
    assert ccc["train mean", "arousal"] == 0
    assert ccc["100 best of all units", "valence"] < 0.3
    assert set(results["fold"]) == set(manifest["speaker"])


def test_disagreement_counts_for_table_1_and_not_for_table_2(
    demo: tuple[pd.DataFrame, fs.Store],
) -> None:
    manifest, store = demo
    agreed = int((manifest["emotion"] != "xxx").sum())
    assert 0 < agreed < len(manifest)
    for table, expected in ((1, len(manifest)), (2, agreed)):
        with pytest.warns(UserWarning, match="eGeMAPS"):
            results = fs.evaluate(store, table=table, targets=("arousal",))  # type: ignore[arg-type]
        assert set(summarise(results)["utterances"]) == {expected}


def test_random_weights_of_another_seed_say_something_else(
    demo: tuple[pd.DataFrame, fs.Store], tmp_path: Path
) -> None:
    manifest, store = demo
    fs.ingest(
        manifest.iloc[:20], tmp_path / "store", encoder="random:7", views=("gcu",), frames=False
    )
    other = fs.open_store(tmp_path / "store").pooled("gcu")["gate"].sel(statistic="mean")
    mine = store.pooled("gcu")["gate"].sel(statistic="mean")
    row = list(mine["id"].to_numpy()).index(other["id"].to_numpy()[0])
    assert np.abs(other[0] - mine[row]).max() > 0.05


def test_ravdess_with_all_views(tmp_path: Path) -> None:
    pytest.importorskip("opensmile", reason="the extra 'egemaps' is not installed")
    manifest = fs.read_corpus("ravdess", shared("speech", "ravdess"))
    assert len(manifest) == 1440
    four = manifest[manifest["speaker"].isin(["actor_01", "actor_02", "actor_03", "actor_04"])]
    summary = fs.ingest(four, tmp_path / "store", encoder="random:0")
    assert (summary.utterances, summary.skipped) == (240, ())
    store = fs.open_store(tmp_path / "store")
    for by, groups in (("speaker", 4), (None, None)):
        found = fs.correlate(store, target="arousal", by=by)
        assert found["r"].shape == ((groups, 15, 128) if groups else (15, 128))
        assert np.isfinite(found["r"]).all()
    for table, sets in ((1, 5), (2, 6)):
        results = fs.evaluate(store, table=table)  # type: ignore[arg-type]
        assert len(results) == sets * 2 * 4
        assert np.isfinite(results["mse"]).all()
    assert fs.verify(tmp_path / "store").sound
