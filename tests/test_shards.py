"""Shards read directly are what Zarr reads, and what is damaged is left to Zarr to refuse."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import google_crc32c.python
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec

from featurestore.storage.arrays import PlaceStore
from featurestore.storage.local import LocalPlace
from featurestore.store import shards
from featurestore.store.shards import read_rows, write_shards

LAYERS, FRAMES, SHARD, CHUNK, UNITS = 3, 96, 32, 8, 4


def make(folder: Path, *, dtype: str = "float16", **options: Any):
    array = zarr.create_array(
        PlaceStore(LocalPlace(folder)),
        name="frames/gate",
        shape=(LAYERS, FRAMES, UNITS),
        chunks=(1, CHUNK, UNITS),
        shards=(1, SHARD, UNITS),
        dtype=dtype,
        fill_value=0,
        **{"compressors": [Crc32cCodec()], **options},
    )
    values = np.random.default_rng(0).integers(-100, 100, array.shape).astype(dtype)
    for column in range(0, FRAMES, SHARD):
        array[:, column : column + SHARD] = values[:, column : column + SHARD]
    return array, values


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    return make(tmp_path_factory.mktemp("shards"))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, LAYERS - 1),
    st.integers(0, FRAMES // SHARD - 1),
    st.tuples(st.integers(0, SHARD), st.integers(0, SHARD)).filter(lambda p: p[0] < p[1]),
)
def test_any_frames_of_a_shard_are_those_of_zarr(made, layer, column, part) -> None:
    array, values = made
    place = slice(column * SHARD + part[0], column * SHARD + part[1])
    found = read_rows(array, layer, place)
    assert found is not None
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values[layer : layer + 1, place])


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_every_type_of_frames(tmp_path: Path, dtype: str) -> None:
    array, values = make(tmp_path, dtype=dtype)
    found = read_rows(array, 1, slice(0, SHARD))
    np.testing.assert_array_equal(found, values[1:2, :SHARD])


def test_frames_of_two_shards_are_left_to_zarr(made) -> None:
    assert read_rows(made[0], 0, slice(SHARD - 1, SHARD + 1)) is None


def test_other_layouts_are_left_to_zarr(tmp_path: Path) -> None:
    packed, _ = make(tmp_path / "packed", compressors=(zarr.codecs.ZstdCodec(),))
    assert read_rows(packed, 0, slice(0, SHARD)) is None
    plain = zarr.create_array(
        PlaceStore(LocalPlace(tmp_path / "plain")), shape=(1, 8, 4), chunks=(1, 8, 4), dtype="f4"
    )
    assert read_rows(plain, 0, slice(0, 8)) is None


def test_whatever_byte_is_changed_is_noticed(tmp_path: Path) -> None:
    """Every byte of a shard is under a checksum: of a chunk, or of the index."""
    array, values = make(tmp_path)
    (shard,) = tmp_path.glob("frames/gate/c/1/1/0")
    whole = shard.read_bytes()
    place = slice(SHARD, 2 * SHARD)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        shard.write_bytes(damaged)
        assert read_rows(array, 1, place) is None, position
    for length in range(0, len(whole), 7):
        shard.write_bytes(whole[:length])
        assert read_rows(array, 1, place) is None, length
    shard.unlink()
    assert read_rows(array, 1, place) is None
    shard.write_bytes(whole)
    np.testing.assert_array_equal(read_rows(array, 1, place), values[1:2, place])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["int8", "float16", "float32"]),
    st.booleans(),
    st.integers(0, FRAMES // SHARD - 1),
    st.integers(1, SHARD),
    st.integers(0, 2**32 - 1),
)
def test_shards_are_to_the_byte_those_of_zarr(dtype, layered, column, used, seed) -> None:
    fill = -128 if dtype == "int8" else np.nan
    shape = (LAYERS, SHARD, UNITS) if layered else (SHARD, UNITS)
    values = np.random.default_rng(seed).integers(-100, 100, shape).astype(dtype)
    values[..., used:, :] = fill
    ones = (1,) * layered
    written = []
    for direct in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            array = zarr.create_array(
                PlaceStore(LocalPlace(Path(folder))),
                name="frames/gate",
                shape=(*shape[:layered], FRAMES, UNITS),
                chunks=(*ones, CHUNK, UNITS),
                shards=(*ones, SHARD, UNITS),
                dtype=dtype,
                compressors=[Crc32cCodec()],
                filters=None,
                fill_value=fill,
            )
            if direct:
                assert write_shards(array, column, values, used=used)
            else:
                array[..., column * SHARD : (column + 1) * SHARD, :] = values
            store = array.store_path.store
            files = {key: store.place.read(key) for key in store.place.sizes()}
            written.append((files, store.written))
    assert written[0] == written[1]
    assert sum("/c/" in key for key in written[0][0]) == (LAYERS if layered else 1)


def test_an_unusual_layout_is_left_to_zarr_to_write(tmp_path: Path) -> None:
    array, values = make(tmp_path, compressors=None)
    assert not write_shards(array, 0, values[:, :SHARD], used=SHARD)


def test_used_frames_are_kept_whatever_they_are(tmp_path: Path) -> None:
    """Zarr leaves out chunks of nothing but fill, which then read as missing."""
    array, values = make(tmp_path)
    values[:, :SHARD] = 0.0  # the fill of this array
    assert write_shards(array, 0, values[:, :SHARD], used=SHARD)
    found = read_rows(array, 1, slice(0, SHARD))
    np.testing.assert_array_equal(found, values[1:2, :SHARD])
    np.testing.assert_array_equal(array[:], values)


@pytest.mark.parametrize("wrong", ["type", "frames", "layers"])
def test_values_that_do_not_fit_are_left_to_zarr_to_refuse(made, wrong: str) -> None:
    array, values = made
    shard = values[:, :SHARD]
    unfit = {
        "type": shard.astype(np.float32),
        "frames": shard[:, : SHARD - 1],
        "layers": shard[:-1],
    }[wrong]
    assert not write_shards(array, 0, unfit, used=4)


def test_another_byte_order_is_left_to_zarr(tmp_path: Path) -> None:
    array, values = make(tmp_path, serializer=BytesCodec(endian="big"))
    assert read_rows(array, 0, slice(0, 5)) is None
    assert not write_shards(array, 0, values[:, :SHARD], used=SHARD)
    np.testing.assert_array_equal(array[:], values)


def test_other_names_of_chunks_are_found(tmp_path: Path) -> None:
    names = {"name": "default", "separator": "."}
    array, values = make(tmp_path, chunk_key_encoding=names)
    assert write_shards(array, 1, values[:, :SHARD], used=SHARD)
    np.testing.assert_array_equal(read_rows(array, 2, slice(SHARD, SHARD + 5)), values[2:, :5])
    np.testing.assert_array_equal(array[:, SHARD : 2 * SHARD], values[:, :SHARD])


def test_checksums_without_a_compiled_library(made, monkeypatch: pytest.MonkeyPatch) -> None:
    array, values = made
    monkeypatch.setattr(shards, "google_crc32c", google_crc32c.python)
    found = read_rows(array, 0, slice(3, 20))
    assert found is not None
    np.testing.assert_array_equal(found, values[:1, 3:20])
