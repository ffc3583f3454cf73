"""A store of invented statistics, for benchmarks of analyses: no audio, no network, no frames."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featurestore.storage import as_place
from featurestore.store.ledger import create_view
from featurestore.store.plan import Column, plan_part
from featurestore.store.records import create_store
from featurestore.store.rows import write_rows
from featurestore.store.schema import ViewConfig
from featurestore.store.writer import Origin, PartWriter, Utterance, finish_part, read_committed
from featurestore.types import CAPTURES, FRAME_PERIOD_S, STATISTICS


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        utterances: of the corpus.
        speakers: who share them unequally.
        layers: of the network.
        units: of each layer.
    """

    utterances: int
    speakers: int
    layers: int
    units: int

    @property
    def width(self) -> int:
        """Features of a capture and statistic."""
        return self.layers * self.units

    @property
    def bytes(self) -> int:
        """Of all statistics of all captures, float32."""
        return len(CAPTURES) * len(STATISTICS) * self.utterances * self.width * 4


def manifest_of(scale: Size) -> pd.DataFrame:
    """Utterances in no order of speakers, of whom the last says twice as much as the first."""
    rng = np.random.default_rng(0)
    share = np.linspace(1, 2, scale.speakers)
    who = rng.choice(scale.speakers, scale.utterances, p=share / share.sum())
    level = rng.normal(0, 0.3, (2, scale.speakers))[:, who]
    arousal, valence = np.clip(3 + level + rng.normal(0, 0.8, (2, scale.utterances)), 1, 5)
    names = [f"u{i:06d}" for i in range(scale.utterances)]
    return pd.DataFrame(
        {
            "id": names,
            "path": [f"/invented/{name}.wav" for name in names],
            "speaker": [f"s{one:02d}" for one in who],
            "arousal": arousal,
            "valence": valence,
        }
    )


def write_store(folder: Path, scale: Size) -> pd.DataFrame:
    """Statistics as an ingest without frames leaves them; the manifest."""
    table, root = manifest_of(scale), as_place(folder)
    create_store(root)
    write_rows(root, table, tombstones=[])
    config = ViewConfig(
        "gcu",
        front_end="librosa",
        weights="0" * 64,
        weights_source="invented",
        captures=CAPTURES,
        layer_names=tuple(f"layer_{i}" for i in range(scale.layers)),
        units=scale.units,
    )
    frames = np.random.default_rng(1).integers(30, 300, scale.utterances)
    plan = plan_part(list(table["id"]), frames, width=scale.width)
    part = create_view(root, config).part(plan.name)
    part.begin(plan, list(table["id"]), frames)
    writer = PartWriter(part, plan.layout)
    for column in plan.columns:
        part.commit(_write_column(writer, column, table, frames[column.members]))
    finish_part(part, table, plan, read_committed(part))
    return table


def _write_column(
    writer: PartWriter, column: Column, table: pd.DataFrame, frames: NDArray[np.int64]
) -> dict[str, Any]:
    """Noise, and in some units arousal or valence; its record."""
    rng, own = np.random.default_rng([2, column.index]), table.iloc[column.members]
    buffers = writer.buffers(column)
    for values in buffers.values():
        shape = (len(own), *values.shape[2:])
        mean, spread = rng.normal(0, 0.3, shape), np.abs(rng.normal(0, 0.2, shape))
        mean[..., ::16] += 0.02 * own["arousal"].to_numpy()[:, None, None]
        mean[..., 1::16] += 0.01 * own["valence"].to_numpy()[:, None, None]
        values[:, : len(own)] = np.stack([mean, spread, mean - 3 * spread, mean + 3 * spread])
    starts = np.cumsum(frames) - frames + column.index * writer.layout.column_frames
    utterances = [
        Utterance(
            id=own["id"].iloc[i],
            slot=column.slot_start + i,
            frame_start=int(starts[i]),
            frame_count=int(frames[i]),
            duration_s=float(frames[i] * FRAME_PERIOD_S),
            audio_sha256=f"{column.members[i]:064x}",  # no two of them are the same audio
        )
        for i in range(len(own))
    ]
    origin = asdict(Origin({}, "invented", "2000-01-01T00:00:00+00:00"))
    return writer.write(column, buffers, utterances=utterances, set_aside=[], origins=[origin])
