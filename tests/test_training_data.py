"""Transcripts, batches and augmentation: what reaches the training step."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from synthetic import babble, write_corpus

from featurestore.errors import TrainingError
from featurestore.frontend import front_end, log_mel_of_batch, mfcc, mfcc_of_batch
from featurestore.training import augment
from featurestore.training.alphabet import ALPHABET, BLANK, spell, written
from featurestore.training.augment import NO_AUGMENTATION, Augmentation, augmented_mfcc
from featurestore.training.config import TrainConfig
from featurestore.training.data import training_set
from featurestore.training.loader import Loader

FRONT_END = front_end("librosa-0.5")


def test_alphabet_is_the_originals() -> None:
    assert len(ALPHABET) == 27
    assert BLANK == 27
    assert spell("az b").labels.tolist() == [1, 26, 0, 2]


@pytest.mark.parametrize(
    ("text", "spelled", "dropped"),
    [
        (
            "Author of the danger trail, Philip Steels, etc.",
            "author of the danger trail philip steels etc",
            {},
        ),
        ("Don't -- you’d  say\tit!", "dont youd say it", {}),
        ("Ça va, naïve Ærøskøbing? Straße", "ca va naive aeroskobing strasse", {}),
        ("in 1854 & £5", "in", {"1": 1, "8": 1, "5": 2, "4": 1, "&": 1, "£": 1}),
        ("ﬁne", "fine", {}),
        ("слово", "", dict.fromkeys("слв", 1) | {"о": 2}),
        ("", "", {}),
    ],
)
def test_texts_are_spelled_by_rule(text: str, spelled: str, dropped: dict[str, int]) -> None:
    found = spell(text)
    assert found.text == spelled
    assert dict(found.dropped) == dropped
    assert written(found.labels) == spelled


@given(st.text(max_size=40))
def test_any_text_can_be_spelled_and_spelling_is_final(text: str) -> None:
    once = spell(text)
    assert set(once.text) <= set(ALPHABET)
    assert spell(once.text).text == once.text
    assert not spell(once.text).dropped


def test_the_blank_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="27"):
        written([1, BLANK])


def _corpus(folder: Path, **columns) -> pd.DataFrame:
    table = write_corpus(folder, durations=[1.0, 1.5, 0.8, 2.0, 1.2, 0.9], speakers=3)
    return table.assign(text="some words here", **columns)


def _reasons(table: pd.DataFrame, **config) -> dict[str, str]:
    return training_set(table, TrainConfig(**config)).skipped


def test_split_column_decides(tmp_path: Path) -> None:
    table = _corpus(tmp_path, split=["train", "", "dev", "test", "Train", "validation"])
    data = training_set(table, TrainConfig())
    assert [example.id for example in data.train] == ["u000", "u001", "u004"]
    assert [example.id for example in data.held_out] == ["u002", "u005"]
    assert not data.skipped


def test_speakers_are_held_out_whole(tmp_path: Path) -> None:
    data = training_set(_corpus(tmp_path), TrainConfig(held_out=0.3))
    train = {example.speaker for example in data.train}
    held = {example.speaker for example in data.held_out}
    assert len(held) == 1
    assert not train & held
    assert "speakers" in data.rule


def test_sentences_are_held_out_whole_for_one_speaker(tmp_path: Path) -> None:
    table = _corpus(tmp_path, speaker="s").assign(text=["a", "b", "a", "c", "b", "d"])
    data = training_set(table, TrainConfig(held_out=0.25))
    train = {example.transcript.text for example in data.train}
    assert not train & {example.transcript.text for example in data.held_out}


def test_what_cannot_be_trained_on_is_left_out_with_its_reason(tmp_path: Path) -> None:
    table = _corpus(tmp_path)
    table.loc[0, "text"] = "in 1854"
    table.loc[1, "text"] = " ... "
    table.loc[2, "text"] = "x" * 40  # 0.8 s are 26 frames
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    table.loc[3, "path"] = str(tmp_path / "broken.wav")
    data = training_set(table, TrainConfig(held_out=0.5))
    assert set(data.skipped) == {"u000", "u001", "u002", "u003"}
    assert "no spelling" in data.skipped["u000"]
    assert "no letters" in data.skipped["u001"]
    assert "shorter than its transcript" in data.skipped["u002"]
    assert data.unspelled == {"1": 1, "8": 1, "5": 1, "4": 1}
    assert "longer than 1 s" in _reasons(_corpus(tmp_path), longest_s=1.0)["u003"]


@pytest.mark.parametrize("change", ["drop", "empty"])
def test_a_manifest_without_transcripts_is_refused(tmp_path: Path, change: str) -> None:
    table = _corpus(tmp_path)
    table = table.drop(columns="text") if change == "drop" else table.assign(text=" ")
    with pytest.raises(TrainingError, match="'text'"):
        training_set(table, TrainConfig())


def test_nothing_to_train_on_says_what_was_left_out(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"6: no letters in the text"):
        training_set(_corpus(tmp_path).assign(text=["!"] * 5 + ["?"]), TrainConfig())


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"learning_rate": float("nan")}, {"dropout": 1.0}, {"clip": 0.0}]
)
def test_impossible_choices_are_refused(bad: dict) -> None:
    with pytest.raises(TrainingError, match=next(iter(bad))):
        TrainConfig(**bad)


def _loader(table: pd.DataFrame, *, augmentation: Augmentation, devices: int = 1) -> Loader:
    data = training_set(table, TrainConfig(held_out=0.3))
    return Loader(
        data.train,
        front_end=FRONT_END,
        augmentation=augmentation,
        frames_per_batch=128,
        epochs=2,
        seed=5,
        devices=devices,
    )


def test_every_utterance_comes_once_in_an_epoch_in_another_order_each_time(tmp_path: Path) -> None:
    loader = _loader(_corpus(tmp_path), augmentation=Augmentation())
    orders = []
    for epoch in range(3):
        planned = loader.plan(epoch)
        members = [index for one in planned for index in one.members]
        assert sorted(members) == list(range(len(loader.examples)))
        orders.append([(one.members, one.speeds) for one in planned])
    assert orders[0] != orders[1]
    assert orders[0] == [(one.members, one.speeds) for one in loader.plan(0)]


def test_an_epoch_taken_up_in_its_middle_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    loader = _loader(_corpus(tmp_path), augmentation=Augmentation(noise=1.0), devices=2)
    planned = loader.plan(1)
    assert len(planned) > 1
    whole = list(loader.batches(planned, 1))
    rest = list(loader.batches(planned[1:], 1))
    for one, other in zip(whole[1:], rest, strict=True):
        assert one.ids == other.ids
        assert np.array_equal(one.buffers, other.buffers)
        assert np.array_equal(one.labels, other.labels)
    for batch, plan in zip(whole, planned, strict=True):
        assert len(batch.buffers) % 2 == 0
        assert batch.n_frames[: len(batch.ids)].min() > 0
        assert not batch.n_frames[len(batch.ids) :].any()
        assert batch.n_labels.max() <= plan.symbols


@pytest.mark.parametrize("speed", [0.0, 0.2])
def test_no_frame_is_cut_off(tmp_path: Path, speed: float) -> None:
    augmentation = Augmentation(speed=speed, noise=0.0)
    loader = _loader(_corpus(tmp_path), augmentation=augmentation)
    for epoch in range(4):
        for plan, batch in zip(
            loader.plan(epoch), loader.batches(loader.plan(epoch), epoch), strict=True
        ):
            for row, (index, factor) in enumerate(zip(plan.members, plan.speeds, strict=True)):
                seconds = loader.examples[index].duration_s / factor
                assert batch.n_frames[row] == pytest.approx(1 + seconds * 31.25, abs=1.1)
                assert batch.n_frames[row] >= loader.examples[index].transcript.min_frames


def test_a_file_that_goes_bad_meanwhile_stops_nothing(tmp_path: Path) -> None:
    table = _corpus(tmp_path)
    loader = _loader(table, augmentation=NO_AUGMENTATION)
    lost = loader.examples[0]
    Path(lost.audio[0]).unlink()
    found = list(loader.batches(loader.plan(0), 0))
    assert {id: reason for batch in found for id, reason in batch.failed.items()}.keys() == {
        lost.id
    }
    assert sum(len(batch.ids) for batch in found) == len(loader.examples) - 1


def test_unvaried_batches_hold_the_mfcc_of_the_recordings(tmp_path: Path) -> None:
    loader = _loader(_corpus(tmp_path), augmentation=NO_AUGMENTATION)
    for batch in loader.batches(loader.plan(0), 0):
        found = jax.jit(mfcc_of_batch)(batch.buffers, batch.n_frames)
        for row, id in enumerate(batch.ids):
            path = next(e.audio[0] for e in loader.examples if e.id == id)
            expected = mfcc(soundfile.read(path, dtype="float32")[0])
            np.testing.assert_allclose(found[row, : len(expected)], expected, atol=1e-3)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    time = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 500 * time).astype(np.float32)
    changed = augment.change_speed(tone, factor)
    assert len(changed) == pytest.approx(16_000 / factor, abs=1)
    peak = np.abs(np.fft.rfft(changed)).argmax() * 16_000 / len(changed)
    assert peak == pytest.approx(500 * factor, rel=0.01)


def test_noise_has_the_ratio_asked_for() -> None:
    samples = babble(2.0)
    augmentation = Augmentation(noise=1.0, noise_db=(10.0, 10.0))
    noisy = augment.add_noise(samples, augmentation, np.random.default_rng(0))
    ratio = np.mean(samples**2) / np.mean((noisy - samples) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(10.0, abs=0.1)
    still = augment.add_noise(samples, Augmentation(noise=0.0), np.random.default_rng(0))
    assert still is samples


def _decibels(seconds: float = 2.0) -> tuple[jax.Array, np.int32]:
    prepared = FRONT_END.prepare(babble(seconds))
    frames = 1 + int(seconds * 16_000) // 512
    buffer = np.zeros((frames + 12 + 3) * 512, np.float32)
    buffer[: len(prepared)] = prepared
    return log_mel_of_batch(jnp.asarray(buffer)[None], jnp.array([frames]))[0], np.int32(frames)


def test_without_variation_it_is_the_front_end() -> None:
    decibels, frames = _decibels()
    found = augmented_mfcc(decibels, frames, jax.random.key(0), NO_AUGMENTATION)
    np.testing.assert_allclose(found[:frames], mfcc(babble(2.0)), atol=2e-3)
    assert not np.asarray(found)[frames:].any()


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(coefficient_shift=True),
        Augmentation(bands=100, frames=60, frames_apart=5, warp=0.3),
    ],
)
def test_variation_is_drawn_from_the_key_and_leaves_padding_alone(augmentation) -> None:
    decibels, frames = _decibels()
    vary = jax.jit(lambda key: augmented_mfcc(decibels, frames, key, augmentation))
    one, same, other = (np.asarray(vary(jax.random.key(k))) for k in (1, 1, 2))
    assert np.isfinite(one).all()
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not one[frames:].any()


def test_gain_moves_the_first_coefficient_alone() -> None:
    decibels, frames = _decibels()
    only = Augmentation(speed=0, noise=0, gain_db=10, tilt_db=0, warp=0, bands=0, frames=0)
    plain = augmented_mfcc(decibels, frames, jax.random.key(3), NO_AUGMENTATION)
    louder = augmented_mfcc(decibels, frames, jax.random.key(3), only)
    moved = np.asarray(louder - plain)[:frames]
    np.testing.assert_allclose(moved[:, 1:], 0, atol=1e-3)
    assert np.ptp(moved[:, 0]) < 1e-2
    assert 0 < abs(moved[0, 0]) <= 10 * np.sqrt(128)
