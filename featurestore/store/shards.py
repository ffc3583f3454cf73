"""Whole shards of frames, read and written without Zarr's detours; what is unusual is left to Zarr.

A shard is one file: chunks one behind the other, each followed by its CRC32C, and at the end an
index of their places, followed by its CRC32C (Zarr's sharding codec). Zarr asks for each of these
by itself, from threads of its own, copies it several times, and compares every value that it writes
with the one that stands for nothing.
"""

from __future__ import annotations

import os
import sys
from io import BufferedReader
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from featurestore.storage.arrays import PlaceStore
from featurestore.storage.local import LocalPlace

_CRC = 4  # bytes
_PLACE = 16  # bytes of an index entry: begin and length, little-endian uint64
_ABSENT = 2**64 - 1  # both of them, of a chunk that holds nothing


def read_rows(array: zarr.Array, layer: int, place: slice) -> np.ndarray | None:
    """Frames of one layer, if they lie in one shard and it is a plain one.

    Args:
        array: (layer, frame, unit).
        layer: which.
        place: frames.

    Returns:
        (1, frame, unit); None where Zarr should read instead: another layout, a part of a chunk's
        bytes missing, or a checksum that is not right, of which Zarr says where.
    """
    store, shard = array.store_path.store, array.shards
    if not isinstance(store, PlaceStore) or not isinstance(store.place, LocalPlace):
        return None  # an object store answers Zarr's many requests at the same time
    if shard is None or not _is_plain(array):
        return None
    _, length, width = shard
    chunk = array.chunks[1]
    column = place.start // length
    if place.stop > (column + 1) * length or array.chunks[2] != width or array.chunks[0] != 1:
        return None
    first, last = place.start - column * length, place.stop - column * length
    values = np.empty((1, last - first, width), array.dtype)
    try:
        with open(store.place.path / _key(array, (layer, column, 0)), "rb") as file:
            whole = _read(file, values[0], first=first, chunk=chunk, chunks=length // chunk)
    except OSError:
        return None
    return values if whole else None


def write_shards(array: zarr.Array, column: int, values: np.ndarray, *, used: int) -> bool:
    """Write one shard of every layer, to the byte as Zarr does it.

    But Zarr leaves out chunks of nothing but fill; here only those behind the last frame are.

    Args:
        array: (layer, frame, unit) or (frame, unit).
        column: which shards.
        values: all of their frames, (layer, frame, unit) or (frame, unit).
        used: frames that hold something, the first ones; there is one at least.

    Returns:
        Whether it was done; False where Zarr should write instead: it knows other layouts.
    """
    store, shard = array.store_path.store, array.shards
    if not isinstance(store, PlaceStore) or shard is None or not _is_plain(array):
        return False
    *outer, length, width = shard
    *ones, chunk, across = array.chunks
    expected = (*array.shape[:-2], length, width)
    if outer != [1] * len(outer) or ones != outer or across != width:
        return False
    if values.dtype != array.dtype or values.shape != expected or array.shape[-1] != width:
        return False
    for layer in np.ndindex(*values.shape[: len(outer)]):
        pieces = _shard(values[layer], used=used, chunk=chunk, chunks=length // chunk)
        store.put(_key(array, (*layer, column, 0)), *pieces)
    return True


def _key(array: zarr.Array, place: tuple[int, ...]) -> str:
    return f"{array.store_path.path}/{array.metadata.encode_chunk_key(place)}"


def _shard(values: np.ndarray, *, used: int, chunk: int, chunks: int) -> list[bytes | memoryview]:
    """A shard of (frame, unit), in pieces: chunks that hold something, and the index."""
    index = np.full((chunks, 2), _ABSENT, "<u8")
    pieces: list[bytes | memoryview] = []
    end = 0
    for number in range(-(-used // chunk)):
        rows = np.ascontiguousarray(values[number * chunk : (number + 1) * chunk])
        pieces += [_bytes(rows).data, _crc(_bytes(rows))]
        index[number] = end, rows.nbytes + _CRC
        end += rows.nbytes + _CRC
    return [*pieces, index.tobytes(), _crc(index.tobytes())]


def _read(file: BufferedReader, values: np.ndarray, *, first: int, chunk: int, chunks: int) -> bool:
    """Fill (frame, unit) with what a shard holds from frame `first` on; False if it is unusual."""
    index = _index(file, chunks)
    if index is None:
        return False
    last, size = first + len(values), chunk * values[0].nbytes
    for number in range(first // chunk, -(-last // chunk)):
        begin, stored = (int(one) for one in index[number])
        if stored != size + _CRC:
            return False
        low, high = max(first, number * chunk), min(last, (number + 1) * chunk)
        wanted = values[low - first : high - first]
        rows = wanted if high - low == chunk else np.empty((chunk, *values.shape[1:]), values.dtype)
        # Straight to where it is wanted: a chunk's worth of fresh memory takes as long as reading.
        file.seek(begin)
        if file.readinto(_bytes(rows).data) != size or _crc(_bytes(rows)) != file.read(_CRC):
            return False
        if rows is not wanted:
            wanted[:] = rows[low - number * chunk : high - number * chunk]
    return True


def _bytes(values: np.ndarray) -> np.ndarray:
    """(byte,): the same memory; google_crc32c takes no memoryview and, in Python, nothing wider."""
    return values.reshape(-1).view(np.uint8)


def _crc(data: bytes | np.ndarray) -> bytes:
    return google_crc32c.value(data).to_bytes(_CRC, "little")


def _is_plain(array: zarr.Array) -> bool:
    """Whether chunks are little-endian values followed by a CRC32C, and nothing else."""
    codecs = array.metadata.codecs  # type: ignore[union-attr]
    if sys.byteorder != "little" or len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        return False
    inner, index = codecs[0].codecs, codecs[0].index_codecs
    return (
        all(
            len(these) == 2
            and isinstance(these[0], BytesCodec)
            and _name(these[0].endian) in ("little", None)
            and isinstance(these[1], Crc32cCodec)
            for these in (inner, index)
        )
        and _name(codecs[0].index_location) == "end"
    )


def _name(option: Any) -> Any:
    """Of an option that is a string from zarr 3.2 on, an enumeration before."""
    return getattr(option, "value", option)


def _index(file: BufferedReader, chunks: int) -> np.ndarray | None:
    """(chunk, 2): where each one begins and how long it is, if the index is whole."""
    size = chunks * _PLACE
    file.seek(-(size + _CRC), os.SEEK_END)
    data = file.read(size)
    if _crc(data) != file.read(_CRC):
        return None
    return np.frombuffer(data, "<u8").reshape(chunks, 2)
