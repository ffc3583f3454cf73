"""Whether a column holds, byte for byte and value for value, what its record says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from featurestore.storage.arrays import PlaceStore, checksum, requested
from featurestore.store.ledger import Part
from featurestore.store.plan import Column, Layout
from featurestore.store.schema import ArraySpec, array_specs
from featurestore.types import STATISTICS

Row = dict[str, Any]  # an utterance as the ledger records it


class _CheckedStore(PlaceStore):
    """A part's arrays where chunks were read and checked before they are decoded, once."""

    def __init__(self, store: PlaceStore) -> None:
        super().__init__(store.place, read_only=True, expected=store.expected)
        self.cache: dict[str, bytes] = {}

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """From memory where it is there."""
        if key not in self.cache:
            return super().get_sync(key, prototype=prototype, byte_range=byte_range)
        data = requested(self.cache[key], byte_range)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)


@dataclass
class ColumnCheck:
    """What was found in a column.

    Attributes:
        problems: by array, what is wrong.
        bytes_read: of arrays whose checksums were verified.
    """

    problems: list[str]
    bytes_read: int = 0


def check_column(
    part: Part,
    layout: Layout,
    column: Column,
    record: dict[str, Any],
    ids: Sequence[str],
    frames: np.ndarray,
) -> ColumnCheck:
    """Read everything of a column.

    Args:
        part: whose.
        layout: of the part.
        column: which.
        record: its record.
        ids: utterances that the plan puts there, in its order.
        frames: planned for each.
    """
    found = ColumnCheck(_check_record(part, layout, column, record, ids, frames))
    rows = record["utterances"]
    store = _CheckedStore(part.reading())
    pooled: dict[str, np.ndarray] = {}
    specs = array_specs(part.view.config, layout)
    for spec in sorted(specs, key=lambda spec: "frame" in spec.dims):  # statistics first
        try:
            array = zarr.open_array(store, path=spec.path, mode="r", zarr_format=3)
            if array.shape != spec.shape or str(array.dtype) != spec.dtype:
                found.problems.append(
                    f"{spec.path}: has shape {array.shape} {array.dtype}, expected {spec.shape} "
                    f"{spec.dtype}"
                )
                continue
            for values in _pieces(store, array, spec, record, found):
                if rows:
                    _check_values(part, spec, values, rows, pooled, found)
        except (
            Exception
        ) as error:  # damaged arrays raise whatever their codec does; all is reported
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            found.problems.append(f"{spec.path}: cannot be read: {reason}")
    return found


def _check_record(
    part: Part,
    layout: Layout,
    column: Column,
    record: dict[str, Any],
    ids: Sequence[str],
    frames: np.ndarray,
) -> list[str]:
    """Whether a record fits the plan: every utterance in it or set aside, one behind the other."""
    rows = record["utterances"]
    said = [row["id"] for row in rows] + [one["id"] for one in record["set_aside"]]
    if sorted(said) != sorted(ids):
        return ["its record lists other utterances than the plan"]
    planned = dict(zip(ids, frames.tolist(), strict=True))
    cursor = column.index * layout.column_frames
    for slot, row in enumerate(rows, column.slot_start):
        counted = part.view.config.captures
        if row["slot"] != slot or (counted and row["frame_start"] != cursor):
            return [f"its record puts '{row['id']}' where it cannot be"]
        if counted and row["frame_count"] != planned[row["id"]]:
            return [f"its record gives '{row['id']}' other frames than the plan"]
        cursor += row["frame_count"]
    return []


def _pieces(
    store: _CheckedStore,
    array: zarr.Array,
    spec: ArraySpec,
    record: dict[str, Any],
    found: ColumnCheck,
) -> Iterator[tuple[int, np.ndarray]]:
    """The column's values, their bytes checked: one layer or statistic at a time, and which."""
    rows = record["utterances"]
    if "frame" in spec.dims:
        last = rows[-1] if rows else {"frame_start": 0, "frame_count": 0}
        first = rows[0]["frame_start"] if rows else 0
        place = slice(first, last["frame_start"] + last["frame_count"])
    else:
        place = slice(rows[0]["slot"], rows[-1]["slot"] + 1) if rows else slice(0, 0)
    outer = spec.dims[0] not in ("frame", "utterance")
    for index in range(spec.shape[0] if outer else 1):
        prefix = f"{spec.path}/c/{index}/" if outer else f"{spec.path}/c/"
        store.cache = {}
        for key, (size, expected) in record["objects"].items():
            if key.startswith(prefix):
                store.cache[key] = _read(store, key, size, expected, found)
        if rows:
            yield index, np.asarray(array[(index, place) if outer else place])


def _read(store: PlaceStore, key: str, size: int, expected: int, found: ColumnCheck) -> bytes:
    try:
        data = store.place.read(key)
    except FileNotFoundError:
        raise ValueError(f"{key} is missing") from None
    found.bytes_read += len(data)
    if len(data) != size:
        raise ValueError(f"{key} has {len(data)} bytes, {size} were written")
    if checksum(data) != expected:
        raise ValueError(f"{key} is not what was written")
    return data


def _check_values(
    part: Part,
    spec: ArraySpec,
    piece: tuple[int, np.ndarray],
    rows: Sequence[Row],
    pooled: dict[str, np.ndarray],
    found: ColumnCheck,
) -> None:
    index, values = piece
    packed = spec.scale is not None
    missing = values == spec.fill if packed else ~np.isfinite(values)
    if missing.all() if spec.path == "features" else missing.any():
        found.problems.append(f"{spec.path}: values are missing or not finite")
        return
    group, _, capture = spec.path.partition("/")
    if group == "pooled":
        shape = (len(STATISTICS), *values.shape)
        pooled.setdefault(capture, np.full(shape, np.nan, np.float32))[index] = values
    elif group == "frames":
        statistics = pooled.get(capture, np.array(np.nan))
        if np.isnan(statistics).any():
            return  # which was said of them
        layer = statistics[:, :, index] if part.view.config.is_network else statistics
        if wrong := _disagreement(values, spec, layer, rows):
            found.problems.append(f"pooled/{capture}: {wrong}")


def _disagreement(
    values: np.ndarray, spec: ArraySpec, pooled: np.ndarray, rows: Sequence[Row]
) -> str:
    """Where statistics are not those of the frames, as far as the frames' rounding lets one say.

    Frames are rounded, statistics are of unrounded activations. With a rounding error of at most
    u|x| + a per value, the mean is off by at most the mean of that, and the standard deviation,
    being a seminorm, by at most its root mean square.
    """
    relative, absolute = _rounding(spec)
    counts = np.array([row["frame_count"] for row in rows])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    x = values.astype(np.float64) * (1.0 if spec.scale is None else spec.scale)
    n = counts[:, None]
    mean = np.add.reduceat(x, starts) / n
    size = np.sqrt(np.add.reduceat(x * x, starts) / n)
    spread = np.sqrt(np.add.reduceat((x - np.repeat(mean, counts, axis=0)) ** 2, starts) / n)
    low, high = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
    # 2e-5: sums in float32 over thousands of frames.
    slack = (relative + 2e-5) * size + absolute + 1e-6
    edge = (relative + 1e-6) * np.maximum(np.abs(low), np.abs(high)) + absolute + 1e-6
    for name, stored, own, allowed in zip(
        STATISTICS, pooled, (mean, spread, low, high), (slack, slack, edge, edge), strict=True
    ):
        wrong = np.abs(stored - own) > allowed
        if wrong.any():
            row, _ = np.unravel_index(np.argmax(wrong), wrong.shape)
            return f"the {name} of '{rows[int(row)]['id']}' is not that of its frames"
    return ""


def _rounding(spec: ArraySpec) -> tuple[float, float]:
    """Relative and absolute error of a stored value."""
    if spec.scale is not None:
        return 0.0, spec.scale / 2
    return (2.0**-11, 2.0**-25) if spec.dtype == "float16" else (2.0**-24, 0.0)
