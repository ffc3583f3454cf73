"""Reads the LevelDB-style table that is the index of a TensorFlow checkpoint.

A table is data blocks, an index block that says where they are, and a footer of 48 bytes that says
where that is. Each block ends in its compression type and its CRC32C; keys share prefixes with the
keys before them. Source: LevelDB's `doc/table_format.md` and `util/crc32c.h`.

Nothing is believed: every length is checked against what is there, and whatever is wrong, the error
is `MalformedError`, for the caller to say which file it was.
"""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c

TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48  # two block handles, padded to 40 bytes, and the magic number
TRAILER_BYTES = 5  # after each block: compression type, masked CRC32C
# A snappy copy element of 3 bytes yields at most 64, so a larger claim is a damaged length.
MAX_SNAPPY_RATIO = 64


class MalformedError(Exception):
    """What is wrong with some bytes; the caller knows which file they came from."""


def masked_crc32c(data: bytes) -> int:
    """CRC32C of `data`, rotated and offset as in LevelDB's `util/crc32c.h`."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(data: bytes) -> list[tuple[bytes, bytes]]:
    """All (key, value) pairs of a table, in the order of the keys.

    Raises:
        MalformedError: The bytes are no table, or a damaged one.
    """
    if len(data) < FOOTER_BYTES:
        raise MalformedError(
            f"{len(data)} bytes; the index of a TensorFlow checkpoint has at least 48"
        )
    footer = data[-FOOTER_BYTES:]
    if int.from_bytes(footer[-8:], "little") != TABLE_MAGIC:
        raise MalformedError(
            "not the index of a TensorFlow checkpoint, or truncated: no magic number"
        )
    body = data[:-FOOTER_BYTES]
    _, position = _handle(footer, 0)  # the meta-index block holds filters, which TensorFlow omits
    index, _ = _handle(footer, position)
    pairs: list[tuple[bytes, bytes]] = []
    for _, value in _block_pairs(_block(body, index)):
        handle, _ = _handle(value, 0)
        for pair in _block_pairs(_block(body, handle)):
            # Strict order also stops a table whose handles lead to the same block again and again.
            if pairs and pair[0] <= pairs[-1][0]:
                raise MalformedError(f"keys out of order at {pair[0][:80]!r}; the index is damaged")
            pairs.append(pair)
    return pairs


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """A block handle (offset, size in bytes) and the position after it."""
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return (offset, size), position


def _block(body: bytes, handle: tuple[int, int]) -> bytes:
    """The content of one block, verified and decompressed."""
    offset, size = handle
    if offset + size + TRAILER_BYTES > len(body):
        raise MalformedError(
            f"block of {size} bytes at byte {offset} does not lie in the file; truncated or damaged"
        )
    stop = offset + size
    kind = body[stop]
    if masked_crc32c(body[offset : stop + 1]) != int.from_bytes(
        body[stop + 1 : stop + 5], "little"
    ):
        raise MalformedError(f"block at byte {offset} is damaged: its CRC32C does not match")
    if kind == 0:
        return body[offset:stop]
    if kind == 1:
        return _snappy(body[offset:stop])
    raise MalformedError(
        f"block at byte {offset} has compression {kind}; accepted: 0 (none), 1 (snappy)"
    )


def _snappy(data: bytes) -> bytes:
    import pyarrow  # slow to import, and TensorFlow itself writes its indexes uncompressed

    size, _ = varint(data, 0)
    if size > MAX_SNAPPY_RATIO * len(data):
        raise MalformedError(f"snappy block of {len(data)} bytes claims {size} decompressed")
    if size == 0:
        return b""
    try:
        return pyarrow.decompress(data, decompressed_size=size, codec="snappy", asbytes=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise MalformedError("snappy block cannot be decompressed") from error


def _block_pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; a key shares a prefix with the key before it."""
    restarts = int.from_bytes(block[-4:], "little")
    stop = len(block) - 4 * (restarts + 1)
    if stop < 0:
        raise MalformedError(f"block of {len(block)} bytes claims {restarts} restart points")
    key, position = b"", 0
    while position < stop:
        shared, position = varint(block, position)
        added, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or position + added + length > stop:
            raise MalformedError("a key or value reaches beyond its block; the index is damaged")
        key = key[:shared] + block[position : position + added]
        position += added
        yield key, block[position : position + length]
        position += length


def varint(data: bytes, position: int) -> tuple[int, int]:
    """An unsigned integer of at most 64 bits in base 128, and the position after it.

    Raises:
        MalformedError: The number is cut short or does not fit.
    """
    value = 0
    for i, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, position + i + 1
    raise MalformedError("a number is cut short or longer than 64 bits; the index is damaged")
