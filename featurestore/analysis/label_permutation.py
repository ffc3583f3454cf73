"""Does a feature set predict labels at all? Against the same labels exchanged within speakers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from featurestore.analysis.features import (
    Store,
    known_speakers,
    label_values,
    targets_by_missing,
    unlabelled,
    utterance_table,
)
from featurestore.analysis.folds import Split, make_folds
from featurestore.analysis.held_out_ridge import hold_out_each
from featurestore.analysis.permutation import permuted
from featurestore.analysis.sets import finite_only, one_block, read_block
from featurestore.analysis.sums import group_sums, group_triangles
from featurestore.errors import AnalysisError
from featurestore.hardware import freeing_at_once, resident_bytes
from featurestore.progress import Tick, progress_bar
from featurestore.types import NETWORK

PENALTIES = np.logspace(0, 6, 11)
MEASURES = ("mse", "ccc", "r2")

_TOGETHER = 16  # permutations from one seed, so that memory does not decide which there are
_REST = 32_000_000  # bytes: what is imported on the way, and what the allocator keeps


def permutation_test(
    store: Store,
    *,
    targets: Sequence[str] = ("valence", "arousal"),
    features: str = NETWORK,
    folds: str = "speaker",
    penalties: Sequence[float] | Float64[np.ndarray, " penalty"] = PENALTIES,
    permutations: int = 1000,
    memory: int | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Held-out ridge regression of labels, and of permuted labels.

    The store is read block by block; memory is that of the sums, whatever its size. Of the
    penalties, the one that is best on the held-out utterances counts, for the labels as they are
    and for every permutation alike: so the observed value is an optimistic one, and p is not.

    Args:
        store: an open feature store.
        targets: numeric labels.
        features: one term of `featurestore.analysis.sets`, without layers.
        folds: as in `evaluate`.
        penalties: of ridge regression.
        permutations: of the labels within speakers.
        memory: bytes that this process may take, with what it takes already; as many permutations
            are done at a time as fit, the same ones whatever it is. By default, all of them. Sums
            from a cluster's workers, and a fold whose matrix loses too many digits under a
            penalty, take more.
        seed: of the permutations.
        name: of the feature set in the result.
        progress: whether to show a bar; None shows one on a terminal.

    Returns:
        One row per target and measure (`mse` over utterances, `ccc` and `r2` of all predictions
        together; these two are NaN of a label that never changes): feature_set, `observed`,
        `penalty`, `null_mean`, `null_low` and `null_high` (95 % of the permutations), `p` (the
        permutations, and the labels as they are, that do as well), `permutations`, and
        `utterances` and `speakers` that count. `attrs` has "notes", a list of what was left out.

    Raises:
        AnalysisError: as `evaluate`, or `memory` that is not enough for any permutation.
    """
    asked = _Asked(
        (targets,) if isinstance(targets, str) else targets,
        folds,
        np.asarray(penalties, np.float64),
        permutations,
        memory,
        seed,
        name or features,
        progress,
    )
    array = read_block(store, one_block(features))
    notes: list[str] = []
    try:
        rows = _tested(array, asked, notes)
    except _NotFinite:
        # Looked for only now: that takes a pass over the store, which leaves less memory for sums.
        array, notes = finite_only(array)
        rows = _tested(array, asked, notes)
    order = {target: place for place, target in enumerate(asked.targets)}
    results = pd.DataFrame(sorted(rows, key=lambda row: order[row["target"]]))
    results.attrs["notes"] = notes
    return results


class _NotFinite(Exception):  # noqa: N818  # it goes nowhere
    """Some utterance has a feature that is not finite."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """Arguments of `permutation_test`."""

    targets: Sequence[str]
    folds: str
    grid: Float64[np.ndarray, " penalty"]
    permutations: int
    memory: int | None
    seed: int
    name: str
    progress: bool | None


def _tested(array: xr.DataArray, asked: _Asked, notes: list[str]) -> list[dict[str, Any]]:
    """Rows of all targets; what is left out is added to `notes`."""
    lazy, table = da.asarray(array.data), utterance_table(array)
    rows: list[dict[str, Any]] = []
    for together, known in targets_by_missing(table, asked.targets):
        notes += unlabelled(table, together, known=known)
        said = known_speakers(table, of=known)
        speakers = np.unique(said, return_inverse=True)[1]
        task = _Task(
            lazy,
            [label_values(table, target=t) for t in together],
            np.where(known, speakers, -1),
            _codes(make_folds(table, scheme=asked.folds, of=known), lazy.shape[0]),
            asked.grid,
        )
        last = asked.permutations
        size = task.at_a_time(asked.memory, last)
        starts = range(0, last, size) if last else (0,)
        steps = len(starts) * task.groups
        with (
            progress_bar("Permutations", steps, unit="folds", show=asked.progress) as tick,
            freeing_at_once() if asked.memory is not None else nullcontext(),
        ):
            batches = [task.run(at, min(at + size, last), asked.seed, tick) for at in starts]
        counts = {"utterances": int(known.sum()), "speakers": len(np.unique(said[known]))}
        rows += [row | counts for row in _rows(batches, together, asked.grid, asked.name)]
    return rows


@dataclass(frozen=True, eq=False)
class _Task:
    """Targets that are known of the same utterances, and so share their folds.

    Attributes:
        lazy: (utterance, *feature).
        labels: of each target, (utterance,).
        speakers: (utterance,) codes within which labels are exchanged; negative without a label.
        codes: (utterance,) fold that holds it out; negative without a label.
        grid: penalties.
    """

    lazy: da.Array
    labels: Sequence[Float64[np.ndarray, " utterance"]]
    speakers: Int64[np.ndarray, " utterance"]
    codes: Int64[np.ndarray, " utterance"]
    grid: Float64[np.ndarray, " penalty"]

    @property
    def groups(self) -> int:
        """Folds."""
        return int(self.codes.max()) + 1

    def run(self, first: int, stop: int, seed: int, tick: Tick) -> dict[str, NDArray[np.float64]]:
        """Of labels as they are and of some permutations, (penalty, target, 1 + permutation).

        All else is let go on return: the sums of two batches are never there together.

        Raises:
            _NotFinite: before anything is regressed.
        """
        y = self._columns(first, stop, seed)
        groups = self.groups
        sums = group_sums(self.lazy, y=y, codes=self.codes, groups=groups)
        if not np.isfinite(sums.x).all():
            raise _NotFinite
        triangles = functools.cache(
            functools.partial(
                group_triangles, self.lazy, y=y, codes=self.codes, groups=groups,
                centre=sums.centre,
            )
        )  # fmt: skip
        held = hold_out_each(sums, penalties=self.grid, triangles=triangles, tick=tick)
        shape = (len(self.grid), len(self.labels), 1 + stop - first)
        return {measure: found.reshape(shape) for measure, found in held.pooled().items()}

    def _columns(self, first: int, stop: int, seed: int) -> NDArray[np.float64]:
        """Of each target: labels as they are and permuted, less their mean over all utterances."""
        width = 1 + stop - first
        y = np.empty((len(self.codes), len(self.labels) * width))
        for place, values in enumerate(self.labels):
            known = self.speakers >= 0
            own = y[:, place * width : (place + 1) * width]
            own[:] = 0.0
            if np.ptp(values[known]) == 0:
                continue  # deviations from the mean would be rounding
            own[:, 0] = np.where(known, values - values[known].mean(), 0.0)
            level = np.zeros(len(own))
            for code in np.unique(self.speakers[known]):
                level[self.speakers == code] = own[self.speakers == code, 0].mean()
            for start in range(first, stop, _TOGETHER):
                count = min(_TOGETHER, stop - start)
                into = own[:, 1 + start - first :][:, :count]
                into[:] = permuted(values, self.speakers, count, [seed, start // _TOGETHER])
                into += level[:, None]
        return y

    def at_a_time(self, memory: int | None, permutations: int) -> int:
        """Permutations whose sums, and those of a fold's regression, fit in memory.

        Raises:
            AnalysisError: none do.
        """
        if memory is None:
            return max(1, permutations)
        above, each = self._bytes()
        fixed = resident_bytes() + above + each  # the last are the labels as they are
        fits = (memory - fixed) // each
        if fits >= permutations:
            return max(1, permutations)
        if fits < _TOGETHER:
            needed = fixed + min(_TOGETHER, permutations) * each
            width = math.prod(self.lazy.shape[1:])
            raise AnalysisError(
                f"Sums of {width:,} features in {self.groups} folds take, with this process, "
                f"{needed / 1e9:.2f} GB, and {memory / 1e9:.2f} GB are allowed: allow more, or use "
                "fewer features or folds of several speakers (speaker:5)."
            )
        return fits // _TOGETHER * _TOGETHER

    def _bytes(self) -> tuple[int, int]:
        """Most memory at any time above that of the process: all of it, and per permutation.

        Sums of all folds stay. While they are made, there are three blocks (one that is worked on,
        and one that is read and copied) and the rows of a fold in one; while folds are regressed,
        three matrices: what an eigendecomposition takes, or what is made of it.
        """
        count, width, groups = len(self.codes), math.prod(self.lazy.shape[1:]), self.groups
        block = max(self.lazy.chunks[0])
        rows = min(block, int(np.bincount(self.codes[self.codes >= 0]).max()))
        reading = (3 * block * self.lazy.dtype.itemsize + 12 * rows) * width
        fixed = 8 * groups * width**2 + max(reading, 3 * 8 * width**2) + _REST
        scores = 8 * groups * len(self.grid)
        each = 8 * (count + groups * width + max(width + rows, 6 * width) + scores)
        return fixed, each * len(self.labels)


def _codes(splits: Sequence[Split], count: int) -> NDArray[np.int64]:
    """Of the fold that holds each utterance out; -1 for none."""
    codes = np.full(count, -1, np.int64)
    for code, split in enumerate(splits):
        codes[split.test] = code
    return codes


def _rows(
    found: Sequence[dict[str, NDArray[np.float64]]],
    targets: Sequence[str],
    grid: NDArray[np.float64],
    name: str,
) -> list[dict[str, Any]]:
    rows = []
    for place, target in enumerate(targets):
        for measure in MEASURES:
            sign = -1.0 if measure == "mse" else 1.0
            batches = [sign * batch[measure][:, place] for batch in found]
            own = batches[0][:, 0]
            null = np.concatenate([values[:, 1:].max(axis=0) for values in batches])
            best = int(np.argmax(own)) if np.isfinite(own).any() else 0
            reached = int((null >= own[best] * (1 - 1e-12 * np.sign(own[best]))).sum())
            low, high = np.quantile(sign * null, [0.025, 0.975]) if len(null) else (np.nan, np.nan)
            rows.append(
                {
                    "target": target,
                    "feature_set": name,
                    "measure": measure,
                    "observed": float(sign * own[best]),
                    "penalty": float(grid[best]),
                    "null_mean": float(sign * null.mean() + 0.0) if len(null) else math.nan,
                    "null_low": float(low),
                    "null_high": float(high),
                    "p": (1 + reached) / (1 + len(null))
                    if len(null) and np.isfinite(own[best])
                    else math.nan,
                    "permutations": len(null),
                }
            )
    return rows
