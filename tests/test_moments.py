from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.analysis.moments import Moments, block_moments, lazy_moments, merge


def data(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2, 3)).astype(np.float32)
    y = rng.uniform(1, 5, (count, 2))
    y[rng.random((count, 2)) < 0.2] = np.nan
    return x, y, rng.integers(-1, 4, count)


def check(found: Moments, x: np.ndarray, y: np.ndarray, codes: np.ndarray) -> None:
    """Against plain numpy over the same utterances."""
    for row, group in enumerate(found.groups):
        for target in range(y.shape[1]):
            members = (codes == group) & ~np.isnan(y[:, target])
            xs, ys = x[members].astype(np.float64), y[members, target]
            assert found.n[row, target] == members.sum()
            if not members.any():
                continue
            dx, dy = xs - xs.mean(axis=0), ys - ys.mean()
            np.testing.assert_allclose(found.mean_x[row, target], xs.mean(axis=0), atol=1e-14)
            np.testing.assert_allclose(found.mean_y[row, target], ys.mean(), rtol=1e-14)
            np.testing.assert_allclose(found.m2_x[row, target], (dx**2).sum(axis=0), rtol=1e-12)
            np.testing.assert_allclose(found.m2_y[row, target], (dy**2).sum(), rtol=1e-12)
            expected = (dx * dy[:, None, None]).sum(axis=0)
            np.testing.assert_allclose(found.c_xy[row, target], expected, atol=1e-12)


def test_a_block_equals_numpy() -> None:
    x, y, codes = data()
    check(block_moments(x, y=y, codes=codes), x, y, codes)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(0, 99))
def test_any_chunks_give_the_same(chunks: list[int], seed: int) -> None:
    x, y, codes = data(sum(chunks), seed)
    lazy = da.from_array(x, chunks=(tuple(chunks), 1, 3))
    check(lazy_moments(lazy, y=y, codes=codes).compute(scheduler="sync"), x, y, codes)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(0, 99))
def test_merging_is_commutative_and_takes_empty_sides(cut: int, seed: int) -> None:
    x, y, codes = data(60, seed)
    a = block_moments(x[:cut], y=y[:cut], codes=codes[:cut])
    b = block_moments(x[cut:], y=y[cut:], codes=codes[cut:])
    check(merge(a, b), x, y, codes)
    check(merge(b, a), x, y, codes)


@pytest.mark.parametrize("value", [0.1, 0.9, -3e7, 1e-30])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_constant_values_have_exactly_no_variance(value: float, chunk: int) -> None:
    x = np.full((100, 4), value, np.float32)
    y = np.stack([np.full(100, 7 / 3), np.arange(100.0)], axis=1)
    lazy = da.from_array(x, chunks=(chunk, 4))
    found = lazy_moments(lazy, y=y, codes=np.zeros(100, np.int64)).compute(scheduler="sync")
    assert (found.m2_x == 0).all()
    assert found.m2_y[0, 0] == 0
    assert found.m2_y[0, 1] > 0


def test_tasks_stay_few_and_each_block_is_read_once() -> None:
    reads: list[int] = []

    def read(block: np.ndarray) -> np.ndarray:
        reads.append(len(block))
        return block

    x = da.from_array(np.ones((640, 3), np.float32), chunks=(10, 3))
    lazy = lazy_moments(
        x.map_blocks(read, meta=np.empty((0, 0), np.float32)),
        y=np.ones((640, 5)),
        codes=np.arange(640) % 9,
    )
    lazy.compute(scheduler="sync")
    assert reads == [10] * 64
    assert len(lazy.__dask_graph__()) < 5 * 64


def test_blocks_without_a_wanted_utterance_are_not_read() -> None:
    def explode(block: np.ndarray) -> np.ndarray:
        raise AssertionError("read")

    x = da.ones((20, 3), chunks=(10, 3)).map_blocks(explode, meta=np.empty((0, 0)))
    codes = np.full(20, -1)
    found = lazy_moments(x, y=np.ones((20, 1)), codes=codes).compute(scheduler="sync")
    assert found.groups.size == 0
    assert found.over(np.arange(2)).n.tolist() == [[0], [0]]
