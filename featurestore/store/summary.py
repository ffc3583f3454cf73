"""What a store holds, whether or not it is complete, and where a row of it came from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from featurestore.corpus import label_columns
from featurestore.errors import StoreError
from featurestore.storage import Place, as_place
from featurestore.store.ledger import Part, View, read_views
from featurestore.store.records import check_store
from featurestore.store.rows import read_rows, rows_state
from featurestore.store.table import read_columns
from featurestore.store.writer import read_committed
from featurestore.types import STATISTICS


def summarise_store(path: str | os.PathLike[str] | Place) -> dict[str, Any]:
    """Plain facts about a store: its views, utterances, hours, labels, weights and size in bytes.

    Raises:
        StoreError: not a store, or records that cannot be read.
    """
    root = as_place(path)
    check_store(root)
    rows = read_rows(root)
    views = read_views(root)
    return {
        "store": root.url,
        "state": store_state(root),
        "bytes": sum(root.sizes().values()),
        "views": [_summarise_view(view, rows) for view in views],
    }


def store_state(path: str | os.PathLike[str] | Place) -> str:
    """A fingerprint of everything that a store holds: arrays, tables and labels.

    It is the same for the same contents, whenever and by whatever they were made, and changes when
    anything is added, removed or relabelled. Only metadata is read.

    Raises:
        StoreError: not a store, or records that cannot be read.
    """
    root = as_place(path)
    check_store(root)
    rows = rows_state(root)
    views = {view.name: _view_state(view) for view in read_views(root)}
    return hashlib.sha256(json.dumps([rows, views], sort_keys=True).encode()).hexdigest()[:16]


def _view_state(view: View) -> list[str]:
    return [
        part.completion()["digest"]
        if part.complete
        else f"{part.name}: {len(part.committed_columns())}"
        for part in view.parts()
    ]


def _summarise_view(view: View, rows: pd.DataFrame) -> dict[str, Any]:
    parts = view.parts()
    ids, durations = [], []
    for part in parts:
        held, seconds = _held(part)
        ids += list(held)
        durations.append(seconds)
    rows = rows[rows["id"].isin(ids)]
    config = view.config
    certificates = [part.completion()["certificate"] for part in parts if part.complete]
    differences = [one["largest"] for one in certificates if one]
    return {
        "name": view.name,
        "kind": config.kind,
        "complete": bool(parts) and all(part.complete for part in parts),
        "parts": len(parts),
        "utterances": len(ids),
        "hours": float(sum(durations)) / 3600,
        "speakers": int(rows["speaker"].nunique()),
        "labels": label_columns(rows),
        "weights": config.weights,
        "weights_source": config.weights_source,
        "front_end": config.front_end,
        "captures": list(config.captures),
        "layers": len(config.layer_names),
        "units": config.units if config.is_network else 0,
        "frame_period_s": None if config.kind == "egemaps" else config.frame_period_s,
        "frames": config.frames,
        "dtype": config.dtype,
        "padding_difference": max(differences, default=None),
    }


def _held(part: Part) -> tuple[np.ndarray, float]:
    """Ids of a part's utterances, and their seconds."""
    if part.complete:
        columns = read_columns(part.reading(), ("id", "duration_s"))
        held = columns["id"] != ""
        return columns["id"][held], float(columns["duration_s"][held].sum())
    rows = read_committed(part).table
    return rows["id"].to_numpy(object), float(rows["duration_s"].sum())


def lineage(path: str | os.PathLike[str] | Place, id: str) -> list[dict[str, Any]]:
    """How every row of an utterance came to be, one entry per view that holds it.

    Args:
        path: the store.
        id: the utterance.

    Returns:
        Per view: where the row lies, the audio it was made from (path, segment, sha256 of the
        decoded samples, stamp of the file), front end, weights and their fingerprint, captures,
        statistics, precision, type of the frames, library versions, device, and time (UTC).

    Raises:
        StoreError: not a store, no such utterance, or records that cannot be read.
    """
    root = as_place(path)
    check_store(root)
    rows = read_rows(root)
    mine = rows[rows["id"] == id].to_dict("records")
    found = [entry for view in read_views(root) for entry in _lineage(view, id)]
    if not found:
        raise StoreError(
            f"no view of {root} holds utterance '{id}'; 'featurestore info {root}' says what it "
            "holds"
        )
    place = {key: mine[0].get(key) for key in ("path", "start", "end", "speaker")} if mine else {}
    return [{**entry, "audio": {**place, **entry["audio"]}} for entry in found]


def _lineage(view: View, id: str) -> Iterator[dict[str, Any]]:
    config = view.config
    for part in view.parts():
        for column, row, record in _find(part, id):
            yield {
                "view": view.name,
                "kind": config.kind,
                "part": part.name,
                "column": column,
                "row": row["slot"],
                "frames": [row["frame_start"], row["frame_start"] + row["frame_count"]],
                "audio": {
                    "sha256": row["audio_sha256"],
                    "stamp": row["audio_stamp"],
                    "duration_s": row["duration_s"],
                },
                "front_end": config.front_end,
                "weights": config.weights,
                "weights_source": config.weights_source,
                "captures": list(config.captures),
                "pooling": list(STATISTICS) if config.captures else [],
                "precision": config.precision,
                "dtype": config.dtype if config.frames else "",
                **record["origins"][row["origin"]],
            }


def _find(part: Part, id: str) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Column, row and record of an utterance; only the record that has it is read."""
    plan, ids, _ = part.planned()
    wanted = np.flatnonzero(np.asarray(ids, object) == id)
    done = frozenset(part.committed_columns())
    for column in plan.columns:
        if column.index in done and np.isin(wanted, column.members).any():
            record = part.record(column.index)
            for row in record["utterances"]:
                if row["id"] == id:
                    yield column.index, row, record
