"""Whole shards of frames, read without Zarr's detours; what is unusual is left to Zarr.

A shard is one file: chunks one behind the other, each followed by its CRC32C, and at the end an
index of their places, followed by its CRC32C (Zarr's sharding codec). Zarr asks for each of these
by itself, from threads of its own, and copies it several times.
"""

from __future__ import annotations

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from featurestore.storage.arrays import PlaceStore
from featurestore.storage.local import LocalPlace

_CRC = 4  # bytes
_PLACE = 16  # bytes of an index entry: begin and length, little-endian uint64


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
    key = f"{array.store_path.path}/c/{layer}/{column}/0"
    index = _index(store, key, length // chunk)
    if index is None:
        return None
    first, last = place.start - column * length, place.stop - column * length
    values = np.empty((1, last - first, width), array.dtype)
    size = chunk * width * array.dtype.itemsize
    for number in range(first // chunk, -(-last // chunk)):
        begin, stored = (int(one) for one in index[number])
        if stored != size + _CRC:
            return None
        data = store.place.read(key, begin, begin + size)
        crc = store.place.read(key, begin + size, begin + size + _CRC)
        if google_crc32c.value(data) != int.from_bytes(crc, "little"):
            return None
        rows = np.frombuffer(data, array.dtype).reshape(chunk, width)
        low, high = max(first, number * chunk), min(last, (number + 1) * chunk)
        values[0, low - first : high - first] = rows[low - number * chunk : high - number * chunk]
    return values


def _is_plain(array: zarr.Array) -> bool:
    """Whether chunks are little-endian values followed by a CRC32C, and nothing else."""
    codecs = array.metadata.codecs  # type: ignore[union-attr]
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        return False
    inner, index = codecs[0].codecs, codecs[0].index_codecs
    location = codecs[0].index_location  # a string from zarr 3.2 on, an enumeration before
    return (
        all(
            len(these) == 2
            and isinstance(these[0], BytesCodec)
            and isinstance(these[1], Crc32cCodec)
            for these in (inner, index)
        )
        and str(getattr(location, "value", location)) == "end"
    )


def _index(store: PlaceStore, key: str, chunks: int) -> np.ndarray | None:
    """(chunk, 2): where each one begins and how long it is, if the index is whole."""
    try:
        data = store.place.read(key, -(chunks * _PLACE + _CRC), None)
    except OSError:
        return None
    body = data[:-_CRC]
    if len(body) != chunks * _PLACE:
        return None
    if google_crc32c.value(body) != int.from_bytes(data[-_CRC:], "little"):
        return None
    return np.frombuffer(body, "<u8").reshape(chunks, 2)
