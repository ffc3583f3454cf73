"""Exported files as other software reads them: pandas, NumPy, scipy, and a strict ARFF parser."""

from __future__ import annotations

import csv
import importlib
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from scipy.io import arff
from synthetic import write_corpus
from typer.testing import CliRunner

import featurestore as fs
from featurestore.cli.app import app
from featurestore.errors import AnalysisError, FeatureStoreError, StoreError
from featurestore.export import export
from featurestore.setup import IngestConfig
from featurestore.store.reader import Store
from featurestore.store.schema import ViewConfig
from featurestore.store.summary import store_state

module = importlib.import_module("featurestore.export")
importlib.import_module("featurestore.cli.export")  # the command registers itself

NASTY = (
    "it's",
    'say "neu"',
    "a,b",
    "50 %",
    "back\\slash",
    "{brace}",
    "tab\tline\nend",
    "",
    "?",
    "é",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two parts, every kind of view but openSMILE's, and labels that need quoting."""
    folder = tmp_path_factory.mktemp("export")
    table = write_corpus(folder, durations=[0.3 + 0.03 * k for k in range(10)], speakers=3)
    table["nasty"] = NASTY
    table.loc[4, "arousal"] = np.nan
    path = folder / "my store"
    config = IngestConfig(views=("gcu", "mfcc"), column_frames=4096)
    fs.ingest(table.iloc[:6], path, encoder="random:0", config=config)
    fs.ingest(table, path, encoder="random:0", config=config)
    return fs.open_store(path)


def means(store: Store) -> np.ndarray:
    """(utterance, layer * unit)."""
    values = store.pooled("gcu")["gate"].sel(statistic="mean").to_numpy()
    return values.reshape(len(values), -1)


def test_parquet_has_the_stored_values_and_where_they_are_from(
    store: Store, tmp_path: Path
) -> None:
    done = export(store, tmp_path / "a.parquet")
    table = pd.read_parquet(done.path)
    layers = [f"block_{block}_{2**power}" for block in range(3) for power in range(5)]
    names = [f"gate.mean.{layer}.{unit:03d}" for layer in layers for unit in range(128)]
    labels = ["emotion", "valence", "arousal", "nasty"]
    assert list(table) == ["id", "speaker", "duration_s", *labels, *names]
    assert (done.utterances, done.features, list(done.labels)) == (10, 1920, labels)
    assert done.bytes == (tmp_path / "a.parquet").stat().st_size
    np.testing.assert_array_equal(table[names].to_numpy(np.float32), means(store))
    assert set(table[names].dtypes) == {np.dtype("float32")}
    expected = store.utterances("gcu")
    for name in ("id", "speaker", "emotion", "duration_s", "valence", "arousal"):
        assert table[name].tolist() == pytest.approx(expected[name].tolist(), nan_ok=True)
    assert list(table["nasty"].fillna("")) == list(expected["nasty"])
    said = json.loads(pq.read_schema(done.path).metadata[b"featurestore"])
    config = store.config("gcu")
    assert said["store"] == store.path
    assert said["store_state"] == store_state(store.path)
    assert said["view"] == done.view == config.name
    assert (said["weights"], said["front_end"]) == (config.weights, "librosa-0.5")
    assert (said["capture"], said["statistics"]) == ("gate", ["mean"])


def test_npz_needs_no_pickle(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found["features"].dtype == np.float32
        np.testing.assert_array_equal(found["features"], means(store))
        assert found["feature_names"][129] == "gate.mean.block_0_2.001"
        table = store.utterances("gcu")
        for name in ("id", "speaker", "emotion", "nasty", "arousal", "duration_s"):
            np.testing.assert_array_equal(found[name], table[name].to_numpy())
        assert json.loads(str(found["provenance"]))["view"] == store.config("gcu").name


def test_scipy_reads_arff_without_ids(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "a.arff", ids=False, labels=("emotion", "arousal"), layers="last")
    data, meta = arff.loadarff(tmp_path / "a.arff")
    assert meta.names()[:3] == ["speaker", "duration_s", "gate.mean.block_2_4.000"]
    assert meta.names()[-2:] == ["emotion", "arousal"]
    assert meta["speaker"] == ("nominal", ("s0", "s1", "s2"))
    assert meta["emotion"] == ("nominal", ("ang", "neu", "xxx"))
    table = store.utterances("gcu")
    values = np.stack([data[name] for name in meta.names()[2:-2]], axis=1)
    np.testing.assert_array_equal(values.astype(np.float32), means(store)[:, 12 * 128 :])
    for name in ("speaker", "emotion"):
        assert [value.decode() for value in data[name]] == list(table[name])
    for name in ("arousal", "duration_s"):
        np.testing.assert_array_equal(data[name], table[name].to_numpy())


_MEANT = {"n": "\n", "r": "\r", "t": "\t"}
_TOKEN = re.compile(r"'((?:[^'\\\n]|\\.)*)'|([^\s,{}%'\"?]+|\?)")


def tokens(line: str) -> list[str | None]:
    """Values between commas as Weka's tokenizer reads them; None for a bare question mark."""
    found: list[str | None] = []
    at = 0
    while True:
        match = _TOKEN.match(line, at)
        assert match, line[at:]
        if match[1] is None:
            found.append(None if match[2] == "?" else match[2])
        else:
            found.append(re.sub(r"\\(.)", lambda m: _MEANT.get(m[1], m[1]), match[1]))
        at = match.end()
        if at == len(line):
            return found
        assert line[at] == ",", line[at:]
        at += 1


def read_arff(path: Path) -> tuple[dict[str, Any], list[list[str | None]]]:
    """Attributes with their types or nominal values, and rows; anything malformed fails."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    start = lines.index("@data")
    attributes: dict[str, Any] = {}
    for line in lines[:start]:
        if line.startswith("@attribute "):
            match = _TOKEN.match(line, len("@attribute "))
            assert match
            kind = line[match.end() + 1 :]
            name = tokens(match[0])[0]
            assert name not in attributes
            assert kind in ("string", "numeric") or kind[0] + kind[-1] == "{}"
            attributes[str(name)] = tokens(kind[1:-1]) if kind[0] == "{" else kind
        else:
            assert line.startswith(("%", "@relation '"))
    rows = [tokens(line) for line in lines[start + 1 :]]
    assert {len(row) for row in rows} == {len(attributes)}
    return attributes, rows


def test_arff_keeps_ids_as_strings_and_labels_that_need_quotes(
    store: Store, tmp_path: Path
) -> None:
    export(store, tmp_path / "a.arff", layers="0")
    attributes, rows = read_arff(tmp_path / "a.arff")
    names = list(attributes)
    assert names[:3] == ["id", "speaker", "duration_s"]
    assert names[-4:] == ["emotion", "valence", "arousal", "nasty"]
    assert (attributes["id"], attributes["valence"]) == ("string", "numeric")
    assert attributes["nasty"] == sorted(set(NASTY) - {""})
    table = store.utterances("gcu")
    assert [row[0] for row in rows] == list(table["id"])
    assert [row[-1] or "" for row in rows] == list(table["nasty"])
    assert [row[-2] is None for row in rows] == list(table["arousal"].isna())
    values = np.array([row[3:-4] for row in rows], np.float64).astype(np.float32)
    np.testing.assert_array_equal(values, means(store)[:, :128])
    text = (tmp_path / "a.arff").read_text(encoding="utf-8")
    assert f'% weights: "{store.config("gcu").weights}"' in text
    assert f"@relation 'my store {store.config('gcu').name}'" in text


def test_statistics_layers_and_speakers_are_chosen(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    export(
        store, path, layers="0,5-6,block_2_16", statistics=("std", "max"), speakers=["s2", "s0"],
        labels=[],
    )  # fmt: skip
    table = pd.read_parquet(path)
    pooled = store.pooled("gcu")["gate"]
    mine = np.flatnonzero(pooled["speaker"].isin(["s0", "s2"]))
    assert list(table["id"]) == list(pooled["id"].to_numpy()[mine])
    layers = ["block_0_1", "block_1_1", "block_1_2", "block_2_16"]
    assert list(table)[3::128] == [f"gate.{s}.{one}.000" for s in ("std", "max") for one in layers]
    expected = pooled.sel(statistic=["std", "max"]).isel(layer=[0, 5, 6, 14], utterance=mine)
    expected = expected.transpose("utterance", "statistic", ...).to_numpy()
    np.testing.assert_array_equal(table.iloc[:, 3:], expected.reshape(len(mine), -1))


def test_arff_declares_the_same_for_some_speakers_as_for_all(store: Store, tmp_path: Path) -> None:
    for name, speakers in (("train", ["s0", "s1"]), ("test", ["s2"])):
        export(store, tmp_path / f"{name}.arff", speakers=speakers, layers=[0])
    train, _ = read_arff(tmp_path / "train.arff")
    test, rows = read_arff(tmp_path / "test.arff")
    assert train == test
    assert {row[1] for row in rows} == {"s2"}


def test_mfcc_has_coefficients(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "a.npz", view="mfcc", statistics=("mean", "std"))
    with np.load(tmp_path / "a.npz") as found:
        assert list(found["feature_names"][[3, 23]]) == ["mfcc.mean.c03", "mfcc.std.c03"]
        pooled = store.pooled("mfcc")["mfcc"].sel(statistic=["mean", "std"]).to_numpy()
        np.testing.assert_array_equal(found["features"], np.concatenate(pooled, axis=1))


def test_the_same_export_is_the_same_file(store: Store, tmp_path: Path) -> None:
    for suffix in (".parquet", ".npz", ".arff"):
        first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
        export(store, first)
        export(store, second)
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".arff"])
def test_small_blocks_make_the_same_table(
    store: Store, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = tmp_path / f"whole{suffix}", tmp_path / f"pieces{suffix}"
    export(store, whole)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 3 * 1920 * 4)
    monkeypatch.setattr(module, "_TEXT_VALUES", 2 * 1920)
    export(store, pieces)
    if suffix == ".parquet":
        assert pq.ParquetFile(pieces).metadata.num_row_groups == 4
        pd.testing.assert_frame_equal(pd.read_parquet(whole), pd.read_parquet(pieces))
    else:
        assert whole.read_bytes() == pieces.read_bytes()


def test_nothing_is_left_of_an_export_that_fails(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.npz"
    target.write_text("before")

    def broken(self: Any) -> Any:
        raise OSError("the disk is gone")

    monkeypatch.setattr(module._Table, "_read", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        export(store, target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert target.read_text() == "before"


@pytest.mark.parametrize(
    ("name", "choice", "words"),
    [
        ("a.csv", {}, r"no suffix of a known format.*\.parquet, \.npz, \.arff"),
        ("folder.npz", {}, "is a folder"),
        ("a.npz", {"statistics": ["median"]}, "no statistic 'median'.*mean, std, min, max"),
        ("a.npz", {"statistics": []}, "no statistic was asked for"),
        ("a.npz", {"layers": "15"}, "no layer '15'; there are 0 to 14.*block_0_1"),
        ("a.npz", {"layers": "3-1"}, "no layer '3-1'"),
        ("a.npz", {"layers": "block_9"}, "no layer 'block_9'"),
        ("a.npz", {"layers": ""}, "no layer was asked for"),
        ("a.npz", {"layers": "0", "view": "mfcc"}, "no layers to choose"),
        ("a.npz", {"speakers": ["s9"]}, "no speaker 's9'; it has: s0, s1, s2"),
        ("a.npz", {"speakers": []}, "no speaker was asked for"),
        ("a.npz", {"labels": ["anger"]}, "no label 'anger'; it has: emotion, valence"),
        ("a.npz", {"view": "egemaps"}, "no view 'egemaps'"),
    ],
)
def test_what_is_not_there_is_named(
    store: Store, tmp_path: Path, name: str, choice: dict[str, Any], words: str
) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FeatureStoreError, match=words):
        export(store, tmp_path / name, **choice)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npz"]


def test_impossible_places_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match="is a URL"):
        export(store, "s3://bucket/a.npz")
    with pytest.raises(FeatureStoreError, match="inside the store"):
        export(store, Path(store.path) / "a.npz")
    with pytest.raises(AnalysisError, match="no capture 'skip'"):
        export(store, tmp_path / "a.npz", capture="skip")


class Stub:
    """A store of eGeMAPS or of one layer, as large as wanted; rows are made when they are read."""

    path = "/nowhere"

    def __init__(self, count: int, width: int, *, kind: str = "gcu", block: int = 64) -> None:
        self.kind, self.count, self.width = kind, count, width
        shape = ((block,) * (count // block), (width,))
        self.array = da.map_blocks(self._make, chunks=shape, dtype=np.float32)

    def _make(self, block_info: Any = None) -> np.ndarray:
        first, last = block_info[None]["array-location"][0]
        return np.repeat(np.arange(first, last, dtype=np.float32)[:, None], self.width, axis=1)

    def config(self, view: str) -> ViewConfig:
        return ViewConfig(self.kind)

    def utterances(self, view: str) -> pd.DataFrame:
        rows = range(self.count)
        frame = pd.DataFrame({"id": [f"u{k}" for k in rows], "speaker": "", "path": "/a.wav"})
        return frame.assign(duration_s=1.0, frame_count=3, audio_sha256="", arousal=2.0)

    def pooled(self, view: str) -> xr.Dataset:
        values = self.array[None, :, None, :]
        coords = {"statistic": ["mean"], "layer": [0], "layer_name": ("layer", ["only"])}
        dims = ("statistic", "utterance", "layer", "unit")
        return xr.Dataset({"gate": (dims, values)}, coords, {"view": "gcu-0"})

    def features(self, view: str) -> xr.DataArray:
        names = [f"f{k}" for k in range(self.width)]
        dims = ("utterance", "feature")
        return xr.DataArray(self.array, {"feature": names}, dims, attrs={"view": "egemaps-v02"})


@pytest.fixture
def stateless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "store_state", lambda path: "state")


@pytest.mark.usefixtures("stateless")
@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".arff"])
def test_memory_does_not_grow_with_the_corpus(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpora are 1 and 8 MB of features; a block is 64 KB."""
    monkeypatch.setattr(module, "_BLOCK_BYTES", 2**16)
    monkeypatch.setattr(module, "_TEXT_VALUES", 2**14)
    peaks = []
    for count in (1024, 1024, 8192):  # the first pays for imports
        stub: Any = Stub(count, 256)
        tracemalloc.start()
        export(stub, tmp_path / f"a{suffix}", labels=[])
        arrow = pa.default_memory_pool().max_memory()
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow)
        tracemalloc.stop()
    assert peaks[2] < 4e6, peaks  # of which the ids and labels of 8,192 rows are 1 MB


@pytest.mark.usefixtures("stateless")
def test_functionals_keep_their_names(tmp_path: Path) -> None:
    stub: Any = Stub(128, 5, kind="egemaps")
    export(stub, tmp_path / "a.parquet", view="egemaps")
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert list(table) == ["id", "speaker", "duration_s", "arousal", "f0", "f1", "f2", "f3", "f4"]
    assert list(table["f4"]) == list(range(128))
    assert table["speaker"].isna().all()  # unknown
    with pytest.raises(StoreError, match="functionals of openSMILE"):
        export(stub, tmp_path / "a.parquet", view="egemaps", layers="first")


@pytest.mark.usefixtures("stateless")
def test_values_that_are_no_number_are_missing_in_arff(tmp_path: Path) -> None:
    stub: Any = Stub(64, 3)
    odd = np.full((64, 3), 0.1, np.float32)
    odd[0] = np.nan, np.inf, -np.inf
    odd[1] = 1e-20, 3.4028235e38, -1.5e-45
    stub.array = da.from_array(odd)
    export(stub, tmp_path / "a.arff", ids=False)
    data, meta = arff.loadarff(tmp_path / "a.arff")
    names = [name for name in meta.names() if name.startswith("gate")]
    found = np.stack([data[name] for name in names], axis=1).astype(np.float32)
    np.testing.assert_array_equal(found, odd)
    line = (tmp_path / "a.arff").read_text().partition("@data\n")[2].partition("\n")[0]
    assert next(csv.reader([line])) == ["?", "1", "?", "Infinity", "-Infinity", "2"]


@pytest.mark.usefixtures("stateless")
def test_a_label_may_not_be_called_like_another_column(tmp_path: Path) -> None:
    stub: Any = Stub(64, 3)
    table = stub.utterances("gcu").rename(columns={"arousal": "gate.mean.only.001"})
    stub.utterances = lambda view: table
    with pytest.raises(StoreError, match="name of another column"):
        export(stub, tmp_path / "a.npz")
    export(stub, tmp_path / "a.npz", labels=[])


def test_the_command_says_what_it_wrote(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    done = CliRunner().invoke(
        app,
        ["export", store.path, "-o", str(path), "--speaker", "s0", "--speaker", "s1", "--layers",
         "last", "--statistic", "std", "-t", "valence", "--no-ids", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["utterances"] == 7
    assert (facts["features"], facts["labels"]) == (384, ["valence"])
    assert facts["bytes"] == path.stat().st_size
    with np.load(path) as found:
        assert set(found.files) == {
            "features", "feature_names", "provenance", "speaker", "duration_s", "valence",
        }  # fmt: skip
    done = CliRunner().invoke(app, ["export", store.path, "-o", str(path), "--view", "mfcc"])
    assert f"{path}: 10 utterances, 20 features of mfcc-" in done.stdout
