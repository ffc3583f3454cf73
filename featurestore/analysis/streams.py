"""One pass over a lazy array, a block at a time, here or on a cluster.

A dask graph that adds blocks up one after another would have its other threads read all of the
array ahead of the sum. Here a run of blocks is one task, which reads the next block while it works
on one: memory is that of two blocks, whatever the length of the array.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import dask
import dask.array as da
import numpy as np
from jaxtyping import Shaped

T = TypeVar("T")
Blocks = Iterator[tuple[slice, Shaped[np.ndarray, " utterance *feature"]]]


class _Run:
    """Blocks that follow each other.

    No dataclass and no list, into which dask would look, to read all of them before the work.
    """

    def __init__(self, rows: tuple[slice, ...], arrays: tuple[Any, ...]):
        self.rows, self.arrays = rows, arrays

    def read(self, index: int) -> Any:
        # Of the one block itself: an array's own `compute` copies it. It is not to be written to.
        (block,) = self.arrays[index].to_delayed().ravel()
        return np.asarray(block.compute(scheduler="synchronous"))

    def __iter__(self) -> Blocks:
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.read, 0)
            for index, rows in enumerate(self.rows):
                block = coming.result()
                if index + 1 < len(self.rows):
                    coming = ahead.submit(self.read, index + 1)
                yield rows, block


def in_runs(
    x: da.Array,
    work: Callable[[Blocks], T],
    *,
    wanted: Shaped[np.ndarray, " utterance"] | None = None,
) -> list[T]:
    """What `work` makes of the blocks of an array along its first axis.

    Args:
        x: (utterance, *feature); other axes than the first are made whole.
        work: is given pairs of rows and blocks and called once for each run, of which there is one
            here and one per worker on a cluster (whose client is the process's default one).
        wanted: (utterance,) of booleans; a block without any wanted utterance is not read.
    """
    x = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
    stops = np.cumsum(x.chunks[0]).tolist()
    places = [slice(stop - size, stop) for stop, size in zip(stops, x.chunks[0], strict=True)]
    kept = [
        i
        for i, rows in enumerate(places)
        if rows.stop > rows.start and (wanted is None or wanted[rows].any())
    ]
    if not kept:
        return [work(iter(()))]
    runs = [
        _Run(tuple(places[i] for i in part), tuple(x.blocks[int(i)] for i in part))
        for part in np.array_split(kept, min(_workers(), len(kept)))
    ]
    return list(
        dask.compute(*(dask.delayed(_work, traverse=False, pure=False)(work, run) for run in runs))
    )


def _work(work: Callable[[Blocks], T], run: _Run) -> T:
    return work(iter(run))


def _workers() -> int:
    """Of the cluster that this process's dask computes on; 1 without one."""
    if "distributed" not in sys.modules:  # who has a client has imported it, and that takes 50 MB
        return 1
    from distributed import get_client

    try:
        return max(1, len(get_client().scheduler_info(n_workers=-1)["workers"]))
    except ValueError:  # there is no client
        return 1
