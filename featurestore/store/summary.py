"""What a store holds, whether or not it is complete."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.corpus import label_columns
from featurestore.store.ledger import View, check_store, read_views
from featurestore.store.rows import read_rows


def summarise_store(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Plain facts about a store: its views, utterances, hours, labels, weights and size in bytes.

    Raises:
        StoreError: not a store, or records that cannot be read.
    """
    root = Path(path)
    check_store(root)
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    rows = read_rows(root)
    views = [_summarise_view(view, rows) for view in read_views(root)]
    return {"store": str(root), "bytes": size, "views": views}


def _summarise_view(view: View, rows: pd.DataFrame) -> dict[str, Any]:
    parts = view.parts()
    utterances = [
        utterance
        for part in parts
        for record in part.committed().values()
        for utterance in record["utterances"]
    ]
    rows = rows[rows["id"].isin([utterance["id"] for utterance in utterances])]
    config = view.config
    return {
        "name": view.name,
        "kind": config.kind,
        "complete": bool(parts) and all(part.complete for part in parts),
        "parts": len(parts),
        "utterances": len(utterances),
        "hours": sum(utterance["duration_s"] for utterance in utterances) / 3600,
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
    }
