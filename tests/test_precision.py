"""What storage types cost, against computations of their own and stores of each type."""

from __future__ import annotations

import importlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from synthetic import write_corpus
from typer.testing import CliRunner

import featurestore as fs
from featurestore.analysis import precision
from featurestore.analysis.features import AnalysisWarning
from featurestore.analysis.precision import (
    REFERENCE,
    audit_precision,
    frame_means,
    int8_scale,
    rounding,
)
from featurestore.analysis.regression import evaluate
from featurestore.analysis.scores import summarise
from featurestore.cli.app import app
from featurestore.errors import AnalysisError, StoreError
from featurestore.report.precision import markdown_precision, write_precision
from featurestore.setup import IngestConfig
from featurestore.store.reader import Store
from featurestore.store.schema import ViewConfig

importlib.import_module("featurestore.cli.precision")  # the command registers itself


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """The same speech in every type; in float32 as two parts."""
    folder = tmp_path_factory.mktemp("precision")
    table = write_corpus(folder, durations=[0.3 + 0.03 * k for k in range(16)], speakers=3)
    table.loc[2, "arousal"] = np.nan
    opened = {}
    encoder = fs.load_encoder("random:0")
    for dtype in ("float32", "float16", "int8"):
        config = IngestConfig(
            views=("gcu", "mfcc"), captures=("gate", "residual"), column_frames=4096, dtype=dtype
        )
        for rows in (table.iloc[:9], table) if dtype == "float32" else (table,):
            fs.ingest(rows, folder / dtype, encoder=encoder, config=config)
        opened[dtype] = fs.open_store(folder / dtype)
    return opened


def at(audit: pd.DataFrame, frames: str, target: str = "arousal") -> dict[str, Any]:
    (row,) = audit[(audit["frames"] == frames) & (audit["target"] == target)].to_dict("records")
    return row


def test_int8_is_what_ingest_stores(stores: dict[str, Store]) -> None:
    for capture, bound in (("gate", 1), ("residual", 16)):
        exact = stores["float32"].frames("gcu", capture).to_numpy()
        stored = stores["int8"].frames("gcu", capture).to_numpy()
        found = rounding("int8", scale=bound / 127)(exact)
        assert np.abs(found - stored).max() <= 1e-6
        half = stores["float16"].frames("gcu", capture).to_numpy()
        np.testing.assert_array_equal(rounding("float16", scale=1)(exact), half)


def test_errors_of_uniform_values_are_those_of_the_theory() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (40_000, 8)).astype(np.float32)
    scale = 1 / 127
    lost = rounding("int8", scale=scale)(values).astype(np.float64) - values
    assert np.mean(lost**2) == pytest.approx(scale**2 / 12, rel=0.01)
    assert np.abs(lost).max() <= scale / 2 + 1e-6
    half = rounding("float16", scale=scale)(values)
    np.testing.assert_array_equal(half, values.astype(np.float16).astype(np.float32))
    assert np.abs(half - values).max() <= 2**-12  # half a unit in the last place below 1
    beyond = rounding("int8", scale=scale)(np.array([-3.0, 3.0], np.float32))
    np.testing.assert_allclose(beyond, [-1, 1], rtol=1e-6)


@pytest.mark.parametrize("limit", [1, 40, 2**22])
@pytest.mark.parametrize("chunk", [7, 25, 1000])
def test_means_do_not_depend_on_blocks(
    limit: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(1)
    counts = random.integers(1, 12, 30)
    values = random.normal(size=(3, counts.sum(), 4)).astype(np.float32)
    lazy = da.from_array(values, chunks=(1, chunk, 4))
    frames = xr.DataArray(lazy, dims=("layer", "frame", "unit"))
    monkeypatch.setattr(precision, "_BLOCK_VALUES", limit)
    scale = 4 / 127
    roundings = {name: rounding(name, scale=scale) for name in ("float32", "float16", "int8")}
    done: list[float] = []
    found = frame_means(frames, counts=counts, roundings=roundings, tick=done.append)
    assert sum(done) == 30
    edges = [0, *np.cumsum(counts)]
    for name, kept in (
        ("float32", values.astype(np.float64)),
        ("float16", values.astype(np.float16).astype(np.float64)),
        ("int8", np.clip(np.rint(values / scale), -127, 127) * scale),
    ):
        expected = [kept[:, a:b].mean(axis=1) for a, b in itertools.pairwise(edges)]
        np.testing.assert_allclose(found[name].means, expected, atol=1e-6)
        lost = kept - values
        assert found[name].errors.mse == pytest.approx(np.mean(lost**2), rel=1e-5, abs=1e-15)
        assert found[name].errors.largest == pytest.approx(np.abs(lost).max(), rel=1e-4, abs=1e-12)
        assert found[name].errors.count == values.size


def correlations(means: np.ndarray, label: np.ndarray) -> np.ndarray:
    """r of every unit by NumPy."""
    known = ~np.isnan(label)
    columns = means[known].reshape(known.sum(), -1).astype(np.float64)
    return np.array([np.corrcoef(column, label[known])[0, 1] for column in columns.T])


def test_an_audit_agrees_with_the_analyses_and_with_numpy(stores: dict[str, Store]) -> None:
    store = stores["float32"]
    audit = audit_precision(store, targets=("arousal", "valence"), features=20)
    assert list(audit["frames"]) == [
        name for name in (REFERENCE, "float32", "float16", "int8") for _ in range(2)
    ]
    with pytest.warns(AnalysisWarning, match="no eGeMAPS view"):
        results = evaluate(store, targets=("arousal", "valence"), features=20)
    summary = summarise(results).set_index(["feature_set", "target"])
    exact = store.frames("gcu", "gate").to_numpy().astype(np.float64)
    table = store.utterances("gcu")
    edges = [0, *np.cumsum(table["frame_count"])]
    pooled = store.pooled("gcu")["gate"].sel(statistic="mean").to_numpy()
    for target in ("arousal", "valence"):
        reference = at(audit, REFERENCE, target)
        said = summary.loc[("20 best of all units", target)]
        assert reference["ccc"] == pytest.approx(said["ccc_mean"])
        assert reference["ccc_pooled"] == pytest.approx(said["ccc_pooled"])
        assert reference["mse"] == pytest.approx(said["mse_mean"])
        assert (reference["utterances"], reference["speakers"]) == (said["utterances"], 3)
        label = table[target].to_numpy()
        before = correlations(pooled, label)
        for name, kept in (
            ("float32", exact),
            ("float16", exact.astype(np.float16).astype(np.float64)),
            ("int8", np.rint(exact * 127) / 127),
        ):
            row = at(audit, name, target)
            means = [kept[:, a:b].mean(axis=1) for a, b in itertools.pairwise(edges)]
            change = np.abs(correlations(np.float32(means), label) - before)
            assert row["r_change_max"] == pytest.approx(change.max(), rel=1e-3, abs=1e-7)
            assert row["r_change_mean"] == pytest.approx(change.mean(), rel=1e-3, abs=1e-7)
            off = np.abs(np.float32(means) - pooled.astype(np.float64)).max()
            assert row["mean_max_error"] == pytest.approx(off, rel=1e-3)
            assert row["ccc_change"] == pytest.approx(row["ccc"] - reference["ccc"])
            assert row["mse_change"] == pytest.approx(row["mse"] - reference["mse"])
            assert row["units_lost"] == 0


def test_coarser_types_are_smaller_and_worse(stores: dict[str, Store]) -> None:
    store = stores["float32"]
    audit = audit_precision(store, targets="arousal", features=20)
    full, half, eighth = (at(audit, name) for name in ("float32", "float16", "int8"))
    table = store.utterances("gcu")
    hours = table["duration_s"].sum() / 3600
    assert full["bytes_per_hour"] == pytest.approx(table["frame_count"].sum() * 1920 * 4 / hours)
    assert full["bytes_per_hour"] == 2 * half["bytes_per_hour"] == 4 * eighth["bytes_per_hour"]
    reference = at(audit, REFERENCE)
    assert reference["bytes_per_hour"] == pytest.approx(len(table) * 1920 * 4 / hours)
    assert full["activation_mse"] == 0
    assert 0 < half["activation_mse"] < eighth["activation_mse"] / 100
    assert half["r_change_max"] < eighth["r_change_max"] < 0.2
    assert (eighth["scale"], math.isnan(half["scale"])) == (1 / 127, True)
    assert eighth["activation_mse"] == pytest.approx(eighth["scale"] ** 2 / 12, rel=0.05)


def test_a_store_does_not_tell_of_types_finer_than_its_own(stores: dict[str, Store]) -> None:
    fine = audit_precision(stores["float32"], targets="arousal", features=20)
    for stored in ("float16", "int8"):
        audit = audit_precision(stores[stored], targets="arousal", features=20)
        assert audit.attrs["stored"] == stored
        mine = at(audit, stored)
        assert math.isnan(mine["activation_mse"])
        assert mine["mean_max_error"] == pytest.approx(at(fine, stored)["mean_max_error"], rel=1e-3)
        assert mine["r_change_max"] == pytest.approx(at(fine, stored)["r_change_max"], rel=1e-2)
        assert math.isnan(at(audit, "float32")["r_change_max"])
        assert at(audit, "float32")["bytes_per_hour"] == at(fine, "float32")["bytes_per_hour"]
        assert any("Not known for float32" in note for note in audit.attrs["notes"])
    both = at(audit_precision(stores["float16"], targets="arousal", features=20), "int8")
    assert both["activation_mse"] == pytest.approx(at(fine, "int8")["activation_mse"], rel=0.02)


def test_bounds_of_int8(stores: dict[str, Store]) -> None:
    encoder: Any = fs.load_encoder("random:0")
    for stored in ("float16", "int8"):
        store = stores[stored]
        for capture in ("gate", "residual"):
            pooled = store.pooled("gcu")[capture]
            scale, why = int8_scale(store.config("gcu"), pooled)
            assert scale == encoder.bounds[capture] / 127
            assert ("that of the store" in why) == (stored == "int8")
    mfcc = stores["float16"].pooled("mfcc")["mfcc"]
    scale, why = int8_scale(stores["float16"].config("mfcc"), mfcc)
    frames = stores["float16"].frames("mfcc").to_numpy()
    assert scale == pytest.approx(np.abs(frames).max() / 127, rel=1e-4)
    assert "largest absolute value" in why


class Stub:
    """A float32 view of two units over ten utterances of three frames."""

    def __init__(self, values: np.ndarray, *, kind: str = "gcu", speakers: int = 5) -> None:
        self.kind = kind
        self.array = values.astype(np.float32).reshape(1, 30, 2)
        self.table = pd.DataFrame(
            {
                "id": [f"u{k}" for k in range(10)],
                "speaker": [f"s{k % speakers}" for k in range(10)],
                "duration_s": 0.1,
                "frame_count": 3,
                "arousal": np.arange(10) % 7 / 2,
                "emotion": "neu",
            }
        )

    def config(self, view: str) -> ViewConfig:
        return ViewConfig(self.kind, captures=("gate",), layer_names=("a",), frames=True,
                          dtype="float32", units=2)  # fmt: skip

    def utterances(self, view: str) -> pd.DataFrame:
        return self.table

    def frames(self, view: str, capture: str | None) -> xr.DataArray:
        lazy = da.from_array(self.array, chunks=(1, 12, 2))
        return xr.DataArray(lazy, dims=("layer", "frame", "unit"), name="gate")

    def pooled(self, view: str) -> xr.Dataset:
        split = self.array.reshape(1, 10, 3, 2).astype(np.float64)
        values = [split.mean(axis=2), split.min(axis=2), split.max(axis=2)]
        stacked = np.stack(values).astype(np.float32).transpose(0, 2, 1, 3)
        dims = ("statistic", "utterance", "layer", "unit")
        coords = {name: ("utterance", self.table[name].to_numpy()) for name in self.table}
        statistics = {"statistic": ["mean", "min", "max"]}
        return xr.Dataset({"gate": (dims, da.from_array(stacked))}, {**statistics, **coords})


def test_units_that_int8_rounds_away_are_lost() -> None:
    random = np.random.default_rng(3)
    stub: Any = Stub(np.stack([random.uniform(-1, 1, 30), random.uniform(0, 1e-3, 30)], axis=1))
    audit = audit_precision(stub, targets="arousal", features=1)
    assert [at(audit, name)["units_lost"] for name in ("float32", "float16", "int8")] == [0, 0, 1]


def test_activations_too_large_for_float16_are_said_to_be() -> None:
    stub: Any = Stub(np.random.default_rng(4).uniform(-2e5, 2e5, (30, 2)), kind="wav2vec2")
    audit = audit_precision(stub, targets="arousal", features=1)
    half, eighth = at(audit, "float16"), at(audit, "int8")
    assert half["activation_max_error"] == math.inf
    assert math.isnan(half["ccc"])
    assert math.isnan(half["r_change_max"])
    assert eighth["activation_max_error"] <= eighth["scale"] / 2 * 1.001
    assert math.isfinite(eighth["ccc"])
    assert "inf" in markdown_precision(audit)


def test_what_cannot_be_audited_is_refused(stores: dict[str, Store]) -> None:
    store = stores["float32"]
    with pytest.raises(AnalysisError, match=r"No label 'anger'.*arousal"):
        audit_precision(store, targets=("anger",))
    with pytest.raises(AnalysisError, match="is text"):
        audit_precision(store, targets=("emotion",))
    with pytest.raises(AnalysisError, match="nothing to do"):
        audit_precision(store, targets=())
    with pytest.raises(AnalysisError, match="nothing to do"):
        audit_precision(store, features=0)
    with pytest.raises(StoreError, match="no capture 'skip'"):
        audit_precision(store, capture="skip")
    alone: Any = Stub(np.ones((30, 2)), speakers=1)
    with pytest.raises(AnalysisError, match="at least 2 speakers"):
        audit_precision(alone, targets="arousal")


def test_the_report_says_what_is_not_known(stores: dict[str, Store], tmp_path: Path) -> None:
    audit = audit_precision(stores["float16"], targets="arousal", features=20)
    files = write_precision(audit, tmp_path, notes=["A caveat."])
    assert [file.name for file in files] == ["precision.md", "precision.csv"]
    text = files[0].read_text(encoding="utf-8")
    assert "| none, means alone |" in text
    assert "| arousal | float32 | - | - | - | - | - | - | - | - | - |" in text
    assert text.rstrip().endswith("- A caveat.")
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {6, 12}
    pd.testing.assert_frame_equal(pd.read_csv(files[1]), audit, check_dtype=False)
    with pytest.raises(AnalysisError, match="no row"):
        write_precision(audit.iloc[:0], tmp_path)


def test_the_command_prints_and_writes(stores: dict[str, Store], tmp_path: Path) -> None:
    path = stores["float32"].path
    options = ["-t", "arousal", "-o", str(tmp_path), "--features", "10", "--capture", "residual"]
    done = CliRunner().invoke(app, ["audit-precision", path, *options])
    assert done.exit_code == 0, done.output
    assert "the bound of residual is 16" in done.stdout
    assert "untrained network" in done.stdout
    done = CliRunner().invoke(app, ["audit-precision", path, *options, "--json"])
    facts = json.loads(done.stdout)
    assert [row["frames"] for row in facts["rows"]] == [REFERENCE, "float32", "float16", "int8"]
    assert facts["rows"][0]["activation_mse"] is None
    assert (tmp_path / "precision.csv").exists()
