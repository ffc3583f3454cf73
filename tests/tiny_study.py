"""A corpus, networks and studies so small that a whole study of them takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from synthetic import write_corpus
from threadpoolctl import threadpool_limits

import featurestore as fs
from featurestore import encoder
from featurestore.study.cache import Cache
from featurestore.study.config import AnalysisPlan, IngestPlan, Study, TracePlan
from featurestore.study.views import Studied, ViewFacts
from featurestore.waveform import Waveform

WINDOW = 160
PLAN = AnalysisPlan(permutations=9, resamples=49, best=4, same_size=4)
SENTENCE = "nobody should find this sentence in an archive"


class TinyNetwork:
    """Four layers of six units: loudness in the first two, random projections in the others.

    `random:SEED` for a number; any other text is the name of a network that counts as trained.
    """

    kind, captures, units = "tiny", ("gate", "skip"), 6
    layer_names = ("one", "two", "three", "four")
    receptive_field = 1
    front_end = Waveform(window=WINDOW, hop=WINDOW)

    def __init__(self, text: str) -> None:
        self.untrained = text.isdigit()
        self.name = f"random:{text}" if self.untrained else text
        self.fingerprint = f"tiny-{text}"
        seed = [ord(letter) for letter in text]
        weights = np.random.default_rng(seed).standard_normal((WINDOW, 22))
        self.variables: Any = (weights / np.sqrt(WINDOW)).astype(np.float32)

    def apply(self, variables: Any, batch: Any, lengths: Any) -> dict[str, Any]:
        """(utterance, layer, frame, unit) by capture."""
        import jax.numpy as jnp

        frames = batch[:, : batch.shape[1] // WINDOW * WINDOW].reshape(len(batch), -1, WINDOW)
        level = jnp.mean(jnp.abs(frames), axis=-1)
        values = jnp.stack([level, level**2], axis=-1)
        values = jnp.concatenate([values, jnp.tanh(frames @ variables)], axis=-1)
        gate = jnp.moveaxis(values.reshape(*values.shape[:2], 4, 6), 2, 1)
        return {"gate": gate, "skip": -0.5 * gate**2}


@contextmanager
def tiny_networks() -> Iterator[None]:
    """`tiny:SEED` are weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoder._LOADERS, "tiny", TinyNetwork)
        yield


@contextmanager
def tiny_studies() -> Iterator[None]:
    """Quick ones: `tiny_networks`, and reports of tables and a page, but no figures."""
    with tiny_networks(), threadpool_limits(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.report.exports.figures_of", lambda contents: {})
        yield


def small_corpus(folder: Path, *, speakers: int = 5, each: int = 6) -> pd.DataFrame:
    """A manifest, also written to `manifest.csv`, with what a corpus may say of its speakers."""
    count = speakers * each
    folder.mkdir(parents=True, exist_ok=True)
    durations = [0.5 + 0.5 * ((7 * k) % count) / count for k in range(count)]
    table = write_corpus(folder, durations=durations, speakers=speakers)
    who = table["speaker"].tolist()
    table = table.assign(
        text=[f"{SENTENCE} {k}" for k in range(count)],
        remark=[f"{SENTENCE}, said again {k}" for k in range(count)],
        sex=["f" if one in ("s0", "s2") else "m" for one in who],
        session=["A" if one in ("s0", "s1") else "B" for one in who],
    )
    fs.write_manifest(table, folder / "manifest.csv")
    return table


def small_study(folder: Path, **changes: Any) -> Study:
    """Of `small_corpus` in the folder."""
    plan = IngestPlan("tiny:7", ("tiny:0",), ("network", "mfcc"), ("gate", "skip"))
    study = Study(
        str(folder / "small.store"),
        str(folder / "report"),
        str(folder / "manifest.csv"),
        ingest=plan,
        analysis=PLAN,
        traces=TracePlan(count=2),
    )
    return Study(**{**vars(study), **changes})


class Altered:
    """A studied store whose utterances, labels or views are others, without a new ingest."""

    def __init__(
        self,
        store: Studied,
        change: Callable[[Any], Any] = lambda data: data,
        *,
        lacking: tuple[str, ...] = (),
    ) -> None:
        self.store, self.change = store, change
        self.facts: dict[str, ViewFacts] = {
            name: one
            for name, one in store.facts.items()
            if name not in lacking and one.kind not in lacking
        }

    @property
    def views(self) -> list[str]:
        return list(self.facts)

    @property
    def kinds(self) -> set[str]:
        return {one.kind for one in self.facts.values()}

    def pooled(self, view: str) -> Any:
        return self.change(self.store.pooled(view))

    def features(self, view: str) -> Any:
        return self.change(self.store.features(view))


def relabelled(**columns: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    """Columns replaced by functions of their values and of the speakers."""

    def change(data: xr.Dataset | xr.DataArray) -> Any:
        speakers = data["speaker"].to_numpy().astype(str)
        new = {
            name: ("utterance", make(data[name].to_numpy().copy(), speakers))
            for name, make in columns.items()
        }
        return data.assign_coords(new)

    return change


def stages(cache: Cache) -> tuple[dict[str, int], dict[str, int]]:
    """How many stages of each name were made, and how many were taken from an earlier run."""
    return tuple({name: names.count(name) for name in names} for names in (cache.made, cache.used))  # type: ignore[return-value]
