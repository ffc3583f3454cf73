"""Reads everything a store claims to hold and says what is not there or not whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.errors import StoreError
from featurestore.progress import progress_bar
from featurestore.storage import Place, as_place
from featurestore.storage.arrays import checksum
from featurestore.storage.locks import LEASE
from featurestore.store.contents import Row, check_column
from featurestore.store.ledger import Part, View, read_views
from featurestore.store.records import MARK, check_store, owned
from featurestore.store.rows import read_rows, rows_version
from featurestore.store.table import read_columns
from featurestore.store.tombstones import read_tombstones
from featurestore.store.writer import PartWriter


@dataclass(frozen=True)
class Problem:
    """Something wrong in a store.

    Attributes:
        view: where; "" for the store itself.
        part: where in it.
        what: what is wrong, and which column or array it concerns.
        column: that has to be made again, if one has.
        mendable: whether `repair` and another ingest bring it back.
    """

    view: str
    part: str
    what: str
    column: int | None = None
    mendable: bool = False


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

    store: str
    views: int
    parts: int
    utterances: int
    bytes_read: int
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path: str | os.PathLike[str] | Place, *, progress: bool | None = None) -> Verification:
    """Read every byte of a store and hold it against its records.

    Every record must be what was written; every object that a record names must be there with its
    size and checksum, and no other; every value that is promised must be a finite number; pooled
    statistics must be those of the frames; tables and records must agree; and an utterance must be
    the same sound in every view.

    Args:
        path: the store.
        progress: whether to show a bar; None shows one on a terminal.

    Raises:
        StoreError: not a store.
    """
    root = as_place(path)
    check_store(root)
    problems, views = _check_top(root)
    known = {MARK, LEASE, ".lock"}
    known |= {f"manifest/{rows_version(root)}"}
    known |= {f"tombstones/{name}" for name in root.names("tombstones")}
    heard: dict[str, str] = {}
    utterances = size = parts = 0
    parts_of, lost = _parts(views)
    problems += lost
    columns = sum(len(part.committed_columns()) for held in parts_of.values() for part in held)
    with progress_bar("Verifying", columns, unit="columns", show=progress) as tick:
        for view in views:
            known.add(f"views/{view.name}/view.json")
            seen: set[str] = set()
            problems += _leftovers(view, known)
            for part in parts_of[view.name]:
                found, rows, read = _verify_part(part, tick, known)
                found += [(what, None, False) for what in _verify_ids(rows, seen, heard)]
                problems += [Problem(view.name, part.name, *one) for one in found]
                utterances, size, parts = utterances + len(rows), size + read, parts + 1
    problems += _strays(root, known)
    return Verification(root.url, len(views), parts, utterances, size, tuple(problems))


_Found = tuple[str, int | None, bool]  # what, column, mendable


def _check_top(root: Place) -> tuple[list[Problem], list[View]]:
    """Records of the store itself, and the views whose records are whole."""
    problems = []
    for check in (read_rows, read_tombstones):
        try:
            check(root)
        except StoreError as error:
            problems.append(Problem("", "", str(error)))
    try:
        return problems, read_views(root)
    except StoreError as error:
        return [*problems, Problem("", "", str(error))], []


def _parts(views: Sequence[View]) -> tuple[dict[str, list[Part]], list[Problem]]:
    """Parts of each view, and what is wrong where one has lost its records."""
    found, problems = {}, []
    for view in views:
        try:
            found[view.name] = view.parts()
        except StoreError as error:
            problems.append(Problem(view.name, "", str(error)))
            found[view.name] = []
    return found, problems


def _leftovers(view: View, known: set[str]) -> list[Problem]:
    """What an interrupted rewrite has left; the store is whole without it."""
    found = []
    for part in view.leftovers():
        for place in (part.arrays, part.ledger):
            prefix = place.url[len(view.place.url) + 1 :]
            known |= {f"views/{view.name}/{key}" for key in view.place.sizes(prefix)}
        what = "left behind by an interrupted compact, forget or ingest; the next one removes it"
        found.append(Problem(view.name, part.name, what, None, True))
    return found


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


def _verify_part(
    part: Part, tick: Callable[[float], None], known: set[str]
) -> tuple[list[_Found], list[Row], int]:
    prefix = f"views/{part.view.name}"
    for name in ("plan.json", "plan.parquet", "complete.json", "replaces.json"):
        known.add(f"{prefix}/ledger/{part.name}/{name}")
    done = part.committed_columns()
    known |= {f"{prefix}/ledger/{part.name}/{index:05d}.json" for index in done}
    try:
        plan, ids, frames = part.planned()
        completion = part.completion() if part.complete else {}
    except StoreError as error:
        known |= {f"{prefix}/{key}" for key in part.view.place.sizes(f"parts/{part.name}.zarr")}
        return [(str(error), None, part.has("plan.json") and "complete.json" in str(error))], [], 0
    problems: list[_Found] = []
    if len(done) < len(plan.columns) or not completion:
        state = "" if completion else ", and the part is not finished"
        problems.append(
            (
                f"incomplete: {len(done)} of {len(plan.columns)} columns are recorded{state}; run "
                "the same ingest again",
                None,
                True,
            )
        )
        # What a killed ingest had begun to write is overwritten by the next one.
        known |= {f"{prefix}/{key}" for key in part.view.place.sizes(f"parts/{part.name}.zarr")}
    problems += _verify_objects(part, completion)
    arrays = f"{prefix}/parts/{part.name}.zarr"
    known |= {f"{arrays}/{key}" for key in completion.get("objects", {})}
    rows: list[Row] = []
    size = 0
    for column in plan.columns:
        if column.index not in done:
            continue
        try:
            record = part.record(column.index)
            known |= {f"{arrays}/{key}" for key in record["objects"]}
            names = [ids[i] for i in column.members]
            found = check_column(part, plan.layout, column, record, names, frames[column.members])
        except StoreError as error:
            problems.append((f"column {column.index}: {error}", column.index, True))
            known |= {f"{prefix}/{key}" for key in part.view.place.sizes(f"parts/{part.name}.zarr")}
        else:
            rows += record["utterances"]
            size += found.bytes_read
            problems += [
                (f"column {column.index}, {what}", column.index, True) for what in found.problems
            ]
        tick(1)
    if completion and not problems:
        problems += [(what, None, True) for what in _verify_table(part, rows)]
    return problems, rows, size


def _verify_objects(part: Part, completion: dict[str, Any]) -> Iterator[_Found]:
    """Metadata and table files against the success mark."""
    for key, (size, expected) in completion.get("objects", {}).items():
        try:
            data = part.arrays.read(key)
        except OSError as error:
            yield f"{key} cannot be read: {error.strerror or error}", None, True
            continue
        if len(data) != size or checksum(data) != expected:
            yield f"{key} is not what was written", None, True


def _verify_table(part: Part, utterances: list[Row]) -> list[str]:
    """Whether the utterance table says what the ledger says."""
    try:
        columns = read_columns(part.reading())
        if int((columns["id"] != "").sum()) != len(utterances):
            return [f"utterance table: it does not have the {len(utterances)} rows of the ledger"]
        for row in utterances:
            for name in set(row) & set(columns) - {"slot"}:
                if columns[name][row["slot"]] != row[name]:
                    return [f"utterance table: {name} of '{row['id']}' is not that of the ledger"]
    except Exception as error:  # damaged arrays raise whatever their codec does; all is reported
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [f"utterance table: cannot be read: {reason}"]
    return []


def _strays(root: Place, known: set[str]) -> list[Problem]:
    """Files that no record knows of: another store's, or what is left where records are gone."""
    found = []
    for key in sorted(set(root.sizes()) - known):
        if key.rpartition("/")[2].startswith("."):
            continue  # of the operating system's making
        view, part = "", ""
        if key.startswith("views/"):
            view, _, rest = key.removeprefix("views/").partition("/")
            part = rest.split("/")[1].removesuffix(".zarr") if rest.count("/") else ""
        found.append(Problem(view, part, f"{key} is not part of the store"))
    return _grouped(found)


def _grouped(found: list[Problem]) -> list[Problem]:
    """One problem for all strange files of a part."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for one in found:
        groups.setdefault((one.view, one.part), []).append(one)
    return [
        ones[0]
        if len(ones) == 1
        else Problem(view, part, f"{ones[0].what}, nor are {len(ones) - 1} other files beside it")
        for (view, part), ones in groups.items()
    ]


def repair(path: str | os.PathLike[str] | Place, found: Verification) -> int:
    """Take back the records of what is damaged, so that the same ingest makes it again.

    Nothing is lost that was whole: other columns keep their records.

    Args:
        path: the store.
        found: what `verify` said of it.

    Returns:
        Number of parts that the next ingest has to complete.

    Raises:
        StoreError: another process is writing.
    """
    root = as_place(path)
    touched = set()
    with owned(root, again="repair"):
        for view in read_views(root):
            view.sweep()
            for part in view.parts():
                mine = [
                    one
                    for one in found.problems
                    if (one.view, one.part) == (view.name, part.name) and one.mendable
                ]
                if mine:
                    _repair_part(part, [one.column for one in mine if one.column is not None])
                    touched.add((view.name, part.name))
    return len(touched)


def _repair_part(part: Part, columns: Sequence[int]) -> None:
    part.ledger.delete("complete.json")
    for column in columns:
        part.uncommit(column)
    # Metadata are made again from the plan; values and tables by the ingest.
    for key in part.arrays.sizes():
        if key.endswith("zarr.json"):
            part.arrays.delete(key)
    PartWriter(part, part.planned()[0].layout)
