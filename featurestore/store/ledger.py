"""Views and parts: where they are, and what of them is safely there.

    views/<view>/view.json
    views/<view>/ledger/<part>/plan.parquet, plan.json   what the part will hold
    views/<view>/ledger/<part>/replaces.json             which parts it will stand for
    views/<view>/ledger/<part>/00003.json                column 3 is whole
    views/<view>/ledger/<part>/complete.json             the part is whole
    views/<view>/ledger/<part>/superseded.json           the part is to be removed

The records lie outside the Zarr tree. `complete.json` is the only moment at which a part begins to
count, and where it replaces others they cease to count at that same moment.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from featurestore.errors import StoreError
from featurestore.storage import Place
from featurestore.storage.arrays import PlaceStore, checksum
from featurestore.store.plan import PartPlan, lay_out
from featurestore.store.records import read_record, seal, write_record
from featurestore.store.schema import ViewConfig

_PLAN, _TABLE, _COMPLETE = "plan.json", "plan.parquet", "complete.json"
_REPLACES, _SUPERSEDED = "replaces.json", "superseded.json"


@dataclass(frozen=True)
class View:
    """A view's place and its configuration."""

    place: Place
    config: ViewConfig

    @property
    def name(self) -> str:
        """The view's name."""
        return self.place.name

    def part(self, name: str) -> Part:
        """The place of one of its parts."""
        return Part(self, name)

    def folders(self) -> list[Part]:
        """Whatever has a folder in the ledger, in name order."""
        return [self.part(name) for name in self.place.names("ledger")]

    def parts(self) -> list[Part]:
        """Parts that count or will count once an ingest is finished, in the order of ingests.

        Raises:
            StoreError: a part has lost its plan or its ledger, and would vanish without a word.
        """
        gone = {part.name for part in self.leftovers()}
        folders = [part for part in self.folders() if part.name not in gone]
        begun = [part for part in folders if part.begun]
        known = {part.name for part in begun} | gone
        lost = [part.name for part in folders if part.name not in known and part.recorded]
        lost += {name.removesuffix(".zarr") for name in self.place.names("parts")} - known
        if lost:
            raise StoreError(
                f"{min(lost)} of {self.place} has lost its {_PLAN} or its ledger; bring them back "
                "from a copy, or remove what is left of the part and ingest its utterances again"
            )
        return sorted(begun, key=lambda part: (part.sequence, part.name))

    def leftovers(self) -> list[Part]:
        """What an interrupted rewrite has left: its own unfinished part, or those it replaced."""
        found: dict[str, Part] = {}
        for part in self.folders():
            if part.has(_SUPERSEDED):
                found[part.name] = part
            if part.has(_REPLACES):
                if part.complete:
                    names = read_record(part.ledger, _REPLACES)["parts"]
                    found.update({name: self.part(name) for name in names})
                else:
                    found[part.name] = part
        return [part for part in found.values() if part.ledger.names() or part.arrays.names()]

    def version(self) -> list[tuple[str, int, bool]]:
        """What changes with every column and part that is committed or removed."""
        return [
            (part.name, len(part.committed_columns()), part.complete) for part in self.folders()
        ]

    def sweep(self) -> None:
        """Finish what an interrupted rewrite has left. Only for who holds the store's lock."""
        for part in self.leftovers():
            part.remove()
        for part in self.folders():
            if part.complete:
                part.ledger.delete(_REPLACES)
        self.place.sweep()


@dataclass(frozen=True)
class Part:
    """A part's place."""

    view: View
    name: str

    @property
    def arrays(self) -> Place:
        """The Zarr group."""
        return self.view.place / "parts" / f"{self.name}.zarr"

    @property
    def ledger(self) -> Place:
        """Its records."""
        return self.view.place / "ledger" / self.name

    def has(self, key: str) -> bool:
        """Whether a record is there."""
        return self.ledger.exists(key)

    @property
    def begun(self) -> bool:
        """Whether its plan is there."""
        return self.has(_PLAN)

    @property
    def sequence(self) -> int:
        """Place among the view's parts, which a part made from others inherits."""
        return int(self.plan_record()["sequence"])

    @property
    def recorded(self) -> bool:
        """Whether anything of it was ever committed."""
        return self.complete or bool(self.committed_columns())

    @property
    def complete(self) -> bool:
        """Whether its final success mark is there."""
        return self.has(_COMPLETE)

    def begin(
        self,
        plan: PartPlan,
        ids: Sequence[str],
        frames: np.ndarray,
        *,
        replaces: Sequence[Part] = (),
    ) -> None:
        """Record what the part will hold, unless that was done before.

        Args:
            plan: which utterance goes where.
            ids: utterances that the plan's members index.
            frames: frames of each.
            replaces: parts that cease to count when this one is complete.
        """
        if self.begun:
            return
        sequence = min((part.sequence for part in replaces), default=0)
        if replaces:
            write_record(self.ledger, _REPLACES, {"parts": [part.name for part in replaces]})
        else:
            sequence = 1 + max((part.sequence for part in self.view.parts()), default=0)
        order = np.concatenate([np.asarray(column.members) for column in plan.columns])
        columns = np.repeat(
            [column.index for column in plan.columns], [len(c.members) for c in plan.columns]
        )
        names = np.asarray(ids, object)
        table = pd.DataFrame({"id": names[order], "column": columns, "frame_count": frames[order]})
        data = table.to_parquet(index=False)
        self.ledger.replace(_TABLE, data)
        values = {
            "name": plan.name,
            "column_frames": plan.column_frames,
            "columns": len(plan.columns),
            "utterances": len(order),
            "sequence": sequence,
            "table": [len(data), checksum(data)],
        }
        write_record(self.ledger, _PLAN, values)

    def plan_record(self) -> dict[str, Any]:
        """Name, frames of a column, columns and utterances of the plan.

        Raises:
            StoreError: a damaged record.
        """
        return self._own(_PLAN, "name")

    def planned(self) -> tuple[PartPlan, list[str], np.ndarray]:
        """The plan, the utterances that its members index, and the frames of each.

        Raises:
            StoreError: a damaged record.
        """
        values = self.plan_record()
        try:
            data = self.ledger.read(_TABLE)
            if [len(data), checksum(data)] != values["table"]:
                raise ValueError("it is not what was written")
            table = pd.read_parquet(io.BytesIO(data))
            held = table.groupby("column", sort=True).indices
            plan = lay_out(
                values["name"], int(values["column_frames"]), [held[i] for i in sorted(held)]
            )
            ids, frames = list(table["id"].to_numpy(object)), table["frame_count"].to_numpy(int)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StoreError(f"cannot read {self.ledger}/{_TABLE}: {reason}") from None
        return plan, ids, frames

    def commit(self, record: dict[str, Any]) -> None:
        """Say that a column is whole. To be called after all of its objects are safe.

        Raises:
            StoreError: another process has said so before.
        """
        key = f"{record['column']:05d}.json"
        if not self.ledger.create(key, seal(record)):
            raise StoreError(
                f"another process has committed {self.ledger}/{key} meanwhile; it has taken this "
                "store over, and what both have committed is safe"
            )

    def uncommit(self, column: int) -> None:
        """Take a column's record back, so that the next ingest makes it again."""
        self.ledger.delete(f"{column:05d}.json")

    def committed_columns(self) -> list[int]:
        """Columns that have a record."""
        stems = [name.removesuffix(".json") for name in self.ledger.names()]
        return sorted(int(stem) for stem in stems if stem.isdigit())

    def record(self, column: int) -> dict[str, Any]:
        """A column's record.

        Raises:
            StoreError: a damaged record.
        """
        found = read_record(self.ledger, f"{column:05d}.json")
        if found.get("column") != column:
            raise StoreError(f"{self.ledger}/{column:05d}.json is the record of another column")
        return found

    def committed(self) -> dict[int, dict[str, Any]]:
        """Records of the columns that are whole, by index.

        Raises:
            StoreError: a damaged record.
        """
        return {column: self.record(column) for column in self.committed_columns()}

    def finish(self, values: dict[str, Any]) -> None:
        """Set the final success mark."""
        write_record(self.ledger, _COMPLETE, {"part": self.name, **values})

    def completion(self) -> dict[str, Any]:
        """What the success mark says: utterances, objects besides those of columns, digest.

        Raises:
            StoreError: a damaged record.
        """
        return self._own(_COMPLETE, "part")

    def _own(self, key: str, name: str) -> dict[str, Any]:
        """A record that says whose it is, so that another part's in its place is noticed."""
        found = read_record(self.ledger, key)
        if found.get(name) != self.name:
            raise StoreError(f"{self.ledger}/{key} is the record of another part")
        return found

    def supersede(self) -> None:
        """Let the part count no more; `View.sweep` removes it."""
        write_record(self.ledger, _SUPERSEDED, {})

    def remove(self) -> None:
        """Remove arrays and records; interrupted, it is still to be removed."""
        self.arrays.delete_all("")
        for name in self.ledger.names():
            if name != _SUPERSEDED:
                self.ledger.delete(name)
        self.ledger.delete_all("")

    def reading(self) -> PlaceStore:
        """Its arrays for reading: what is missing or not as it was written raises."""
        expected = self.completion()["objects"] if self.complete else {}
        return PlaceStore(self.arrays, read_only=True, expected=expected)


def create_view(root: Place, config: ViewConfig) -> View:
    """The view of this configuration in a store, new or as it was."""
    view = View(root / "views" / config.name, config)
    if not view.place.exists("view.json"):
        write_record(view.place, "view.json", config.to_json())
    return view


def read_views(root: Place) -> list[View]:
    """Views of a store, in name order.

    Raises:
        StoreError: a damaged record.
    """
    views = root / "views"
    return [
        _read_view(views / name) for name in views.names() if (views / name).exists("view.json")
    ]


def _read_view(place: Place) -> View:
    source = f"{place}/view.json"
    config = ViewConfig.from_json(read_record(place, "view.json"), source=source)
    if config.name != place.name:
        raise StoreError(f"{source} is the record of another view, {config.name}")
    return View(place, config)
