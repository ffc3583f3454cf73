"""The training manifest of the default model: what is in one split alone, what is never said."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile

from featurestore.corpus import read_manifest
from featurestore.espeak import Espeak
from featurestore.training.alphabet import spell

RECIPE = Path(__file__).parents[1] / "recipes" / "default_model"


@pytest.fixture(scope="module")
def recipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPE))
        names = ("manifest", "splits", "sentences", "voices")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture(scope="module")
def built(recipe, speech, tmp_path_factory):
    out = tmp_path_factory.mktemp("default_model")
    recipe.manifest.main([str(speech), "-o", str(out)])
    return read_manifest(out / "manifest.csv")


def _of(table: pd.DataFrame, corpus: str, split: str) -> pd.DataFrame:
    return table[(table["corpus"] == corpus) & (table["split"] == split)]


def test_speakers_of_speechocean_are_in_one_split(built):
    ocean = built[built["corpus"] == "speechocean762"]
    assert not ocean.drop_duplicates(["speaker", "split"])["speaker"].duplicated().any()
    dev = _of(built, "speechocean762", "dev").drop_duplicates("speaker")
    assert len(dev) == 12
    assert (dev["age"] < 16).sum() == 6
    assert (dev["sex"] == "f").sum() == 6


def test_prompts_of_cathy_are_in_one_split(built):
    cathy = built[built["corpus"] == "cathy"]
    prompts = cathy.assign(prompt=cathy["id"].str.split("_").str[1])
    prompts = prompts.drop_duplicates(["prompt", "split"])
    assert not prompts["prompt"].duplicated().any()
    assert prompts["split"].value_counts()[["dev", "test"]].to_dict() == {"dev": 25, "test": 60}


def test_no_sentence_of_dev_or_test_is_spoken_in_train(built):
    sentence = built["text"].map(lambda text: spell(text).text)
    read = built["corpus"] != "fsdd"
    train, dev, test = (
        set(sentence[read & (built["split"] == s)]) for s in ("train", "dev", "test")
    )
    digits = set(sentence[(built["corpus"] == "fsdd") & (built["split"] == "train")])
    assert len(train) > 3000
    assert not (train | digits) & (dev | test)
    assert not dev & test


def test_only_the_four_corpora_and_their_own_test_splits(built, speech):
    assert set(built["corpus"]) == {"speechocean762", "cathy", "ljspeech", "fsdd"}
    folders = {Path(path).relative_to(speech).parts[0] for path in built["path"]}
    assert folders == set(built["corpus"])
    for corpus in ("speechocean762", "fsdd"):
        own = read_manifest(speech / corpus / "manifest.csv").set_index("id")["split"]
        held_out = set(corpus + "-" + own.index[own == "test"])
        train = set(_of(built, corpus, "train")["id"])
        assert train
        assert not train & held_out


def test_the_seed_decides(recipe, speech, built):
    again, _ = recipe.splits.combined(speech, holdout=recipe.splits.Holdout(seed=0))
    other, _ = recipe.splits.combined(speech, holdout=recipe.splits.Holdout(seed=1))
    columns = ["id", "split"]
    again = again.sort_values("id", ignore_index=True)
    pd.testing.assert_frame_equal(again[columns], built[columns])
    for corpus in ("speechocean762", "cathy"):
        assert set(_of(other, corpus, "dev")["id"]) != set(_of(built, corpus, "dev")["id"])


def test_texts_that_cannot_be_spelled_are_dropped_and_counted(recipe):
    table = pd.DataFrame(
        {
            "text": ["in 1812", "a bird", "A bird.", "a fish", "a fish"],
            "split": ["train", "train", "test", "test", "dev"],
            "corpus": "speechocean762",
            "seconds": 36.0,
            "sentence": ["in", "a bird", "a bird", "a fish", "a fish"],
        }
    )
    table["seconds"] = [36.0, 7.2, 7.2, 7.2, 7.2]
    kept, dropped = recipe.splits._without_what_cannot_be_used(table)
    assert kept[["text", "split"]].to_numpy().tolist() == [["a bird", "train"], ["a fish", "test"]]
    reasons = dropped.table().set_index("split")
    assert reasons["utterances"].to_dict() == {"train": 1, "test": 1, "dev": 1}
    assert reasons.loc["train", "hours"] == pytest.approx(0.01)


def test_composed_sentences_are_spelled_as_they_are(recipe):
    made = recipe.sentences.composed(np.random.default_rng(0))
    texts = [next(made) for _ in range(2000)]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert spell(text).text == text
        assert 2 <= len(text.split()) <= 12
    assert len({word for text in texts for word in text.split()}) > 1000


def test_forbidden_sentences_are_not_said(recipe):
    transcripts = ["We call it bear.", "we call it cat", "in 1812"]
    random = np.random.default_rng(0)
    texts = recipe.voices._texts(transcripts, {"we call it bear"}, random=random)
    said = {next(texts) for _ in range(500)}
    assert "we call it cat" in said
    assert not said & {"We call it bear.", "in 1812"}


def test_espeak_has_every_voice(recipe):
    pytest.importorskip("espeakng_loader")
    voices = {speaker.voice for speaker in recipe.voices.cast(0)}
    assert {voice.partition("+")[2] for voice in voices} == set(recipe.voices.VARIANTS)
    with Espeak() as espeak:
        lengths = [
            len(espeak.say("bear", voice=voice, rate=150, pitch=50, pitch_range=50))
            for voice in sorted(voices)[::10]
        ]
    assert min(lengths) > 0.1 * espeak.rate


def test_a_chunk_is_spoken_alike_every_time(recipe, tmp_path):
    pytest.importorskip("espeakng_loader")
    texts = ("we call it bear", "Zero three five one.", "my father asked all of us to laugh")

    def spoken(name: str, number: int = 7) -> list[np.ndarray]:
        chunk = recipe.voices.Chunk("espeak", number, texts, tmp_path / name, 0)
        rows = recipe.voices.spoken_chunk(chunk)
        assert [row["text"] for row in rows] == list(texts)
        return [soundfile.read(row["path"])[0] for row in rows]

    first, again, other = spoken("a"), spoken("b"), spoken("c", 8)
    for samples, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(samples, same)
        assert 0.5 < len(samples) / 16_000 < 8
        assert 0.001 < np.sqrt(np.mean(samples**2)) < 0.2
        assert np.abs(samples).max() < 0.99
        assert len(samples) != len(different)


def test_synthetic_speech_joins_train_alone(recipe, speech, tmp_path, monkeypatch):
    asked = {}

    def spoken(engine, *, hours, transcripts, forbidden, **_):
        asked[engine] = (hours, transcripts, forbidden)
        row = {"id": engine, "path": "x.flac", "speaker": engine, "text": "a", "split": "train"}
        return pd.DataFrame([row | {"corpus": engine, "seconds": 1.0, "sentence": "a"}])

    monkeypatch.setattr(recipe.manifest, "synthesised", spoken)
    table, _ = recipe.splits.combined(speech, holdout=recipe.splits.Holdout())
    options = argparse.Namespace(synthetic=0.5, natural=0.0, output=tmp_path, seed=0, processes=1)
    joined = recipe.manifest._with_synthetic(table, options)
    assert joined["corpus"].value_counts()["espeak"] == 1
    assert set(asked) == {"espeak"}
    hours, transcripts, forbidden = asked["espeak"]
    assert hours == 0.5
    assert forbidden == recipe.splits.held_out_sentences(table)
    assert len(forbidden) > 2000
    assert not {spell(text).text for text in transcripts} & forbidden
