"""Which utterance goes where, decided before any audio is decoded. Pure: no file is touched.

Utterances are packed into columns of a fixed number of frames. A column is one shard per layer, the
unit of work of one writer, and no utterance straddles two of them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK_FRAMES = 4096  # frames in a chunk: 1 MiB of float16 for 128 units
CHUNK_UTTERANCES = 128  # utterances in a chunk of pooled statistics: 0.94 MiB
_COLUMN_FRAMES = 8 * CHUNK_FRAMES
_COLUMN_FRAMES_LARGE = 32 * CHUNK_FRAMES
_LARGE_CORPUS_FRAMES = 100 * 3600 * 1000 // 32  # 100 hours
_COLUMN_WIDTH = 15 * 128  # values per frame for which these were measured
# Pooled statistics take 30 KB per utterance and capture; this keeps a column of one-word clips
# in memory as small as its frames.
MAX_UTTERANCES = 1024


@dataclass(frozen=True, eq=False)
class Column:
    """One unit of work.

    Attributes:
        index: position; the column's frames start at `index * column_frames`.
        slot_start: first row of its utterances in the utterance table and the pooled arrays.
        members: (utterance,) indices of its utterances in what was planned, shortest first.
    """

    index: int
    slot_start: int
    members: np.ndarray


@dataclass(frozen=True)
class Layout:
    """How large a part is; all that a writer of one column has to know of the others.

    Attributes:
        column_frames: frames of a column, a multiple of `CHUNK_FRAMES`.
        columns: number of columns.
        slots: rows of the utterance table; some at the end of each column stay empty.
    """

    column_frames: int
    columns: int
    slots: int


@dataclass(frozen=True, eq=False)
class PartPlan:
    """Where every utterance of a part goes.

    Attributes:
        name: derived from the contents, so that the same work has the same name.
        column_frames: frames of a column, a multiple of `CHUNK_FRAMES`.
        columns: units of work.
    """

    name: str
    column_frames: int
    columns: tuple[Column, ...]

    @property
    def layout(self) -> Layout:
        """Its size."""
        last = self.columns[-1]
        slots = last.slot_start + _round_up(len(last.members), CHUNK_UTTERANCES)
        return Layout(self.column_frames, len(self.columns), slots)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def lay_out(name: str, frames: int, members: Sequence[Sequence[int] | np.ndarray]) -> PartPlan:
    """A part from the members of each column; every column's rows begin at a chunk's edge."""
    columns, start = [], 0
    for index, held in enumerate(members):
        columns.append(Column(index, start, np.asarray(held, np.int64)))
        start += _round_up(len(held), CHUNK_UTTERANCES)
    return PartPlan(name, frames, tuple(columns))


def column_frames(lengths: Sequence[int] | np.ndarray, *, width: int = _COLUMN_WIDTH) -> int:
    """Frames of a column for a corpus of these utterance lengths.

    32,768 up to 100 hours and 131,072 beyond, never less than the longest utterance, and no more
    than the corpus needs; always a whole number of chunks. Fewer where a frame is wider than that
    of the GCU network, so that a column takes no more memory.

    Args:
        lengths: frames of each utterance.
        width: layers times units of a frame.
    """
    total, longest = int(np.sum(lengths)), int(np.max(lengths))
    usual = _COLUMN_FRAMES if total <= _LARGE_CORPUS_FRAMES else _COLUMN_FRAMES_LARGE
    usual = usual * _COLUMN_WIDTH // max(width, _COLUMN_WIDTH)
    return _round_up(max(min(usual, total), longest), CHUNK_FRAMES)


def plan_part(
    ids: Sequence[str],
    lengths: Sequence[int] | np.ndarray,
    *,
    frames: int | None = None,
    width: int = _COLUMN_WIDTH,
) -> PartPlan:
    """Pack utterances into columns.

    Shortest first, so that the utterances of a column have similar lengths and share batches.

    Args:
        ids: utterance ids, unique.
        lengths: frames of each.
        frames: frames of a column instead of `column_frames(lengths)`; raised to hold the longest
            utterance and to a whole number of chunks.
        width: layers times units of a frame.

    Raises:
        ValueError: nothing to plan.
    """
    if not len(ids):
        raise ValueError("no utterances to plan")
    lengths = np.asarray(lengths)
    capacity = column_frames(lengths, width=width)
    if frames is not None:
        capacity = _round_up(max(frames, int(lengths.max())), CHUNK_FRAMES)
    order = _shortest_first(ids, lengths)
    ends = np.cumsum(lengths[order])
    edges = [0]
    while edges[-1] < len(order):
        first = edges[-1]
        used = ends[first - 1] if first else 0
        fits = int(np.searchsorted(ends, used + capacity, side="right"))
        edges.append(min(fits, first + MAX_UTTERANCES))
    members = [order[a:b] for a, b in itertools.pairwise(edges)]
    return lay_out(f"part-{_digest(ids, lengths, order, capacity)[:12]}", capacity, members)


def _shortest_first(ids: Sequence[str], lengths: np.ndarray) -> np.ndarray:
    """Order by length, then id; Arrow sorts millions of strings in seconds."""
    table = pa.table({"length": lengths, "id": pa.array(ids, pa.large_string())})
    keys = [("length", "ascending"), ("id", "ascending")]
    return np.asarray(pc.sort_indices(table, sort_keys=keys)).astype(np.int64)


def _digest(ids: Sequence[str], lengths: np.ndarray, order: np.ndarray, capacity: int) -> str:
    digest = hashlib.sha256(str(capacity).encode())
    for block in np.array_split(order, max(1, len(order) // 65536)):
        text = "".join(f"\0{ids[i]}\0{lengths[i]}" for i in block.tolist())
        digest.update(text.encode())
    return digest.hexdigest()
