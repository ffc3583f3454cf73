"""Plans and stores of large corpora, made smaller: graphs and reads that do not grow as they do."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import featurestore as fs
from featurestore.store import lazy


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("scale", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def store(scale: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 utterances, 125 hours, without a single shard."""
    path = tmp_path_factory.mktemp("scale") / "store"
    table, samples = scale.manifest_of(100_000)
    plan = scale.plan_of(table, samples, path)
    assert plan.utterances == 100_000
    assert plan.columns == pytest.approx(100_000 / 1024, rel=0.3)
    frames = [plan.jobs[0].frames[column.members].sum() for column in plan.jobs[0].plan.columns]
    assert max(frames) <= plan.jobs[0].plan.column_frames == 131_072
    assert sum(frames) == plan.frames
    scale.write_metadata(plan)
    return path


def test_opening_reads_metadata_alone(scale: ModuleType, store: Path) -> None:
    reads: Counter[str] = Counter()
    with scale.watched_reads(reads):
        tasks = scale.open_all(store)
    assert not reads["array values"]
    assert reads["array metadata"] == 3
    assert reads["records"] < 20
    assert len(fs.open_store(store).pooled("gcu")["id"]) == 100_000
    # One task per layer of a column, and the array itself.
    columns = len(list(store.glob("views/*/ledger/*/0*.json")))
    assert tasks["frames of activations"] == 15 * columns + 1
    assert tasks["statistics of activations"] <= 4 * (columns + 1) + 1


def test_a_graph_stays_small_however_many_columns_there_are(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fs.open_store(store).frames("gcu", "gate")
    monkeypatch.setattr(lazy, "MAX_BLOCKS", 200)
    small = fs.open_store(store).frames("gcu", "gate")
    assert len(small.data.__dask_graph__()) <= 201
    assert small.shape == whole.shape
    picked = np.array([0, 5_000_000, small.sizes["frame"] - 1])
    for name in ("utterance", "time_s"):
        np.testing.assert_array_equal(small[name][picked], whole[name][picked])
