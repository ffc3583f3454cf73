"""Folds side by side, each on one thread.

An eigendecomposition gains little from a second BLAS thread, loses from it where matrices are
large, and takes ten times as long where threads wait for a core that is busy elsewhere. Folds do
not wait for one another.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

T, R = TypeVar("T"), TypeVar("R")

_MOST = 4  # folds at a time: each has a copy of its training features in float64


@functools.cache
def _controller() -> Any:
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """NumPy's and SciPy's linear algebra on the calling thread alone."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


def side_by_side(
    work: Callable[[T], R], items: Iterable[T], done: Callable[[], object] = lambda: None
) -> list[R]:
    """What `work` makes of each item, in their order; several at a time.

    Args:
        work: of which most is linear algebra, which lets other threads run.
        items: to work on.
        done: is called in the calling thread for each.
    """
    results = []
    with one_blas_thread(), ThreadPoolExecutor(min(_MOST, os.cpu_count() or 1)) as pool:
        for result in pool.map(work, items):
            results.append(result)
            done()
    return results
