"""Whole trainings: they learn, survive being killed, and refuse what they must."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import soundfile
from safetensors.numpy import load_file
from synthetic import write_corpus
from training_worker import SHORT

from featurestore import load_encoder
from featurestore.errors import TrainingError
from featurestore.random_weights import random_weights
from featurestore.training.augment import NO_AUGMENTATION
from featurestore.training.config import TrainConfig
from featurestore.training.data import TrainingSet, training_set
from featurestore.training.run import Run
from featurestore.training.train import train

ROOT = Path(__file__).parents[1]
ONE = jax.devices()[:1]


def spoken(folder: Path, words: list[str]) -> pd.DataFrame:
    """A language of tones: a letter sounds for 0.1 s at its own pitch, a space is silence."""
    time = np.arange(1600) / 16_000
    ramp = np.minimum(1.0, 20 * np.minimum(time, time[::-1]))
    rows = []
    for index, word in enumerate(words):
        tones = [
            np.sin(2 * np.pi * (250 * 1.11 ** (ord(letter) - 96)) * time) * ramp * (letter != " ")
            for letter in f" {word} "
        ]
        noise = np.random.default_rng(index).normal(0, 1e-3, 1600 * len(tones))
        path = folder / f"{index}.wav"
        soundfile.write(path, 0.3 * np.concatenate(tones) + noise, 16_000)
        rows.append({"id": f"w{index}", "path": str(path), "speaker": f"s{index}", "text": word})
    return pd.DataFrame(rows)


@pytest.mark.long
def test_overfits_eight_utterances_to_an_error_rate_of_zero(tmp_path: Path) -> None:
    words = ["cab", "a bed", "fade", "beef", "dad", "face", "bag", "egg"]
    table = spoken(tmp_path, words)
    config = TrainConfig(epochs=50, augmentation=NO_AUGMENTATION, dropout=0.0, warmup=5, patience=0)
    data = training_set(table, config)
    everything = (*data.train, *data.held_out)
    data = TrainingSet(everything, everything, {}, data.unspelled, "the training set itself")
    summary = train(data, tmp_path / "run", config, devices=ONE)
    assert summary.cer == 0.0
    assert summary.wer == 0.0
    recognised = pd.read_csv(tmp_path / "run" / "held-out.csv")
    assert recognised["recognised"].tolist() == recognised["text"].tolist()
    epochs = pd.read_csv(tmp_path / "run" / "epochs.csv")
    assert epochs["loss"].iloc[-1] < epochs["loss"].iloc[0] / 4
    assert (tmp_path / "run" / "training.png").read_bytes().startswith(b"\x89PNG")
    encoder = load_encoder(tmp_path / "run" / "weights.safetensors")
    assert encoder.name == f"trained:run:epoch-{summary.best_epoch}"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    table = write_corpus(tmp_path, durations=[0.5, 0.7, 0.6, 0.9, 0.5, 0.8, 0.6], speakers=3)
    path = tmp_path / "manifest.csv"
    table.assign(text="a word").to_csv(path, index=False)
    return path


def _worker(manifest: Path, run: Path, die_at: int, *, devices: int = 1) -> int:
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("training_worker.py"),
            manifest,
            run,
            str(die_at),
        ],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def _final(run: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, the optimiser's too."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((run / "checkpoints").absolute()) as manager:
        state = manager.restore(
            manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore())
        ).state
    return {
        jax.tree_util.keystr(k): np.asarray(v)
        for k, v in jax.tree_util.tree_leaves_with_path(state)
    }


@pytest.mark.long
def test_killed_in_the_middle_of_an_epoch_and_called_again_it_ends_the_same(
    manifest: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _worker(manifest, whole, -1) == 0
    steps = pd.read_csv(whole / "steps.csv")
    per_epoch = len(steps) // SHORT.epochs
    assert per_epoch >= 3
    die_at = per_epoch + 2
    assert _worker(manifest, killed, die_at) == -signal.SIGKILL
    assert not (killed / "training.png").exists() or len(pd.read_csv(killed / "epochs.csv")) == 1
    assert _worker(manifest, killed, -1) == 0
    pd.testing.assert_frame_equal(pd.read_csv(killed / "steps.csv"), steps)
    timeless = pd.read_csv(whole / "epochs.csv").drop(columns="train_s")
    pd.testing.assert_frame_equal(
        pd.read_csv(killed / "epochs.csv").drop(columns="train_s"), timeless
    )
    expected, found = _final(whole), _final(killed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(value, found[name]), name
    assert (killed / "weights.safetensors").read_bytes() != b""
    for name, value in load_file(whole / "weights.safetensors").items():
        assert np.array_equal(value, load_file(killed / "weights.safetensors")[name])


def test_settled_epochs_leave_the_running_statistics_alone(manifest: Path, tmp_path: Path) -> None:
    data, config = _small(manifest, settle=1.0)
    train(data, tmp_path / "run", config, devices=ONE)
    before = random_weights(config.seed).tensors
    after = load_file(tmp_path / "run" / "weights.safetensors")
    moved = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    assert {name for name in before if name.endswith("/W")} <= moved
    assert not {name for name in moved if name.endswith(("/mean", "/variance"))}


@pytest.mark.parametrize(("settle", "first"), [(0.0, 10), (0.3, 7), (1.0, 0)])
def test_the_last_epochs_settle(settle: float, first: int) -> None:
    config = TrainConfig(epochs=10, settle=settle)
    assert [config.settled(epoch) for epoch in range(10)].count(True) == 10 - first
    assert first == 10 or config.settled(first)


@pytest.mark.long
def test_two_devices_train_as_one(manifest: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert _worker(manifest, one, -1) == 0
    assert _worker(manifest, two, -1, devices=2) == 0
    losses, again = (pd.read_csv(run / "steps.csv")["loss"] for run in (one, two))
    # The order of sums differs, and steps amplify it; the batches hold the same utterances.
    np.testing.assert_allclose(again[:3], losses[:3], rtol=1e-3)
    np.testing.assert_allclose(again, losses, rtol=0.05)


def _small(manifest: Path, **changes) -> tuple[TrainingSet, TrainConfig]:
    config = TrainConfig(**{"epochs": 1, "held_out": 0.3, "frames_per_batch": 4096} | changes)
    return training_set(pd.read_csv(manifest, dtype={"speaker": str}), config), config


def test_a_loss_that_is_no_number_stops_with_the_batch(manifest: Path, tmp_path: Path) -> None:
    data, config = _small(manifest, learning_rate=1e30, warmup=0, epochs=4)
    with pytest.raises(TrainingError, match=r"in the batch of .*u00\d") as caught:
        train(data, tmp_path / "run", config, devices=ONE)
    assert "learning-rate" in str(caught.value)


def test_a_run_of_another_configuration_is_refused(manifest: Path, tmp_path: Path) -> None:
    data, config = _small(manifest)
    Run(tmp_path / "run", config, data)
    Run(tmp_path / "run", config, data)  # the same one goes on
    other, changed = _small(manifest, learning_rate=1e-4)
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.002, now 0\.0001"):
        Run(tmp_path / "run", changed, other)
    fewer = TrainingSet(data.train[1:], data.held_out, {}, data.unspelled, data.rule)
    with pytest.raises(TrainingError, match="utterances"):
        Run(tmp_path / "run", config, fewer)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(TrainingError, match="damaged"):
        Run(tmp_path / "run", config, data)


def test_a_folder_that_holds_something_else_is_left_alone(manifest: Path, tmp_path: Path) -> None:
    data, config = _small(manifest)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="not empty"):
        Run(tmp_path / "run", config, data)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_two_trainings_do_not_share_a_folder(manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="locks of this kind are not on Windows")
    data, config = _small(manifest)
    run = Run(tmp_path / "run", config, data)
    with run.owned(), pytest.raises(TrainingError, match="another process"), run.owned():
        pass


def _command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from featurestore.cli import main; main()", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_plans_and_reports_bad_input_in_one_line(
    manifest: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    planned = _command("train", manifest, "-o", run, "--dry-run", "--json", "--held-out", "0.3")
    assert planned.returncode == 0, planned.stderr
    facts = json.loads(planned.stdout)
    assert facts["train_utterances"] + facts["held_out_utterances"] == 7
    assert not run.exists()
    table = pd.read_csv(manifest).drop(columns="text")
    table.to_csv(tmp_path / "silent.csv", index=False)
    refused = _command("train", tmp_path / "silent.csv", "-o", run)
    assert refused.returncode == 1
    assert "column 'text'" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
