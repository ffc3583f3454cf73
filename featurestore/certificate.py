"""The padding-invariance certificate: utterances encoded alone, against what is stored of them.

An utterance runs in a padded batch with others, which must not change it. A few of every part are
therefore encoded once more, each alone and without a frame of padding, and the largest differences
are kept with the part; `featurestore verify --recompute N` does the same with any number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import zarr

from featurestore.audio import read_clip
from featurestore.batching import Bucket
from featurestore.encoder import AudioFrontEnd, Encoder
from featurestore.errors import AudioError
from featurestore.extract import Extracted, Request, collect, dispatch
from featurestore.setup import Setup
from featurestore.store.ledger import Part
from featurestore.store.schema import ViewConfig
from featurestore.survey import samples_for, segments


@dataclass(frozen=True)
class Differences:
    """Largest absolute differences between stored and recomputed values.

    Attributes:
        utterances: number compared.
        pooled: by capture, of the float32 statistics, one per layer.
        frames: by capture, of the frames in the type that is stored, one per layer.
        unreadable: utterances that could not be recomputed, with the reason.
        other_audio: utterances whose file holds another sound now.
    """

    utterances: int
    pooled: dict[str, list[float]]
    frames: dict[str, list[float]]
    unreadable: dict[str, str]
    other_audio: tuple[str, ...]

    @property
    def largest(self) -> float:
        """Of the pooled statistics, over all layers."""
        return max((value for values in self.pooled.values() for value in values), default=0.0)


def certify(setup: Setup, part: Part, rows: pd.DataFrame, stored: pd.DataFrame) -> dict[str, Any]:
    """A part's certificate, as plain values without ids; empty where there is nothing to say.

    Args:
        setup: how the part was made.
        part: whose columns are all committed.
        rows: manifest rows of its utterances.
        stored: what its records say of them.
    """
    front_end = setup.front_end(part.view.config.kind)
    if not part.view.config.captures or front_end is None or not setup.config.certified:
        return {}
    picked = choose(len(stored), setup.config.certified, seed=part.name)
    chosen = stored.iloc[picked].to_dict("records")
    encoder = setup.encoder if part.view.config.is_network else None
    found = compare(part, chosen, rows, encoder=encoder, front_end=front_end)
    if not found.utterances:
        return {}
    return {
        "utterances": found.utterances,
        "largest": found.largest,
        "pooled": found.pooled,
        "frames": found.frames,
    }


def choose(total: int, count: int, *, seed: str) -> np.ndarray:
    """Some of several, the same ones for the same seed."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    rng = np.random.default_rng(number)
    return np.sort(rng.choice(total, min(count, total), replace=False))


def compare(
    part: Part,
    stored: Sequence[dict[str, Any]],
    rows: pd.DataFrame,
    *,
    encoder: Encoder | None,
    front_end: AudioFrontEnd,
) -> Differences:
    """Encode utterances one at a time and compare them with a part.

    Args:
        part: what holds them.
        stored: their records in its ledger.
        rows: where their audio is.
        encoder: the network that made the part; None for MFCC.
        front_end: how it heard them.
    """
    config = part.view.config
    request = Request(
        captures=config.captures if encoder is not None else (),
        mfcc=encoder is None,
        frames=config.frames,
        dtype=config.dtype,  # type: ignore[arg-type]
        scales=config.scales,
    )
    by_id = rows.set_index("id", drop=False)
    pooled: dict[str, list[np.ndarray]] = {}
    frames: dict[str, list[np.ndarray]] = {}
    unreadable, other = {}, []
    for row in stored:
        path, start, end = next(segments(by_id.loc[[row["id"]]]))
        try:
            clip = read_clip(path, start=start, end=end)
            prepared = front_end.prepare(samples_for(clip, front_end))
        except AudioError as error:
            unreadable[row["id"]] = str(error)
            continue
        if clip.sha256 != row["audio_sha256"]:
            other.append(row["id"])
            continue
        alone = _alone(encoder, request, front_end, prepared, row["frame_count"])
        for capture in config.captures:
            _difference(pooled, part, f"pooled/{capture}", capture, row, alone)
            if config.frames:
                _difference(frames, part, f"frames/{capture}", capture, row, alone)
    done = len(stored) - len(unreadable) - len(other)
    return Differences(done, _worst(pooled), _worst(frames), unreadable, tuple(other))


def _alone(
    encoder: Encoder | None,
    request: Request,
    front_end: AudioFrontEnd,
    prepared: np.ndarray,
    count: int,
) -> Extracted:
    running = dispatch(
        encoder,
        request,
        bucket=Bucket(count, 1),
        prepared=[prepared],
        n_frames=[count],
        front_end=front_end,
    )
    return collect(running, n_frames=[count])


def _difference(
    found: dict[str, list[np.ndarray]],
    part: Part,
    path: str,
    capture: str,
    row: dict[str, Any],
    alone: Extracted,
) -> None:
    array = zarr.open_array(part.reading(), path=path, mode="r", zarr_format=3)
    scale = part.view.config.scale(capture) or 1.0
    if path.startswith("pooled"):
        stored, new = np.asarray(array[:, row["slot"]]), alone.pooled[capture][0]
        scale = 1.0
    else:
        place = slice(row["frame_start"], row["frame_start"] + row["frame_count"])
        stored = np.asarray(array[(*(slice(None),) * (array.ndim - 2), place)])
        new = alone.frames(capture, 0)
    gap = np.abs(stored.astype(np.float64) - np.asarray(new, np.float64)) * scale
    found.setdefault(capture, []).append(_per_layer(gap, path, part.view.config))


def _per_layer(gap: np.ndarray, path: str, config: ViewConfig) -> np.ndarray:
    """Largest value of each layer; a front end is one layer."""
    if not config.is_network:
        return np.array([gap.max()])
    axis = 1 if path.startswith("pooled") else 0
    return gap.max(axis=tuple(i for i in range(gap.ndim) if i != axis))


def _worst(found: dict[str, list[np.ndarray]]) -> dict[str, list[float]]:
    return {name: np.max(values, axis=0).tolist() for name, values in found.items()}
