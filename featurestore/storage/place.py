"""What a place can do, and which one a name means."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import StoreError

if TYPE_CHECKING:
    from featurestore.storage.locks import Owner


class PlaceChanged(Exception):  # noqa: N818 - it is an answer, not a failure
    """What was to be replaced is no longer what it was."""


@dataclass(frozen=True)
class Tagged:
    """Bytes and what tells this version of them from any other."""

    data: bytes
    tag: str


class Place(ABC):
    """A folder or a prefix of a bucket. Keys are relative, with slashes.

    Every method raises OSError, with a reason for people, where the disk, the network or a
    permission is in the way.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """The place as people write it: a path, or a URL."""

    @abstractmethod
    def __truediv__(self, name: str) -> Place:
        """A place inside this one."""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last component."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @abstractmethod
    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes under a key, or a range of them; a negative `start` counts from the end.

        Of a range that is not there, or not wholly, what is there.

        Raises:
            FileNotFoundError: nothing is there.
        """

    @abstractmethod
    def write(self, key: str, *pieces: bytes | memoryview) -> None:
        """Put bytes under a key: all of them or, where this is interrupted, what was there before.

        A power cut may undo it until `sync`.

        Args:
            key: where.
            pieces: of the bytes, to be put one behind the other.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Put bytes under a free key, durably; False if it is taken. Of several, one wins."""

    def replace(self, key: str, data: bytes) -> None:
        """`write`, and durably."""
        self.write(key, data)
        self.sync([key])

    @abstractmethod
    def sync(self, keys: Iterable[str]) -> None:
        """Return when these are safe from a power cut."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether something is under the key."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes under a key.

        Raises:
            FileNotFoundError: nothing is there.
        """

    @abstractmethod
    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of everything at any depth below a prefix, by key; half-written files are not."""

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """Names directly below a prefix, sorted; empty if there is nothing."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove what is under a key, if anything is."""

    @abstractmethod
    def delete_all(self, prefix: str) -> None:
        """Remove everything below a prefix."""

    @abstractmethod
    def locked(self, *, watch: bool = True) -> AbstractContextManager[Owner]:
        """Be the one who writes here, while the block runs.

        Args:
            watch: whether to wait for signs of life of an owner that may be dead; without it such
                an owner counts as alive.

        Raises:
            StoreError: somebody else is.
        """

    @abstractmethod
    def owned_by(self, token: str) -> bool:
        """Whether the lock is that of an `Owner` with this token; any process may ask."""

    @abstractmethod
    def sweep(self, prefix: str = "") -> None:
        """Remove what killed writers left half-written. Only for who holds the lock."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Room that is left; None where there is no such limit."""

    @abstractmethod
    def stamp(self, key: str) -> str:
        """What changes when somebody writes the file again: its size and time, or its tag.

        Raises:
            FileNotFoundError: nothing is there.
        """


def is_url(name: str | os.PathLike[str] | Place) -> bool:
    """Whether a name is that of an object store, such as `s3://bucket/prefix`."""
    return isinstance(name, str) and "://" in name and not name.startswith("file://")


def as_place(name: str | os.PathLike[str] | Place) -> Place:
    """The place of a path or URL.

    Args:
        name: a folder, `file://...`, `s3://bucket/prefix`, `gs://...`, `az://...`, `memory://...`,
            or any other that fsspec knows.

    Raises:
        StoreError: a URL that nothing installed understands.
    """
    if isinstance(name, Place):
        return name
    if isinstance(name, Path) and str(name).startswith(("s3:/", "gs:/", "az:/", "memory:/")):
        scheme, _, rest = str(name).partition(":")
        raise StoreError(
            f"'{name}' went through pathlib, which eats a slash of URLs; give the string "
            f"'{scheme}://{rest.lstrip('/')}'"
        )
    if not is_url(name):
        from featurestore.storage.local import LocalPlace

        return LocalPlace(Path(os.fspath(name).removeprefix("file://")))
    from featurestore.storage.objects import open_url

    return open_url(str(name).rstrip("/"))


def split_file(name: str | os.PathLike[str]) -> tuple[Place, str]:
    """The place and key of a file."""
    if is_url(name):
        folder, _, key = str(name).rpartition("/")
        if folder.endswith(":/"):
            raise StoreError(f"'{name}' names no file in a bucket; write scheme://bucket/file")
        return as_place(folder), key
    path = Path(os.fspath(name).removeprefix("file://"))
    return as_place(path.parent), path.name


def file_stamp(name: str) -> str:
    """What changes when somebody writes a file again: see `Place.stamp`; "" where there is none."""
    place, key = split_file(name)
    try:
        return place.stamp(key)
    except OSError:
        return ""
