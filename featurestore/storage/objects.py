"""Object stores: obstore where it is installed and knows the scheme, fsspec for everything else."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

from featurestore.errors import StoreError
from featurestore.storage.locks import LEASE, LeaseTiming, Owner, leased
from featurestore.storage.place import Place, PlaceChanged, Tagged

_OBSTORE = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
# A server that is down for longer than this ends the run; what is committed is safe.
_RETRIES: Any = {
    "max_retries": 10,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=15),
        "base": 2,
    },
}
_CLIENT = {"connect_timeout": "10 seconds", "timeout": "120 seconds"}
TIMING = LeaseTiming()


def open_url(url: str) -> Place:
    """The place of a URL.

    Raises:
        StoreError: nothing installed understands it.
    """
    scheme = url.partition("://")[0]
    if scheme in _OBSTORE:
        try:
            import obstore  # noqa: F401
        except ImportError:
            pass
        else:
            bucket, _, prefix = url.partition("://")[2].partition("/")
            return ObstorePlace(f"{scheme}://{bucket}", prefix)
    return FsspecPlace(url)


class _ObjectPlace(Place):
    """What all object stores share: writes are whole and durable by themselves."""

    def sync(self, keys: Iterable[str]) -> None:
        """See `Place.sync`: an object that was accepted is safe."""

    def sweep(self, prefix: str = "") -> None:
        """See `Place.sweep`: half an object is never seen."""

    def free_bytes(self) -> int | None:
        """See `Place.free_bytes`."""
        return None

    def tagged(self, key: str) -> Tagged:
        """Bytes and their version."""
        raise NotImplementedError

    def replace_tagged(self, key: str, data: bytes, tag: str) -> str:
        """Replace a version by another, or raise PlaceChanged."""
        raise NotImplementedError

    def locked(self, *, watch: bool = True) -> AbstractContextManager[Owner]:
        """See `Place.locked`."""
        return leased(self, TIMING, watch=watch)

    def owned_by(self, token: str) -> bool:
        """Whether the lease is held with this token."""
        try:
            return f'"token": "{token}"'.encode() in self.read(LEASE)
        except FileNotFoundError:
            return False


@functools.cache
def _bucket(url: str) -> Any:
    """The client of a bucket, one per process, as the environment (AWS_..., GOOGLE_...) says."""
    from obstore.store import from_url

    options: Any = dict(_CLIENT)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    config: Any = {"endpoint": endpoint} if endpoint else {}
    if endpoint.startswith("http://"):
        options["allow_http"] = True
    return from_url(url, client_options=options, retry_config=_RETRIES, **config)


@contextmanager
def _as_oserror(url: str) -> Iterator[None]:
    """Obstore's errors as OSError, with the reason and without pages of XML."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        if "NoSuchBucket" in str(error):
            raise OSError(errno.ENXIO, "there is no such bucket", url) from None
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(
            errno.EACCES, f"the object store refuses access ({_first(error)})", url
        ) from None
    except exceptions.BaseError as error:
        raise OSError(errno.EIO, f"the object store failed ({_first(error)})", url) from None


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:600]


class ObstorePlace(_ObjectPlace):
    """A prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        """`bucket` is a URL without a path."""
        self.bucket, self.prefix = bucket, prefix.strip("/")

    @property
    def url(self) -> str:
        """The URL."""
        return f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket

    def __repr__(self) -> str:
        return f"ObstorePlace({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObstorePlace) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> ObstorePlace:
        return ObstorePlace(self.bucket, self._key(name))

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}".strip("/")

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        import obstore

        options: dict[str, Any] = {}
        if start is not None and start < 0 and stop is None:
            options = {"options": {"range": {"suffix": -start}}}
        elif start is not None and stop is None:
            options = {"options": {"range": {"offset": start}}}
        elif stop is not None:
            options = {"options": {"range": (start or 0, stop)}}
        with _as_oserror(f"{self.url}/{key}"):
            return bytes(obstore.get(_bucket(self.bucket), self._key(key), **options).bytes())

    def write(self, key: str, data: bytes | memoryview) -> None:
        """See `Place.write`."""
        import obstore

        with _as_oserror(f"{self.url}/{key}"):
            obstore.put(_bucket(self.bucket), self._key(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Place.create`: put-if-absent."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with _as_oserror(f"{self.url}/{key}"):
            try:
                obstore.put(_bucket(self.bucket), self._key(key), data, mode="create")
            except AlreadyExistsError:
                # Where the answer to a put was lost and the put repeated, it is our own.
                return self.read(key) == data
            return True

    def tagged(self, key: str) -> Tagged:
        """See `_ObjectPlace.tagged`."""
        import obstore

        with _as_oserror(f"{self.url}/{key}"):
            found = obstore.get(_bucket(self.bucket), self._key(key))
            return Tagged(bytes(found.bytes()), found.meta["e_tag"] or "")

    def replace_tagged(self, key: str, data: bytes, tag: str) -> str:
        """See `_ObjectPlace.replace_tagged`."""
        import obstore
        from obstore.exceptions import NotFoundError, PreconditionError

        with _as_oserror(f"{self.url}/{key}"):
            try:
                done = obstore.put(_bucket(self.bucket), self._key(key), data, mode={"e_tag": tag})
            except (NotFoundError, PreconditionError):
                raise PlaceChanged(key) from None
            return done["e_tag"] or ""

    def exists(self, key: str) -> bool:
        """See `Place.exists`."""
        import obstore

        try:
            with _as_oserror(f"{self.url}/{key}"):
                obstore.head(_bucket(self.bucket), self._key(key))
        except FileNotFoundError:
            return False
        return True

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Place.sizes`."""
        import obstore

        skip = len(self.prefix) + 1 if self.prefix else 0
        with _as_oserror(f"{self.url}/{prefix}"):
            return {
                one["path"][skip:]: one["size"]
                for chunk in obstore.list(_bucket(self.bucket), self._key(prefix) or None)
                for one in chunk
            }

    def names(self, prefix: str = "") -> list[str]:
        """See `Place.names`."""
        import obstore

        with _as_oserror(f"{self.url}/{prefix}"):
            found = obstore.list_with_delimiter(_bucket(self.bucket), self._key(prefix) or None)
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)

    def delete(self, key: str) -> None:
        """See `Place.delete`."""
        import obstore

        try:
            with _as_oserror(f"{self.url}/{key}"):
                obstore.delete(_bucket(self.bucket), self._key(key))
        except FileNotFoundError:
            return

    def delete_all(self, prefix: str) -> None:
        """See `Place.delete_all`."""
        import obstore

        keys = [self._key(key) for key in self.sizes(prefix)]
        if keys:
            with _as_oserror(f"{self.url}/{prefix}"):
                obstore.delete(_bucket(self.bucket), keys)

    def stamp(self, key: str) -> str:
        """See `Place.stamp`."""
        import obstore

        with _as_oserror(f"{self.url}/{key}"):
            found = obstore.head(_bucket(self.bucket), self._key(key))
        return f"{found['size']}-{(found['e_tag'] or '').strip(chr(34))}"


class FsspecPlace(_ObjectPlace):
    """Any file system of fsspec. Put-if-absent is as good as that file system's."""

    def __init__(self, url: str) -> None:
        """Connects to the file system.

        Raises:
            StoreError: fsspec is missing, or does not know the scheme.
        """
        try:
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"'{url}' cannot be opened: {error}. pip install 'featurestore[s3]' brings S3, "
                "Google and Azure; other schemes need their fsspec package"
            ) from None
        self._url = url

    @property
    def url(self) -> str:
        """The URL."""
        return self._url

    def __reduce__(self) -> tuple[Any, ...]:
        return FsspecPlace, (self._url,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FsspecPlace) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> FsspecPlace:
        return FsspecPlace(f"{self._url.rstrip('/')}/{name}")

    def _key(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}".rstrip("/")

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        return bytes(self._fs.cat_file(self._key(key), start=start, end=stop))

    def write(self, key: str, data: bytes | memoryview) -> None:
        """See `Place.write`."""
        self._fs.makedirs(self._key(key).rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(self._key(key), bytes(data))

    def create(self, key: str, data: bytes) -> bool:
        """See `Place.create`."""
        self._fs.makedirs(self._key(key).rpartition("/")[0], exist_ok=True)
        try:
            self._fs.pipe_file(self._key(key), bytes(data), mode="create")
        except FileExistsError:
            return self.read(key) == data
        except OSError as error:
            if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                return self.read(key) == data
            raise
        return True

    def tagged(self, key: str) -> Tagged:
        """See `_ObjectPlace.tagged`."""
        data = self.read(key)
        return Tagged(data, hashlib.sha256(data).hexdigest())

    def replace_tagged(self, key: str, data: bytes, tag: str) -> str:
        """See `_ObjectPlace.replace_tagged`; between the look and the put there is a gap."""
        try:
            if self.tagged(key).tag != tag:
                raise PlaceChanged(key)
        except FileNotFoundError:
            raise PlaceChanged(key) from None
        self.write(key, data)
        return hashlib.sha256(data).hexdigest()

    def exists(self, key: str) -> bool:
        """See `Place.exists`."""
        return bool(self._fs.isfile(self._key(key)))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Place.sizes`."""
        self._fs.invalidate_cache()
        found = self._fs.find(self._key(prefix), detail=True)
        skip = len(self._root.strip("/")) + 1
        return {path.strip("/")[skip:]: int(info["size"]) for path, info in found.items()}

    def names(self, prefix: str = "") -> list[str]:
        """See `Place.names`."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._key(prefix), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({path.rstrip("/").rsplit("/", 1)[-1] for path in found})

    def delete(self, key: str) -> None:
        """See `Place.delete`."""
        if self.exists(key):
            self._fs.rm_file(self._key(key))

    def delete_all(self, prefix: str) -> None:
        """See `Place.delete_all`."""
        if self._fs.exists(self._key(prefix)):
            self._fs.rm(self._key(prefix), recursive=True)

    def stamp(self, key: str) -> str:
        """See `Place.stamp`."""
        found = self._fs.info(self._key(key))
        mark = found.get("ETag") or found.get("etag") or found.get("mtime") or found.get("created")
        return f"{found['size']}-{mark}"
