"""Columns to Zarr shards, and the utterance table when a part is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import zarr

from featurestore.storage.arrays import Objects, PlaceStore, checksum
from featurestore.store.ledger import Part
from featurestore.store.plan import CHUNK_UTTERANCES, Column, Layout, PartPlan
from featurestore.store.schema import ArraySpec, array_specs
from featurestore.store.shards import write_shards
from featurestore.store.table import MEASURED, write_column


@dataclass(frozen=True)
class Origin:
    """How rows were made: what `featurestore info --utterance` answers.

    Attributes:
        versions: of the libraries.
        device: that ran the extractor.
        made_at: when the column was finished, UTC, ISO 8601.
    """

    versions: Mapping[str, str]
    device: str
    made_at: str


@dataclass(frozen=True)
class Utterance:
    """An utterance as it lies in a part.

    Attributes:
        id: its name.
        slot: row in the utterance table and in pooled arrays.
        frame_start: first frame in the part's frame arrays.
        frame_count: frames.
        duration_s: seconds of audio.
        audio_sha256: of the decoded samples.
        audio_stamp: size and time of the audio file, or its tag, when it was read.
        origin: which of the column's origins it has.
    """

    id: str
    slot: int
    frame_start: int
    frame_count: int
    duration_s: float
    audio_sha256: str
    audio_stamp: str = ""
    origin: int = 0


@dataclass(frozen=True)
class SetAside:
    """An utterance that could not be read, and why."""

    id: str
    reason: str


class PartWriter:
    """Writes whole columns of one part, each by one writer in one go."""

    def __init__(self, part: Part, layout: Layout, *, create: bool = True) -> None:
        """Open the part's arrays, and create what of them is missing.

        Args:
            part: where.
            layout: its size.
            create: whether they may be missing; not where several processes write columns.
        """
        self.part = part
        self.layout = layout
        self._store = PlaceStore(part.arrays)
        group = zarr.open_group(self._store, mode="a" if create else "r+", zarr_format=3)
        self._specs = array_specs(part.view.config, layout)
        self._arrays = {spec.path: spec.create(group) for spec in self._specs}

    def buffers(self, column: Column) -> dict[str, np.ndarray]:
        """Memory for every array's share of a column, by array path; `write` fills the tails."""
        return {
            spec.path: np.empty(self._region_shape(spec, column), spec.dtype)
            for spec in self._specs
        }

    def _region_shape(self, spec: ArraySpec, column: Column) -> tuple[int, ...]:
        extent = {
            "frame": self.layout.column_frames,
            "utterance": -(-len(column.members) // CHUNK_UTTERANCES) * CHUNK_UTTERANCES,
        }
        return tuple(extent.get(dim, size) for dim, size in zip(spec.dims, spec.shape, strict=True))

    def write(
        self,
        column: Column,
        buffers: Mapping[str, np.ndarray],
        *,
        utterances: Sequence[Utterance],
        set_aside: Sequence[SetAside],
        origins: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Write a column's shards and wait until they are safe. Doing it again changes nothing.

        Args:
            column: which.
            buffers: from `buffers`; utterances one behind the other, what is behind the last one
                becomes fill.
            utterances: as they lie in the buffers.
            set_aside: those that could not be read.
            origins: `Origin` of the utterances, as plain values.

        Returns:
            The column's record, for `Part.commit`.
        """
        used = {"frame": sum(one.frame_count for one in utterances), "utterance": len(utterances)}
        starts = {"frame": column.index * self.layout.column_frames, "utterance": column.slot_start}
        self._store.written.clear()
        for spec in self._specs:
            values = buffers[spec.path]
            axis = next(i for i, dim in enumerate(spec.dims) if dim in used)
            values[(slice(None),) * axis + (slice(used[spec.dims[axis]], None),)] = spec.fill
            region = tuple(
                slice(starts[dim], starts[dim] + size) if dim in starts else slice(None)
                for dim, size in zip(spec.dims, values.shape, strict=True)
            )
            array, frames = self._arrays[spec.path], used["frame"]
            if spec.shards and frames and write_shards(array, column.index, values, used=frames):
                continue
            array[region] = values
        written = dict(sorted(self._store.written.items()))
        self.part.arrays.sync(written)
        return {
            "column": column.index,
            "utterances": [asdict(utterance) for utterance in utterances],
            "set_aside": [asdict(one) for one in set_aside],
            "origins": [dict(origin) for origin in origins],
            "objects": written,
        }


@dataclass(frozen=True)
class Committed:
    """What the records of a part say, in memory as columns and not as millions of records.

    Attributes:
        table: utterances in slot order: the fields of `Utterance`, and `column`.
        set_aside: what could not be read.
        digest: sha256 of the checksums of the columns' objects.
    """

    table: pd.DataFrame
    set_aside: tuple[SetAside, ...]
    digest: str


def read_committed(part: Part) -> Committed:
    """Read every record of a part.

    Raises:
        StoreError: a damaged record.
    """
    digest = hashlib.sha256()
    columns: dict[str, list[np.ndarray | pa.Array]] = {name: [] for name in _UTTERANCE}
    places, aside = [], []
    for index in part.committed_columns():
        record = part.record(index)
        digest.update(json.dumps(record["objects"]).encode())
        aside += [SetAside(**one) for one in record["set_aside"]]
        rows = record["utterances"]
        places.append(np.full(len(rows), index))
        for name, kind in _UTTERANCE.items():
            values = [row[name] for row in rows]
            columns[name].append(
                pa.array(values, pa.string()) if kind is str else np.array(values, kind)
            )
    table = pd.DataFrame({name: _joined(columns[name], kind) for name, kind in _UTTERANCE.items()})
    table["column"] = np.concatenate([np.array([], int), *places])
    return Committed(table, tuple(aside), digest.hexdigest())


_UTTERANCE = {
    "id": str,
    "slot": int,
    "frame_start": int,
    "frame_count": int,
    "duration_s": float,
    "audio_sha256": str,
    "audio_stamp": str,
}


def _joined(pieces: Sequence[Any], kind: type) -> Any:
    if kind is str:  # Arrow's strings: a tenth of the memory of Python's
        whole = pa.chunked_array(pieces, pa.string())
        return whole.to_pandas(types_mapper={pa.string(): pd.StringDtype("pyarrow")}.get)
    return np.concatenate([np.array([], kind), *pieces])


def finish_part(
    part: Part,
    rows: pd.DataFrame,
    plan: PartPlan,
    committed: Committed,
    *,
    certificate: Mapping[str, Any] | None = None,
) -> None:
    """Write the utterance table of a part whose columns are all committed, then its success mark.

    A part in which no utterance could be read is removed.

    Args:
        part: the part.
        rows: manifest rows of the utterances planned.
        plan: the part's plan.
        committed: what its records say.
        certificate: how far utterances encoded alone were from what is stored.
    """
    if committed.table.empty:
        part.supersede()
        part.remove()
        return
    unwanted = ["column"]
    if not part.view.config.captures:
        unwanted += ["frame_start", "frame_count"]
    measured = committed.table.drop(columns=unwanted)
    labels = _labels(rows).set_index("id")
    labels = labels.iloc[labels.index.get_indexer(pd.Index(measured["id"]))]
    part.arrays.delete_all("utterances")
    store = PlaceStore(part.arrays)
    slots, size = measured["slot"], plan.layout.slots
    for table in (measured.drop(columns="slot"), labels):
        for name in table.columns:
            write_column(store, str(name), table[name], slots=slots, size=size)
    objects = _objects(part, store.written)
    part.arrays.sync(objects)
    text = json.dumps([objects, committed.digest])
    part.finish(
        {
            "utterances": len(measured),
            "columns": len(plan.columns),
            "objects": objects,
            "set_aside": [asdict(one) for one in committed.set_aside],
            "digest": hashlib.sha256(text.encode()).hexdigest(),
            "certificate": dict(certificate or {}),
        }
    )


def _labels(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns=[name for name in MEASURED if name != "id" and name in rows])


def _objects(part: Part, tables: Objects) -> Objects:
    """What is in a part besides its columns: the table and every array's metadata."""
    found = dict(tables)
    for key in part.arrays.sizes():
        if key.endswith("zarr.json"):
            data = part.arrays.read(key)
            found[key] = [len(data), checksum(data)]
    return dict(sorted(found.items()))
