"""Columns to Zarr shards, and the utterance table when a part is whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import zarr

from featurestore.store.ledger import Part
from featurestore.store.plan import CHUNK_UTTERANCES, Column, PartPlan
from featurestore.store.schema import ArraySpec, array_specs
from featurestore.store.table import read_columns, table_digest, write_column


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
    """

    id: str
    slot: int
    frame_start: int
    frame_count: int
    duration_s: float
    audio_sha256: str


@dataclass(frozen=True)
class SetAside:
    """An utterance that could not be read, and why."""

    id: str
    reason: str


class PartWriter:
    """Writes whole columns of one part, each by one writer in one go."""

    def __init__(self, part: Part, plan: PartPlan) -> None:
        """Create the part's arrays, or open them where an interrupted run created them."""
        self.part = part
        self.plan = plan
        group = zarr.open_group(part.arrays, mode="a", zarr_format=3)
        _remove_leftovers(part)
        self._specs = array_specs(part.view.config, plan)
        self._arrays = {spec.path: spec.create(group) for spec in self._specs}

    def buffers(self, column: Column) -> dict[str, np.ndarray]:
        """Memory for every array's share of a column, by array path; `write` fills the tails."""
        return {
            spec.path: np.empty(self._region_shape(spec, column), spec.dtype)
            for spec in self._specs
        }

    def _region_shape(self, spec: ArraySpec, column: Column) -> tuple[int, ...]:
        extent = {
            "frame": self.plan.column_frames,
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
        versions: Mapping[str, str],
    ) -> None:
        """Write a column's shards, then its ledger record. Doing it again changes nothing.

        Args:
            column: which.
            buffers: from `buffers`; utterances one behind the other, what is behind the last one
                becomes NaN.
            utterances: as they lie in the buffers.
            set_aside: those that could not be read.
            versions: of the libraries, for the record.
        """
        used = {"frame": sum(one.frame_count for one in utterances), "utterance": len(utterances)}
        starts = {"frame": column.index * self.plan.column_frames, "utterance": column.slot_start}
        for spec in self._specs:
            values = buffers[spec.path]
            axis = next(i for i, dim in enumerate(spec.dims) if dim in used)
            values[(slice(None),) * axis + (slice(used[spec.dims[axis]], None),)] = np.nan
            region = tuple(
                slice(starts[dim], starts[dim] + size) if dim in starts else slice(None)
                for dim, size in zip(spec.dims, values.shape, strict=True)
            )
            self._arrays[spec.path][region] = values
        self.part.commit(
            column.index,
            {
                "column": column.index,
                "utterances": [asdict(utterance) for utterance in utterances],
                "set_aside": [asdict(one) for one in set_aside],
                "versions": dict(versions),
            },
        )


def _remove_leftovers(part: Part) -> None:
    """Remove what a killed run was in the middle of writing; it was never under its final name."""
    for folder, pattern in ((part.arrays, "*.partial"), (part.ledger, ".*")):
        for path in folder.rglob(pattern):
            path.unlink(missing_ok=True)


def finish_part(part: Part, rows: pd.DataFrame, plan: PartPlan) -> None:
    """Write the utterance table of a part whose columns are all committed, then its success mark.

    A part in which no utterance could be read is removed.

    Args:
        part: the part.
        rows: manifest rows of the utterances planned.
        plan: the part's plan.
    """
    records = part.committed().values()
    utterances = [row for record in records for row in record["utterances"]]
    set_aside = [row for record in records for row in record["set_aside"]]
    if not utterances:
        shutil.rmtree(part.ledger)
        shutil.rmtree(part.arrays)
        return
    measured = pd.DataFrame(utterances)
    if not part.view.config.captures:
        measured = measured.drop(columns=["frame_start", "frame_count"])
    table = measured.merge(rows, on="id", how="left", validate="one_to_one")
    for name in table.columns.drop("slot"):
        write_column(part, str(name), table[name], slots=table["slot"], size=plan.slots)
    part.finish(
        {
            "utterances": len(table),
            "columns": len(plan.columns),
            "table_sha256": table_digest(read_columns(part)),
            "set_aside": set_aside,
        }
    )
