"""The benchmarks run, small, and what they time against computes the same."""

from __future__ import annotations

import csv
import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from featurestore.checkpoint import load_weights
from featurestore.encoder import encode, load_encoder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NEEDS_TORCH = "PyTorch is not installed: pip install 'featurestore[bench]'"


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("throughput")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Six clips of noise, a few seconds altogether, at two sampling rates."""
    rng = np.random.default_rng(0)
    path = tmp_path / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path", "speaker"])
        for index in range(6):
            rate = (16_000, 22_050)[index % 2]
            samples = rng.normal(0, 0.1, int(rate * (0.9 + 0.1 * index))).clip(-1, 1)
            soundfile.write(tmp_path / f"{index}.wav", samples, rate)
            writer.writerow([f"noise{index}", f"{index}.wav", f"speaker{index % 2}"])
    return path


# Loading audio with librosa imports audioread, which imports what Python 3.13 drops.
@pytest.mark.filterwarnings("ignore:.*slated for removal in Python 3.13:DeprecationWarning")
def test_throughput_measures_every_stage(
    throughput: ModuleType,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(throughput, "load_reference", lambda tensors: None)
    out = {name: tmp_path / f"report.{name}" for name in ("json", "markdown")}
    options = [f"--{name}={path}" for name, path in out.items()]
    throughput.main([str(manifest), "--utterances=6", "--repeats=1", *options])

    report = json.loads(out["json"].read_text())
    stages = {one.title: one for one in throughput.STAGES}
    left_out = {line.partition(": ")[0] for line in report["left_out"]}
    assert {row["stage"] for row in report["rows"]} | left_out == set(stages)
    assert report["corpus"]["utterances"] == 6
    assert report["corpus"]["rates"] == [16_000, 22_050]
    assert report["corpus"]["audio_s"] == pytest.approx(6 * 1.15, abs=0.01)
    assert {"cpu", "cores", "platform", "jax_device", "versions"} <= set(report["machine"])
    for row in report["rows"]:
        assert _positive(row["speed"])
        assert len(row["ours"]["seconds"]) == 1
        if "PyTorch" in row["reference"]:
            assert row["theirs"] is None
            assert row["missing"].startswith("not measured: pip install")
        else:
            assert _positive(row["reference_speed"])
            assert _positive(row["ratio"])
    by_stage = {row["stage"]: row for row in report["rows"]}
    assert by_stage["MFCC"]["difference"] < 1e-3

    table = out["markdown"].read_text()
    assert table in capsys.readouterr().out
    assert table.count("\n| ") == len(report["rows"])
    assert "not measured: pip install 'featurestore[bench]'" in table


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@pytest.mark.parametrize("option", ["--utterances=0", "--repeats=0"])
def test_throughput_refuses_nothing_to_measure(throughput: ModuleType, option: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        throughput.main(["manifest.csv", option])
    assert stopped.value.code == 2


def test_pytorch_reference_equals_the_encoder(throughput: ModuleType) -> None:
    pytest.importorskip("torch", reason=NEEDS_TORCH)
    weights = load_weights("random:0")
    reference = throughput.load_reference(weights.tensors)
    rng = np.random.default_rng(1)
    n_frames = np.array([70, 33, 1], np.int32)
    inputs = [rng.normal(0, 5, (count, 20)).astype(np.float32) for count in n_frames]
    padded = np.zeros((3, 70, 20), np.float32)
    for row, one in zip(padded, inputs, strict=True):
        row[: len(one)] = one

    expected = encode(load_encoder(weights), inputs)
    gates, pooled = (x.cpu().numpy() for x in reference(padded, n_frames))
    for row, (count, one) in enumerate(zip(n_frames, expected, strict=True)):
        gate = one["gate"]
        statistics = np.stack([gate.mean(1), gate.std(1), gate.min(1), gate.max(1)])
        np.testing.assert_allclose(gates[row].swapaxes(1, 2)[:, :count], gate, atol=1e-4)
        np.testing.assert_allclose(pooled[:, row], statistics, atol=1e-4)

        alone, alone_pooled = reference.stored(inputs[row])
        assert alone.dtype == np.float16
        np.testing.assert_allclose(alone.swapaxes(1, 2), gate, atol=1e-3)
        np.testing.assert_allclose(alone_pooled, statistics, atol=1e-4)


def test_differing_networks_are_not_timed(throughput: ModuleType, manifest: Path) -> None:
    pytest.importorskip("torch", reason=NEEDS_TORCH)
    reference = throughput.load_reference(load_weights("random:1").tensors)
    table = throughput.read_manifest(manifest)
    bench = throughput.Bench(table, load_encoder("random:0"), reference)
    stage = next(one for one in throughput.STAGES if one.title.startswith("network"))
    with pytest.raises(RuntimeError, match="the two networks differ"):
        stage.contest(bench)


def test_parts_of_a_training_step_are_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optax", reason="pip install 'featurestore[train]'")
    monkeypatch.syspath_prepend(BENCHMARKS)
    training = importlib.import_module("training")
    report = tmp_path / "report.json"
    training.main(["--rows=2", "--frames=24", "--repeats=1", f"--json={report}"])
    rows = json.loads(report.read_text())["rows"]
    assert len(rows) == 2
    printed = capsys.readouterr().out
    for row in rows:
        assert all(_positive(row[name]) for name in ("ours_ms", "theirs_ms", "ratio"))
        assert row["part"] in printed
