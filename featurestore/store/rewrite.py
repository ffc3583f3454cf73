"""Parts made from parts: merged, or without some utterances. Nothing is computed again.

A rewrite writes a new part beside the old ones. Until it is complete it does not count; at that
moment the old ones cease to, and only then are they removed. Killed at any point, the store is
what it was before or what it is to be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import zarr

from featurestore.errors import StoreError
from featurestore.store.ledger import Part, View
from featurestore.store.plan import Column, plan_part
from featurestore.store.schema import ArraySpec, array_specs
from featurestore.store.writer import PartWriter, Utterance, finish_part, read_committed


@dataclass(frozen=True)
class _Source:
    """A column that has a record, where its utterances come from."""

    part: Part
    column: int


def rewrite(
    view: View,
    sources: Sequence[Part],
    rows: pd.DataFrame,
    *,
    drop: Collection[str] = (),
    column_frames: int | None = None,
    tick: Callable[[float], None] = lambda amount: None,
) -> Part | None:
    """One part that stands for several, without some of their utterances.

    Only for who holds the store's lock.

    Args:
        view: of the parts.
        sources: complete, or with some columns committed, which is what is taken of them.
        rows: labels of all utterances.
        drop: ids that are left out.
        column_frames: frames of a column; what suits the part by default.
        tick: called with 1 per column written.

    Returns:
        The new part, or None where nothing is left.

    Raises:
        StoreError: damage in what has to be read.
    """
    found = _gather(sources, frozenset(drop))
    if found.empty:
        for part in sources:
            part.supersede()
        view.sweep()
        return None
    ids = list(found["id"])
    lengths = found["planned"].to_numpy(int)
    plan = plan_part(ids, lengths, frames=column_frames, width=_width(view))
    if plan.name in {part.name for part in sources}:
        raise StoreError(f"{sources[0].name} of view {view.name} would be rewritten to itself")
    part = view.part(plan.name)
    part.begin(plan, ids, lengths, replaces=sources)
    writer = PartWriter(part, plan.layout)
    opened = {source.name: source.reading() for source in sources}
    for column in plan.columns:
        held = found.iloc[column.members].reset_index(drop=True)
        part.commit(_write_column(view, writer, column, held, opened))
        tick(1)
    mine = rows[rows["id"].isin(found["id"])]
    finish_part(part, mine, plan, read_committed(part), certificate=_certificate(sources))
    view.sweep()
    return part


def _width(view: View) -> int:
    inner = view.config.inner.values() if view.config.kind != "egemaps" else (1,)
    return int(np.prod(list(inner)))


def _gather(sources: Sequence[Part], drop: frozenset[str]) -> pd.DataFrame:
    """Utterances of all sources that are kept: their records, and where they lie."""
    kept: list[dict[str, Any]] = []
    for part in sources:
        _, ids, frames = part.planned()
        planned = dict(zip(ids, frames.tolist(), strict=True))
        for index, record in part.committed().items():
            source = _Source(part, index)
            for row in record["utterances"]:
                if row["id"] not in drop:
                    origin = record["origins"][row["origin"]]
                    more = {"source": source, "made": origin, "planned": planned[row["id"]]}
                    kept.append({**row, **more})
    return pd.DataFrame(kept)


def _certificate(sources: Sequence[Part]) -> dict[str, Any]:
    """The worst of the sources' certificates still holds of what was taken from them."""
    found = [part.completion()["certificate"] for part in sources if part.complete]
    return max((one for one in found if one), key=lambda one: one["largest"], default={})


def _write_column(
    view: View,
    writer: PartWriter,
    column: Column,
    held: pd.DataFrame,
    opened: dict[str, Any],
) -> dict[str, Any]:
    buffers = writer.buffers(column)
    cursors = np.concatenate([[0], np.cumsum(held["frame_count"].to_numpy(int))])
    for spec in array_specs(view.config, writer.layout):
        for source, rows in held.groupby("source", sort=False).indices.items():
            array = zarr.open_array(opened[source.part.name], path=spec.path, mode="r")
            _copy(array, spec, held, rows, cursors, buffers[spec.path])
    origins: dict[str, int] = {}
    utterances = []
    for slot, row in enumerate(held.to_dict("records")):
        text = json.dumps(row["made"], sort_keys=True)
        utterances.append(
            Utterance(
                id=row["id"],
                slot=column.slot_start + slot,
                frame_start=column.index * writer.layout.column_frames + int(cursors[slot]),
                frame_count=row["frame_count"],
                duration_s=row["duration_s"],
                audio_sha256=row["audio_sha256"],
                audio_stamp=row["audio_stamp"],
                origin=origins.setdefault(text, len(origins)),
            )
        )
    return writer.write(
        column,
        buffers,
        utterances=utterances,
        set_aside=[],
        origins=[json.loads(text) for text in origins],
    )


def _copy(
    array: zarr.Array,
    spec: ArraySpec,
    held: pd.DataFrame,
    rows: np.ndarray,
    cursors: np.ndarray,
    buffer: np.ndarray,
) -> None:
    """One source column's share of a buffer, read in one piece."""
    frames = "frame" in spec.dims
    axis = spec.dims.index("frame" if frames else "utterance")
    starts = held["frame_start" if frames else "slot"].to_numpy(int)[rows]
    counts = held["frame_count"].to_numpy(int)[rows] if frames else np.ones(len(rows), int)
    goals = cursors[rows] if frames else rows
    first, last = int(starts.min()), int((starts + counts).max())
    before = (slice(None),) * axis
    block = np.asarray(array[(*before, slice(first, last))])
    for start, count, goal in zip(starts - first, counts, goals, strict=True):
        buffer[(*before, slice(goal, goal + count))] = block[(*before, slice(start, start + count))]


def parts_with(view: View, ids: Collection[str]) -> list[Part]:
    """Parts that hold, or were to hold, any of these utterances."""
    wanted = frozenset(ids)
    return [part for part in view.parts() if wanted.intersection(part.planned()[1])]


def drop_utterances(view: View, ids: Collection[str], rows: pd.DataFrame) -> int:
    """Rewrite every part that holds any of these utterances; the number of those parts."""
    affected = parts_with(view, ids)
    for part in affected:
        rewrite(view, [part], rows, drop=ids)
    return len(affected)
