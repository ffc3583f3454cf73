"""Reads TensorFlow's tensor bundle (the "V2" checkpoint) without TensorFlow.

A bundle is `PREFIX.index`, a LevelDB-style table that maps tensor names to where their bytes lie,
and `PREFIX.data-0000i-of-0000n`, raw little-endian tensors. Source: TensorFlow's
`core/protobuf/tensor_bundle.proto`, whose messages are few enough to be parsed by hand.

Nothing in the files is believed: every block and every tensor is checked against its CRC32C, every
length against what is there. Whatever is wrong, the error is a `CheckpointError` of one line.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurestore.errors import CheckpointError
from featurestore.leveldb_table import MalformedError, masked_crc32c, read_table, varint

MAX_INDEX_BYTES = 1 << 28  # an index takes about 40 bytes a tensor; what is longer is no index
MAX_RANK = 64  # numpy's limit

# TensorFlow's DataType numbers (core/framework/types.proto) that numpy can hold as they lie.
DTYPES: Mapping[int, np.dtype] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    17: np.dtype("<u2"),
    19: np.dtype("<f2"),
    22: np.dtype("<u4"),
    23: np.dtype("<u8"),
}


@dataclass(frozen=True)
class BundleEntry:
    """Where one tensor lies in a bundle, as its index states it.

    Attributes:
        name: TensorFlow's name of the variable.
        dtype: TensorFlow's DataType number (1 = float32, 3 = int32).
        shape: Length of each axis; `()` for a scalar.
        shard: Number of the data file.
        offset: First byte in the data file.
        size: Length in bytes.
        masked_crc32c: CRC32C of the bytes, masked as LevelDB does.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    masked_crc32c: int


def bundle_prefix(path: str | os.PathLike[str]) -> Path:
    """The prefix of a bundle, from the prefix itself or from the path of one of its files."""
    text = os.fspath(path)
    if os.path.exists(f"{text}.index"):
        return Path(text)
    return Path(re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", text))


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether an index file lies at this prefix; its content is not looked at."""
    return os.path.isfile(f"{bundle_prefix(path)}.index")


def read_index(prefix: str | os.PathLike[str]) -> dict[str, BundleEntry]:
    """Reads the index of a bundle.

    Args:
        prefix: Path of the checkpoint without `.index` or `.data-...`; with them it works too.

    Returns:
        The entries by tensor name, in sorted order.

    Raises:
        CheckpointError: The index is missing, damaged, or uses a feature that is not supported.
    """
    return _read_index(bundle_prefix(prefix))[1]


def read_tensors(
    prefix: str | os.PathLike[str], names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads tensors of a bundle and verifies the CRC32C of each.

    Args:
        prefix: Path of the checkpoint without `.index` or `.data-...`; with them it works too.
        names: The tensors to read; None reads all.

    Returns:
        Read-only arrays by name, in the order asked for.

    Raises:
        CheckpointError: A file is missing, shorter than the index says (whichever tensors were
            asked for), or damaged; a name is not in the index; a dtype is not a plain number.
    """
    root = bundle_prefix(prefix)
    shards, entries = _read_index(root)
    wanted = list(entries) if names is None else list(names)
    for name in wanted:
        if name not in entries:
            few = ", ".join(map(repr, list(entries)[:3]))
            raise CheckpointError(
                f"{root}.index: no tensor {name!r}; it has {len(entries)}, such as {few}"
            )
    _check_extents(root, shards, entries)
    return {
        name: _read_tensor(_data_path(root, shards, entries[name]), entries[name])
        for name in wanted
    }


def _data_path(prefix: Path, shards: int, entry: BundleEntry) -> Path:
    return Path(f"{prefix}.data-{entry.shard:05d}-of-{shards:05d}")


def _check_extents(prefix: Path, shards: int, entries: Mapping[str, BundleEntry]) -> None:
    """Refuses data files that do not hold what the index says, before anything is allocated."""
    sizes: dict[Path, int] = {}
    ends: dict[Path, int] = {}
    for entry in sorted(
        entries.values(), key=lambda entry: (entry.shard, entry.offset, entry.size)
    ):
        path = _data_path(prefix, shards, entry)
        if path not in sizes:
            sizes[path] = _file_size(path)
        end = entry.offset + entry.size
        if end > sizes[path]:
            raise CheckpointError(
                f"{path}: truncated: tensor {entry.name!r} ends at byte {end}, the file has"
                f" {sizes[path]} bytes; copy it again"
            )
        if entry.offset < ends.get(path, 0):
            raise CheckpointError(
                f"{path}: tensor {entry.name!r} overlaps the one before it; the index is damaged"
            )
        ends[path] = end


def _file_size(path: Path) -> int:
    if not os.path.isfile(path):
        raise CheckpointError(
            f"{path}: data file is missing; a checkpoint is its .index and every .data file"
        )
    return path.stat().st_size


def _read_tensor(path: Path, entry: BundleEntry) -> np.ndarray:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {entry.name!r} has TensorFlow dtype number {entry.dtype}; accepted:"
            f" {', '.join(f'{number} ({kind.name})' for number, kind in DTYPES.items())}"
        )
    expected = math.prod(entry.shape) * dtype.itemsize
    if entry.size != expected:
        raise CheckpointError(
            f"{path}: tensor {entry.name!r} of shape {entry.shape} {dtype.name} takes {expected}"
            f" bytes, the index says {entry.size}"
        )
    try:
        with path.open("rb") as stream:
            stream.seek(entry.offset)
            data = stream.read(entry.size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) != entry.size or masked_crc32c(data) != entry.masked_crc32c:
        raise CheckpointError(
            f"{path}: tensor {entry.name!r} is damaged: its CRC32C does not match the index;"
            " copy the checkpoint again"
        )
    native = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    try:
        return native.reshape(entry.shape)
    except ValueError as error:  # an empty tensor can still have axes that numpy cannot hold
        raise CheckpointError(f"{path}: tensor {entry.name!r} has an impossible shape") from error


def _read_index(prefix: Path) -> tuple[int, dict[str, BundleEntry]]:
    """Number of data files, and the entries by name."""
    path = Path(f"{prefix}.index")
    data = _index_bytes(path)
    try:
        pairs = read_table(data)
        if not pairs or pairs[0][0] != b"":
            raise MalformedError("the bundle's header is missing; this table is no tensor bundle")
        shards = _parse_header(pairs[0][1])
        entries = [_parse_entry(key, value, shards) for key, value in pairs[1:]]
    except MalformedError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return shards, {entry.name: entry for entry in entries}


def _index_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_INDEX_BYTES + 1)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such checkpoint index; give the path of the checkpoint without .index or"
            " .data-..., such as FOLDER/model.ckpt-205919"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if len(data) > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{path}: over {MAX_INDEX_BYTES} bytes; not the index of a TensorFlow checkpoint"
        )
    return data


# --- the values: protobuf messages


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message: varints as int, everything else as its bytes."""
    position = 0
    while position < len(data):
        tag, position = varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise MalformedError(f"protobuf wire type {wire} is not supported")
        if position + length > len(data):
            raise MalformedError("a protobuf field reaches beyond its message")
        yield number, data[position : position + length]
        position += length


def _parse_header(data: bytes) -> int:
    """The number of data files, from a BundleHeaderProto."""
    fields = dict(_fields(data))
    shards, endianness = _integer(fields.get(1, 0)), _integer(fields.get(2, 0))
    if endianness != 0:
        raise MalformedError(
            f"endianness {endianness}; only little-endian (0) checkpoints can be read"
        )
    if not 1 <= shards < 100_000:  # five digits in the names of the data files
        raise MalformedError(f"{shards} data files; a checkpoint has 1 to 99999")
    return shards


def _parse_entry(key: bytes, data: bytes, shards: int) -> BundleEntry:
    """One BundleEntryProto."""
    try:
        name = key.decode()
        return _entry(name, data, shards)
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"tensor name {key[:80]!r} is not UTF-8; the index is damaged"
        ) from error
    except MalformedError as error:
        raise MalformedError(f"tensor {key.decode()!r}: {error}") from error


def _entry(name: str, data: bytes, shards: int) -> BundleEntry:
    fields = dict(_fields(data))
    if 7 in fields:
        raise MalformedError("a variable saved in slices; save it unpartitioned")
    crc = fields.get(6)
    if not isinstance(crc, bytes) or len(crc) != 4:
        raise MalformedError("no CRC32C")
    shard = _integer(fields.get(3, 0))
    if shard >= shards:
        raise MalformedError(f"lies in data file {shard}, but there are {shards} (numbered from 0)")
    return BundleEntry(
        name=name,
        dtype=_integer(fields.get(1, 0)),
        shape=_shape(fields.get(2, b"")),
        shard=shard,
        offset=_integer(fields.get(4, 0)),
        size=_integer(fields.get(5, 0)),
        masked_crc32c=int.from_bytes(crc, "little"),
    )


def _shape(message: int | bytes) -> tuple[int, ...]:
    """Axis lengths of a TensorShapeProto."""
    shape = []
    for number, dimension in _fields(_message(message)):
        if number == 3 and dimension:
            raise MalformedError("shape of unknown rank")
        if number == 2:
            shape.append(_integer(dict(_fields(_message(dimension))).get(1, 0)))
    if len(shape) > MAX_RANK:
        raise MalformedError(f"shape of {len(shape)} axes; accepted: at most {MAX_RANK}")
    return tuple(shape)


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes) or value >= 1 << 63:  # beyond: a negative int64
        raise MalformedError(f"{value!r:.40} where a number from 0 to 2**63 - 1 belongs")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise MalformedError(f"the number {value} where a protobuf message belongs")
    return value
