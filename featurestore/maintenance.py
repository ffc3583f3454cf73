"""What is done to a store once it is there: withdraw speakers, merge parts, recompute a sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.arithmetic import in_precision
from featurestore.certificate import Differences, compare
from featurestore.encoder import AudioFrontEnd, Encoder, load_encoder
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.frontend import front_end
from featurestore.progress import progress_bar
from featurestore.storage import Place, as_place
from featurestore.store.ledger import View, read_views
from featurestore.store.records import check_store, owned
from featurestore.store.rewrite import drop_utterances, rewrite
from featurestore.store.rows import read_rows, write_rows
from featurestore.store.tombstones import add_tombstone, read_tombstones
from featurestore.weights import Weights

StorePath = str | os.PathLike[str] | Place


@dataclass(frozen=True)
class Forgotten:
    """What `forget` removed.

    Attributes:
        store: from what.
        utterances: number of rows of the manifest that are gone.
        rewritten: parts made anew without them, by view.
    """

    store: str
    utterances: int
    rewritten: dict[str, int]


def forget(
    store: StorePath, *, speakers: Sequence[str] = (), utterances: Sequence[str] = ()
) -> Forgotten:
    """Remove speakers or utterances from every view, and see that they do not come back.

    First a tombstone is left, which names nobody; then every part that holds one of the utterances
    is written anew without them, and the old one removed; last the store's own table. Interrupted,
    the same call goes on. Nothing that a later `ingest` of an old manifest lists comes back,
    unless it is told to (`readmit`). Results computed from the store earlier are another state's,
    and `featurestore results` says so; copies and backups of the store are yours to look after.

    Args:
        store: path or URL.
        speakers: whose utterances go.
        utterances: ids that go.

    Raises:
        StoreError: not a store, an unknown speaker or id, or another process is writing.
    """
    if not speakers and not utterances:
        raise StoreError("nobody to forget: give speakers or utterances (--speaker, --utterance)")
    root = as_place(store)
    check_store(root)
    with owned(root, again="forget") as owner:
        rows = read_rows(root)
        gone = _chosen(root, rows, speakers, utterances)
        now = datetime.now(UTC).date().isoformat()
        add_tombstone(root, speakers=speakers, ids=sorted(gone), when=now)
        rewritten = {}
        for view in read_views(root):
            owner.check()
            view.sweep()
            rewritten[view.name] = drop_utterances(view, gone, rows)
        owner.check()
        if gone:
            kept = rows[~rows["id"].isin(gone)].reset_index(drop=True)
            write_rows(root, kept, tombstones=list(read_tombstones(root).names))
    return Forgotten(root.url, len(gone), {name: n for name, n in rewritten.items() if n})


def _chosen(
    root: Place, rows: pd.DataFrame, speakers: Sequence[str], utterances: Sequence[str]
) -> frozenset[str]:
    known = set(rows["speaker"])
    before = read_tombstones(root)
    for name in speakers:
        if name not in known and before.has("speaker", name):
            continue  # forgotten by a call that was interrupted at its very end
        if name not in known or not name:
            raise StoreError(
                f"{root} has no speaker '{name}'; it has: {_some(sorted(known - {''}))}. "
                "Without a speaker column, forget by --utterance"
            )
    ids = set(rows["id"])
    missing = [id for id in utterances if id not in ids and not before.has("utterance", id)]
    if missing:
        raise StoreError(f"{root} has no utterance '{missing[0]}'")
    mine = rows["id"][rows["speaker"].isin(list(speakers)) | rows["id"].isin(list(utterances))]
    return frozenset(mine)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) or "none") + more


@dataclass(frozen=True)
class Compacted:
    """What `compact` did.

    Attributes:
        store: to what.
        before: parts of each view.
        after: the same, afterwards.
    """

    store: str
    before: dict[str, int]
    after: dict[str, int]


def compact(
    store: StorePath, *, column_frames: int | None = None, progress: bool | None = None
) -> Compacted:
    """Merge the parts of every view into one, in the order that one ingest would have given them.

    Killed at any point, nothing is lost; the same call does what is missing.

    Args:
        store: path or URL.
        column_frames: frames of a column, as in `IngestConfig`; what suits the part by default.
        progress: whether to show a bar; None shows one on a terminal.

    Raises:
        StoreError: not a store, an unfinished ingest, damage, or another process is writing.
    """
    root = as_place(store)
    check_store(root)
    before, after = {}, {}
    with owned(root, again="compact") as owner:
        rows = read_rows(root)
        views = read_views(root)
        for view in views:
            view.sweep()
            before[view.name] = len(view.parts())
            _refuse_unfinished(view)
        columns = sum(
            len(part.committed_columns())
            for view in views
            if before[view.name] > 1
            for part in view.parts()
        )
        with progress_bar("Compacting", columns, unit="columns", show=progress) as tick:
            for view in views:
                owner.check()
                if before[view.name] > 1:
                    rewrite(view, view.parts(), rows, column_frames=column_frames, tick=tick)
                after[view.name] = len(view.parts())
    return Compacted(root.url, before, after)


def _refuse_unfinished(view: View) -> None:
    for part in view.parts():
        if not part.complete:
            raise StoreError(
                f"view {view.name} has an unfinished ingest ({part.name}); run the same "
                "'featurestore ingest' again to complete it, then compact"
            )


@dataclass(frozen=True)
class Recomputed:
    """What recomputing some utterances of a view showed.

    Attributes:
        view: which.
        layer_names: of the differences; one for a view that has no layers.
        differences: between stored and recomputed values.
    """

    view: str
    layer_names: tuple[str, ...]
    differences: Differences


def recompute(
    store: StorePath,
    count: int,
    *,
    audio: str | os.PathLike[str] | None = None,
    encoder: Encoder | Weights | str | Path | None = None,
    seed: int | None = None,
) -> list[Recomputed]:
    """Encode random utterances once more, one at a time, and compare them with what is stored.

    Args:
        store: path or URL.
        count: utterances per view.
        audio: a folder or URL under which the audio lies now; where it was at ingest by default.
        encoder: the network, as for `ingest`; the one that the view names by default.
        seed: of the choice; another one every time by default.

    Raises:
        StoreError: not a store, or damaged records.
        CheckpointError: the weights that a view names are not there.
        FeatureStoreError: the encoder is not the one that made a view.
    """
    root = as_place(store)
    check_store(root)
    rows = read_rows(root)
    found = []
    for view in read_views(root):
        if view.config.captures:
            network, hears = _extractor(view, encoder)
            chosen = _sample(view, count, np.random.default_rng(seed))
            ids = {row["id"] for _, picked in chosen for row in picked}
            mine = _relocated(rows[rows["id"].isin(ids)], audio)
            every = [
                compare(part, picked, mine, encoder=network, front_end=hears)
                for part, picked in chosen
            ]
            names = view.config.layer_names or (view.config.front_end,)
            found.append(Recomputed(view.name, names, _together(every)))
    return found


def _extractor(
    view: View, encoder: Encoder | Weights | str | Path | None
) -> tuple[Encoder | None, AudioFrontEnd]:
    config = view.config
    if not config.is_network:
        return None, front_end(config.front_end)
    source = encoder if encoder is not None else config.weights_source
    if encoder is None and config.weights_source.startswith("default:"):
        source = "default"  # of which there is one in each version
    loaded = load_encoder(source)
    if loaded.front_end.name != config.front_end:
        loaded = load_encoder(source, variant=config.front_end)
    if loaded.fingerprint != config.weights:
        raise FeatureStoreError(
            f"view {view.name} was made with weights {config.weights[:12]} "
            f"({config.weights_source}), '{loaded.name}' is {loaded.fingerprint[:12]}; name the "
            "right ones (--weights, in Python encoder=)"
        )
    return in_precision(loaded, config.precision), loaded.front_end


def _sample(
    view: View, count: int, rng: np.random.Generator
) -> list[tuple[Any, list[dict[str, Any]]]]:
    """Records of random utterances, by part."""
    places = []
    for part in view.parts():
        for column in part.committed_columns():
            places.append((part, part.record(column)["utterances"]))
    sizes = [len(rows) for _, rows in places]
    total = sum(sizes)
    picked = rng.choice(total, min(count, total), replace=False) if total else np.array([], int)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    chosen: dict[str, tuple[Any, list[dict[str, Any]]]] = {}
    for index in sorted(picked.tolist()):
        place = int(np.searchsorted(edges, index, side="right")) - 1
        part, rows = places[place]
        chosen.setdefault(part.name, (part, []))[1].append(rows[index - edges[place]])
    return list(chosen.values())


def _relocated(rows: pd.DataFrame, audio: str | os.PathLike[str] | None) -> pd.DataFrame:
    """Rows whose paths lie under `audio`: the longest end of each path that is there."""
    if audio is None:
        return rows
    root = as_place(audio)

    def find(path: str) -> str:
        names = [name for name in path.replace("://", "/").split("/") if name]
        ends = ("/".join(names[i:]) for i in range(len(names)))
        there = next((end for end in ends if end and root.exists(end)), names[-1])
        return f"{root.url}/{there}"

    return rows.assign(path=rows["path"].map(find))


def _together(every: Sequence[Differences]) -> Differences:
    def worst(name: str) -> dict[str, list[float]]:
        merged: dict[str, list[float]] = {}
        for one in every:
            for capture, values in getattr(one, name).items():
                before = merged.get(capture, values)
                merged[capture] = np.maximum(before, values).tolist()
        return merged

    return Differences(
        sum(one.utterances for one in every),
        worst("pooled"),
        worst("frames"),
        {id: reason for one in every for id, reason in one.unreadable.items()},
        tuple(id for one in every for id in one.other_audio),
    )
