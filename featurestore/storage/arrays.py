"""Zarr's view of a place: it keeps account of what is written and refuses to read what is not
there.

Zarr takes an absent chunk for one that was never written and returns fill values, so a lost file
would turn into data without an error. And it says nothing of what it wrote, which the ledger has
to know.
"""

from __future__ import annotations

import asyncio
import functools
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from featurestore.errors import StoreError
from featurestore.storage.place import Place

Objects = dict[str, list[int]]  # [bytes, CRC-32] by key


def checksum(*pieces: bytes | memoryview) -> int:
    """CRC-32, zlib's: chunks end in their CRC32C, and the CRC32C of any such bytes is the same."""
    return functools.reduce(lambda crc, piece: zlib.crc32(piece, crc), pieces, 0)


class PlaceStore(Store):
    """A Zarr store in a place.

    Attributes:
        place: where.
        written: size and checksum of everything written through this object.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True
    supports_partial_writes = False

    def __init__(
        self,
        place: Place,
        *,
        read_only: bool = False,
        expected: Mapping[str, list[int]] | None = None,
    ) -> None:
        """`expected` says what some keys hold, which is checked when they are read whole."""
        super().__init__(read_only=read_only)
        self.place = place
        self.expected = expected or {}
        self.written: Objects = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlaceStore) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place)

    def __str__(self) -> str:
        return self.place.url

    def __repr__(self) -> str:
        return f"PlaceStore({self.place!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "read_only": self.read_only, "expected": dict(self.expected)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            state["place"], read_only=state["read_only"], expected=state["expected"]
        )

    def with_read_only(self, read_only: bool = False) -> PlaceStore:
        """The same place for reading."""
        found = PlaceStore(self.place, read_only=read_only, expected=self.expected)
        found.written = self.written
        return found

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """What is under a key.

        Raises:
            StoreError: a chunk that is missing, or metadata that is not what was written.
        """
        start, stop = _range(byte_range)
        try:
            data = self.place.read(key, start, stop)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if self.read_only and "/c/" in f"/{key}":
                raise StoreError(
                    f"{self.place}/{key} is missing, and its values with it; 'featurestore verify' "
                    "says what else is damaged and how to make it again"
                ) from None
            return None
        known = self.expected.get(key) if byte_range is None else None
        if known is not None and [len(data), checksum(data)] != list(known):
            raise StoreError(
                f"{self.place}/{key} is not what was written; 'featurestore verify' says what else "
                "is damaged"
            )
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    def set_sync(self, key: str, value: Buffer) -> None:
        """See `put`."""
        self.put(key, memoryview(value.as_buffer_like()).cast("B"))

    def put(self, key: str, *pieces: bytes | memoryview) -> None:
        """Write bytes, one piece behind the other, and keep account of them."""
        self._check_writable()
        self.place.write(key, *pieces)
        self.written[key] = [sum(map(len, pieces)), checksum(*pieces)]

    def delete_sync(self, key: str) -> None:
        """Remove, and forget about it."""
        self._check_writable()
        self.place.delete(key)
        self.written.pop(key, None)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """See `get_sync`."""
        return await asyncio.to_thread(
            self.get_sync, key, prototype=prototype, byte_range=byte_range
        )

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Several ranges at once."""
        return list(
            await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))
        )

    async def exists(self, key: str) -> bool:
        """Whether something is there."""
        return await asyncio.to_thread(self.place.exists, key)

    async def set(self, key: str, value: Buffer) -> None:
        """See `set_sync`."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def delete(self, key: str) -> None:
        """See `delete_sync`."""
        await asyncio.to_thread(self.delete_sync, key)

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        for key in await asyncio.to_thread(self.place.sizes):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins so."""
        for key in await asyncio.to_thread(self.place.sizes, prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a prefix."""
        for name in await asyncio.to_thread(self.place.names, prefix.rstrip("/")):
            yield name


def _range(wanted: ByteRequest | None) -> tuple[int | None, int | None]:
    if isinstance(wanted, RangeByteRequest):
        return wanted.start, wanted.end
    if isinstance(wanted, OffsetByteRequest):
        return wanted.offset, None
    if isinstance(wanted, SuffixByteRequest):
        return -wanted.suffix, None
    return None, None


def requested(data: bytes, wanted: ByteRequest | None) -> bytes:
    """The range of some bytes that Zarr asks for."""
    start, stop = _range(wanted)
    return data[start:stop]
