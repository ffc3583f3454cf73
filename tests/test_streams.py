"""One pass over blocks: the same sums in any number of runs, and two blocks in memory."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest

from featurestore.analysis import streams
from featurestore.analysis.streams import Blocks, in_runs
from featurestore.analysis.sums import group_sums

ROWS, SHAPE = 60, (3, 4)
VALUES = np.random.default_rng(0).integers(-99, 100, (ROWS, *SHAPE)).astype(np.float32)


def total(blocks: Blocks) -> np.ndarray:
    """Of every row times its number: whole numbers, and so the same in any order."""
    found = np.zeros(SHAPE)
    for rows, block in blocks:
        found += np.tensordot(np.arange(rows.start, rows.stop), block.astype(np.float64), 1)
    return found


EXPECTED = np.tensordot(np.arange(ROWS), VALUES.astype(np.float64), 1)


class Reads:
    """An array whose blocks of ten rows say when they are read."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.begun: list[int] = []
        self.fail_at = fail_at

    def read(self, block_info: Any = None) -> np.ndarray:
        start, stop = block_info[None]["array-location"][0]
        self.begun.append(start)
        if start == self.fail_at:
            raise OSError(f"rows {start} to {stop} are damaged")
        return VALUES[start:stop].copy()

    def array(self) -> da.Array:
        chunks = ((10,) * 6, *((size,) for size in SHAPE))
        return da.map_blocks(self.read, chunks=chunks, meta=np.empty((0, 0, 0), np.float32))


@pytest.mark.parametrize("workers", [1, 2, 5, 100])
@pytest.mark.parametrize(
    "chunks",
    [(ROWS, 3, 4), (7, 3, 4), (1, 3, 4), (16, 2, 1), ((0, 5, 55, 0), 3, 4)],
    ids=["one", "sevens", "rows", "across features", "with empty ones"],
)
def test_chunks_and_runs_do_not_matter(
    workers: int, chunks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_workers", lambda: workers)
    found = in_runs(da.from_array(VALUES, chunks=chunks), total)
    assert len(found) <= workers
    np.testing.assert_array_equal(sum(found), EXPECTED)


def test_every_run_is_a_stretch_of_whole_blocks_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_workers", lambda: 4)

    def places(blocks: Blocks) -> list[tuple[int, int, tuple[int, ...]]]:
        return [(rows.start, rows.stop, block.shape) for rows, block in blocks]

    found = in_runs(da.from_array(VALUES, chunks=(10, 2, 2)), places)
    assert [len(run) for run in found] == [2, 2, 1, 1]
    flat = [place for run in found for place in run]
    assert flat == [(start, start + 10, (10, *SHAPE)) for start in range(0, ROWS, 10)]


def test_nothing_to_read_is_still_worked_on() -> None:
    nothing = in_runs(da.from_array(VALUES, chunks=10), total, wanted=np.zeros(ROWS, bool))
    np.testing.assert_array_equal(nothing, [np.zeros(SHAPE)])
    none = in_runs(da.zeros((0, *SHAPE)), total)
    np.testing.assert_array_equal(none, [np.zeros(SHAPE)])


def test_a_block_without_a_wanted_row_is_never_read() -> None:
    reads = Reads()
    wanted = np.zeros(ROWS, bool)
    wanted[[9, 30, 31]] = True
    seen = in_runs(reads.array(), lambda blocks: [rows.start for rows, _ in blocks], wanted=wanted)
    assert seen == [[0, 30]]
    assert reads.begun == [0, 30]


def _settled(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true; a reader that is too eager has time to show it afterwards."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.02)
    return condition()


def test_the_reader_is_one_block_ahead_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, ahead = Reads(), []
    alive: set[int] = set()
    most_alive, read = [], streams._Run.read

    def counted(self: Any, index: int) -> np.ndarray:
        block = read(self, index)
        alive.add(index)
        weakref.finalize(block, alive.discard, index)
        most_alive.append(len(alive))
        return block

    monkeypatch.setattr(streams._Run, "read", counted)

    def work(blocks: Blocks) -> int:
        for rows, block in blocks:
            number = rows.stop // 10
            assert _settled(lambda number=number: len(reads.begun) >= min(number + 1, 6))
            ahead.append(len(reads.begun) - number)
            assert len(block) == 10
        return len(ahead)

    assert in_runs(reads.array(), work) == [6]
    assert ahead == [1, 1, 1, 1, 1, 0]
    gc.collect()
    assert max(most_alive) == 2
    assert not alive


@pytest.mark.parametrize("fail_at", [0, 20, 50])
def test_what_cannot_be_read_is_raised(fail_at: int) -> None:
    reads = Reads(fail_at)
    with pytest.raises(OSError, match=f"rows {fail_at} to {fail_at + 10} are damaged"):
        in_runs(reads.array(), total)
    assert reads.begun == list(range(0, fail_at + 1, 10))


def test_what_fails_in_the_work_is_raised_and_its_reader_ends() -> None:
    reads = Reads()

    def work(blocks: Blocks) -> None:
        for place, _ in enumerate(blocks):
            if place == 1:
                raise ZeroDivisionError("in the work")

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="in the work"):
        in_runs(reads.array(), work)
    gc.collect()  # the traceback holds the reader
    assert reads.begun in ([0, 10], [0, 10, 20])
    assert _settled(lambda: threading.active_count() <= before)


def test_one_failing_run_of_several_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_workers", lambda: 3)
    with pytest.raises(OSError, match="rows 50 to 60 are damaged"):
        in_runs(Reads(50).array(), total)


# --- a cluster --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> Iterator[Any]:
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    from featurestore.distribution import cluster

    with cluster("local:2") as client:
        yield client
    gc.collect()  # sockets of processes that ended, here, where nobody minds


def process_of(blocks: Blocks) -> tuple[int, np.ndarray]:
    return os.getpid(), total(blocks)


# Connections that end with a process leave sockets to the garbage collector, in dask.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_of_a_cluster_make_the_same_sums(two: Any) -> None:
    assert streams._workers() == 2
    x = da.from_array(VALUES, chunks=(10, 3, 4))
    found = in_runs(x, process_of)
    assert len(found) == 2
    assert os.getpid() not in {pid for pid, _ in found}
    np.testing.assert_array_equal(sum(values for _, values in found), EXPECTED)
    codes = np.arange(ROWS) % 4 - 1  # a quarter of the rows is left out
    y = np.random.default_rng(1).normal(size=(ROWS, 2))
    sums = group_sums(x, y=y, codes=codes, groups=3)
    for group in range(3):
        dx, dy = VALUES[codes == group].reshape(-1, 12) - sums.centre, y[codes == group]
        assert sums.n[group] == len(dx)
        np.testing.assert_allclose(sums.x[group], dx.sum(axis=0), atol=1e-9)
        np.testing.assert_allclose(np.triu(sums.xx[group]), np.triu(dx.T @ dx), rtol=1e-10)
        np.testing.assert_allclose(sums.xy[group], dx.T @ dy, atol=1e-8)
        np.testing.assert_allclose(sums.yy[group], (dy**2).sum(axis=0), rtol=1e-12)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_on_a_worker_is_raised_here(two: Any) -> None:
    def work(blocks: Blocks) -> None:
        for rows, _ in blocks:
            if rows.start == 40:
                raise ValueError("at row 40")

    with pytest.raises(ValueError, match="at row 40"):
        in_runs(da.from_array(VALUES, chunks=10), work)
