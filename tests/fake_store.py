"""A feature store in memory, with the methods that the analyses use."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

LAYERS, UNITS = 15, 128
STATISTICS = ("mean", "std", "min", "max")


class FakeStore:
    """Views as given; a view answers to its own name, to its kind and to its role."""

    def __init__(
        self, *, pooled: dict[str, xr.Dataset], features: dict[str, xr.DataArray] | None = None
    ):
        self._pooled = pooled
        self._features = features or {}

    @property
    def views(self) -> list[str]:
        return [*self._pooled, *self._features]

    @property
    def kinds(self) -> set[str]:
        return {name.split("-")[0] for name in self.views}

    def pooled(self, view: str) -> xr.Dataset:
        return self._find(self._pooled, view)

    def features(self, view: str) -> xr.DataArray:
        return self._find(self._features, view)

    @staticmethod
    def _find(views: dict[str, Any], view: str) -> Any:
        roles = {name: {name, name.split("-")[0]} for name in views}
        for name in roles:
            if not name.startswith(("mfcc", "egemaps")):
                roles[name].add("network")
        (name,) = [name for name in views if view in roles[name]]
        return views[name]


def coords_of(count: int, *, speakers: list[str], labels: dict[str, Any]) -> dict[str, Any]:
    """Coordinates along utterance."""
    return {
        "id": ("utterance", np.array([f"u{i:04d}" for i in range(count)], dtype=object)),
        "speaker": ("utterance", np.array(speakers, dtype=object)),
        "duration_s": ("utterance", np.linspace(1, 5, count)),
        **{name: ("utterance", np.asarray(values)) for name, values in labels.items()},
    }


def gcu_view(
    mean: np.ndarray, coords: dict[str, Any], *, chunk: int = 7, capture: str = "gate"
) -> xr.Dataset:
    """A pooled network view whose means are (utterance, layer, unit)."""
    layers, units = mean.shape[1:]
    values = np.stack([mean, np.abs(mean), mean - 1, mean + 1]).astype(np.float32)
    names = [f"block_{layer // 5}_{2 ** (layer % 5)}" for layer in range(layers)]
    return xr.Dataset(
        {
            capture: (
                ("statistic", "utterance", "layer", "unit"),
                da.from_array(values, chunks=(-1, chunk, -1, -1)),
            )
        },
        coords={
            "statistic": list(STATISTICS),
            "layer": np.arange(layers),
            "unit": np.arange(units),
            "layer_name": ("layer", np.array(names, dtype=object)),
            **coords,
        },
    )


def mfcc_view(values: np.ndarray, coords: dict[str, Any]) -> xr.Dataset:
    """A pooled MFCC view from (statistic, utterance, coefficient)."""
    return xr.Dataset(
        {"mfcc": (("statistic", "utterance", "coefficient"), da.from_array(values, chunks=-1))},
        coords={"statistic": list(STATISTICS), **coords},
    )


def egemaps_view(values: np.ndarray, coords: dict[str, Any]) -> xr.DataArray:
    """An eGeMAPS view from (utterance, feature)."""
    return xr.DataArray(
        da.from_array(values.astype(np.float32), chunks=(11, -1)),
        dims=("utterance", "feature"),
        coords={"feature": [f"f{i}" for i in range(values.shape[1])], **coords},
    )


def corpus(
    *, count: int = 80, speakers: int = 5, layers: int = 6, units: int = 8, seed: int = 0
) -> FakeStore:
    """All three views, where arousal drives unit (1, 2), two eGeMAPS features and one MFCC.

    The eGeMAPS view is in reverse order and lacks the first two utterances.
    """
    rng = np.random.default_rng(seed)
    arousal = rng.uniform(1, 5, count)
    valence = rng.uniform(1, 5, count)
    arousal[3] = np.nan
    emotion = np.array(["ang", "xxx", "neu", "sad"], dtype=object)[rng.integers(0, 4, count)]
    emotion[5] = ""
    who = [f"s{i % speakers}" for i in range(count)]
    labels = {"arousal": arousal, "valence": valence, "emotion": emotion}
    coords = coords_of(count, speakers=who, labels=labels)
    driven = np.nan_to_num(arousal, nan=3.0)
    mean = rng.normal(size=(count, layers, units))
    mean[:, 1, 2] += 2 * driven
    mean[:, 4, 5] = 0.25  # a dead unit
    mfcc = rng.normal(size=(4, count, 20)).astype(np.float32)
    mfcc[0, :, 0] += driven
    functionals = rng.normal(size=(count, 10))
    functionals[:, :2] += driven[:, None]
    view = egemaps_view(functionals, coords).isel(utterance=slice(None, 1, -1))
    return FakeStore(
        pooled={"gcu-1a2b3c4d5e6f": gcu_view(mean, coords), "mfcc-0f": mfcc_view(mfcc, coords)},
        features={"egemaps-v02": view},
    )


def with_coords(store: FakeStore, **columns: Any) -> FakeStore:
    """The same store with coordinates along utterance of its pooled views replaced."""
    new = {name: ("utterance", np.asarray(values)) for name, values in columns.items()}
    pooled = {name: data.assign_coords(new) for name, data in store._pooled.items()}
    return FakeStore(pooled=pooled, features=store._features)


def isel(store: FakeStore, rows: Any) -> FakeStore:
    """The pooled views with utterances picked or reordered."""
    pooled = {name: data.isel(utterance=rows) for name, data in store._pooled.items()}
    return FakeStore(pooled=pooled, features=store._features)


def without(store: FakeStore, kind: str) -> FakeStore:
    """The store without the views of one kind."""
    return FakeStore(
        pooled={n: d for n, d in store._pooled.items() if not n.startswith(kind)},
        features={n: d for n, d in store._features.items() if not n.startswith(kind)},
    )
