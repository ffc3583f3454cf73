"""The store's own small files: JSON that says itself whether it is what was written.

Every record ends in the CRC-32 of the rest. A record is read only if writing it again gives the
same bytes, so a flipped bit, a truncation and an edit by hand are all noticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from featurestore.errors import StoreError
from featurestore.storage import Place
from featurestore.storage.arrays import checksum
from featurestore.storage.locks import Owner

FORMAT = "featurestore"
FORMAT_VERSION = 2
MARK = "featurestore.json"
_SEAL = "crc32"


def seal(values: dict[str, Any]) -> bytes:
    """A record as it is written."""
    return _text({**values, _SEAL: f"{checksum(_text(values)):08x}"})


def _text(values: dict[str, Any]) -> bytes:
    # Without indentation, which would cost fifty times as long: a record may name a thousand
    # utterances.
    return json.dumps(values, ensure_ascii=False).encode()


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """What a record says.

    Raises:
        StoreError: it is not what was written.
    """
    try:
        values = json.loads(data)
        said = values.pop(_SEAL)
        if seal(values) == data:
            return dict(values)
        reason = f"its checksum {said} does not agree"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) or type(error).__name__
    raise StoreError(
        f"the store's record {where} is not what was written ({reason}); it was damaged or edited. "
        "'featurestore verify' says what else is"
    )


def read_record(place: Place, key: str) -> dict[str, Any]:
    """A record of a store.

    Raises:
        StoreError: a damaged or missing one.
    """
    try:
        data = place.read(key)
    except OSError as error:
        raise StoreError(
            f"cannot read the store's record {place}/{key}: {error.strerror or error}"
        ) from None
    return unseal(data, f"{place}/{key}")


def write_record(place: Place, key: str, values: dict[str, Any]) -> None:
    """Replace a record as a whole, durably."""
    place.replace(key, seal(values))


def create_store(root: Place) -> None:
    """Make `root` a feature store, or check that it is one of a version that this code reads.

    Raises:
        StoreError: a file, a folder with other things in it, or another format.
    """
    if root.exists(MARK):
        check_store(root)
        return
    if not is_free(root):
        raise StoreError(
            f"{root} exists and is not a feature store; give a new folder or an empty one"
        )
    root.create(MARK, seal({"format": FORMAT, "version": FORMAT_VERSION}))


def is_free(root: Place) -> bool:
    """Whether a new store can be made there; what a killed run left behind is no matter."""
    if is_file(root):
        return False
    return all(name.startswith(".") or name == "lock.json" for name in root.names())


def is_file(root: Place) -> bool:
    """Whether a file of this machine is where a folder should be."""
    path = getattr(root, "path", None)
    return path is not None and path.exists() and not path.is_dir()


def check_store(root: Place) -> None:
    """Raise unless `root` is a feature store that this code reads.

    Raises:
        StoreError: no store, or another format.
    """
    if is_file(root):
        raise StoreError(f"{root} is a file, not the folder of a feature store")
    try:
        data = root.read(MARK)
    except FileNotFoundError:
        raise StoreError(
            f"{root} is not a feature store (it has no {MARK}); "
            "'featurestore ingest MANIFEST STORE' makes one"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read {root}/{MARK}: {error.strerror or error}") from None
    version = _version(data)
    if version == 1:
        raise StoreError(
            f"{root} has format version 1, of featurestore 0.2 and older; 'featurestore upgrade "
            f"{root}' brings it to this one, in place and without computing anything again"
        )
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{root} has format version {version}; this featurestore reads up to "
            f"{FORMAT_VERSION}: install a newer one"
        )
    unseal(data, f"{root}/{MARK}")


def _version(data: bytes) -> int:
    """The version that a mark states; -1 of what is no mark."""
    try:
        values = json.loads(data)
        return int(values["version"]) if values["format"] == FORMAT else -1
    except (ValueError, KeyError, TypeError):
        return -1


@contextmanager
def owned(root: Place, *, again: str) -> Iterator[Owner]:
    """Be the one who writes to a store, while the block runs.

    Args:
        root: the store.
        again: what goes on where this was interrupted, such as "ingest".

    Raises:
        StoreError: somebody else is writing, or the disk, the network or a permission is in the
        way.
    """
    try:
        with root.locked() as owner:
            yield owner
    except OSError as error:
        raise StoreError(
            f"writing to {root} failed: {error.strerror or error}. What is written is safe; run "
            f"the same {again} again to go on once the cause is mended"
        ) from error
