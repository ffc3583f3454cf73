"""Labels, speakers and feature matrices of a store, joined by utterance id.

Views of one store may hold different utterances in different orders (a file that openSMILE could
not read, a view that was added later), so nothing here relies on positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Float64, Shaped
from numpy.typing import NDArray

from featurestore.errors import AnalysisError

Source = Literal["gcu", "mfcc", "egemaps"]
Layers = Literal["all", "first", "last"]

END_LAYERS = 3  # "first" and "last" layers of the paper's second experiment

_NOT_LABELS = frozenset({"id", "speaker", "utterance", "path", "sha256", "text"})


class AnalysisWarning(UserWarning):
    """Something is left out of an analysis; the message says what, and how to have it."""


@runtime_checkable
class Store(Protocol):
    """What the analyses read of a feature store; `featurestore.open_store` returns one."""

    @property
    def views(self) -> list[str]:
        """Names of the views, such as "gcu-1a2b3c4d5e6f" or "egemaps-v02".

        A view may also be asked for by its kind, or as "network", which is the view of an encoder,
        whatever its kind, where there is one.
        """
        ...

    @property
    def kinds(self) -> set[str]:
        """Kinds of the views: "mfcc", "egemaps", and those of encoders, such as "gcu"."""
        ...

    def pooled(self, view: str) -> xr.Dataset:
        """One variable per capture over (statistic, utterance, *feature), lazy."""
        ...

    def features(self, view: str) -> xr.DataArray:
        """Functionals over (utterance, feature)."""
        ...


@dataclass(frozen=True)
class FeatureSet:
    """One row of a table: which features a linear regression is given, and how.

    Attributes:
        name: as printed.
        source: role of a view, "gcu" for that of any encoder; None predicts the mean of the
            training targets.
        layers: which layers of the network, for source "gcu".
        best: how many features are selected inside each training fold; None keeps all.
        clipped: scale to [0, 1] by the training fold's range and clip what lies outside it.
    """

    name: str
    source: Source | None
    layers: Layers = "all"
    best: int | None = None
    clipped: bool = False

    def matrix(self, matrices: dict[Source, NDArray[Any]]) -> NDArray[Any]:
        """(utterance, feature) features of this set; no column at all without a source."""
        if self.source is None:
            return np.empty((len(next(iter(matrices.values()))), 0), np.float32)
        values = matrices[self.source]
        if self.source == "gcu" and self.layers == "first":
            values = values[:, :END_LAYERS]
        elif self.source == "gcu" and self.layers == "last":
            values = values[:, -END_LAYERS:]
        return values.reshape(len(values), -1)


def table_sets(table: int, *, best: int = 100) -> tuple[FeatureSet, ...]:
    """Feature sets of the paper's Table 1 or 2, with the controls that it lacks.

    Raises:
        AnalysisError: `table` is neither 1 nor 2.
    """
    egemaps = (
        FeatureSet("eGeMAPS", "egemaps"),
        FeatureSet("eGeMAPS, clipped to the training range", "egemaps", clipped=True),
    )
    baseline = FeatureSet("train mean", None)
    if table == 1:
        neural = FeatureSet(f"{best} best of all units", "gcu", best=best)
        return (baseline, neural, *egemaps, FeatureSet("MFCC mean + std", "mfcc"))
    if table == 2:
        return (
            baseline,
            FeatureSet(f"{best} best of first {END_LAYERS} layers", "gcu", "first", best),
            FeatureSet(f"{best} best of last {END_LAYERS} layers", "gcu", "last", best),
            FeatureSet(f"{best} best of all layers", "gcu", "all", best),
            *egemaps,
        )
    raise AnalysisError(f"There is no table {table!r}: choose 1 or 2.")


@dataclass(frozen=True)
class Aligned:
    """Features of several views for the utterances that all of them hold, sorted by id.

    Attributes:
        table: coordinates over (utterance): id, speaker and labels.
        matrices: (utterance, *feature) per kind of view.
    """

    table: xr.Dataset
    matrices: dict[Source, NDArray[Any]]

    @property
    def ids(self) -> Shaped[np.ndarray, " utterance"]:
        """(utterance,) ids, ascending."""
        return text_values(self.table, "id")

    def take(self, keep: NDArray[np.bool_]) -> Aligned:
        """The utterances where `keep` (utterance,) is true."""
        rows = np.flatnonzero(keep)
        return Aligned(
            table=self.table.isel(utterance=rows),
            matrices={source: values[rows] for source, values in self.matrices.items()},
        )


def utterance_table(data: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """The coordinates along utterance alone, in memory."""
    columns = {
        name: ("utterance", np.asarray(coordinate.values))
        for name, coordinate in data.coords.items()
        if coordinate.dims == ("utterance",)
    }
    return xr.Dataset(coords=columns)


def is_numeric(values: NDArray[Any]) -> bool:
    """Whether a label column holds numbers rather than text."""
    return values.dtype.kind in "fiu"


def numeric_labels(data: xr.Dataset | xr.DataArray) -> list[str]:
    """Names of the coordinates along utterance that can be a target."""
    return [
        str(name)
        for name, coordinate in data.coords.items()
        if coordinate.dims == ("utterance",)
        and name not in _NOT_LABELS
        and is_numeric(coordinate.values)
    ]


def label_values(
    data: xr.Dataset | xr.DataArray, *, target: str
) -> Float64[np.ndarray, " utterance"]:
    """The numeric label `target` of every utterance, NaN where it is missing.

    Args:
        data: anything with coordinates along utterance.
        target: name of a numeric label.

    Raises:
        AnalysisError: there is no such label, or it is text.
    """
    available = ", ".join(numeric_labels(data)) or "none"
    if target not in data.coords or data.coords[target].dims != ("utterance",):
        raise AnalysisError(
            f"No label {target!r} in this store; numeric labels: {available}. "
            "Labels are columns of the manifest at ingest."
        )
    values = data.coords[target].values
    if target in _NOT_LABELS or not is_numeric(values):
        sample = next((str(value) for value in values if str(value)), "")
        raise AnalysisError(
            f"Label {target!r} is text (for example {sample!r}), a target must be numeric: "
            f"{available}."
        )
    numbers = values.astype(np.float64)
    numbers[np.isinf(numbers)] = np.nan
    return numbers


def text_values(data: xr.Dataset | xr.DataArray, name: str) -> Shaped[np.ndarray, " utterance"]:
    """A text coordinate as unicode strings, "" where it is missing."""
    values = data.coords[name].values.tolist()
    return np.array(["" if v is None or v != v else str(v) for v in values], dtype=np.str_)


def known_speakers(
    table: xr.Dataset, *, of: NDArray[np.bool_] | None = None
) -> Shaped[np.ndarray, " utterance"]:
    """Speaker of every utterance.

    Args:
        table: coordinates along utterance.
        of: (utterance,) which utterances need a speaker; all by default.

    Raises:
        AnalysisError: a speaker is unknown; names an utterance.
    """
    count = table.sizes["utterance"]
    named = "speaker" in table.coords
    speakers = text_values(table, "speaker") if named else np.full(count, "", dtype=np.str_)
    unknown = (speakers == "") if of is None else (speakers == "") & of
    if unknown.any():
        first = text_values(table, "id")[np.argmax(unknown)]
        raise AnalysisError(
            f"{int(unknown.sum())} of {count} utterances have no speaker (the first is {first!r}). "
            "Fill the manifest's 'speaker' column and ingest again, or ask for statistics over "
            "all utterances (by=None)."
        )
    return speakers


def align(store: Store, *, views: dict[Source, str], capture: str | None) -> Aligned:
    """Read the views once and join them by utterance id.

    Speakers and labels are those of the first view. Utterances with a feature that is not finite
    are left out, with a warning.

    Args:
        store: an open feature store.
        views: name of the view to read per role; the first one carries the labels.
        capture: capture point of the network; None is the view's first one.

    Raises:
        AnalysisError: the views share no utterance, or a view holds an id twice.
    """
    read = {source: _read(store, source, name, capture) for source, name in views.items()}
    row_of = {source: _rows(ids, views[source]) for source, (ids, _, _) in read.items()}
    shared = sorted(set.intersection(*(set(rows) for rows in row_of.values())))
    if not shared:
        counts = ", ".join(f"{views[source]} has {len(rows)}" for source, rows in row_of.items())
        raise AnalysisError(
            f"No utterance id is in every view ({counts}). Ingest the same manifest with all the "
            "views that are to be compared."
        )
    take = {source: [rows[i] for i in shared] for source, rows in row_of.items()}
    first = next(iter(views))
    aligned = Aligned(
        table=read[first][2].isel(utterance=take[first]),
        matrices={source: read[source][1][take[source]] for source in views},
    )
    return _finite_only(aligned, views)


def _read(
    store: Store, source: Source, view: str, capture: str | None
) -> tuple[list[str], NDArray[Any], xr.Dataset]:
    """Ids, features (utterance, *feature) and utterance table of one view."""
    if source == "egemaps":
        array = store.features(view).transpose("utterance", ...)
    else:
        data = store.pooled(view)
        wanted: Sequence[str] = ["mean"] if source == "gcu" else ["mean", "std"]
        array = captured(data, capture if source == "gcu" else "mfcc", view=view)
        array = array.sel(statistic=list(wanted)).transpose("utterance", "statistic", ...)
        array = array.isel(statistic=0) if len(wanted) == 1 else array
    table = utterance_table(array)
    return text_values(table, "id").tolist(), np.asarray(array.values), table


def captured(data: xr.Dataset, capture: str | None, *, view: str) -> xr.DataArray:
    """The variable `capture` of a pooled view, its first one for None.

    Raises:
        AnalysisError: the view does not hold it; names those it holds.
    """
    if capture is None:
        capture = str(next(iter(data.data_vars)))
    if capture not in data.data_vars:
        held = ", ".join(str(name) for name in data.data_vars)
        raise AnalysisError(
            f"View {view!r} holds no capture {capture!r}, only: {held}. "
            f"Ingest with --capture {capture} to add it."
        )
    return data[capture]


def _rows(ids: list[str], view: str) -> dict[str, int]:
    rows = {i: row for row, i in enumerate(ids)}
    if len(rows) != len(ids):
        twice = next(i for row, i in enumerate(ids) if rows[i] != row)
        raise AnalysisError(
            f"Utterance id {twice!r} is twice in view {view!r}; ids must be unique to join views."
        )
    return rows


def _finite_only(aligned: Aligned, views: dict[Source, str]) -> Aligned:
    keep = np.ones(aligned.table.sizes["utterance"], dtype=bool)
    for source, values in aligned.matrices.items():
        finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if not finite.all():
            first = aligned.ids[np.argmin(finite)]
            warnings.warn(
                f"{int((~finite).sum())} utterances of view {views[source]!r} have features that "
                f"are not finite (the first is {first!r}); they are left out of every feature set.",
                AnalysisWarning,
                stacklevel=4,
            )
        keep &= finite
    return aligned if keep.all() else aligned.take(keep)
