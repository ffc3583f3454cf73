"""Reading a store beside reading its plain files, everything in the page cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from featurestore.benchmarks.inputs import Inputs
from featurestore.benchmarks.limits import read_into
from featurestore.benchmarks.stages import stage
from featurestore.benchmarks.timing import Agreement, Contest
from featurestore.store.reader import Store, open_store

LAYER = 7  # in the middle
CALLS = 20  # of what takes milliseconds
RAW = "the shard files of the same bytes, readinto"


def shard_files(store: Store, capture: str, layer: int) -> list[Path]:
    """Shard files of a layer, in the order of frames, as docs/store-format.md lays them out."""
    found = Path(store.path).glob(f"views/*/parts/*.zarr/frames/{capture}/c/{layer}/*/*")
    return sorted(found, key=lambda path: int(path.parent.name))


def read_raw(files: list[Path], buffer: np.ndarray) -> None:
    """Read files one after another into the same memory, from its beginning each."""
    for path in files:
        with open(path, "rb", buffering=0) as stream:
            read_into(stream, buffer)


def _size(block: Any) -> Any:
    """(1, 1): bytes of a block that was read."""
    return np.full((1, 1), block.nbytes)


def read_blocks(layer: da.Array) -> int:
    """Read a layer block by block and keep nothing; bytes."""
    chunks = ((1,) * layer.numblocks[0], (1,))
    return int(da.map_blocks(_size, layer, dtype=np.int64, chunks=chunks).compute().sum())


def _contest(inputs: Inputs, layers: list[int], files: list[Path]) -> Contest:
    buffer = np.zeros(max(path.stat().st_size for path in files), np.uint8)
    frames = inputs.frames.frames("network")

    def ours(_: Path) -> None:
        for layer in layers:
            read_blocks(frames.isel(layer=layer).data)

    raw = np.fromfile(files[0], np.float16, 100 * inputs.encoder.units)
    found = np.asarray(frames.isel(layer=layers[0]).data).ravel()[: raw.size]
    agreement = Agreement("stored values", float(np.abs(found - raw).max()), 0.0)
    seconds = inputs.copies * inputs.audio_s
    return Contest(seconds, ours, lambda _: read_raw(files, buffer), agreement)


@stage(
    "reading",
    "read one layer of everything",
    reference=RAW,
    speeds=(60_000, 300_000),
    against="self",
    limit="read layer",
)
def one_layer(inputs: Inputs) -> Contest:
    """Through dask, checksums included, block by block; on both sides nothing is kept."""
    files = shard_files(inputs.frames, inputs.encoder.captures[0], LAYER)
    return _contest(inputs, [LAYER], files)


@stage(
    "reading",
    "read every layer of everything, one after another",
    reference=RAW,
    speeds=(6_000, 20_000),
    against="self",
    limit="read all",
)
def everything(inputs: Inputs) -> Contest:
    """The same for all layers."""
    layers, capture = list(range(len(inputs.encoder.layer_names))), inputs.encoder.captures[0]
    files = [path for layer in layers for path in shard_files(inputs.frames, capture, layer)]
    return _contest(inputs, layers, files)


@stage(
    "reading",
    "open a store and its statistics, lazily",
    reference="xarray.open_zarr of the same arrays and labels",
    speeds=(50_000, 50_000),
    by_call=True,
)
def opening(inputs: Inputs) -> Contest:
    """Records, labels and utterance table; no array of values."""
    (part,) = Path(inputs.frames.path).glob("views/*/parts/*.zarr")

    def by_xarray() -> xr.Dataset:
        groups = [
            xr.open_zarr(part, group=name, consolidated=False) for name in ("utterances", "pooled")
        ]
        return groups[1].assign_coords(groups[0].load())

    def ours(_: Path) -> float:
        return per_call(lambda: open_store(inputs.frames.path).pooled("network"))

    def theirs(_: Path) -> float:
        return per_call(by_xarray)

    found = by_xarray()
    expected = found["gate"].isel(utterance=(found["id"] != "").to_numpy()).to_numpy()
    values = inputs.frames.pooled("network")["gate"].to_numpy()
    agreement = Agreement("stored values", float(np.abs(values - expected).max()), 0.0)
    return Contest(inputs.copies * inputs.audio_s, ours, theirs, agreement)


def per_call(run: Callable[[], object]) -> float:
    """Seconds of one call, mean of several."""
    began = time.perf_counter()
    for _ in range(CALLS):
        run()
    return (time.perf_counter() - began) / CALLS


@stage(
    "reading",
    "read one utterance, all layers",
    reference="numpy.load of an .npy file of it",
    speeds=(100_000, 100_000),
    against="software",
    by_call=True,
)
def one_utterance(inputs: Inputs) -> Contest:
    """An utterance of middling length from an open store."""
    capture = inputs.encoder.captures[0]
    table = inputs.frames.utterances("network").sort_values("frame_count")
    name = str(table["id"].iloc[len(table) // 2])
    seconds = float(table["duration_s"].iloc[len(table) // 2])
    expected = inputs.frames.utterance("network", capture, name).values
    path = inputs.folder / "utterance.npy"
    np.save(path, expected)

    def ours(_: Path) -> float:
        return per_call(lambda: inputs.frames.utterance("network", capture, name))

    def theirs(_: Path) -> float:
        return per_call(lambda: np.load(path))

    difference = float(np.abs(np.load(path) - expected).max())
    agreement = Agreement("stored values", difference, 0.0)
    return Contest(seconds, ours, theirs, agreement)
