"""A folder of this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featurestore.errors import StoreError
from featurestore.files import sync
from featurestore.storage.locks import Owner, describe, new_token, this_process
from featurestore.storage.place import Place

_HALF_WRITTEN = ".partial"
_LOCK = ".lock"
_SYNCING = 16  # threads; one after the other, a file takes five times as long


class LocalPlace(Place):
    """A folder, made when something is written to it."""

    def __init__(self, path: Path) -> None:
        """`path` may not exist yet."""
        self.path = path

    @property
    def url(self) -> str:
        """The path."""
        return str(self.path)

    def __repr__(self) -> str:
        return f"LocalPlace({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalPlace) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process may be in another folder.
        return LocalPlace, (self.path.absolute(),)

    def __truediv__(self, name: str) -> LocalPlace:
        return LocalPlace(self.path / name)

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        with open(self.path / key, "rb") as file:
            if start is None:
                return file.read() if stop is None else file.read(stop)
            if start < 0:
                start = max(0, os.fstat(file.fileno()).st_size + start)
            file.seek(start)
            return file.read() if stop is None else file.read(max(0, stop - start))

    def write(self, key: str, *pieces: bytes | memoryview) -> None:
        """See `Place.write`."""
        final = self.path / key
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / f".{new_token()}{_HALF_WRITTEN}"
        try:
            with open(temporary, "xb") as file:
                file.writelines(pieces)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)

    def create(self, key: str, data: bytes) -> bool:
        """See `Place.create`; a hard link is what appears at once or not at all."""
        final = self.path / key
        if final.exists():
            return False
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / f".{new_token()}{_HALF_WRITTEN}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, final)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links: FAT, some network mounts
                temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
        sync(final.parent)
        return True

    def sync(self, keys: Iterable[str]) -> None:
        """See `Place.sync`; in parallel, since a disk takes many at once in the time of one."""
        files = [self.path / key for key in keys]
        folders = {parent for file in files for parent in file.relative_to(self.path).parents}
        with ThreadPoolExecutor(_SYNCING) as pool:
            list(pool.map(sync, files))
            list(pool.map(sync, [self.path / folder for folder in folders]))

    def exists(self, key: str) -> bool:
        """See `Place.exists`."""
        return (self.path / key).is_file()

    def size(self, key: str) -> int:
        """See `Place.size`."""
        return os.stat(self.path / key).st_size

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Place.sizes`."""
        found = {}
        for folder, _, files in os.walk(self.path / prefix):
            for name in files:
                if not name.endswith(_HALF_WRITTEN):
                    file = Path(folder, name)
                    found[file.relative_to(self.path).as_posix()] = file.stat().st_size
        return found

    def names(self, prefix: str = "") -> list[str]:
        """See `Place.names`."""
        try:
            found = os.listdir(self.path / prefix)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not name.endswith(_HALF_WRITTEN))

    def delete(self, key: str) -> None:
        """See `Place.delete`."""
        (self.path / key).unlink(missing_ok=True)

    def delete_all(self, prefix: str) -> None:
        """See `Place.delete_all`."""
        folder = self.path / prefix
        if folder.is_dir():
            shutil.rmtree(folder)

    @contextmanager
    def locked(self, *, watch: bool = True) -> Iterator[Owner]:
        """See `Place.locked`; the kernel lets go of it when the process ends, however it ends."""
        try:
            import fcntl
        except ImportError:  # not on Windows, where this is left to the user
            yield Owner(new_token(), lambda: True)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise StoreError(
                    f"another process is writing to {self.path}{describe(lock.read())}; wait for "
                    "it, or use another store"
                ) from None
            token = new_token()
            lock.truncate(0)
            lock.write(json.dumps({"token": token, **this_process()}))
            lock.flush()
            os.fsync(lock.fileno())  # workers on other machines ask whose it is
            yield Owner(token, lambda: self.owned_by(token))

    def owned_by(self, token: str) -> bool:
        """Whether the lock was last taken with this token."""
        try:
            return bool(json.loads((self.path / _LOCK).read_text())["token"] == token)
        except (OSError, ValueError, KeyError):
            return False

    def sweep(self, prefix: str = "") -> None:
        """See `Place.sweep`."""
        for path in (self.path / prefix).rglob(f".*{_HALF_WRITTEN}"):
            path.unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        """See `Place.free_bytes`."""
        folder = self.path.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def stamp(self, key: str) -> str:
        """See `Place.stamp`."""
        found = os.stat(self.path / key)
        return f"{found.st_size}-{found.st_mtime_ns}"
