"""Labels and speakers of a store's utterances, and what the analyses ask of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Float64, Shaped
from numpy.typing import NDArray

from featurestore.errors import AnalysisError

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


def targets_by_missing(
    data: xr.Dataset | xr.DataArray, targets: Sequence[str]
) -> list[tuple[list[str], NDArray[np.bool_]]]:
    """Targets that are known of the same utterances, which share their folds, and those.

    Args:
        data: anything with coordinates along utterance.
        targets: numeric labels.

    Raises:
        AnalysisError: a target is no numeric label, or is missing everywhere.
    """
    found: dict[bytes, tuple[list[str], NDArray[np.bool_]]] = {}
    for target in targets:
        known = np.isfinite(label_values(data, target=target))
        if not known.any():
            raise AnalysisError(
                f"Label {target!r} is missing for every utterance that is compared."
            )
        found.setdefault(known.tobytes(), ([], known))[0].append(target)
    return list(found.values())


def unlabelled(table: xr.Dataset, targets: Sequence[str], *, known: NDArray[np.bool_]) -> list[str]:
    """What is to be said of utterances, and of whole speakers, that have no label.

    Args:
        table: coordinates along utterance.
        targets: labels that are known of the same utterances.
        known: (utterance,) which these are.
    """
    if known.all():
        return []
    named = ", ".join(targets)
    notes = [
        f"{named}: {int((~known).sum())} of {len(known)} utterances have no label and are left out."
    ]
    if "speaker" in table.coords:
        speakers = text_values(table, "speaker")
        absent = sorted(set(speakers[~known]) - set(speakers[known]) - {""})
        if absent:
            notes.append(f"{named}: no label for {len(absent)} speakers: {', '.join(absent)}.")
    return notes


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
