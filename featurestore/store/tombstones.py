"""What was forgotten on request, without saying who: keyed hashes of speakers and utterance ids.

    STORE/tombstones/key.json      a random key, made with the first tombstone
    STORE/tombstones/<name>.json   one request: hashes, date, and how much was removed

A hash can be compared with a name that somebody already has, which is what it is for; it does not
give one away.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from featurestore.errors import StoreError
from featurestore.storage import Place
from featurestore.storage.locks import new_token
from featurestore.store.records import read_record, seal
from featurestore.store.rows import tombstones_of

_FOLDER = "tombstones"
_KEY = f"{_FOLDER}/key.json"


def _hash(key: bytes, kind: str, name: str) -> str:
    text = f"{kind}\0{name}".encode()
    return hashlib.blake2b(text, key=key, digest_size=16).hexdigest()


def _of_key(key: bytes) -> str:
    """What tells a key from any other."""
    return hashlib.blake2b(key, digest_size=8).hexdigest()


@dataclass(frozen=True)
class Tombstones:
    """Everything that was forgotten.

    Attributes:
        key: of the hashes; empty before the first.
        names: records by file name.
        hashes: of speakers and utterances.
    """

    key: bytes
    names: dict[str, dict[str, object]]
    hashes: frozenset[str]

    def matches(self, table: pd.DataFrame) -> np.ndarray:
        """(utterance,) whether a row's speaker or id was forgotten."""
        if not self.hashes:
            return np.zeros(len(table), bool)
        speakers = table["speaker"].map(
            {name: self.has("speaker", name) for name in table["speaker"].unique()}
        )
        ids = np.fromiter((self.has("utterance", id) for id in table["id"]), bool, len(table))
        return speakers.to_numpy(bool) | ids

    def has(self, kind: str, name: str) -> bool:
        """Whether a speaker or an utterance was forgotten."""
        return bool(name) and _hash(self.key, kind, name) in self.hashes


def read_tombstones(root: Place) -> Tombstones:
    """What was forgotten of a store.

    Raises:
        StoreError: a damaged record.
    """
    names = [name for name in root.names(_FOLDER) if name != "key.json"]
    missing = set(tombstones_of(root)) - set(names)
    if missing:
        raise StoreError(
            f"{root}/{_FOLDER}/{min(missing)} is missing: what was forgotten could come back; "
            "bring it back from a copy"
        )
    if not names:
        return Tombstones(b"", {}, frozenset())
    key = bytes.fromhex(str(read_record(root, _KEY)["key"]))
    records = {name: read_record(root, f"{_FOLDER}/{name}") for name in names}
    for name, record in records.items():
        if record["key"] != _of_key(key):
            raise StoreError(
                f"{root}/{_KEY} is not the key of {name}: what was forgotten could come back; "
                "bring the key back from a copy"
            )
    hashes = frozenset(one for record in records.values() for one in record["hashes"])
    return Tombstones(key, records, hashes)


def add_tombstone(root: Place, *, speakers: Iterable[str], ids: Iterable[str], when: str) -> None:
    """Leave a mark of what is about to be removed; durable before anything is."""
    root.create(_KEY, seal({"key": secrets.token_hex(32)}))
    key = bytes.fromhex(str(read_record(root, _KEY)["key"]))
    who, what = list(speakers), list(ids)
    hashes = [_hash(key, "speaker", name) for name in who if name]
    hashes += [_hash(key, "utterance", id) for id in what]
    if frozenset(hashes) <= read_tombstones(root).hashes:
        return
    values = {
        "forgotten_at": when,
        "utterances": len(what),
        "hashes": sorted(hashes),
        "key": _of_key(key),
    }
    root.create(f"{_FOLDER}/{new_token()}.json", seal(values))


def readmit(root: Place, table: pd.DataFrame) -> list[str]:
    """Take back the marks of everything in a manifest; names of tombstones that are empty now."""
    found = read_tombstones(root)
    if not found.hashes:
        return []
    empty = []
    back = {_hash(found.key, "speaker", name) for name in table["speaker"].unique()}
    back |= {_hash(found.key, "utterance", id) for id in table["id"]}
    for name, record in found.names.items():
        kept = [one for one in record["hashes"] if one not in back]  # type: ignore[attr-defined]
        if not kept:
            empty.append(name)
        elif len(kept) < len(record["hashes"]):  # type: ignore[arg-type]
            root.replace(f"{_FOLDER}/{name}", seal({**record, "hashes": kept}))
    return empty


def remove_tombstones(root: Place, names: Iterable[str]) -> None:
    """Remove tombstones that the store's table no longer asks for."""
    for name in names:
        root.delete(f"{_FOLDER}/{name}")
