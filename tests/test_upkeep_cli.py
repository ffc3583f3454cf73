"""The commands for a store's upkeep, and the precisions in which it keeps frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from synthetic import write_corpus
from typer.testing import CliRunner, Result

import featurestore as fs
from featurestore.cli.app import app
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.setup import IngestConfig


def run(*arguments: object, code: int = 0) -> Result:
    from featurestore.cli import (  # noqa: F401
        ingest,
        main,
        store,
    )

    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def facts(*arguments: object, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return write_corpus(tmp_path_factory.mktemp("corpus"), durations=[0.3, 0.9, 1.7, 2.6, 0.5, 3.1])


@pytest.fixture(scope="module")
def original(manifest: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    config = IngestConfig(views=("gcu", "mfcc"), captures=("gate", "skip"))
    fs.ingest(manifest, path, encoder="random:0", config=config)
    return path


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "store"))


def test_every_row_says_where_it_came_from(store: Path, manifest: pd.DataFrame) -> None:
    network, mfcc = facts("info", store, "--utterance", "u003")
    encoder = fs.load_encoder("random:0")
    assert network["weights"] == encoder.fingerprint
    assert network["weights_source"] == "random:0"
    assert network["captures"] == ["gate", "skip"]
    assert network["pooling"] == ["mean", "std", "min", "max"]
    assert (network["precision"], network["dtype"]) == ("float32", "float16")
    assert network["audio"]["path"] == manifest["path"][3]
    assert network["device"].startswith("cpu: ")
    assert network["versions"]["jax"]
    assert (mfcc["front_end"], mfcc["weights"]) == ("librosa-0.5", "")
    said = run("info", store, "--utterance", "u003").stdout
    assert encoder.fingerprint in said
    with pytest.raises(StoreError, match=r"no view of .* holds utterance 'nobody'"):
        fs.lineage(store, "nobody")


def test_encoding_alone_gives_what_is_stored(store: Path) -> None:
    found = facts("verify", store, "--recompute", 4)
    assert found["sound"]
    network, mfcc = found["recomputed"]
    assert len(network["pooled"]["gate"]) == len(network["layers"]) == 15
    assert max(max(values) for values in network["pooled"].values()) < 1e-5
    assert max(network["frames"]["gate"]) <= 2**-11  # one step of a float16 below 1
    assert mfcc["utterances"] == 4
    said = run("verify", store, "--recompute", 2).stdout
    assert "block_2_16" in said
    assert facts("info", store)["views"][0]["padding_difference"] < 1e-5


def test_audio_is_found_where_it_is_now(
    store: Path, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(Path(manifest["path"][0]).parent, moved)
    rows = fs.open_store(store).utterances()
    assert (rows["path"].str.startswith(str(moved))).sum() == 0
    found = facts("verify", store, "--recompute", 3, "--audio", moved)
    assert found["recomputed"][0]["utterances"] == 3
    victim = moved / Path(manifest["path"][2]).name
    victim.write_bytes((moved / Path(manifest["path"][5]).name).read_bytes())
    found = facts("verify", store, "--recompute", 6, "--audio", moved, code=1)
    assert found["recomputed"][0]["other_audio"] == ["u002"]


def test_verify_says_how_to_mend_and_does(store: Path, manifest: pd.DataFrame) -> None:
    next(iter(store.glob("views/gcu-*/parts/*/frames/gate/c/3/0/0"))).unlink()
    done = run("verify", store, code=1)
    assert "is missing" in done.stderr
    assert "--repair" in done.stderr
    assert facts("verify", store, "--repair", code=1)["repaired_parts"] == 1
    config = IngestConfig(views=("gcu", "mfcc"), captures=("gate", "skip"))
    fs.ingest(manifest, store, encoder="random:0", config=config)
    assert facts("verify", store)["sound"]


def test_forgetting_and_merging(store: Path, manifest: pd.DataFrame) -> None:
    assert facts("forget", store, "--speaker", "s1")["utterances"] == 2
    assert facts("compact", store)["after"] == facts("compact", store)["before"]
    ids = list(fs.open_store(store).utterances()["id"])
    assert sorted(ids) == ["u000", "u002", "u003", "u005"]


def test_int8_frames_are_unpacked_here_and_by_xarray(
    original: Path, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    store = tmp_path / "int8"
    config = IngestConfig(views=("gcu",), captures=("gate", "residual"), dtype="int8")
    fs.ingest(manifest, store, encoder="random:0", config=config)
    assert fs.verify(store).sound
    half, small = fs.open_store(original), fs.open_store(store)
    assert small.frames("gcu", "gate").dtype == np.float32
    for id in manifest["id"]:
        exact = half.utterance("gcu", "gate", id).to_numpy().astype(np.float32)
        packed = small.utterance("gcu", "gate", id).to_numpy()
        assert np.abs(exact - packed).max() <= 0.5 / 127 + 2**-11
    assert np.isfinite(small.frames("gcu", "residual").compute()).all()
    (part,) = store.glob("views/*/parts/*")
    plain = xr.open_zarr(part, group="frames", consolidated=False)["gate"]
    mine = small.frames("gcu", "gate").compute().to_numpy()
    assert plain.encoding["scale_factor"] == pytest.approx(1 / 127)
    np.testing.assert_allclose(plain[:, : mine.shape[1]].to_numpy(), mine, atol=1e-6)
    assert np.isnan(plain[:, mine.shape[1] :].to_numpy()).all()
    means = small.pooled("gcu")["gate"].compute()
    np.testing.assert_array_equal(means, half.pooled("gcu")["gate"].compute())


def test_int8_needs_bounds(manifest: pd.DataFrame, tmp_path: Path) -> None:
    from crashing import Tiny

    with pytest.raises(FeatureStoreError, match=r"'tiny'.*`bounds`.*use float16"):
        fs.ingest(manifest, tmp_path / "store", encoder=Tiny(), views=("tiny",), dtype="int8")
