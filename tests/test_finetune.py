from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import write_corpus
from tuning_corpus import corpus

import featurestore as fs
from featurestore.analysis.comparison import rows_of
from featurestore.analysis.folds import one_out
from featurestore.analysis.models import FeatureSet
from featurestore.analysis.regression import evaluate, leave_out
from featurestore.analysis.ridge import fit_ridge
from featurestore.analysis.scores import COLUMNS
from featurestore.batching import Batch, Bucket
from featurestore.errors import (
    AnalysisError,
    AudioError,
    FeatureStoreError,
    StoreError,
    TrainingError,
)
from featurestore.frontend import FRONT_ENDS
from featurestore.report.tables import write_tables
from featurestore.training import extra
from featurestore.training.finetune import Finetuned, finetune, set_names
from featurestore.training.tuning import Tuner, split_fold
from featurestore.training.tuning_config import POOLS, FinetuneConfig
from featurestore.training.tuning_step import padded, shuffled
from featurestore.training.utterances import labelled, read_utterances


@dataclasses.dataclass(frozen=True, eq=False)
class Tiny:
    """Two layers of four units that hear MFCC and a neighbour on each side."""

    variables: Any
    name: str = "tiny"
    fingerprint: str = "f" * 64
    untrained: bool = True
    kind: str = "tiny"
    captures: tuple[str, ...] = ("gate",)
    layer_names: tuple[str, ...] = ("low", "high")
    units: int = 4
    receptive_field: int = 3
    front_end: Any = FRONT_ENDS["librosa-0.5"]
    architecture: str = "tiny"

    def apply(self, variables: Any, batch: Any, lengths: Any) -> dict[str, Any]:
        mask = (jnp.arange(batch.shape[1]) < lengths[:, None])[..., None]
        z = jnp.tanh(batch @ variables["low"]) * mask
        wide = jnp.pad(z, ((0, 0), (1, 1), (0, 0)))
        near = z + 0.5 * (wide[:, :-2] + wide[:, 2:])
        return {"gate": jnp.stack([z, jnp.tanh(near @ variables["high"])], axis=1)}


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    random = np.random.default_rng(0)
    low = random.normal(0, 0.02, (20, 4)).astype(np.float32)
    return Tiny({"low": low, "high": random.normal(0, 0.5, (4, 4)).astype(np.float32)})


SHORT = FinetuneConfig(
    targets=("arousal", "valence"),
    frozen_epochs=2,
    epochs=2,
    patience=9,
    head_rate=1e-3,
    encoder_rate=1e-2,
    frames_per_batch=192,
    best=3,
)


# --- batches and predictions ------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    pool=st.sampled_from(POOLS),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_company_and_padding_do_not_change_a_prediction(tiny, pool, lengths, seed) -> None:
    random = np.random.default_rng(seed)
    data = corpus()
    tuner = Tuner(data, tiny, dataclasses.replace(SHORT, pool=pool))
    head = {
        "kernel": jnp.asarray(random.normal(size=(8, 2)), jnp.float32),
        "bias": jnp.zeros(2),
        "queries": jnp.asarray(random.normal(size=(2, 4)), jnp.float32),
    }
    parameters = {"encoder": tiny.variables, "head": head}
    standard = {
        "feature_mean": jnp.full(8, 0.1),
        "feature_scale": jnp.full(8, 0.5),
        "penalty": jnp.zeros(2),
    }
    coefficients = [random.normal(0, 20, (n, 20)).astype(np.float32) for n in lengths]

    def predict(members: tuple[int, ...], bucket: Bucket) -> np.ndarray:
        batch = padded(Batch(bucket, members), coefficients)
        return np.asarray(tuner.programs.predict(parameters, standard, batch))

    together = predict(tuple(range(len(lengths))), Bucket(frames=32, rows=5))
    assert np.isfinite(together).all()
    for index in range(len(lengths)):
        alone = predict((index,), Bucket(frames=30, rows=1))
        np.testing.assert_allclose(together[index], alone[0], atol=1e-5)


def test_every_utterance_is_in_one_batch_that_fits_it() -> None:
    lengths = np.array([5, 30, 12, 7, 8, 29, 16, 3])
    buckets = (Bucket(8, 2), Bucket(16, 2), Bucket(32, 1))
    rows = np.array([0, 1, 2, 4, 5, 7])
    found = shuffled(rows, lengths, buckets, np.random.default_rng(0))
    assert sorted(i for batch in found for i in batch.members) == rows.tolist()
    for batch in found:
        assert len(batch.members) <= batch.bucket.rows
        assert max(lengths[list(batch.members)]) <= batch.bucket.frames
    again = shuffled(rows, lengths, buckets, np.random.default_rng(0))
    assert found == again
    assert found != shuffled(rows, lengths, buckets, np.random.default_rng(5))


def test_splits_keep_speakers_apart() -> None:
    speakers = np.array([f"s{i % 7}" for i in range(50)])
    split = split_fold(speakers, speaker="s2", share=0.3, rng=np.random.default_rng(0))
    rows = [set(speakers[part]) for part in (split.fit, split.held, split.test)]
    assert rows[2] == {"s2"}
    assert rows[1] == set(split.held_speakers)
    assert len(rows[1]) == 2
    assert set.union(*rows) == set(speakers)
    assert sum(map(len, rows)) == 7
    with pytest.raises(AnalysisError, match="at least 3 speakers"):
        split_fold(speakers[:2], speaker="s0", share=0.3, rng=np.random.default_rng(0))


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("pool", "loss"), [("mean", "mse"), ("max", "ccc"), ("attention", "ccc")])
def test_training_lowers_the_loss_and_keeps_the_best_pass(tiny, pool, loss) -> None:
    config = dataclasses.replace(
        SHORT, pool=pool, loss=loss, targets=("arousal",), epochs=6, encoder_rate=3e-3
    )
    data = corpus(60)
    data = dataclasses.replace(data, targets=("arousal",), truth=data.truth[:, :1])
    tuner = Tuner(data, tiny, config)
    seconds: list[float] = []
    tuned = tuner.tune("s1", tick=seconds.append)
    stages = [(one.stage, one.epoch) for one in tuned.passes]
    frozen, every = [("frozen", k) for k in (1, 2)], [("all", k) for k in range(1, 7)]
    assert stages == [("ridge", 0), *frozen, *every]
    assert tuned.passes[-1].train < tuned.passes[3].train
    assert tuned.best.held_out == min(one.held_out for one in tuned.passes)
    assert tuned.best.stage == "all"
    assert tuned.tuned.shape == tuned.head_only.shape == (12, 1)
    assert sum(seconds) == pytest.approx(tuner.seconds("s1"))
    assert "s1" not in tuned.held_out_speakers


def test_without_passes_the_ridge_solution_is_left(tiny) -> None:
    data = corpus()
    tuner = Tuner(data, tiny, dataclasses.replace(SHORT, epochs=0, frozen_epochs=0))
    tuned = tuner.tune("s0")
    assert tuned.best.stage == "ridge"
    np.testing.assert_allclose(tuned.tuned, tuned.head_only, atol=1e-4)
    held = np.isin(data.speakers, [*tuned.held_out_speakers, "s0"])
    test = data.speakers == "s0"
    model = fit_ridge(tuner.pooled[~held], y=data.truth[~held, 0], speakers=data.speakers[~held])
    np.testing.assert_allclose(tuned.tuned[:, 0], model.predict(tuner.pooled[test]), atol=1e-3)


def test_patience_ends_a_stage(tiny) -> None:
    config = dataclasses.replace(
        SHORT, frozen_epochs=0, epochs=9, patience=2, encoder_rate=0.5, head_rate=0.5
    )
    tuned = Tuner(corpus(), tiny, config).tune("s0")
    later = [one.held_out for one in tuned.passes]
    assert len(later) < 10
    assert min(later[-2:]) >= min(later[:-2])


def test_the_speaker_held_out_decides_nothing_and_folds_are_reproducible(tiny) -> None:
    data = corpus()
    test = data.speakers == "s3"
    truth = np.where(test[:, None], 1e6, data.truth)
    first = Tuner(data, tiny, SHORT).tune("s3")
    blind = Tuner(dataclasses.replace(data, truth=truth), tiny, SHORT)
    blind.tune("s0")  # another fold before it must not matter either
    again = blind.tune("s3")
    np.testing.assert_array_equal(first.tuned, again.tuned)
    np.testing.assert_array_equal(first.head_only, again.head_only)
    other = Tuner(data, tiny, dataclasses.replace(SHORT, seed=1)).tune("s3")
    assert not np.array_equal(first.tuned, other.tuned)


def test_a_loss_that_is_not_a_number_stops_with_the_utterances(tiny) -> None:
    config = dataclasses.replace(SHORT, encoder_rate=1e30, head_rate=1e30, frozen_epochs=0)
    with pytest.raises(TrainingError, match=r"fold 's0'.*\(u\d+.*lower the learning rates"):
        Tuner(corpus(), tiny, config).tune("s0")


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool": "median"},
        {"loss": "mae"},
        {"epochs": -1},
        {"patience": 0},
        {"encoder_rate": 0.0},
        {"head_rate": float("nan")},
        {"held_out": 1.0},
        {"weight_decay": -0.1},
        {"best": 0},
    ],
    ids=str,
)
def test_bad_configurations_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=rf"{next(iter(wrong))}.*accepted"):
        FinetuneConfig(**wrong)


# --- folds, tables, records -------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    table = write_corpus(folder, durations=[0.3 + 0.03 * k for k in range(24)], speakers=4)
    table.loc[[3, 10], "valence"] = np.nan
    fs.write_manifest(table, folder / "manifest.csv")
    return folder


@pytest.fixture(scope="module")
def store(speech: Path, tiny: Tiny) -> Path:
    fs.ingest(speech / "manifest.csv", speech / "store", encoder=tiny, views=("tiny", "mfcc"))
    return speech / "store"


@pytest.fixture(scope="module")
def run(
    store: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Finetuned, Path]:
    folder = tmp_path_factory.mktemp("run")
    return finetune(store, encoder=tiny, config=SHORT, run=folder), folder


def same(a: Finetuned, b: Finetuned) -> None:
    pd.testing.assert_frame_equal(a.results, b.results)
    pd.testing.assert_frame_equal(
        a.passes.drop(columns="seconds"), b.passes.drop(columns="seconds")
    )
    assert a.results.attrs == b.results.attrs


def test_linear_rows_are_those_of_evaluate(run: tuple[Finetuned, Path], store: Path) -> None:
    found, _ = run
    assert tuple(found.results.columns) == COLUMNS
    assert found.results["feature_set"].unique().tolist() == list(set_names(SHORT))
    with pytest.warns(match="eGeMAPS"):
        linear = evaluate(
            fs.open_store(store), targets=SHORT.targets, view="tiny", features=SHORT.best
        )
    for name in (found.names.baseline, found.names.best):
        pd.testing.assert_frame_equal(
            rows_of(found.results, name).reset_index(drop=True),
            rows_of(linear, name).reset_index(drop=True),
            rtol=1e-4,
        )
    tuned = rows_of(found.results, found.names.tuned)
    expected = rows_of(linear, found.names.best)
    for column in ("target", "fold", "n_train", "n_test", "truth_mean", "truth_variance"):
        assert tuned[column].tolist() == pytest.approx(expected[column].tolist())
    assert (tuned["n_features"] == 8).all()


def test_ridge_rows_are_those_of_the_stored_units(run: tuple[Finetuned, Path], store: Path) -> None:
    found, _ = run
    pooled = fs.open_store(store).pooled("tiny").sortby("id")
    X = pooled["gate"].sel(statistic="mean").to_numpy().reshape(24, 8)
    for target in SHORT.targets:
        known = np.isfinite(pooled[target].to_numpy())
        y = pooled[target].to_numpy()[known]
        who = pooled["speaker"].to_numpy().astype(str)[known]
        ridge = FeatureSet("", "tiny", model="ridge")
        folds = leave_out(ridge, X=X[known], Y=y[:, None], speakers=who, splits=one_out(who))
        rows = rows_of(found.results, found.names.ridge)
        rows = rows[rows["target"] == target].set_index("fold")
        for fold in folds:
            mse = np.mean((fold.predicted[:, 0] - y[fold.split.test]) ** 2)
            assert rows["mse"][fold.split.name] == pytest.approx(mse, rel=1e-3)


def test_results_are_a_table_with_its_caveats(run: tuple[Finetuned, Path], tmp_path: Path) -> None:
    found, _ = run
    files = write_tables(found.results, tmp_path)
    text = files[0].read_text()
    for words in (*found.names, "untrained network", "held out to choose"):
        assert words in text
    assert "were not run" not in text


def test_a_manifest_gives_what_the_store_gives(
    run: tuple[Finetuned, Path], speech: Path, tiny: Tiny
) -> None:
    found, folder = run
    again = finetune(speech / "manifest.csv", encoder=tiny, config=SHORT)
    pd.testing.assert_frame_equal(found.results, again.results, rtol=1e-3, atol=1e-4)
    # The same corpus, heard by way of the manifest: the finished folds are taken.
    same(found, finetune(speech / "manifest.csv", encoder=tiny, config=SHORT, run=folder))


def test_a_stopped_run_goes_on_to_the_same_result(
    run: tuple[Finetuned, Path],
    store: Path,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(record: dict[str, Any]) -> None:
        if record["speaker"] == "s1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(store, encoder=tiny, config=SHORT, run=tmp_path, report=stop)
    assert sorted(p.name for p in (tmp_path / "folds").iterdir()) == ["s0.json", "s1.json"]
    trained = []
    tune = Tuner.tune
    monkeypatch.setattr(
        Tuner, "tune", lambda self, who, **more: (trained.append(who), tune(self, who, **more))[1]
    )
    same(run[0], finetune(store, encoder=tiny, config=SHORT, run=tmp_path))
    assert trained == ["s2", "s3"]


def test_some_folds_are_those_of_all(run: tuple[Finetuned, Path], store: Path, tiny: Tiny) -> None:
    found, folder = run
    some = finetune(store, encoder=tiny, config=SHORT, run=folder, speakers=["s3", "s1"])
    expected = found.results[found.results["fold"].isin(["s1", "s3"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some.results, expected)
    assert "2 of 4 speakers" in some.results.attrs["notes"][-1]
    first = finetune(store, encoder=tiny, config=SHORT, run=folder, folds=1)
    assert first.results["fold"].unique().tolist() == ["s0"]


def test_another_configuration_or_corpus_is_refused(
    run: tuple[Finetuned, Path], store: Path, tiny: Tiny, tmp_path: Path
) -> None:
    _, folder = run
    other = dataclasses.replace(SHORT, encoder_rate=0.5)
    with pytest.raises(TrainingError, match=r"another fine-tuning \(encoder_rate 0.01\)"):
        finetune(store, encoder=tiny, config=other, run=folder)
    with pytest.raises(TrainingError, match=r"another fine-tuning \(weights ffffffffffff"):
        finetune(
            store,
            encoder=dataclasses.replace(tiny, fingerprint="e" * 64),
            config=SHORT,
            run=folder,
        )
    (tmp_path / "run.json").write_text((folder / "run.json").read_text())
    (tmp_path / "folds").mkdir()
    record = json.loads((folder / "folds" / "s0.json").read_text())
    (tmp_path / "folds" / "s0.json").write_text(json.dumps({**record, "fingerprint": "0"}))
    with pytest.raises(TrainingError, match="remove it"):
        finetune(store, encoder=tiny, config=SHORT, run=tmp_path)
    (tmp_path / "folds" / "s0.json").write_text('{"speaker": "s0"')
    with pytest.raises(TrainingError, match="cannot be read"):
        finetune(store, encoder=tiny, config=SHORT, run=tmp_path)


# --- what cannot be done ----------------------------------------------------------------------


def test_bad_requests_say_what_there_is(store: Path, speech: Path, tiny: Tiny) -> None:
    def ask(source: Any = store, **options: Any) -> None:
        finetune(source, **{"encoder": tiny, "config": SHORT, **options})

    with pytest.raises(AnalysisError, match=r"'s9'.*s0, s1, s2, s3"):
        ask(speakers=["s1", "s9"])
    with pytest.raises(AnalysisError, match="folds=0"):
        ask(folds=0)
    with pytest.raises(AnalysisError, match="numeric"):
        ask(config=dataclasses.replace(SHORT, targets=("emotion",)))
    with pytest.raises(AnalysisError, match="each once"):
        ask(config=dataclasses.replace(SHORT, targets=("arousal", "arousal")))
    with pytest.raises(StoreError, match="not a feature store"):
        ask(speech / "nowhere")
    two = fs.read_manifest(speech / "manifest.csv").iloc[:2]
    with pytest.raises(AnalysisError, match="at least 3 speakers"):
        ask(two)
    with pytest.raises(AudioError, match="none of 2 utterances"):
        ask(two.assign(path=str(speech / "gone.wav")))


def test_files_that_cannot_be_read_are_left_out_and_said(speech: Path, tiny: Tiny) -> None:
    table = fs.read_manifest(speech / "manifest.csv")
    table.loc[5, "path"] = str(speech / "gone.wav")
    (speech / "noise.wav").write_bytes(b"RIFF")
    table.loc[6, "path"] = str(speech / "noise.wav")
    found = read_utterances(table, front_end=tiny.front_end)
    assert len(found.ids) == 22
    assert found.notes[0].startswith("2 of 24 utterances could not be read")
    assert labelled(found, targets=["arousal"]).notes == found.notes


def test_a_store_without_fitting_mfcc_says_how_to_add_them(
    speech: Path, tiny: Tiny, tmp_path: Path
) -> None:
    table = fs.read_manifest(speech / "manifest.csv").iloc[:3]
    fs.ingest(table, tmp_path, views="mfcc", frames=False)
    end = tiny.front_end
    with pytest.raises(StoreError, match=r"without frames.*--views mfcc --front-end librosa-0.5"):
        read_utterances(tmp_path, front_end=end)
    fs.ingest(table, tmp_path, views="mfcc", variant="librosa")
    with pytest.raises(StoreError, match="manifest instead of the store"):
        read_utterances(tmp_path, front_end=end)
    fs.ingest(table, tmp_path, views="mfcc")
    read = read_utterances(fs.open_store(tmp_path), front_end=end)
    samples, _ = soundfile.read(table["path"][1], dtype="float32")
    np.testing.assert_allclose(read.coefficients[1], fs.mfcc(samples), atol=1e-3)
    name = next(v for v in fs.open_store(tmp_path).views)
    with pytest.raises(StoreError, match="no view"):
        read_utterances(tmp_path, front_end=FRONT_ENDS["vctk-decimate"], view=name)


def test_an_encoder_that_hears_something_else_is_refused(store: Path, tiny: Tiny) -> None:
    class Hears:
        name = "waveform"

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: None

    deaf = dataclasses.replace(tiny, front_end=Hears())
    with pytest.raises(FeatureStoreError, match=r"hears 'waveform'.*MFCC"):
        finetune(store, encoder=deaf, config=SHORT)


def test_without_the_extra_it_says_what_to_install(
    store: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        extra.importlib.util, "find_spec", lambda name: None if name == "optax" else find(name)
    )
    with pytest.raises(TrainingError, match=r"optax.*pip install 'featurestore\[train\]'"):
        finetune(store, encoder=tiny, config=SHORT)


# --- the real network, from the command line --------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    from featurestore.cli import main

    def call(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["featurestore", "finetune", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, stopped.value.code

    return call


def test_the_command_fine_tunes_the_gcu_network(
    command: Any, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        speech / "manifest.csv", "-o", tmp_path / "run", "-w", "random:0", "-t", "arousal,valence",
        "--speakers", "s2", "--epochs", 2, "--frozen-epochs", 1,
    )  # fmt: skip
    command(*arguments)
    shown = capsys.readouterr()
    for words in ("fine-tuned mean", "all units, ridge", "untrained network", "1 of 4 speakers"):
        assert words in shown.out
    assert "s2: held-out loss" in shown.err
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written >= {"table1.md", "table1.csv", "comparison.md", "comparison.png", "passes.csv"}
    passes = pd.read_csv(tmp_path / "run" / "passes.csv")
    assert passes["kept"].sum() == 1
    assert np.isfinite(passes["held_out"]).all()
    tables = pd.read_csv(tmp_path / "run" / "table1-folds.csv")
    assert np.isfinite(tables["mse"]).all()

    command(*arguments, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert {row["target"] for row in facts["rows"]} == {"arousal", "valence"}
    assert facts["seconds"].keys() == {"s2"}
    assert len(facts["comparisons"]) == 3 * 2 * 3


def test_the_benchmark_compares_and_times_folds(
    speech: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    benchmark = importlib.import_module("finetune_folds")
    benchmark.main(
        [
            str(speech / "manifest.csv"), "--weights", "random:0", "--epochs", "1", "--folds", "2",
            "-o", str(tmp_path),
        ]
    )  # fmt: skip
    shown = capsys.readouterr().out
    for words in ("fine-tuned mean", "a fold takes", "2 of 4 speakers", "Difference"):
        assert words in shown
    compared = pd.read_csv(tmp_path / "comparison.csv")
    assert set(compared["second"]) == {"all units, ridge"}
    assert (compared["speakers"] == 2).all()
    assert len(list((tmp_path / "mean-mse" / "folds").iterdir())) == 2
