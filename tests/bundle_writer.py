"""Writes TensorFlow tensor bundles, whole or broken on purpose, without TensorFlow.

The layers can be used one by one, so that a test can damage one and have the others seal it with
correct CRCs: `entry_proto` -> `block` -> `table` -> `write_bundle`. `tests/test_tfbundle.py` checks
that TensorFlow's own file comes out byte for byte.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow

TENSORFLOW_DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "float16": 19}
MAGIC = bytes.fromhex("57fb808b247547db")
Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Options:
    """How the table is laid out; the defaults are those of TensorFlow."""

    pairs_per_block: int = 1 << 30
    restart_interval: int = 16
    snappy: bool = False
    shards: int = 1
    endianness: int = 0


def varint(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return ((rotated + 0xA282EAD8) % (1 << 32)).to_bytes(4, "little")


def number_field(field: int, value: int) -> bytes:
    """A varint field; like protobuf, nothing for a zero."""
    return varint(field << 3) + varint(value % (1 << 64)) if value else b""


def bytes_field(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def shape_proto(shape: Iterable[int]) -> bytes:
    return b"".join(bytes_field(2, number_field(1, length)) for length in shape)


def entry_proto(
    *, dtype: int, shape: Iterable[int], offset: int, size: int, crc: bytes, shard: int = 0
) -> bytes:
    return (
        number_field(1, dtype)
        + bytes_field(2, shape_proto(shape))
        + number_field(3, shard)
        + number_field(4, offset)
        + number_field(5, size)
        + b"\x35"
        + crc
    )


def header_proto(*, shards: int = 1, endianness: int = 0) -> bytes:
    return number_field(1, shards) + number_field(2, endianness) + bytes_field(3, b"\x08\x01")


def block(pairs: Iterable[Pair], *, restart_interval: int = 16) -> bytes:
    """A LevelDB block, without its trailer."""
    data, restarts, last = bytearray(), [0], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % restart_interval:
            both = zip(key, last, strict=False)
            shared = len(list(itertools.takewhile(lambda ab: ab[0] == ab[1], both)))
        elif i:
            restarts.append(len(data))
        data += varint(shared) + varint(len(key) - shared) + varint(len(value))
        data += key[shared:] + value
        last = key
    return bytes(data) + b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])


def table(blocks: Iterable[tuple[bytes, bytes]], *, snappy: bool = False) -> bytes:
    """A table of (last key, block) pairs."""
    data, handles = bytearray(), []

    def append(content: bytes) -> bytes:
        kind = b"\x01" if snappy else b"\x00"
        stored = pyarrow.compress(content, codec="snappy", asbytes=True) if snappy else content
        handle = varint(len(data)) + varint(len(stored))
        data.extend(stored + kind + masked_crc(stored + kind))
        return handle

    for key, content in blocks:
        handles.append((key, append(content)))
    meta = append(block([]))
    index = append(block(handles, restart_interval=1))
    return bytes(data) + (meta + index).ljust(40, b"\0") + MAGIC


def index_bytes(pairs: Iterable[Pair], options: Options | None = None) -> bytes:
    """The table of the pairs, sorted already."""
    options = options or Options()
    rest, blocks = list(pairs), []
    while rest:
        group, rest = rest[: options.pairs_per_block], rest[options.pairs_per_block :]
        blocks.append((group[-1][0], block(group, restart_interval=options.restart_interval)))
    if blocks:
        # LevelDB shortens the key of the last block to the shortest that is not before it.
        key, content = blocks[-1]
        blocks[-1] = (bytes([key[0] + 1]) if key else key, content)
    return table(blocks, snappy=options.snappy)


def write_bundle(
    prefix: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    options: Options | None = None,
    replace: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes a bundle; tensors go to the data files in turn.

    `replace` gives other bytes for the entries of some names ("" is the header).
    """
    options = options or Options()
    shards = [bytearray() for _ in range(options.shards)]
    pairs = {b"": header_proto(shards=options.shards, endianness=options.endianness)}
    for i, name in enumerate(sorted(tensors)):
        values = np.asarray(tensors[name])
        raw = values.astype(values.dtype.newbyteorder("<")).tobytes()
        shard = i % options.shards
        pairs[name.encode()] = entry_proto(
            dtype=TENSORFLOW_DTYPES[values.dtype.name],
            shape=values.shape,
            offset=len(shards[shard]),
            size=len(raw),
            crc=masked_crc(raw),
            shard=shard,
        )
        shards[shard] += raw
    pairs |= {name.encode(): value for name, value in (replace or {}).items()}
    Path(f"{prefix}.index").write_bytes(index_bytes(sorted(pairs.items()), options))
    for i, raw in enumerate(shards):
        Path(f"{prefix}.data-{i:05d}-of-{options.shards:05d}").write_bytes(raw)
    return prefix
