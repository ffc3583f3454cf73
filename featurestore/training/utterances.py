"""MFCC, speakers and labels of a corpus in memory, from a store or a manifest.

MFCC are 2.5 kB per second of speech (20 float32 values per 32 ms): 9 MB per hour, 108 MB for the 12
hours of IEMOCAP. Everything else that training holds is smaller or of fixed size.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Float64, Shaped
from numpy.typing import NDArray

from featurestore.analysis.features import known_speakers, label_values, text_values
from featurestore.audio import read_clip
from featurestore.batching import BatchPolicy, Bucket, batches, choose_buckets
from featurestore.errors import AnalysisError, AudioError, StoreError
from featurestore.frontend import FrontEnd, fill_buffers, mfcc_of_batch
from featurestore.planning import load_table
from featurestore.progress import progress_bar
from featurestore.store.reader import Store, open_store
from featurestore.survey import samples_for, segment, survey
from featurestore.types import FRAME_PERIOD_S

Source = Store | pd.DataFrame | str | os.PathLike[str]

_DECODERS = 4


@dataclass(frozen=True, eq=False)
class Utterances:
    """A corpus ready to train on, sorted by id.

    Attributes:
        table: coordinates along utterance: id, speaker, audio_sha256 and labels.
        coefficients: MFCC of each utterance, (frame, 20) float32.
        notes: what was left out, for people.
    """

    table: xr.Dataset
    coefficients: tuple[Float[np.ndarray, "frame 20"], ...]
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> Shaped[np.ndarray, " utterance"]:
        """(utterance,) ids, ascending."""
        return text_values(self.table, "id")


@dataclass(frozen=True, eq=False)
class LabelledUtterances:
    """The utterances of a corpus that have at least one of the targets.

    Attributes:
        targets: names of the labels.
        ids: (utterance,).
        speakers: (utterance,).
        truth: (utterance, target) labels, NaN where unknown.
        coefficients: MFCC of each utterance, (frame, 20) float32.
        audio: (utterance,) SHA-256 of the decoded samples.
        notes: as in `Utterances`.
    """

    targets: tuple[str, ...]
    ids: Shaped[np.ndarray, " utterance"]
    speakers: Shaped[np.ndarray, " utterance"]
    truth: Float64[np.ndarray, "utterance target"]
    coefficients: tuple[Float[np.ndarray, "frame 20"], ...]
    audio: Shaped[np.ndarray, " utterance"]
    notes: tuple[str, ...] = ()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(utterance,) frames."""
        return np.array([len(one) for one in self.coefficients])

    def fingerprint(self) -> str:
        """SHA-256 of ids, audio, speakers and labels."""
        text = "\n".join([*self.targets, *self.ids, *self.audio, *self.speakers])
        digest = hashlib.sha256(text.encode())
        digest.update(np.ascontiguousarray(self.truth, "<f8").data)
        return digest.hexdigest()


def labelled(utterances: Utterances, *, targets: Sequence[str]) -> LabelledUtterances:
    """The utterances with at least one of the targets, each with a known speaker.

    Raises:
        AnalysisError: no target, one named twice, an unknown or text label, one that is missing
            everywhere, or an unknown speaker.
    """
    if not targets or len(set(targets)) != len(targets):
        raise AnalysisError(f"targets {list(targets)}: name one or more numeric labels, each once.")
    truth = np.stack([label_values(utterances.table, target=t) for t in targets], axis=1)
    for target, missing in zip(targets, np.isnan(truth).all(axis=0), strict=True):
        if missing:
            raise AnalysisError(f"Label {target!r} is missing for every utterance.")
    known = ~np.isnan(truth).all(axis=1)
    rows = np.flatnonzero(known)
    return LabelledUtterances(
        targets=tuple(targets),
        ids=utterances.ids[rows],
        speakers=known_speakers(utterances.table, of=known)[rows],
        truth=truth[rows],
        coefficients=tuple(utterances.coefficients[row] for row in rows),
        audio=text_values(utterances.table, "audio_sha256")[rows],
        notes=utterances.notes,
    )


def read_utterances(
    source: Source,
    *,
    front_end: FrontEnd,
    view: str | None = None,
    progress: bool | None = None,
) -> Utterances:
    """MFCC, speakers and labels of all utterances.

    Args:
        source: a store with MFCC frames (an open one, or its folder), or a manifest (a table, or
            its `.csv` or `.parquet` file), whose audio is decoded.
        front_end: the MFCC that the network was trained with.
        view: name of the store's MFCC view, where it has several that fit.
        progress: whether to show a bar; None shows one on a terminal.

    Raises:
        StoreError: no such store, or none of its views holds MFCC frames of this front end.
        ManifestError: a manifest that cannot be used.
        AudioError: not one file could be read.
    """
    if isinstance(source, str | os.PathLike) and not str(source).endswith((".csv", ".parquet")):
        source = open_store(source)
    if isinstance(source, Store):
        return _from_store(source, front_end, view)
    return _from_manifest(load_table(source), front_end, progress)


def _sorted(
    table: pd.DataFrame, coefficients: Sequence[np.ndarray], notes: tuple[str, ...] = ()
) -> Utterances:
    order = np.argsort(table["id"].to_numpy().astype(str), kind="stable")
    columns = {
        str(name): ("utterance", values if values.dtype.kind in "if" else values.astype(object))
        for name, values in ((n, table[n].to_numpy()[order]) for n in table.columns)
    }
    return Utterances(xr.Dataset(coords=columns), tuple(coefficients[i] for i in order), notes)


def _from_store(store: Store, front_end: FrontEnd, view: str | None) -> Utterances:
    name = _mfcc_view(store, front_end, view)
    table = store.utterances(name)
    values = np.asarray(store.frames(name, "mfcc").data, np.float32)
    if not np.isfinite(values).all():
        raise StoreError(
            f"view {name} holds MFCC that are not finite: something is missing or damaged; "
            "'featurestore verify' says what"
        )
    ends = np.cumsum(table["frame_count"].to_numpy(int))
    return _sorted(table, np.split(values, ends[:-1]))


def _mfcc_view(store: Store, front_end: FrontEnd, view: str | None) -> str:
    """The view with MFCC frames of the front end."""
    configs = {name: store.config(name) for name in store.views}
    held = {name: one for name, one in configs.items() if one.kind == "mfcc"}
    if view is not None:
        held = {view: store.config(view)}
    fitting = [n for n, one in held.items() if one.frames and one.front_end == front_end.name]
    if len(fitting) > 1:
        raise StoreError(
            f"the store has several views with MFCC frames of '{front_end.name}'; name one of "
            f"them: {', '.join(fitting)}"
        )
    if not fitting:
        found = ", ".join(
            f"{name} ({one.front_end or one.kind}, {'with' if one.frames else 'without'} frames)"
            for name, one in held.items()
        )
        raise StoreError(
            f"no view of {store.path} holds MFCC frames of front end '{front_end.name}', which "
            f"the weights need; MFCC views: {found or 'none'}. Add one with 'featurestore ingest "
            f"MANIFEST {store.path} --views mfcc --front-end {front_end.name}', or give the "
            "manifest instead of the store"
        )
    return fitting[0]


def _from_manifest(table: pd.DataFrame, front_end: FrontEnd, progress: bool | None) -> Utterances:
    measured, problems = survey(table, front_end, lambda amount: None)
    problems |= {id: one.refusal for id, one in measured.items() if one.refusal}
    rows = [row for row in table.to_dict("records") if row["id"] not in problems]
    lengths = np.array([measured[row["id"]].frames for row in rows], int)
    found: dict[str, _Heard] = {}
    seconds = float(lengths.sum()) * FRAME_PERIOD_S
    with (
        progress_bar("MFCC", seconds, unit="h", scale=3600, show=progress) as tick,
        ThreadPoolExecutor(_DECODERS, thread_name_prefix="decoder") as pool,
    ):
        for batch in batches(lengths, choose_buckets(lengths, BatchPolicy())):
            members = [rows[i] for i in batch.members]
            frames = lengths[list(batch.members)]
            decoded = pool.map(functools.partial(_prepared, front_end=front_end), members, frames)
            good: dict[str, _Prepared] = {}
            for row, one in zip(members, decoded, strict=True):
                if isinstance(one, str):
                    problems[row["id"]] = one
                else:
                    good[row["id"]] = one
            found |= _mfcc_of_batch(batch.bucket, good)
            tick(float(frames.sum()) * FRAME_PERIOD_S)
    notes = _left_out(problems, len(table), nothing=not found)
    kept = table[table["id"].isin(found)].drop(columns=["path", "start", "end"], errors="ignore")
    heard = [found[id] for id in kept["id"]]
    kept = kept.assign(audio_sha256=pd.Series([one.sha256 for one in heard], kept.index, object))
    return _sorted(kept, [one.coefficients for one in heard], notes)


def _left_out(problems: dict[str, str], count: int, *, nothing: bool) -> tuple[str, ...]:
    """A note on what could not be read.

    Raises:
        AudioError: nothing could.
    """
    if not problems:
        return ()
    id, reason = next(iter(problems.items()))
    if nothing:
        raise AudioError(f"none of {count} utterances could be read; the first is {id!r}: {reason}")
    return (
        f"{len(problems)} of {count} utterances could not be read and are left out; the first is "
        f"{id!r}: {reason}.",
    )


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A waveform that the front end takes."""

    samples: np.ndarray
    frames: int
    sha256: str


@dataclass(frozen=True, eq=False)
class _Heard:
    coefficients: Float[np.ndarray, "frame 20"]
    sha256: str


def _mfcc_of_batch(bucket: Bucket, good: dict[str, _Prepared]) -> dict[str, _Heard]:
    """MFCC by id."""
    counts = np.zeros(bucket.rows, np.int32)
    counts[: len(good)] = [one.frames for one in good.values()]
    samples = [one.samples for one in good.values()]
    buffers = fill_buffers(samples, rows=bucket.rows, frames=bucket.frames)
    coefficients = np.asarray(_mfcc()(buffers, counts))
    return {
        id: _Heard(values[: one.frames].copy(), one.sha256)
        for (id, one), values in zip(good.items(), coefficients, strict=False)
    }


def _prepared(row: dict[str, Any], frames: int, *, front_end: FrontEnd) -> _Prepared | str:
    """A waveform, or why there is none."""
    path, start, end = segment(row)
    try:
        clip = read_clip(path, start=start, end=end)
        samples = samples_for(clip, front_end)
        if front_end.frame_count(len(samples)) != frames:
            return f"its header does not say how long it is: {path}"
        return _Prepared(front_end.prepare(samples), int(frames), clip.sha256)
    except AudioError as error:
        return str(error)


@functools.cache
def _mfcc() -> jax.stages.Wrapped:
    return jax.jit(mfcc_of_batch)
