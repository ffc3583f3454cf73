"""Reads everything a store claims to hold and says what is not there or not whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from featurestore.errors import StoreError
from featurestore.progress import progress_bar
from featurestore.store.ledger import Part, check_store, read_views
from featurestore.store.schema import ArraySpec, array_specs
from featurestore.store.table import read_columns


@dataclass(frozen=True)
class Problem:
    """Something wrong in a store.

    Attributes:
        view: where.
        part: where in it.
        what: what is wrong, and which column or array it concerns.
    """

    view: str
    part: str
    what: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        store: what was checked.
        views: number of views read.
        parts: number of parts read.
        utterances: utterance rows checked, summed over views.
        bytes_read: bytes of array data whose checksums were verified.
        problems: what is wrong; empty for a sound store.
    """

    store: Path
    views: int
    parts: int
    utterances: int
    bytes_read: int
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path: str | os.PathLike[str], *, progress: bool | None = None) -> Verification:
    """Read every shard of a store against its ledger.

    Every chunk's CRC32C is checked, every value that the ledger promises must be a number (a
    missing file reads as NaN), and every utterance table must say what the ledger says.

    Args:
        path: the store.
        progress: whether to show a bar; None shows one on a terminal.

    Raises:
        StoreError: not a store, or records that cannot be read.
    """
    root = Path(path)
    check_store(root)
    views = list(read_views(root))
    parts = [part for view in views for part in view.parts()]
    problems: list[Problem] = []
    utterances = size = 0
    columns = sum(len(part.committed()) for part in parts)
    with progress_bar("Verifying", columns, unit="columns", show=progress) as tick:
        for part in parts:
            found, rows, read = _verify_part(part, tick)
            problems += [Problem(part.view.name, part.name, what) for what in found]
            utterances, size = utterances + rows, size + read
    return Verification(root, len(views), len(parts), utterances, size, tuple(problems))


def _verify_part(part: Part, tick: Callable[[float], None]) -> tuple[list[str], int, int]:
    plan, _, _ = part.planned()
    records = part.committed()
    problems = []
    if not part.complete:
        problems.append(
            f"incomplete: {len(records)} of {len(plan.columns)} columns are written; run the same "
            "ingest again"
        )
    if not part.arrays.is_dir():
        return [*problems, f"its arrays are missing: {part.arrays}"], 0, 0
    specs = array_specs(part.view.config, plan)
    size = rows = 0
    for column in plan.columns:
        if column.index not in records:
            continue
        utterances = records[column.index]["utterances"]
        rows += len(utterances)
        for spec in specs:
            what, read = _verify_region(part, spec, column.slot_start, utterances)
            size += read
            if what:
                problems.append(f"column {column.index}, {spec.path}: {what}")
        tick(1)
    if part.complete:
        problems += _verify_table(
            part, [u for record in records.values() for u in record["utterances"]]
        )
    return problems, rows, size


def _verify_region(
    part: Part, spec: ArraySpec, slot_start: int, utterances: list[dict[str, object]]
) -> tuple[str, int]:
    """What is wrong with one column's share of an array, and how many bytes were read."""
    if not utterances:
        return "", 0
    try:
        array = zarr.open_array(part.arrays / spec.path, mode="r", zarr_format=3)
        if array.shape != spec.shape or str(array.dtype) != spec.dtype:
            return f"has shape {array.shape} {array.dtype}, expected {spec.shape} {spec.dtype}", 0
        size = 0
        for values in _read_column(array, spec, slot_start, utterances):
            size += values.nbytes
            missing = np.isnan(values)
            if missing.all() if spec.path == "features" else missing.any():
                return "values are missing (a shard is gone or was never written)", size
    except (OSError, ValueError, KeyError, RuntimeError, StoreError) as error:
        return f"cannot be read: {str(error).splitlines()[0] or type(error).__name__}", 0
    return "", size


def _read_column(
    array: zarr.Array, spec: ArraySpec, slot_start: int, utterances: list[dict[str, object]]
) -> Iterator[np.ndarray]:
    """The utterances' values, one layer or one statistic at a time."""
    if "frame" not in spec.dims:
        rows = slice(slot_start, slot_start + len(utterances))
        if spec.dims[0] == "utterance":
            yield np.asarray(array[rows])
            return
        for statistic in range(spec.shape[0]):
            yield np.asarray(array[statistic, rows])
        return
    first, last = utterances[0], utterances[-1]
    frames = slice(first["frame_start"], last["frame_start"] + last["frame_count"])  # type: ignore[operator]
    if spec.dims[0] == "frame":
        yield np.asarray(array[frames])
        return
    for layer in range(spec.shape[0]):
        yield np.asarray(array[layer, frames])


def _verify_table(part: Part, utterances: list[dict[str, object]]) -> list[str]:
    """Whether the utterance table says what the ledger says."""
    try:
        columns = {k: v for k, v in read_columns(part).items() if k in utterances[0]}
    except (OSError, ValueError, KeyError) as error:
        return [f"utterance table: cannot be read: {error}"]
    if "id" not in columns:
        return ["utterance table: column 'id' is missing"]
    held = int((columns["id"] != "").sum())
    problems = []
    if held != len(utterances):
        problems.append(f"utterance table: {held} utterances, the ledger has {len(utterances)}")
    for utterance in utterances:
        for name, values in columns.items():
            if values[utterance["slot"]] != utterance[name]:  # type: ignore[call-overload]
                problems.append(f"utterance table: '{utterance['id']}' has another {name}")
    return problems
