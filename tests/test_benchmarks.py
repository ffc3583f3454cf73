"""The benchmarks run, small, and what they time against computes the same."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import write_corpus
from typer.testing import CliRunner, Result

import featurestore as fs
from featurestore.benchmarks import inputs as inputs_module
from featurestore.benchmarks.inputs import Inputs
from featurestore.benchmarks.rivals import Rival
from featurestore.benchmarks.speech import make_speech
from featurestore.benchmarks.stages import FAMILIES, stages_of
from featurestore.benchmarks.stages_network import network_agreement
from featurestore.benchmarks.suite import BenchConfig, measure, plan_bench
from featurestore.benchmarks.timing import Agreement, Contest, DisagreementError, alternate
from featurestore.checkpoint import load_weights
from featurestore.cli.app import app
from featurestore.encoder import encode, load_encoder
from featurestore.errors import FeatureStoreError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
HAVE_TORCH = importlib.util.find_spec("torch") is not None
# Loading audio with librosa imports audioread, which imports what Python 3.13 drops.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*slated for removal in Python 3.13:DeprecationWarning"
)


def needs(*packages: str) -> None:
    for name in packages:
        pytest.importorskip(
            name, reason=f"{name} is not installed: pip install 'featurestore[bench]'"
        )


def bench(*arguments: object) -> Result:
    from featurestore.cli import bench  # noqa: F401

    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of babble, five seconds altogether."""
    folder = tmp_path_factory.mktemp("benchmarks")
    table = write_corpus(folder, durations=[0.6 + 0.1 * k for k in range(6)], speakers=3)
    fs.write_manifest(table, folder / "manifest.csv")
    return folder / "manifest.csv"


@pytest.fixture
def inputs(manifest: Path, tmp_path: Path) -> Inputs:
    weights = load_weights("random:0")
    table = fs.read_manifest(manifest)
    return Inputs(table, load_encoder(weights), weights.tensors, tmp_path, quick=True)


@pytest.fixture(scope="module")
def results(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything once, except one script that is there again with another environment."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        original = stages_of
        # Beside other tests, threads of PyTorch would wait for one another all the time.
        patch.setattr("featurestore.benchmarks.stages_network.THREADS", 1)
        patch.setattr("featurestore.benchmarks.rivals._TUNING", ())
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(
            "featurestore.benchmarks.suite.stages_of",
            lambda families: [one for one in original(families) if one.make.__name__ != "plain"],
        )
        done = bench(manifest, "-w", "random:0", "--quick", "-q", "--repeats=1", "-o", out)
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "written: " in done.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "bench.json", "bench.md", "bench.png", "bench.svg",
    ]  # fmt: skip
    assert (out / "bench.md").read_text() in done.stdout
    return out


def test_every_stage_is_measured_or_says_why_not(results: Path) -> None:
    report = json.loads((results / "bench.json").read_text())
    assert {row["family"] for row in report["rows"]} == set(FAMILIES) - {"limits"}
    assert report["corpus"]["utterances"] == 6
    assert report["corpus"]["audio_s"] == pytest.approx(6 * 0.85, abs=0.01)
    assert report["corpus"]["rates"] == [16_000]
    assert {"cpu", "cores", "platform", "jax_device", "versions"} <= set(report["machine"])
    for row in report["rows"]:
        assert not row["failed"], row["missing"]
        if row["theirs"] is None:
            assert row["missing"].startswith("not measured: "), row
            continue
        assert positive(row["speed"])
        assert positive(row["reference_speed"])
        assert positive(row["ratio"])
        assert len(row["ours"]["seconds"]) == len(row["theirs"]["seconds"]) == 1
        if row["against"] == "software":
            assert row["agreement"]["difference"] <= row["agreement"]["tolerance"]
    measured = {row["reference"] for row in report["rows"] if row["theirs"]}
    assert "librosa.load" in measured
    assert ("PyTorch, file by file" in measured) == HAVE_TORCH
    for name in ("sgemm_jax", "sgemm_numpy", "memory_copy", "write", "read"):
        assert positive(report["limits"][name])


def test_the_table_and_the_plot_show_every_row(results: Path) -> None:
    report = json.loads((results / "bench.json").read_text())
    table = (results / "bench.md").read_text()
    drawn = (results / "bench.svg").read_text()
    for row in report["rows"]:
        assert row["stage"] in table
        assert f"({row['reference']})" in table
        if row["ours"]:
            assert row["reference"].replace("'", "&apos;") in drawn.replace("'", "&apos;")
    assert "limit of the machine" in drawn
    assert "GFLOP/s" in table
    assert (results / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_all_there_is_on_standard_output(manifest: Path, tmp_path: Path) -> None:
    done = bench(
        manifest, "-w", "random:0", "--quick", "--stages=decode", "-o", tmp_path, "--json"
    )  # fmt: skip
    facts = json.loads(done.stdout)
    assert [row["family"] for row in facts["rows"]] == ["decode"]
    assert facts["limits"] is None
    assert len(facts["files"]) == 4
    assert "Plan: 6 utterances" in done.stderr


def test_what_is_not_installed_is_said_and_the_rest_measured(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs_module.importlib.util, "find_spec", lambda name: None)
    for one in stages_of(("network", "egemaps")):
        row = measure(one, inputs, repeats=1)
        if one.family == "egemaps":
            assert row.missing == "not measured: pip install 'featurestore[egemaps]'"
            assert row.ours is None
        elif one.against == "software":
            assert row.missing == "not measured: pip install 'featurestore[bench]'"
            assert row.ours is not None
            assert row.theirs is None
        assert row.missing in row.to_markdown()


def test_slow_stages_get_fewer_utterances(inputs: Inputs) -> None:
    assert inputs.fewer(6) is inputs
    two = inputs.fewer(2)
    assert two.table["id"].tolist() == ["u000", "u005"]
    assert two.audio_s == pytest.approx(0.6 + 1.1)
    assert inputs.fewer(2) is two


def test_sides_that_differ_are_not_timed(inputs: Inputs) -> None:
    with pytest.raises(DisagreementError, match=r"differ by 0\.5, more than 0\.1"):
        Agreement("numbers", 0.5, 0.1)
    with pytest.raises(DisagreementError, match="nan"):
        Agreement("numbers", math.nan, 0.1)

    def always_zero(coefficients: np.ndarray, n_frames: np.ndarray) -> np.ndarray:
        return np.zeros((4, len(n_frames), 15, 128), np.float32)

    with pytest.raises(DisagreementError, match="statistics of the network"):
        network_agreement(inputs, always_zero)


def test_a_disagreement_is_a_row_and_an_exit_code(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "featurestore.benchmarks.stages_audio.librosa_load", lambda *segment: np.float32(1.0)
    )
    done = bench(manifest, "-w", "random:0", "--quick", "--stages=decode", "-q", "-o", tmp_path)
    assert done.exit_code == 1
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["failed"]
    assert row["ours"] is None
    assert "the two sides differ" in (tmp_path / "bench.md").read_text()
    assert not (tmp_path / "bench.png").exists()


def test_a_full_disk_costs_one_stage(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*segment: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("featurestore.benchmarks.stages_audio.librosa_load", full)
    options = ("-w", "random:0", "--quick", "--stages=decode,mfcc", "-q")
    done = bench(manifest, *options, "-o", tmp_path)
    assert done.exit_code == 1
    stopped, other = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert stopped["failed"]
    assert "No space left on device" in (tmp_path / "bench.md").read_text()
    assert other["ours"] is not None


def test_both_sides_run_in_turns_after_a_first_run(tmp_path: Path) -> None:
    calls: list[str] = []

    def ours(folder: Path) -> None:
        assert not list(folder.iterdir())
        calls.append("ours")

    def theirs(folder: Path) -> float:
        calls.append("theirs")
        return 7.0

    timings = alternate(Contest(1.0, ours, theirs), repeats=2, scratch=tmp_path)
    assert calls == ["ours", "theirs"] * 3
    assert timings[1] is not None
    assert timings[1].seconds == (7.0, 7.0)
    warm = alternate(Contest(1.0, ours, "not measured", warm=True), repeats=1)
    assert warm[0].first is None
    assert warm[1] is None


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--utterances=0", "--utterances"),
        ("--repeats=0", "--repeats"),
        ("--stages=decode,sleep", "sleep"),
        ("--stages=,", "nothing to measure"),
    ],
)
def test_nothing_to_measure_is_refused(option: str, words: str, tmp_path: Path) -> None:
    done = bench(option, "-o", tmp_path / "out")
    assert done.exit_code != 0
    assert words in done.output + str(done.exception)
    assert not (tmp_path / "out").exists()


def test_the_plan_says_what_and_how_long(manifest: Path) -> None:
    plan = plan_bench(BenchConfig(str(manifest), utterances=4, families=("limits", "decode")))
    assert plan.table is not None
    assert len(plan.table) == 4
    assert plan.steps == 2
    assert "beside librosa.load" in plan.to_text()
    longer = plan_bench(BenchConfig(utterances=4000))
    assert longer.seconds > plan.seconds


@pytest.mark.parametrize("espeak", [True, False])
def test_speech_is_made_where_none_is_given(
    espeak: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if espeak:
        pytest.importorskip("espeakng_loader", reason="pip install 'featurestore[demo]'")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    table, what = make_speech(tmp_path / "speech", utterances=4)
    assert len(table) == 4
    assert table["speaker"].nunique() > 1
    assert ("espeak" in what.partition("(")[0]) == espeak
    assert fs.mfcc(fs.read_manifest(_written(table, tmp_path))["path"].map(_samples)[0]).any()


def _written(table: Any, folder: Path) -> Path:
    fs.write_manifest(table, folder / "manifest.csv")
    return folder / "manifest.csv"


def _samples(path: str) -> np.ndarray:
    from featurestore.audio import load_audio

    return load_audio(path)


def test_pytorch_reference_equals_the_encoder() -> None:
    needs("torch")
    from featurestore.benchmarks.torch_reference import Reference

    weights = load_weights("random:0")
    reference = Reference(weights.tensors, device="cpu")
    inputs, padded, n_frames = _utterances()
    expected = encode(load_encoder(weights), inputs)
    pooled, gates = reference(padded, n_frames).numpy(), reference.frames(padded, n_frames)
    for row, (count, one) in enumerate(zip(n_frames, expected, strict=True)):
        gate = one["gate"]
        np.testing.assert_allclose(gates[row, :, :count], gate, atol=1e-4)
        np.testing.assert_allclose(pooled[:, row], _statistics(gate), atol=1e-4)
        alone = reference(inputs[row][None]).numpy()
        np.testing.assert_allclose(alone[:, 0], _statistics(gate), atol=1e-4)


def test_the_plain_network_equals_the_fast_one() -> None:
    needs("torch")
    import torch

    from featurestore.benchmarks.torch_reference import PlainNetwork, Reference

    tensors = load_weights("random:0").tensors
    inputs, _, _ = _utterances()
    with torch.no_grad():
        gates = torch.stack(PlainNetwork(tensors).eval()(torch.from_numpy(inputs[0][None])), 1)
    expected = Reference(tensors, device="cpu").frames(inputs[0][None])
    np.testing.assert_allclose(gates.transpose(2, 3).numpy(), expected, atol=1e-5)


def test_the_onnx_graph_equals_the_encoder() -> None:
    needs("onnx", "onnxruntime")
    from featurestore.benchmarks.onnx_reference import OnnxReference

    weights = load_weights("random:0")
    inputs, padded, n_frames = _utterances()
    pooled = OnnxReference(weights.tensors, threads=1)(padded, n_frames)
    for row, one in enumerate(encode(load_encoder(weights), inputs)):
        np.testing.assert_allclose(pooled[:, row], _statistics(one["gate"]), atol=1e-4)


def _utterances() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Three of noise, the same as a padded batch, and their frames."""
    rng = np.random.default_rng(1)
    n_frames = np.array([70, 33, 1], np.int32)
    inputs = [rng.normal(0, 5, (count, 20)).astype(np.float32) for count in n_frames]
    padded = np.zeros((3, 70, 20), np.float32)
    for row, one in zip(padded, inputs, strict=True):
        row[: len(one)] = one
    return inputs, padded, n_frames


def _statistics(gate: np.ndarray) -> np.ndarray:
    return np.stack([gate.mean(1), gate.std(1), gate.min(1), gate.max(1)])


def test_a_script_that_ends_says_why(tmp_path: Path) -> None:
    rival = Rival("plain_script", [str(tmp_path / "nowhere.npz")])
    try:
        with pytest.raises(FeatureStoreError, match="plain_script ended"):
            rival.run([("nowhere.wav", 0.0, math.nan)], tmp_path)
    finally:
        rival.close()


def test_parts_of_a_training_step_are_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optax", reason="pip install 'featurestore[train]'")
    training = importlib.import_module("featurestore.benchmarks.training")
    report = tmp_path / "report.json"
    training.main(["--rows=2", "--frames=24", "--repeats=1", f"--json={report}"])
    rows = json.loads(report.read_text())["rows"]
    assert len(rows) == 2
    printed = capsys.readouterr().out
    for row in rows:
        assert all(positive(row[name]) for name in ("ours_ms", "theirs_ms", "ratio"))
        assert row["part"] in printed


def test_permutations_are_measured_beside_scikit_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from featurestore.benchmarks import permutations

    small = ["--utterances=300", "--speakers=3", "--layers=2", "--units=32", "--permutations=20"]
    report = tmp_path / "report.json"
    permutations.main(
        [*small, "--memory=1000", "--repeats=1", f"--store={tmp_path}", f"--json={report}"]
    )
    facts = json.loads(report.read_text())
    assert list(tmp_path.iterdir()) == [report]  # the store is gone
    assert 50e6 < facts["peak_bytes"] < 1000e6
    assert facts["plain"]["fits"] == 3 * 11 * 2 * 21
    assert facts["columns"]["fits"] == 3 * 11
    for side in ("plain", "columns"):
        assert facts[side]["measured_fits"] == 2 * 2
        scale = facts[side]["fits"] / 4
        assert facts[side]["whole_s"] == pytest.approx(scale * facts[side]["measured_s"][0])
        assert facts[side]["ratio"] == pytest.approx(facts[side]["whole_s"] / facts["ours_s"][0])
    assert [row["permutations"] for row in facts["rows"]] == [20] * 6
    assert all(one["difference"] < 1e-8 for one in facts["agreements"])
    printed = capsys.readouterr().out
    assert "extrapolated" in printed
    assert "Peak of the limited process" in printed
    assert "without a limit" in printed


def test_permutations_that_disagree_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.benchmarks import permutations

    size = permutations.Size(utterances=120, speakers=3, layers=2, units=8)
    scale = permutations.Scale(size, 3, memory_mb=1000, folds=3, penalties=1, repeats=1)
    table = permutations.write_store(tmp_path / "store", size)
    assert fs.verify(tmp_path / "store").sound
    assert table["speaker"].value_counts().nunique() > 1
    corpus = permutations.read_corpus(tmp_path / "store", scale)
    penalties = np.array([10.0])
    permutations.check_permuted(corpus, range(3), penalties)
    original = permutations.Ridge
    monkeypatch.setattr(permutations, "Ridge", lambda penalty: original(1.0001 * penalty))
    with pytest.raises(DisagreementError, match="all permutations"):
        permutations.check_permuted(corpus, range(3), penalties)
    wrong = {"measure": "mse", "penalty": 10.0, "observed": 0.5}
    rows = [{"target": target, **wrong} for target in permutations.TARGETS]
    with pytest.raises(DisagreementError, match="of the labels"):
        permutations.check_observed(corpus, rows)
    with pytest.raises(FeatureStoreError, match="allow more, or use fewer"):
        permutations.run_ours(tmp_path / "store", dataclasses.replace(scale, memory_mb=100))
