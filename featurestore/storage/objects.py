"""Object stores: obstore where it is installed and knows the scheme, fsspec for everything else."""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from featurestore.storage import bucket as buckets
from featurestore.storage.bucket import HASTE, MARK, ONCE, Interrupted, ObjectPlace, Patience, again
from featurestore.storage.foreign import FsspecPlace
from featurestore.storage.locks import new_token
from featurestore.storage.place import Place, PlaceChanged, Tagged

__all__ = ["FsspecPlace", "ObstorePlace", "open_url"]

_T = TypeVar("_T")
_OBSTORE = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")


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


@functools.cache
def _bucket(url: str, patience: Patience) -> Any:
    """The client of a bucket, one per process, as the environment (AWS_..., GOOGLE_...) says."""
    from obstore.store import from_url

    options: Any = {"connect_timeout": "10 seconds", "timeout": f"{patience.timeout_s:g} seconds"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    config: Any = {"endpoint": endpoint} if endpoint and url.startswith("s3") else {}
    if endpoint.startswith("http://"):
        options["allow_http"] = True
    retries: Any = {
        "max_retries": patience.retries,
        "retry_timeout": timedelta(seconds=patience.seconds),
        "backoff": {
            "init_backoff": timedelta(seconds=patience.first_s),
            "max_backoff": timedelta(seconds=patience.longest_s),
            "base": 4,  # a pause is a random share of this times the one before: on average twice
        },
    }
    return from_url(url, client_options=options, retry_config=retries, **config)


def _failure(error: Exception, url: str) -> OSError:
    """An error of obstore as OSError, with a reason for people instead of pages of XML."""
    from obstore import exceptions

    text = str(error)
    status = re.search(r"status code: (\d{3})", text)
    code = status[1] if status else ""
    missing = isinstance(error, FileNotFoundError | exceptions.NotFoundError)
    # Only a bucket can be missing where something is listed.
    if "NoSuchBucket" in text or (code == "404" and "list request" in text):
        return OSError(errno.ENXIO, "there is no such bucket", url)
    if missing:
        return FileNotFoundError(errno.ENOENT, "no such object", url)
    refused = exceptions.PermissionDeniedError, exceptions.UnauthenticatedError
    if isinstance(error, refused) or code in ("401", "403"):
        return PermissionError(
            errno.EACCES, f"the object store refuses access ({_reason(text)})", url
        )
    said = f"the object store failed ({_reason(text)})"
    # What the client itself has repeated often enough is not repeated here.
    if _PASSING.search(text) and not _RETRIED.search(text):
        return Interrupted(errno.EIO, said, url)
    return OSError(errno.EIO, said, url)


_PASSING = re.compile(r"HTTP error|response body|status code: (5\d\d|408|409|429)")
_RETRIED = re.compile(r"after (\d+) retries(?=, max_retries: \1,)")


def _reason(text: str) -> str:
    """The code and message that a server sent, or else what the client says, on one line."""
    sent = [re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL) for name in ("Code", "Message")]
    if sent[0]:
        return ": ".join(" ".join(one[1].split()) for one in sent if one and one[1].strip())
    said = text.partition("<?xml")[0].partition("\n\nDebug source")[0].strip(" :-\n")
    tried = _RETRIED.search(said)
    last = " ".join(said.rpartition(" - ")[2].split())[:400]
    if "error sending request" in last:
        last = "the server cannot be reached"
    return f"{last}, {tried[0]}" if tried else last


class ObstorePlace(ObjectPlace):
    """A prefix of a bucket, by obstore."""

    def __init__(self, bucket: str, prefix: str, patience: Patience | None = None) -> None:
        """`bucket` is a URL without a path; `patience` that of the module by default."""
        self.bucket, self.prefix, self.patience = bucket, prefix.strip("/"), patience

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
        return ObstorePlace(self.bucket, self._key(name), self.patience)

    def hasty(self) -> ObstorePlace:
        """See `ObjectPlace.hasty`."""
        return ObstorePlace(self.bucket, self.prefix, HASTE)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}".strip("/")

    def _ask(self, key: str, call: Callable[[Any, str], _T]) -> _T:
        """What a call with the client and the whole key gives, repeated where that may help."""
        from obstore.exceptions import BaseError

        patience = self.patience or buckets.PATIENCE
        client, whole = _bucket(self.bucket, patience), self._key(key)

        def once() -> _T:
            try:
                return call(client, whole)
            except (BaseError, FileNotFoundError) as error:
                raise _failure(error, f"{self.url}/{key}".rstrip("/")) from None

        return again(once, patience)

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        import obstore
        from obstore.exceptions import BaseError, NotSupportedError

        wanted: Any = None
        if stop is not None:
            wanted = (start or 0, stop)
            if wanted[0] >= stop:
                self.size(key)  # or it is missing
                return b""
        elif start is not None:
            wanted = {"suffix": -start} if start < 0 else {"offset": start}

        options: Any = {} if wanted is None else {"range": wanted}

        def get(client: Any, whole: str) -> bytes:
            try:
                return bytes(obstore.get(client, whole, options=options).bytes())
            except BaseError as error:
                if wanted and "status code: 416" in str(error):
                    return b""  # behind the end, or of nothing
                if "non-partial response" in str(error):  # a server that knows no ranges
                    return bytes(obstore.get(client, whole).bytes())[start:stop]
                if not isinstance(error, NotSupportedError) or start is None or start >= 0:
                    raise
                size = obstore.head(client, whole)["size"]  # Azure does not count from the end
                begin = max(0, size + start)
                part: Any = {"offset": begin}
                return bytes(obstore.get(client, whole, options={"range": part}).bytes())

        return self._ask(key, get)

    def write(self, key: str, *pieces: bytes | memoryview) -> None:
        """See `Place.write`."""
        import obstore

        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)

        def put(client: Any, whole: str) -> None:
            try:
                obstore.put(client, whole, data)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                # An upload in pieces whose end was repeated, since the answer to it was lost.
                raise Interrupted(errno.EIO, "the upload was lost", f"{self.url}/{key}") from None

        self._ask(key, put)

    def create(self, key: str, data: bytes) -> bool:
        """See `Place.create`: put-if-absent."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        mark = new_token()

        def put(client: Any, whole: str) -> bool:
            try:
                obstore.put(client, whole, data, mode="create", attributes={MARK: mark})
            except AlreadyExistsError:
                # Where the answer to a put was lost and the put repeated, it is our own.
                try:
                    return self._put_with(client, whole, mark, data) is not None
                except FileNotFoundError:  # removed since
                    raise Interrupted(errno.EIO, "it comes and goes", whole) from None
            return True

        return self._ask(key, put)

    def _put_with(self, client: Any, whole: str, mark: str, data: bytes) -> str | None:
        """The tag of an object if it came from the put with this mark."""
        import obstore

        found = obstore.get(client, whole)
        worn = dict(found.attributes).get(MARK)
        # A server that keeps no metadata leaves only the bytes to go by.
        ours = worn == mark if worn is not None else bytes(found.bytes()) == data
        return (found.meta["e_tag"] or "") if ours else None

    def tagged(self, key: str) -> Tagged:
        """See `ObjectPlace.tagged`."""
        import obstore

        def get(client: Any, whole: str) -> Tagged:
            found = obstore.get(client, whole)
            return Tagged(bytes(found.bytes()), found.meta["e_tag"] or "")

        return self._ask(key, get)

    def replace_tagged(self, key: str, data: bytes, tag: str) -> str:
        """See `ObjectPlace.replace_tagged`."""
        import obstore
        from obstore.exceptions import NotFoundError, PreconditionError

        mark = new_token()

        def put(client: Any, whole: str) -> str:
            try:
                done = obstore.put(
                    client, whole, data, mode={"e_tag": tag}, attributes={MARK: mark}
                )
                return done["e_tag"] or ""
            except (FileNotFoundError, NotFoundError):
                raise PlaceChanged(key) from None
            except PreconditionError:
                try:
                    found = self._put_with(client, whole, mark, data)
                except FileNotFoundError:
                    found = None
                if found is None:
                    raise PlaceChanged(key) from None
                return found

        return self._ask(key, put)

    def exists(self, key: str) -> bool:
        """See `Place.exists`."""
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        """See `Place.size`."""
        import obstore

        return int(self._ask(key, lambda client, whole: obstore.head(client, whole)["size"]))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Place.sizes`."""
        import obstore

        def find(client: Any, whole: str) -> dict[str, int]:
            found = obstore.list(client, whole or None)
            return {one["path"]: one["size"] for chunk in found for one in chunk}

        skip = len(self.prefix) + 1 if self.prefix else 0
        found = {path[skip:]: size for path, size in self._ask(prefix, find).items()}
        found.pop("", None)  # a console's mark of an empty folder
        return found

    def names(self, prefix: str = "") -> list[str]:
        """See `Place.names`."""
        import obstore

        def find(client: Any, whole: str) -> list[str]:
            found = obstore.list_with_delimiter(client, whole or None)
            paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
            return [path.rstrip("/") for path in paths if path.rstrip("/") != whole]

        return sorted({path.rsplit("/", 1)[-1] for path in self._ask(prefix, find)})

    def delete(self, key: str) -> None:
        """See `Place.delete`."""
        import obstore

        try:
            self._ask(key, obstore.delete)
        except FileNotFoundError:
            return

    def delete_once(self, key: str) -> None:
        """See `ObjectPlace.delete_once`."""
        ObstorePlace(self.bucket, self.prefix, ONCE).delete(key)

    def delete_all(self, prefix: str) -> None:
        """See `Place.delete_all`."""
        import obstore

        keys = [self._key(key) for key in self.sizes(prefix)]
        if keys:
            self._ask(prefix, lambda client, whole: obstore.delete(client, keys))

    def stamp(self, key: str) -> str:
        """See `Place.stamp`."""
        import obstore

        found = self._ask(key, obstore.head)
        return f"{found['size']}-{(found['e_tag'] or '').strip(chr(34))}"
