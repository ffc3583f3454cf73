"""Arrays of several parts as one dask array: a block is read when it is asked for.

Graphs are written down here, block by block, instead of being composed of slices and
concatenations: those cost several tasks a block, and the store of a large corpus has hundreds of
thousands of shards.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from featurestore.store.plan import CHUNK_UTTERANCES
from featurestore.store.schema import MISSING_INT8
from featurestore.store.shards import read_rows

MAX_BLOCKS = 40_000  # of one array; dask takes some 0.1 ms and 2 KB for each
# Stored chunks of pooled statistics per block, fewer where a frame is wider than that of the GCU
# network: 30 MiB of one statistic of one capture.
_BLOCK_CHUNKS = 32
_BLOCK_VALUES = _BLOCK_CHUNKS * CHUNK_UTTERANCES * 15 * 128

Graph = dict[Any, Any]


@dataclass(frozen=True)
class Extent:
    """Utterances of a part that lie one behind the other: their rows, and their frames.

    Attributes:
        frames: of all of them.
        counts: (utterance,) frames of each.
    """

    frames: slice
    counts: np.ndarray


@dataclass(frozen=True)
class Block:
    """Extents of one part that are read together.

    Attributes:
        part: position of the part.
        extents: in order.
        first: position of their first utterance in the part.
    """

    part: int
    extents: tuple[Extent, ...]
    first: int

    @property
    def counts(self) -> np.ndarray:
        """(utterance,) frames of each utterance."""
        return np.concatenate([extent.counts for extent in self.extents])

    @property
    def frames(self) -> int:
        """Frames in all."""
        return int(self.counts.sum())


def frame_blocks(parts: Sequence[Sequence[Extent]], *, layers: int) -> list[Block]:
    """Extents of all parts in blocks: one each, or as many as keep the graph small.

    Args:
        parts: extents of each part.
        layers: blocks of the array for each of these.
    """
    total = sum(len(extents) for extents in parts)
    size = max(1, math.ceil(total * layers / MAX_BLOCKS))
    blocks = []
    for part, extents in enumerate(parts):
        starts = [0, *itertools.accumulate(len(extent.counts) for extent in extents)]
        for first in range(0, len(extents), size):
            blocks.append(Block(part, tuple(extents[first : first + size]), starts[first]))
    return blocks


def frames_array(
    arrays: Sequence[zarr.Array], blocks: Sequence[Block], *, scale: float | None, token: str
) -> da.Array:
    """Frames of all blocks: (layer, frame, unit), one layer a block, or (frame, coefficient).

    Args:
        arrays: of the parts.
        blocks: from `frame_blocks`.
        scale: of int8 frames; None for floats.
        token: what tells these contents from others.
    """
    *outer, _, width = arrays[0].shape
    name = f"frames-{tokenize(token, scale)}"
    graph = _originals(name, arrays)
    for index, block in enumerate(blocks):
        places = tuple(extent.frames for extent in block.extents)
        for layer in range(outer[0]) if outer else [None]:
            key = (name, *([] if layer is None else [layer]), index, 0)
            read = functools.partial(_read_frames, layer=layer, places=places, scale=scale)
            graph[key] = (read, f"{name}-part-{block.part}")
    chunks = [tuple(block.frames for block in blocks), (width,)]
    if outer:
        chunks.insert(0, (1,) * outer[0])
    dtype = arrays[0].dtype if scale is None else np.dtype(np.float32)
    return _array(graph, name, chunks, dtype)


def _read_frames(
    array: zarr.Array, *, layer: int | None, places: Iterable[slice], scale: float | None
) -> np.ndarray:
    axis = 0 if layer is None else 1
    found = [_rows(array, layer, place) for place in places]
    values = found[0] if len(found) == 1 else np.concatenate(found, axis=axis)
    return values if scale is None else unpack(values, scale)


def _rows(array: zarr.Array, layer: int | None, place: slice) -> np.ndarray:
    if layer is None:
        return np.asarray(array[place])
    values = read_rows(array, layer, place)
    return np.asarray(array[layer : layer + 1, place]) if values is None else values


def unpack(values: np.ndarray, scale: float) -> np.ndarray:
    """Activations from int8 frames: float32, NaN where there is none."""
    return np.where(values == MISSING_INT8, np.float32(np.nan), values * np.float32(scale))


def per_frame(
    make: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ids: Sequence[np.ndarray],
    blocks: Sequence[Block],
    *,
    dtype: type,
    token: str,
) -> da.Array:
    """One value per frame, made block by block when asked for.

    Args:
        make: of the ids of utterances and the frames of each.
        ids: of each part's utterances.
        blocks: from `frame_blocks`.
        dtype: of the values.
        token: what tells these contents from others.
    """
    name = f"per-frame-{tokenize(token)}"
    graph: Graph = {}
    for index, block in enumerate(blocks):
        counts = block.counts
        held = ids[block.part][block.first : block.first + len(counts)]
        graph[name, index] = (functools.partial(make, held, counts),)
    return _array(graph, name, [tuple(block.frames for block in blocks)], np.dtype(dtype))


def rows_array(
    arrays: Sequence[zarr.Array], slots: Sequence[np.ndarray], *, axis: int, token: str
) -> da.Array:
    """Rows of all parts that hold an utterance.

    Args:
        arrays: of the parts: (utterance, ...), or (statistic, utterance, ...).
        slots: rows of each part that hold one, ascending.
        axis: of the utterances, 0 or 1.
        token: what tells these contents from others.
    """
    name = f"rows-{tokenize(token)}"
    graph = _originals(name, arrays)
    width = math.prod(arrays[0].shape[axis + 1 :])
    size = max(1, min(_BLOCK_CHUNKS, _BLOCK_VALUES // (width * CHUNK_UTTERANCES)))
    size *= CHUNK_UTTERANCES
    counts: list[int] = []
    inner = (0,) * (arrays[0].ndim - axis - 1)
    for part, held in enumerate(slots):
        edges = np.searchsorted(held, np.arange(0, arrays[part].shape[axis] + size, size))
        for start, stop in itertools.pairwise(edges):
            if start == stop:
                continue
            picked = held[start:stop]
            for outer in range(arrays[0].shape[0]) if axis else [None]:
                key = (name, *([] if outer is None else [outer]), len(counts), *inner)
                read = functools.partial(_read_rows, outer=outer, picked=picked)
                graph[key] = (read, f"{name}-part-{part}")
            counts.append(int(stop - start))
    chunks: list[tuple[int, ...]] = [tuple(counts)]
    chunks += [(n,) for n in arrays[0].shape[axis + 1 :]]
    if axis:
        chunks.insert(0, (1,) * arrays[0].shape[0])
    return _array(graph, name, chunks, arrays[0].dtype)


def _read_rows(array: zarr.Array, *, outer: int | None, picked: np.ndarray) -> np.ndarray:
    place = slice(int(picked[0]), int(picked[-1]) + 1)
    if outer is None:
        return np.asarray(array[place])[picked - picked[0]]
    return np.asarray(array[outer : outer + 1, place])[:, picked - picked[0]]


def _originals(name: str, arrays: Sequence[zarr.Array]) -> Graph:
    return {f"{name}-part-{part}": array for part, array in enumerate(arrays)}


def _array(graph: Graph, name: str, chunks: Sequence[tuple[int, ...]], dtype: np.dtype) -> da.Array:
    whole = HighLevelGraph.from_collections(name, graph, dependencies=[])
    return da.Array(whole, name, tuple(chunks), dtype=dtype)
