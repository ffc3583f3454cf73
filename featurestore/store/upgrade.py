"""Stores of format 1, written by featurestore 0.1 and 0.2, made into stores of this format.

Arrays stay where they are, byte for byte. Every chunk is decoded once, which checks its CRC32C, and
only then do the new records say that it is what it should be: damage is not sealed in.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np
import pandas as pd
import zarr

from featurestore.errors import StoreError
from featurestore.progress import progress_bar
from featurestore.storage import Place, as_place
from featurestore.storage.arrays import Objects, PlaceStore, checksum
from featurestore.store.ledger import Part, View
from featurestore.store.plan import Column, PartPlan, lay_out
from featurestore.store.records import FORMAT, FORMAT_VERSION, MARK, is_file, owned, seal
from featurestore.store.rows import write_rows
from featurestore.store.schema import ArraySpec, ViewConfig, array_specs
from featurestore.store.writer import finish_part, read_committed

_OLD_ROWS = "manifest.parquet"


def upgrade(path: str | os.PathLike[str] | Place, *, progress: bool | None = None) -> int:
    """Bring a store of format 1 to the current format, in place.

    Interrupted, the same call goes on: until its last step the store is one of format 1.

    Args:
        path: the store.
        progress: whether to show a bar; None shows one on a terminal.

    Returns:
        Number of parts.

    Raises:
        StoreError: another format, an unfinished part, or damage, naming the place.
    """
    root = as_place(path)
    if is_file(root) or not root.exists(MARK):
        raise StoreError(f"{root} is not a feature store")
    mark = _old_record(root, MARK)
    if mark.get("format") != FORMAT or mark.get("version") != 1:
        raise StoreError(f"{root} has format version {mark.get('version')}, not 1: nothing to do")
    with owned(root, again="upgrade"):
        rows = _old_rows(root)
        views = root / "views"
        found = [_old_view(views / name) for name in views.names()]
        columns = sum(len(_old_plan(part)[0].columns) for part in found_parts(found))
        with progress_bar("Upgrading", columns, unit="columns", show=progress) as tick:
            for view in found:
                for sequence, name in enumerate(view.place.names("ledger"), 1):
                    _upgrade_part(view.part(name), rows, sequence, tick)
        for view in found:
            view.place.replace("view.json", seal(view.config.to_json()))
        write_rows(root, rows, tombstones=[])
        root.replace(MARK, seal({"format": FORMAT, "version": FORMAT_VERSION}))
        root.delete(_OLD_ROWS)
    return sum(1 for _ in found_parts(found))


def found_parts(views: list[View]) -> list[Part]:
    """Parts of views, whatever their format."""
    return [view.part(name) for view in views for name in view.place.names("ledger")]


def _old_record(place: Place, key: str) -> dict[str, Any]:
    """A record of format 1, or one that an interrupted upgrade has sealed already."""
    try:
        values = json.loads(place.read(key))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read the store's record {place}/{key}: {error}") from None
    values.pop("crc32", None)
    return values


def _old_rows(root: Place) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(root.read(_OLD_ROWS)))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {root}/{_OLD_ROWS}: {error}") from None


def _old_view(place: Place) -> View:
    values = _old_record(place, "view.json")
    return View(place, ViewConfig.from_json(values, source=f"{place}/view.json"))


def _old_plan(part: Part) -> tuple[PartPlan, pd.DataFrame]:
    values = _old_record(part.ledger, "plan.json")
    table = pd.read_parquet(io.BytesIO(part.ledger.read("plan.parquet")))
    held = table.groupby("column", sort=True).indices
    plan = lay_out(values["name"], int(values["column_frames"]), [held[i] for i in sorted(held)])
    return plan, table


def _upgrade_part(part: Part, rows: pd.DataFrame, sequence: int, tick: Any) -> None:
    plan, table = _old_plan(part)
    if not part.complete or len(part.committed_columns()) < len(plan.columns):
        raise StoreError(
            f"{part.name} of view {part.view.name} is not complete: finish its ingest with "
            "featurestore 0.2, then upgrade"
        )
    for column in plan.columns:
        old = _old_record(part.ledger, f"{column.index:05d}.json")
        part.ledger.replace(f"{column.index:05d}.json", seal(_new_record(part, plan, column, old)))
        tick(1)
    data = part.ledger.read("plan.parquet")
    values = {**_old_record(part.ledger, "plan.json"), "sequence": sequence}
    part.ledger.replace("plan.json", seal({**values, "table": [len(data), checksum(data)]}))
    mine = rows[rows["id"].isin(table["id"])]
    finish_part(part, mine, plan, read_committed(part))


def _new_record(part: Part, plan: PartPlan, column: Column, old: dict[str, Any]) -> dict[str, Any]:
    utterances = [{"audio_stamp": "", "origin": 0, **row} for row in old["utterances"]]
    versions = old.get("versions") or old["origins"][0]["versions"]
    objects: Objects = {}
    for spec in array_specs(part.view.config, plan.layout):
        if utterances:
            objects |= _checked(part, spec, plan, column)
    origin = {"versions": versions, "device": "not recorded", "made_at": "not recorded"}
    return {
        "column": column.index,
        "utterances": utterances,
        "set_aside": old["set_aside"],
        "origins": [origin],
        "objects": dict(sorted(objects.items())),
    }


def _checked(part: Part, spec: ArraySpec, plan: PartPlan, column: Column) -> Objects:
    """Size and checksum of a column's objects of one array, whose chunks were all decoded."""
    array = zarr.open_array(PlaceStore(part.arrays), path=spec.path, mode="r", zarr_format=3)
    axis = spec.dims.index("frame" if "frame" in spec.dims else "utterance")
    step = (spec.shards or spec.chunks)[axis]
    first = column.index if "frame" in spec.dims else column.slot_start // step
    count = 1 if "frame" in spec.dims else -(-len(column.members) // step)
    found: Objects = {}
    for place in range(first, first + count):
        region = (*(slice(None),) * axis, slice(place * step, (place + 1) * step))
        try:
            np.asarray(array[region])
            sizes = zip(spec.shape, spec.shards or spec.chunks, strict=True)
            outer = [range(whole // piece) for whole, piece in sizes]
            outer[axis] = range(place, place + 1)
            for index in np.ndindex(*(len(one) for one in outer)):
                where = "/".join(str(one[i]) for one, i in zip(outer, index, strict=True))
                key = f"{spec.path}/c/{where}"
                data = part.arrays.read(key)
                found[key] = [len(data), checksum(data)]
        except (OSError, ValueError) as error:
            raise StoreError(
                f"column {column.index} of {part.arrays}, {spec.path}, is damaged ({error}); "
                "featurestore 0.2 makes it again"
            ) from error
    return found
