"""Labelled, lazy access to a feature store. Opening reads metadata only."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
import zarr

from featurestore.errors import StoreError
from featurestore.storage import Place, as_place
from featurestore.storage.arrays import PlaceStore
from featurestore.store.lazy import (
    Extent,
    frame_blocks,
    frames_array,
    per_frame,
    rows_array,
    unpack,
)
from featurestore.store.ledger import Part, View, read_views
from featurestore.store.records import check_store
from featurestore.store.rows import read_rows
from featurestore.store.schema import ViewConfig
from featurestore.store.table import MEASURED, read_columns
from featurestore.types import NETWORK, STATISTICS


@dataclass(frozen=True, eq=False)
class _OpenPart:
    part: Part
    store: PlaceStore
    table: pd.DataFrame  # one row per utterance, in slot order
    extents: tuple[Extent, ...]
    digest: str

    def array(self, path: str) -> zarr.Array:
        try:
            return zarr.open_array(self.store, path=path, mode="r", zarr_format=3)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self.part.arrays}/{path} cannot be read; 'featurestore verify' says what is "
                "damaged"
            ) from error


def _open_part(part: Part, rows: pd.DataFrame) -> _OpenPart:
    if not part.complete:
        done, planned = len(part.committed_columns()), part.plan_record()["columns"]
        raise StoreError(
            f"view {part.view.name} is incomplete: {done} of {planned} columns of {part.name} are "
            "written. Run the same 'featurestore ingest' again to complete it"
        )
    store = part.reading()
    columns = _measured(part, store)
    held = np.flatnonzero(columns["id"] != "")
    table = pd.DataFrame({name: values[held] for name, values in columns.items()})
    table = table.join(rows, on="id")
    frames = int(part.plan_record()["column_frames"])
    extents = tuple(_extents(held, table, frames)) if "frame_start" in table else ()
    return _OpenPart(part, store, table.assign(slot=held), extents, part.completion()["digest"])


def _measured(part: Part, store: PlaceStore) -> dict[str, np.ndarray]:
    """What ingest measured of a part's utterances; their labels come from the store's own table."""
    try:
        columns = read_columns(store, MEASURED)
        if not {"id", "duration_s", "audio_sha256"} <= set(columns):
            raise ValueError("columns are missing")
    except Exception as error:  # damaged arrays raise whatever their codec does
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(
            f"the utterance table of {part.arrays} cannot be read: {reason}; "
            "'featurestore verify' says what else is damaged"
        ) from error
    return columns


def _refuse_duplicates(view: View, parts: Sequence[_OpenPart]) -> None:
    ids = pd.concat([part.table["id"] for part in parts])
    if ids.duplicated().any():
        raise StoreError(
            f"view {view.name} holds utterance '{ids[ids.duplicated()].iloc[0]}' twice: two "
            "ingests wrote to the store at once; ingest into a new store"
        )


def _plain(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind in "if" else values.astype(object)


def _extents(slots: np.ndarray, table: pd.DataFrame, column_frames: int) -> list[Extent]:
    """Utterances of each column: rows and frames that follow each other without a gap."""
    starts, counts = table["frame_start"].to_numpy(), table["frame_count"].to_numpy()
    follows = (np.diff(slots) == 1) & (starts[1:] == starts[:-1] + counts[:-1])
    follows &= starts[1:] % column_frames != 0
    edges = [0, *(np.flatnonzero(~follows) + 1), len(slots)]
    return [
        Extent(slice(int(starts[a]), int(starts[b - 1] + counts[b - 1])), counts[a:b])
        for a, b in itertools.pairwise(edges)
    ]


class Store:
    """A feature store opened for reading.

    Attributes:
        path: where it is.
    """

    def __init__(self, place: Place) -> None:
        """Use `open_store`."""
        self.place = place
        self.path = place.url
        self._views = {view.name: view for view in read_views(place)}
        self._parts: dict[str, tuple[_OpenPart, ...]] = {}

    def __repr__(self) -> str:
        return f"<featurestore {self.path}: {', '.join(self.views) or 'no views'}>"

    @property
    def views(self) -> list[str]:
        """Names of the views."""
        return sorted(self._views)

    @property
    def kinds(self) -> set[str]:
        """Kinds of the views: `mfcc`, `egemaps`, and those of encoders, such as `gcu`."""
        return {view.config.kind for view in self._views.values()}

    def config(self, view: str) -> ViewConfig:
        """The extractor configuration of a view, by name or kind; `network` is any encoder's."""
        return self._view(view).config

    def _view(self, name: str) -> View:
        if name in self._views:
            return self._views[name]
        found = [
            view
            for view in self._views.values()
            if view.config.kind == name or (name == NETWORK and view.config.is_network)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(
                f"{view.name} (weights {view.config.weights_source or 'none'}, captures "
                f"{'+'.join(view.config.captures)})"
                for view in found
            )
            raise StoreError(
                f"the store has several '{name}' views; name one of them (--view, in Python "
                f"view=): {names}"
            )
        raise StoreError(
            f"the store has no view '{name}'; it has: {', '.join(self.views) or 'none yet'}"
        )

    @functools.cached_property
    def _rows(self) -> pd.DataFrame:
        """Speaker, text and labels by utterance, as the manifests give them."""
        return read_rows(self.place).set_index("id")

    def _open(self, view: str) -> tuple[View, tuple[_OpenPart, ...]]:
        found = self._view(view)
        if found.name not in self._parts:
            parts = tuple(_open_part(part, self._rows) for part in found.parts())
            if not parts:
                raise StoreError(f"view {found.name} holds no utterances yet; run ingest")
            _refuse_duplicates(found, parts)
            self._parts[found.name] = parts
        return found, self._parts[found.name]

    def utterances(self, view: str = NETWORK) -> pd.DataFrame:
        """The utterance table of a view: id, speaker, labels, duration_s, frame_count, and so on.

        Args:
            view: name or kind.

        Raises:
            StoreError: no such view, or an incomplete one.
        """
        _, parts = self._open(view)
        return _table(parts)

    def pooled(self, view: str = NETWORK) -> xr.Dataset:
        """Statistics over each utterance's frames.

        Args:
            view: name or kind, of a `gcu` or `mfcc` view.

        Returns:
            One lazy float32 variable per capture, (statistic, utterance, layer, unit) or, for MFCC,
            (statistic, utterance, coefficient); statistics are mean, std (population), min, max.
            Coordinates along utterance: id, speaker, duration_s and all labels.

        Raises:
            StoreError: no such view, an incomplete one, or one without pooled statistics.
        """
        found, parts = self._open(view)
        if found.config.kind == "egemaps":
            raise StoreError(f"view {found.name} has no pooled statistics; use features()")
        variables = {
            capture: (
                ("statistic", "utterance", *found.config.inner),
                _along_utterances(found, parts, f"pooled/{capture}", axis=1),
            )
            for capture in found.config.captures
        }
        coords = {"statistic": list(STATISTICS), **_unit_coords(found.config)}
        return xr.Dataset(variables, {**coords, **_utterance_coords(parts)}, _attrs(found))

    def features(self, view: str = "egemaps") -> xr.DataArray:
        """One row of features per utterance: eGeMAPS functionals.

        Returns:
            Lazy float32 (utterance, feature), coordinates as in `pooled`.

        Raises:
            StoreError: no such view, an incomplete one, or one of another kind.
        """
        found, parts = self._open(view)
        if found.config.kind != "egemaps":
            raise StoreError(f"view {found.name} holds frames; use pooled() or frames()")
        coords = {"feature": list(found.config.features), **_utterance_coords(parts)}
        return xr.DataArray(
            _along_utterances(found, parts, "features", axis=0),
            coords,
            ("utterance", "feature"),
            found.config.kind,
            _attrs(found),
        )

    def _frames_of(self, view: str, capture: str | None) -> tuple[View, tuple[_OpenPart, ...], str]:
        found, parts = self._open(view)
        if not found.config.frames:
            raise StoreError(f"view {found.name} was ingested without frames; use pooled()")
        capture = found.config.captures[0] if capture is None else capture
        if capture not in found.config.captures:
            raise StoreError(
                f"view {found.name} has no capture '{capture}'; it has: "
                f"{', '.join(found.config.captures)}"
            )
        return found, parts, capture

    def frames(self, view: str = NETWORK, capture: str | None = None) -> xr.DataArray:
        """Every frame of every utterance, one utterance after another.

        Args:
            view: name or kind of a view that has frames; `network` is the encoder's.
            capture: one of the view's captures; its first one by default.

        Returns:
            Lazy (layer, frame, unit) or (frame, coefficient). Coordinates along frame, lazy too:
            `utterance` (the id) and `time_s` (centre of the frame in its utterance, seconds).

        Raises:
            StoreError: no such view or capture, or an incomplete one.
        """
        found, parts, capture = self._frames_of(view, capture)
        dims = _frame_dims(found.config)
        scale = found.config.scale(capture)
        layers = len(found.config.layer_names) if found.config.is_network else 1
        blocks = frame_blocks([part.extents for part in parts], layers=layers)
        path = f"frames/{capture}"
        token = _token(found, parts, path)
        ids = [part.table["id"].to_numpy() for part in parts]
        times = functools.partial(_frame_times, found.config)
        coords = {
            **_unit_coords(found.config),
            "utterance": ("frame", per_frame(np.repeat, ids, blocks, dtype=object, token=token)),
            "time_s": ("frame", per_frame(times, ids, blocks, dtype=float, token=token + "t")),
        }
        arrays = [part.array(path) for part in parts]
        data = frames_array(arrays, blocks, scale=scale, token=token)
        return xr.DataArray(data, coords, dims, capture, _attrs(found))

    def utterance(self, view: str, capture: str, id: str) -> xr.DataArray:
        """The frames of one utterance, read now.

        Args:
            view: name or kind.
            capture: one of the view's captures.
            id: the utterance.

        Returns:
            (layer, frame, unit) or (frame, coefficient), with coordinate `time_s`.

        Raises:
            StoreError: no such view, capture or utterance.
        """
        found, parts, capture = self._frames_of(view, capture)
        dims = _frame_dims(found.config)
        for part in parts:
            rows = np.flatnonzero(part.table["id"].to_numpy() == id)
            if len(rows):
                row = part.table.iloc[rows[0]]
                start, count = int(row["frame_start"]), int(row["frame_count"])
                index = tuple(
                    slice(start, start + count) if dim == "frame" else slice(None) for dim in dims
                )
                values = np.asarray(part.array(f"frames/{capture}")[index])
                scale = found.config.scale(capture)
                values = values if scale is None else unpack(values, scale)
                times = ("frame", _frame_times(found.config, np.array([id]), np.array([count])))
                coords = {**_unit_coords(found.config), "time_s": times}
                return xr.DataArray(values, coords, dims, capture, {**_attrs(found), "id": id})
        raise StoreError(f"view {found.name} has no utterance '{id}'")


def _table(parts: Sequence[_OpenPart]) -> pd.DataFrame:
    """Utterances of all parts; a text label that only some parts have is "" in the others."""
    table = pd.concat([part.table for part in parts], ignore_index=True)
    table = table.drop(columns=["slot", "frame_start", "audio_stamp"], errors="ignore")
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            table[name] = table[name].fillna("")
    first = ["id", "speaker"]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _utterance_coords(parts: Sequence[_OpenPart]) -> dict[str, tuple[str, np.ndarray]]:
    table = _table(parts)
    return {str(name): ("utterance", _plain(table[name].to_numpy())) for name in table.columns}


def _attrs(view: View) -> dict[str, str]:
    config = view.config
    return {
        "view": view.name,
        "weights": config.weights,
        "weights_source": config.weights_source,
        "front_end": config.front_end,
    }


def _frame_dims(config: ViewConfig) -> tuple[str, ...]:
    *outer, last = config.inner
    return (*outer, "frame", last)


def _unit_coords(config: ViewConfig) -> dict[str, object]:
    if not config.is_network:
        return {}
    layers = len(config.layer_names)
    return {"layer": np.arange(layers), "layer_name": ("layer", list(config.layer_names))}


def _along_utterances(view: View, parts: Sequence[_OpenPart], path: str, *, axis: int) -> da.Array:
    """Rows of all parts that hold an utterance."""
    return rows_array(
        [part.array(path) for part in parts],
        [part.table["slot"].to_numpy() for part in parts],
        axis=axis,
        token=_token(view, parts, path),
    )


def _token(view: View, parts: Sequence[_OpenPart], path: str) -> str:
    """What tells an array of these parts from any other, for dask's names."""
    return " ".join([view.place.url, *(part.digest for part in parts), path])


def _frame_times(config: ViewConfig, ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    frames = np.concatenate([np.arange(count) for count in counts])
    return config.frame_offset_s + frames * config.frame_period_s


def open_store(path: str | os.PathLike[str] | Place) -> Store:
    """Open a feature store for reading; touches metadata only.

    Args:
        path: the folder or URL that `ingest` wrote to.

    Raises:
        StoreError: not a store, or one of a newer format.
    """
    root = as_place(path)
    check_store(root)
    return Store(root)
