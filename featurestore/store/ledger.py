"""Commit records: what of a part is safely on disk. They lie outside the Zarr tree.

    views/<view>/view.json
    views/<view>/ledger/<part>/plan.json, plan.parquet   what the part will hold
    views/<view>/ledger/<part>/00003.json                column 3 is whole
    views/<view>/ledger/<part>/complete.json             the part is whole

Every record appears under its name only when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.errors import StoreError
from featurestore.files import replacing
from featurestore.store.plan import PartPlan, lay_out
from featurestore.store.schema import FORMAT, FORMAT_VERSION, ViewConfig


def _write_json(path: Path, values: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A record.

    Raises:
        StoreError: a damaged or missing record.
    """
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read the store's record {path}: {error}") from None
    if not isinstance(values, dict):
        raise StoreError(f"the store's record {path} is not what it should be: a JSON object")
    return values


def create_store(root: Path) -> None:
    """Make `root` a feature store, or check that it is one of a version that this code reads.

    Raises:
        StoreError: a file, a folder with other things in it, or a newer format.
    """
    mark = root / "featurestore.json"
    if mark.exists():
        check_store(root)
        return
    if not is_free(root):
        raise StoreError(
            f"{root} exists and is not a feature store; give a new folder or an empty one"
        )
    _write_json(mark, {"format": FORMAT, "version": FORMAT_VERSION})


def is_free(root: Path) -> bool:
    """Whether a new store can be made there; what a killed run left behind is no matter."""
    if not root.exists():
        return True
    return root.is_dir() and all(entry.name.startswith(".") for entry in root.iterdir())


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Keep other processes of this machine from writing to the store; released by any death.

    Raises:
        StoreError: another process is writing.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows, where this is left to the user
        yield
        return
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another ingest is writing to {root}; wait for it, or use another store"
            ) from None
        yield


def check_store(root: Path) -> None:
    """Raise unless `root` is a feature store that this code reads.

    Raises:
        StoreError: no store, or a newer format.
    """
    mark = root / "featurestore.json"
    if not mark.exists():
        raise StoreError(
            f"{root} is not a feature store (it has no featurestore.json); "
            "'featurestore ingest MANIFEST STORE' makes one"
        )
    values = read_json(mark)
    if values.get("format") != FORMAT or not isinstance(values.get("version"), int):
        raise StoreError(f"{mark} is not the mark of a feature store")
    if values["version"] > FORMAT_VERSION:
        raise StoreError(
            f"{root} has format version {values['version']}; this featurestore reads up to "
            f"{FORMAT_VERSION}: install a newer one"
        )


@dataclass(frozen=True)
class View:
    """A view's place on disk and its configuration."""

    root: Path
    config: ViewConfig

    @property
    def name(self) -> str:
        """The view's name."""
        return self.root.name

    def part(self, name: str) -> Part:
        """The place of one of its parts."""
        return Part(self, name)

    def parts(self) -> list[Part]:
        """Parts that were begun, in name order."""
        folder = self.root / "ledger"
        if not folder.is_dir():
            return []
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        return [part for part in map(self.part, names) if part.begun]


@dataclass(frozen=True)
class Part:
    """A part's place on disk."""

    view: View
    name: str

    @property
    def arrays(self) -> Path:
        """The Zarr group."""
        return self.view.root / "parts" / f"{self.name}.zarr"

    @property
    def ledger(self) -> Path:
        """The folder of its records."""
        return self.view.root / "ledger" / self.name

    @property
    def begun(self) -> bool:
        """Whether its plan is on disk."""
        return (self.ledger / "plan.json").exists()

    @property
    def complete(self) -> bool:
        """Whether its final success mark is on disk."""
        return (self.ledger / "complete.json").exists()

    def begin(self, plan: PartPlan, ids: Sequence[str], frames: np.ndarray) -> None:
        """Record what the part will hold, unless that was done before.

        Args:
            plan: which utterance goes where.
            ids: utterances that the plan's members index.
            frames: frames of each.
        """
        if self.begun:
            return
        order = [i for column in plan.columns for i in column.members]
        columns = [column.index for column in plan.columns for _ in column.members]
        table = pd.DataFrame(
            {"id": [ids[i] for i in order], "column": columns, "frame_count": frames[order]}
        )
        with replacing(self.ledger / "plan.parquet") as temporary:
            table.to_parquet(temporary, index=False)
        values = {
            "name": plan.name,
            "column_frames": plan.column_frames,
            "columns": len(plan.columns),
            "utterances": len(order),
        }
        _write_json(self.ledger / "plan.json", values)

    def planned(self) -> tuple[PartPlan, list[str], np.ndarray]:
        """The plan, the utterances that its members index, and the frames of each.

        Raises:
            StoreError: a damaged record.
        """
        values = read_json(self.ledger / "plan.json")
        try:
            table = pd.read_parquet(self.ledger / "plan.parquet")
            held = table.groupby("column", sort=True).indices
            plan = lay_out(
                values["name"], int(values["column_frames"]), [held[i] for i in sorted(held)]
            )
            ids, frames = list(table["id"].to_numpy(object)), table["frame_count"].to_numpy(int)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StoreError(f"cannot read the plan in {self.ledger}: {reason}") from None
        return plan, ids, frames

    def commit(self, column: int, record: dict[str, Any]) -> None:
        """Say that a column is whole. To be called after all of its shards are on disk."""
        _write_json(self.ledger / f"{column:05d}.json", record)

    def committed(self) -> dict[int, dict[str, Any]]:
        """Records of the columns that are whole, by index.

        Raises:
            StoreError: a damaged record.
        """
        return {
            int(path.stem): read_json(path)
            for path in sorted(self.ledger.glob("*.json"))
            if path.stem.isdigit()
        }

    def finish(self, values: dict[str, Any]) -> None:
        """Set the final success mark."""
        _write_json(self.ledger / "complete.json", values)


def create_view(root: Path, config: ViewConfig, versions: dict[str, str]) -> View:
    """The view of this configuration in a store, new or as it was."""
    view = View(root / "views" / config.name, config)
    if not (view.root / "view.json").exists():
        _write_json(view.root / "view.json", {**config.to_json(), "versions": versions})
    return view


def read_views(root: Path) -> list[View]:
    """Views of a store, in name order.

    Raises:
        StoreError: a damaged record.
    """
    folder = root / "views"
    if not folder.is_dir():
        return []
    return [
        View(path.parent, ViewConfig.from_json(read_json(path), source=path))
        for path in sorted(folder.glob("*/view.json"))
    ]
