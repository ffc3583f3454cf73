"""What a view has already, and which of it was made from audio that is no longer the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from featurestore.store.ledger import Part, View
from featurestore.store.rows import moved_files, moved_segments
from featurestore.store.table import MEASURED, read_columns
from featurestore.store.writer import read_committed
from featurestore.survey import audio_digests, stamps


@dataclass(frozen=True)
class Holdings:
    """What a view has already.

    Attributes:
        table: utterances that are whole: audio_sha256 and audio_stamp by id.
        unfinished: parts that were begun and are not whole, with the ids that they are to hold.
    """

    table: pd.DataFrame
    unfinished: tuple[tuple[Part, frozenset[str]], ...]

    @property
    def begun(self) -> list[Part]:
        """Parts that are to be completed."""
        return [part for part, _ in self.unfinished]

    @cached_property
    def taken(self) -> frozenset[str]:
        """Utterances that need no new plan."""
        return frozenset(self.table.index).union(*(ids for _, ids in self.unfinished))

    def without(self, ids: Collection[str]) -> Holdings:
        """The same once these utterances are removed.

        An unfinished part that was to hold one of them ends with what it has.
        """
        gone = frozenset(ids)
        if not gone:
            return self
        left = tuple((part, planned) for part, planned in self.unfinished if not planned & gone)
        return Holdings(self.table[~self.table.index.isin(gone)], left)


def holdings(view: View) -> Holdings:
    """What a view has.

    Raises:
        StoreError: damaged records or tables.
    """
    tables, unfinished = [], []
    for part in view.parts():
        # A part that lost a record is made whole again, although it was complete once.
        if part.complete and len(part.committed_columns()) == part.plan_record()["columns"]:
            columns = read_columns(part.reading(), MEASURED)
            held = columns["id"] != ""
            tables.append({name: columns[name][held] for name in _KNOWN})
            continue
        rows = read_committed(part).table
        tables.append({name: rows[name].to_numpy(object) for name in _KNOWN})
        unfinished.append((part, frozenset(part.planned()[1])))
    every = {
        name: np.concatenate([np.array([], object), *(one[name] for one in tables)])
        for name in _KNOWN
    }
    return Holdings(pd.DataFrame(every).set_index("id"), tuple(unfinished))


_KNOWN = ("id", "audio_sha256", "audio_stamp")


def changed_audio(
    stored: pd.DataFrame, table: pd.DataFrame, held: Iterable[Holdings]
) -> dict[str, str]:
    """Utterances that stand for one sound in the store and for another in the manifest.

    Audio is decoded again only where the file is another one, or its size or time of writing is.

    Args:
        stored: rows of the store.
        table: the manifest.
        held: what each view has.

    Returns:
        How they are stored, by id.
    """
    holding = list(held)
    taken = frozenset[str]().union(*(one.taken for one in holding))
    changed = dict.fromkeys(moved_segments(stored, table, taken), "as another segment of its file")
    known = pd.concat([one.table for one in holding])
    known = known[~known.index.duplicated()]
    again = table[table["id"].isin(known.index) & ~table["id"].isin(changed)]
    if again.empty:
        return changed
    files = again["path"].drop_duplicates()
    now = again["path"].map(dict(zip(files, stamps(list(files)), strict=True)))
    known = known.reindex(again["id"])
    # A file that is gone is no change: what was made from it is kept.
    touched = (now.to_numpy(object) != known["audio_stamp"].to_numpy(object)) & (
        now != ""
    ).to_numpy()
    moved = again["id"].isin(moved_files(stored, table, frozenset(again["id"]))).to_numpy(bool)
    doubtful = again[touched | (moved & (now != "").to_numpy())]
    if doubtful.empty:
        return changed
    before = known.loc[doubtful["id"], "audio_sha256"]
    for id, old, new in zip(doubtful["id"], before, audio_digests(doubtful), strict=True):
        if new and old != new:
            changed[id] = "from other audio than its file holds now"
    return changed
