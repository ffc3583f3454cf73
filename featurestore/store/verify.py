"""Reads everything a store claims to hold and says what is not there or not whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from featurestore.progress import progress_bar
from featurestore.store.ledger import Part, View, check_store, read_json, read_views
from featurestore.store.rows import read_rows
from featurestore.store.schema import ArraySpec, array_specs
from featurestore.store.table import read_columns, table_digest

Row = dict[str, Any]  # an utterance as the ledger records it


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
    missing file reads as NaN), every record and table must be there and agree with the others, and
    an utterance must be the same sound in every view.

    Args:
        path: the store.
        progress: whether to show a bar; None shows one on a terminal.

    Raises:
        StoreError: not a store, or records that cannot be read.
    """
    root = Path(path)
    check_store(root)
    read_rows(root)
    views = read_views(root)
    parts = [part for view in views for part in view.parts()]
    problems = _stray_folders(root, views)
    heard: dict[str, str] = {}
    utterances = size = 0
    columns = sum(len(part.committed()) for part in parts)
    with progress_bar("Verifying", columns, unit="columns", show=progress) as tick:
        for view in views:
            seen: set[str] = set()
            for part in view.parts():
                found, rows, read = _verify_part(part, tick)
                found += _verify_ids(rows, seen, heard)
                problems += [Problem(view.name, part.name, what) for what in found]
                utterances, size = utterances + len(rows), size + read
    return Verification(root, len(views), len(parts), utterances, size, tuple(problems))


def _stray_folders(root: Path, views: Sequence[View]) -> list[Problem]:
    """Folders whose records are gone or do not belong to them."""
    problems = []
    known = {view.name for view in views}
    folder = root / "views"
    for name in sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []:
        if name not in known:
            problems.append(Problem(name, "", "its view.json is missing"))
    for view in views:
        if view.config.name != view.name:
            problems.append(Problem(view.name, "", "its view.json describes another view"))
        ledger = view.root / "ledger"
        begun = {part.name for part in view.parts()}
        for entry in sorted(ledger.iterdir()) if ledger.is_dir() else []:
            records = [file for file in entry.glob("*.json") if not file.name.startswith(".")]
            if entry.name not in begun and records:
                problems.append(Problem(view.name, entry.name, "its plan.json is missing"))
    return problems


def _verify_ids(rows: Sequence[Row], seen: set[str], heard: dict[str, str]) -> list[str]:
    """Utterances that a view has twice, or that are another sound in another view."""
    problems = []
    for row in rows:
        id, sha256 = str(row["id"]), str(row["audio_sha256"])
        if id in seen:
            problems.append(f"utterance '{id}' is there twice")
        seen.add(id)
        if heard.setdefault(id, sha256) != sha256:
            problems.append(f"utterance '{id}' was made from other audio than in another view")
    return problems


def _verify_part(part: Part, tick: Callable[[float], None]) -> tuple[list[str], list[Row], int]:
    plan, _, _ = part.planned()
    records = part.committed()
    problems = []
    if len(records) < len(plan.columns) or not part.complete:
        state = "" if part.complete else ", and the part is not finished"
        problems.append(
            f"incomplete: {len(records)} of {len(plan.columns)} columns are recorded{state}; "
            "run the same ingest again"
        )
    specs = array_specs(part.view.config, plan)
    rows: list[Row] = []
    size = 0
    for column in plan.columns:
        if column.index not in records:
            continue
        utterances = records[column.index].get("utterances", [])
        rows += utterances
        for spec in specs:
            what, read = _verify_region(part, spec, column.slot_start, utterances)
            size += read
            if what:
                record = part.ledger / f"{column.index:05d}.json"
                problems.append(
                    f"column {column.index}, {spec.path}: {what}; to make the column again, "
                    f"remove {record} and run the same ingest"
                )
        tick(1)
    if part.complete:
        problems += _verify_table(part, rows)
    return problems, rows, size


def _verify_region(
    part: Part, spec: ArraySpec, slot_start: int, utterances: list[Row]
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
    except Exception as error:  # damaged arrays raise whatever their codec does; all is reported
        return f"cannot be read: {str(error).splitlines()[0] or type(error).__name__}", 0
    return "", size


def _read_column(
    array: zarr.Array, spec: ArraySpec, slot_start: int, utterances: list[Row]
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
    frames = slice(first["frame_start"], last["frame_start"] + last["frame_count"])
    if spec.dims[0] == "frame":
        yield np.asarray(array[frames])
        return
    for layer in range(spec.shape[0]):
        yield np.asarray(array[layer, frames])


def _verify_table(part: Part, utterances: list[Row]) -> list[str]:
    """Whether the utterance table is the one that was written, and says what the ledger says."""
    try:
        columns = read_columns(part)
        expected = read_json(part.ledger / "complete.json")["table_sha256"]
        if table_digest(columns) != expected:
            return ["utterance table: it is not what was written"]
        for utterance in utterances:
            if columns["id"][utterance["slot"]] != utterance["id"]:
                return [f"utterance table: row {utterance['slot']} is not '{utterance['id']}'"]
    except Exception as error:  # damaged arrays raise whatever their codec does; all is reported
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [f"utterance table: cannot be read: {reason}"]
    return []
