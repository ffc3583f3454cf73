"""The utterance table of a part: one Zarr array per column, in the part's group `utterances`.

Rows that hold no utterance, at the end of each column of the plan, have "" as their id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import Crc32cCodec
from zarr.dtype import VariableLengthUTF8

from featurestore.storage.arrays import PlaceStore

_GROUP = "utterances"
# Columns that ingest measured; the others repeat the manifest for readers without this package.
MEASURED = ("id", "frame_start", "frame_count", "duration_s", "audio_sha256", "audio_stamp")


def read_columns(store: PlaceStore, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Columns by name, all or those asked for that exist: numbers, or Python strings as objects.

    Raises:
        StoreError, OSError, ValueError, KeyError: a damaged or missing table.
    """
    group = zarr.open_group(store, path=_GROUP, mode="r", zarr_format=3)
    found = {}
    for name in sorted(store.place.names(_GROUP)):
        if name == "zarr.json" or (names is not None and name not in names):
            continue
        values = np.asarray(group[name][:])  # type: ignore[index]
        found[name] = values if values.dtype.kind in "if" else values.astype(object)
    return found


def write_column(
    store: PlaceStore, name: str, values: pd.Series, *, slots: pd.Series, size: int
) -> None:
    """Write or replace a column.

    Args:
        store: the part's arrays.
        name: of the column.
        values: integers, floats or strings.
        slots: the row of each value.
        size: rows of the table; those without a value get -1, NaN or "".
    """
    if pd.api.types.is_integer_dtype(values):
        full, fill, dtype = np.full(size, -1, np.int64), -1, "int64"
        return _write(store, name, full, values, slots, dtype, fill)
    if pd.api.types.is_numeric_dtype(values):
        full = np.full(size, np.nan)
        return _write(store, name, full, values, slots, "float64", np.nan)
    text = values.fillna("").astype(object)
    return _write(store, name, np.full(size, "", object), text, slots, VariableLengthUTF8(), "")


def _write(
    store: PlaceStore,
    name: str,
    full: np.ndarray,
    values: pd.Series,
    slots: pd.Series,
    dtype: Any,
    fill: Any,
) -> None:
    full[slots.to_numpy()] = values.to_numpy()
    root = zarr.open_group(store, mode="a", zarr_format=3)
    array = root.require_group(_GROUP).create_array(
        name,
        shape=full.shape,
        chunks=(max(len(full), 1),),
        dtype=dtype,
        fill_value=fill,
        dimension_names=("utterance",),
        compressors=[Crc32cCodec()],
        overwrite=True,
        # Otherwise a column of nothing but fill would have no file, and look as if it had been
        # lost.
        config={"write_empty_chunks": True},
    )
    array[:] = full
