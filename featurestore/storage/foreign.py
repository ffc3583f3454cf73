"""Object stores and whatever else fsspec knows, where obstore does not know it or is missing."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from featurestore.errors import StoreError
from featurestore.storage.bucket import MARK, ObjectPlace
from featurestore.storage.locks import new_token
from featurestore.storage.place import PlaceChanged, Tagged

# These have no folders to be made; asked for one, they may make a bucket.
_FOLDERLESS = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "oss", "memory")
# fsspec's memory looks and puts in two steps.
_one_at_a_time = threading.Lock()


@contextmanager
def _reasons(url: str) -> Iterator[None]:
    """Whatever a file system of fsspec raises as OSError, with a reason for people."""
    try:
        yield
    except (FileExistsError, PlaceChanged):
        raise
    except FileNotFoundError as error:
        if "bucket" in str(error).lower().replace(url.lower(), ""):
            raise OSError(errno.ENXIO, "there is no such bucket", url) from None
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from None
    except PermissionError as error:
        raise PermissionError(
            errno.EACCES, f"the object store refuses access ({_first(error)})", url
        ) from None
    except Exception as error:  # those of botocore, aiohttp and the like are no OSError
        raise OSError(errno.EIO, f"the object store failed ({_first(error)})", url) from None


def _first(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:400]


class FsspecPlace(ObjectPlace):
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
        self._url = url.rstrip("/")
        self._scheme = url.partition("://")[0]

    @property
    def url(self) -> str:
        """The URL."""
        return self._url

    def __repr__(self) -> str:
        return f"FsspecPlace({self._url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return FsspecPlace, (self._url,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FsspecPlace) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> FsspecPlace:
        return FsspecPlace(f"{self._url}/{name}")

    def _key(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}".rstrip("/")

    @property
    def _is_s3(self) -> bool:
        return self._scheme in ("s3", "s3a")

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        if stop is not None and (start or 0) >= stop:
            self.size(key)  # or it is missing
            return b""
        with _reasons(f"{self.url}/{key}"):
            try:
                return bytes(self._fs.cat_file(self._key(key), start=start, end=stop))
            except OSError as error:
                if (
                    (start, stop) != (None, None)
                    and "range" in str(error)
                    and "satisf" in str(error)
                ):
                    return b""  # behind the end, or of nothing
                raise

    def write(self, key: str, *pieces: bytes | memoryview) -> None:
        """See `Place.write`."""
        with _reasons(f"{self.url}/{key}"):
            self._put(key, b"".join(pieces))

    def _put(self, key: str, data: bytes, **options: Any) -> Any:
        path = self._key(key)
        if self._scheme not in _FOLDERLESS:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        return self._fs.pipe_file(path, data, **options)

    def create(self, key: str, data: bytes) -> bool:
        """See `Place.create`."""
        mark = new_token()
        marked: dict[str, Any] = {"Metadata": {MARK: mark}} if self._is_s3 else {}
        with _reasons(f"{self.url}/{key}"):
            try:
                if self._scheme == "memory":
                    with _one_at_a_time:
                        self._put(key, data, mode="create")
                else:
                    self._put(key, data, mode="create", **marked)
            except FileExistsError:
                return self._is_s3 and self._wears(key, mark)
            except OSError as error:
                if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                    return self._wears(key, mark) if self._is_s3 else self.read(key) == data
                raise
        return True

    def _wears(self, key: str, mark: str) -> bool:
        """Whether an object came from the put with this mark, the answer to which was lost."""
        return bool(self._fs.metadata(self._key(key), refresh=True).get(MARK) == mark)

    def tagged(self, key: str) -> Tagged:
        """See `ObjectPlace.tagged`."""
        if not self._is_s3:
            data = self.read(key)
            return Tagged(data, hashlib.sha256(data).hexdigest())
        tag = str(self._info(key)["ETag"])  # first: it may be older than the bytes, not newer
        return Tagged(self.read(key), tag)

    def replace_tagged(self, key: str, data: bytes, tag: str) -> str:
        """See `ObjectPlace.replace_tagged`; but on S3 there is a gap between look and put."""
        if not self._is_s3:
            with _one_at_a_time:
                try:
                    if self.tagged(key).tag != tag:
                        raise PlaceChanged(key)
                except FileNotFoundError:
                    raise PlaceChanged(key) from None
                self.write(key, data)
            return hashlib.sha256(data).hexdigest()
        mark = new_token()
        with _reasons(f"{self.url}/{key}"):
            try:
                done = self._put(key, data, IfMatch=tag, Metadata={MARK: mark})
                return str(done["ETag"])
            except FileNotFoundError:
                raise PlaceChanged(key) from None
            except OSError as error:
                if not isinstance(error, FileExistsError) and "pre-conditions" not in str(error):
                    raise
                try:
                    if self._wears(key, mark):
                        return str(self._info(key)["ETag"])
                except FileNotFoundError:
                    pass
                raise PlaceChanged(key) from None

    def _info(self, key: str) -> dict[str, Any]:
        """What the file system says of a file."""
        with _reasons(f"{self.url}/{key}"):
            self._fs.invalidate_cache()
            found = dict(self._fs.info(self._key(key)))
            if found.get("type") == "directory":
                raise FileNotFoundError(key)
            return found

    def exists(self, key: str) -> bool:
        """See `Place.exists`."""
        try:
            self._info(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        """See `Place.size`."""
        return int(self._info(key)["size"])

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Place.sizes`."""
        with _reasons(f"{self.url}/{prefix}"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._key(prefix), detail=True)
            except FileNotFoundError:
                return {}
        skip = len(self._root.strip("/")) + 1
        sizes = {path.strip("/")[skip:]: int(info["size"]) for path, info in found.items()}
        sizes.pop("", None)  # a console's mark of an empty folder
        return sizes

    def names(self, prefix: str = "") -> list[str]:
        """See `Place.names`."""
        whole = self._key(prefix)
        with _reasons(f"{self.url}/{prefix}"):
            self._fs.invalidate_cache()
            try:
                found = [path.strip("/") for path in self._fs.ls(whole, detail=False)]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted({path.rsplit("/", 1)[-1] for path in found if path != whole.strip("/")})

    def delete(self, key: str) -> None:
        """See `Place.delete`."""
        try:
            with _reasons(f"{self.url}/{key}"):
                self._fs.rm_file(self._key(key))
        except FileNotFoundError:
            return

    def delete_all(self, prefix: str) -> None:
        """See `Place.delete_all`."""
        with _reasons(f"{self.url}/{prefix}"):
            self._fs.invalidate_cache()
            if self._fs.exists(self._key(prefix)):
                self._fs.rm(self._key(prefix), recursive=True)

    def stamp(self, key: str) -> str:
        """See `Place.stamp`."""
        found = self._info(key)
        marks = ("ETag", "etag", "mtime", "created", "LastModified", "last_modified", "modified")
        mark = next((found[name] for name in marks if found.get(name)), "")
        return f"{found['size']}-{str(mark).strip(chr(34))}"
