"""What manifests said about every utterance of a store: one table, shared by all views.

`STORE/manifest/NNNNN-CRC-ROWS.parquet` has one row per utterance that was ever to be ingested:
speaker, labels and place. A new table is written under the next number and the old one removed, so
that correcting labels touches no array and cannot end half done. The name says what the bytes must
be, and what the rows are, whatever else the file tells.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import StoreError
from featurestore.storage import Place
from featurestore.storage.arrays import checksum

_FOLDER = "manifest"
_NAME = re.compile(r"(\d{5,})-([0-9a-f]{8})-([0-9a-f]{8})\.parquet")
_TOMBSTONES = b"featurestore.tombstones"
_PLACE = ("path", "start", "end")


def rows_version(root: Place) -> str:
    """Name of the current table, which changes with every byte of it; "" before the first one."""
    names = [name for name in root.names(_FOLDER) if _NAME.fullmatch(name)]
    return max(names, key=lambda name: int(name.partition("-")[0]), default="")


def _read(root: Place) -> bytes | None:
    """The current table's bytes, as they were written; None before the first one.

    Raises:
        StoreError: they are not, or the table is gone.
    """
    for _ in range(3):
        name = rows_version(root)
        if not name:
            if not root.names("views"):
                return None
            raise StoreError(
                f"the store's table of speakers and labels is missing from {root}/{_FOLDER}; bring "
                "it back from a copy"
            )
        try:
            data = root.read(f"{_FOLDER}/{name}")
        except FileNotFoundError:
            continue  # replaced since it was listed
        except OSError as error:
            raise StoreError(
                f"cannot read {root}/{_FOLDER}/{name}: {error.strerror or error}"
            ) from None
        if f"{checksum(data):08x}" != name.split("-")[1]:
            raise StoreError(f"the store's record {root}/{_FOLDER}/{name} is not what was written")
        return data
    raise StoreError(f"cannot read {root}/{_FOLDER}: it is replaced all the time")


def read_rows(root: Place) -> pd.DataFrame:
    """Every row, text as Python strings ("" where missing) and numbers as float64.

    Raises:
        StoreError: a damaged or missing table.
    """
    data = _read(root)
    if data is None:
        return pd.DataFrame({name: np.array([], object) for name in ("id", "path", "speaker")})
    table = pd.read_parquet(io.BytesIO(data))
    return pd.DataFrame({str(name): _normal(table[name]) for name in table})


def tombstones_of(root: Place) -> list[str]:
    """Names of the tombstones that there were when the table was written: none may be missing.

    Raises:
        StoreError: a damaged or missing table.
    """
    data = _read(root)
    if data is None:
        return []
    found = pq.read_schema(io.BytesIO(data)).metadata or {}
    return list(json.loads(found.get(_TOMBSTONES, b"[]")))


def write_rows(root: Place, rows: pd.DataFrame, *, tombstones: Sequence[str]) -> None:
    """Replace the table.

    Args:
        root: the store.
        rows: all of them.
        tombstones: names of those that must be there from now on.
    """
    table = pa.Table.from_pandas(rows, preserve_index=False)
    more = {_TOMBSTONES: json.dumps(sorted(tombstones)).encode()}
    data = _parquet(table.replace_schema_metadata({**(table.schema.metadata or {}), **more}))
    name = f"{checksum(data):08x}-{checksum(_parquet(table)):08x}.parquet"
    before = [name for name in root.names(_FOLDER) if _NAME.fullmatch(name)]
    number = max((int(name.partition("-")[0]) for name in before), default=0) + 1
    root.create(f"{_FOLDER}/{number:05d}-{name}", data)
    for name in before:
        root.delete(f"{_FOLDER}/{name}")


def rows_state(root: Place) -> str:
    """What changes with every row, and with nothing else; "" before the first table."""
    return rows_version(root).rpartition("-")[2].removesuffix(".parquet")


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _normal(values: pd.Series) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(np.float64)
    return values.fillna("").to_numpy(object)


def merge_rows(stored: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, set[str]]:
    """The stored rows as a new manifest corrects and extends them.

    Rows and columns that the new manifest does not have stay as they are.

    Args:
        stored: from `read_rows`.
        new: a validated manifest.

    Returns:
        All rows, and the ids of stored ones whose speaker, text or labels change.

    Raises:
        StoreError: a label that is text in one and numbers in the other.
    """
    old, fresh = stored.set_index("id"), new.set_index("id")
    ids = old.index.append(fresh.index.difference(old.index, sort=False))
    shared = old.index[old.index.isin(fresh.index)]
    merged, changed = {}, set()
    for name in dict.fromkeys([*old.columns, *fresh.columns]):
        values = pd.Series(_merged_column(name, old, fresh, ids), ids)
        merged[name] = values.to_numpy()
        if name in fresh and name not in _PLACE:
            before = old[name].reindex(shared) if name in old else _blank(values, shared)
            after = values.reindex(shared)
            same = (before == after) | (before.isna() & after.isna())
            changed |= set(shared[~same.to_numpy(bool)])
    return pd.DataFrame({"id": ids.to_numpy(object), **merged}), changed


def _merged_column(name: str, old: pd.DataFrame, fresh: pd.DataFrame, ids: pd.Index) -> np.ndarray:
    known = [frame[name] for frame in (old, fresh) if name in frame and len(frame)]
    if not known:
        return np.full(len(ids), "", object)
    numeric = [pd.api.types.is_numeric_dtype(values) for values in known]
    if len(set(numeric)) > 1:
        if not old.index.isin(fresh.index).all():
            kinds = ("numbers", "text") if numeric[0] else ("text", "numbers")
            raise StoreError(
                f"label '{name}' holds {kinds[0]} in the store and {kinds[1]} in the manifest; "
                "rename the column, or give a manifest that lists every stored utterance"
            )
        known, numeric = known[1:], numeric[1:]
    out = np.full(len(ids), np.nan) if numeric[0] else np.full(len(ids), "", object)
    for values in known:
        out[ids.get_indexer(values.index)] = values.to_numpy()
    return out


def _blank(like: pd.Series, index: pd.Index) -> pd.Series:
    numeric = pd.api.types.is_numeric_dtype(like)
    return pd.Series(np.nan if numeric else "", index, dtype=float if numeric else object)


def moved_segments(stored: pd.DataFrame, new: pd.DataFrame, ids: frozenset[str]) -> list[str]:
    """Which of these utterances the new manifest cuts elsewhere out of their file."""
    both = [frame[frame["id"].isin(ids)].set_index("id") for frame in (stored, new)]
    shared = both[0].index.intersection(both[1].index)
    moved = np.zeros(len(shared), bool)
    for name, default in (("start", 0.0), ("end", np.inf)):
        before, after = (
            (frame[name].reindex(shared) if name in frame else pd.Series(np.nan, shared))
            .fillna(default)
            .to_numpy(float)
            for frame in both
        )
        moved |= before != after
    return list(shared[moved])


def moved_files(stored: pd.DataFrame, new: pd.DataFrame, ids: frozenset[str]) -> list[str]:
    """Which of these utterances the new manifest finds in another file."""
    before = stored[stored["id"].isin(ids)].set_index("id")["path"]
    after = new.set_index("id")["path"].reindex(before.index)
    return list(before.index[(after.notna() & (after != before)).to_numpy(bool)])
