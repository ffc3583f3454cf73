"""Which features: a small language for them, and matrices of them joined by utterance id.

    gcu.gate.mean[0:3]                      means of a capture, in the first three layers
    network.max + network.std[-3:]          of the view of the only network; its first capture
    mfcc + egemaps                          MFCC (mean and std), and eGeMAPS functionals
    first3, last3, all                      the paper's sets

A term is `view.capture.statistic[layers]`, everything but the view optional; layers are sliced as
in Python. Views of one store may hold different utterances in different orders (a file that
openSMILE could not read, a view that was added later), so nothing here relies on positions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from jaxtyping import Shaped
from numpy.typing import NDArray

from featurestore.analysis.features import (
    AnalysisWarning,
    Store,
    captured,
    text_values,
    utterance_table,
)
from featurestore.analysis.streams import Blocks, in_runs
from featurestore.errors import AnalysisError
from featurestore.types import NETWORK, STATISTICS

END_LAYERS = 3  # "first" and "last" layers of the paper's second experiment

NAMED = {
    "all": "network.mean",
    f"first{END_LAYERS}": f"network.mean[:{END_LAYERS}]",
    f"last{END_LAYERS}": f"network.mean[-{END_LAYERS}:]",
}

_TERM = re.compile(r"(?P<view>[\w-]+)(?P<parts>(?:\.[\w-]+)*)\s*(?:\[(?P<layers>[^\]]*)\])?")
_SLICE = re.compile(r"\s*(?P<start>-?\d+)?\s*(?P<colon>:)?\s*(?P<stop>-?\d+)?\s*")
_SHAPE = "view.capture.statistic[layers], such as gcu.gate.mean[0:3]"


@dataclass(frozen=True)
class Block:
    """An array of the store: all features of one statistic.

    Attributes:
        view: name or kind.
        capture: within the view; None is its first one, and that of eGeMAPS.
        statistic: over frames; None for eGeMAPS.
    """

    view: str
    capture: str | None = None
    statistic: str | None = None


@dataclass(frozen=True)
class Term:
    """A block, or some layers of it."""

    block: Block
    layers: slice | None = None


def parse(expression: str) -> tuple[Term, ...]:
    """The terms of an expression, MFCC without a statistic being two.

    Raises:
        AnalysisError: it is not one; says what was expected where.
    """
    terms: list[Term] = []
    for text in expression.split("+"):
        text = text.strip()
        terms += parse(NAMED[text]) if text in NAMED else _terms(text, expression)
    if len(set(map(str, terms))) < len(terms):
        raise AnalysisError(f"Feature set {expression!r} has the same term twice.")
    return tuple(terms)


def _terms(text: str, expression: str) -> list[Term]:
    found = _TERM.fullmatch(text)
    if not found:
        raise AnalysisError(
            f"Feature set {expression!r}: {text!r} is no term; write {_SHAPE}, or one of "
            f"{', '.join(NAMED)}, and + between terms."
        )
    view, capture, statistic = found["view"], None, None
    for part in found["parts"].split(".")[1:]:
        if part in STATISTICS and statistic is None:
            statistic = part
        elif capture is None and statistic is None:
            capture = part
        else:
            raise AnalysisError(
                f"Feature set {expression!r}: {part!r} in {text!r} is too much or no statistic; "
                f"write {_SHAPE}; statistics: {', '.join(STATISTICS)}."
            )
    layers = _layers(found["layers"], expression)
    if kind_of(view) == "egemaps":
        if found["parts"] or layers:
            raise AnalysisError(
                f"Feature set {expression!r}: eGeMAPS has neither captures nor layers."
            )
        return [Term(Block(view))]
    if kind_of(view) == "mfcc" and layers:
        raise AnalysisError(f"Feature set {expression!r}: MFCC has no layers.")
    default = ("mean", "std") if kind_of(view) == "mfcc" else ("mean",)
    return [Term(Block(view, capture, s), layers) for s in ((statistic,) if statistic else default)]


def _layers(text: str | None, expression: str) -> slice | None:
    if text is None:
        return None
    found = _SLICE.fullmatch(text)
    if not found or not text.strip() or (not found["colon"] and found["stop"]):
        raise AnalysisError(
            f"Feature set {expression!r}: [{text}] is no range of layers; try [0:3], [-3:], [4]."
        )
    start = int(found["start"]) if found["start"] else None
    if not found["colon"]:
        assert start is not None
        return slice(start, start + 1 or None)
    return slice(start, int(found["stop"]) if found["stop"] else None)


def one_block(features: str) -> Block:
    """The block of an expression that names all layers of one.

    Raises:
        AnalysisError: it names several, or some layers.
    """
    terms = parse(features)
    if len(terms) > 1 or terms[0].layers is not None:
        raise AnalysisError(
            f"A map is of one statistic of one view in all layers; {features!r} is more or less."
        )
    return terms[0].block


def kind_of(view: str) -> str:
    """Kind of a view by its name, which begins with it."""
    return view.split("-")[0]


@dataclass(frozen=True)
class Joined:
    """Features for the utterances that all views hold, sorted by id.

    Attributes:
        table: coordinates over (utterance): id, speaker and labels, of the first view.
        blocks: (utterance, *feature) arrays.
        notes: what was left out, and why.
    """

    table: xr.Dataset
    blocks: Mapping[Block, NDArray[Any]]
    notes: Sequence[str] = field(default=())

    @property
    def ids(self) -> Shaped[np.ndarray, " utterance"]:
        """(utterance,) ids, ascending."""
        return text_values(self.table, "id")

    def take(self, keep: NDArray[np.bool_]) -> Joined:
        """The utterances where `keep` (utterance,) is true."""
        rows = np.flatnonzero(keep)
        blocks = {block: values[rows] for block, values in self.blocks.items()}
        return Joined(self.table.isel(utterance=rows), blocks, self.notes)

    def matrix(self, expression: str | None) -> Shaped[np.ndarray, "utterance feature"]:
        """Features of an expression side by side; no column at all for None.

        Raises:
            AnalysisError: a slice of layers that holds none.
        """
        count = self.table.sizes["utterance"]
        if expression is None:
            return np.empty((count, 0), np.float32)
        parts = []
        for term in parse(expression):
            values = self.blocks[term.block]
            if term.layers is not None:
                values = layers_of(values, term.layers, expression)
            parts.append(values.reshape(count, -1))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def layers_of(values: NDArray[Any], layers: slice, expression: str) -> NDArray[Any]:
    """Some layers of (utterance, layer, unit) features.

    Raises:
        AnalysisError: the view has no layers, or none of these.
    """
    if values.ndim < 3:
        raise AnalysisError(f"Feature set {expression!r}: this view has no layers.")
    chosen = values[:, layers]
    if not chosen.shape[1]:
        said = f"[{layers.start or ''}:{'' if layers.stop is None else layers.stop}]"
        raise AnalysisError(
            f"Feature set {expression!r}: {said} holds none of the {values.shape[1]} layers."
        )
    return chosen


def join(store: Store, expressions: Iterable[str | None], *, finite: bool = True) -> Joined:
    """Read each array that the expressions name once, and join them by utterance id.

    Args:
        store: an open feature store.
        expressions: of features; None among them names nothing.
        finite: whether to leave out utterances with a feature that is not finite, with a warning.

    Raises:
        AnalysisError: a name that is not in the store, views that share no utterance, or a view
            that holds an id twice.
    """
    terms = [term for one in expressions if one is not None for term in parse(one)]
    blocks = list(dict.fromkeys(term.block for term in terms))
    if not blocks:
        raise AnalysisError("No features were named: there is nothing to read.")
    read: dict[Block, tuple[NDArray[Any], str]] = {}
    tables: dict[str, xr.Dataset] = {}
    for block in blocks:
        array = read_block(store, block)
        view = str(array.attrs.get("view", block.view))
        tables.setdefault(view, utterance_table(array))
        read[block] = (np.asarray(array.values), view)
    row_of = {
        view: _rows(text_values(table, "id").tolist(), view) for view, table in tables.items()
    }
    shared = sorted(set.intersection(*(set(rows) for rows in row_of.values())))
    if not shared:
        counts = ", ".join(f"{view} has {len(rows)}" for view, rows in row_of.items())
        raise AnalysisError(
            f"No utterance id is in every view ({counts}). Ingest the same manifest with all the "
            "views that are to be compared."
        )
    take = {view: [rows[i] for i in shared] for view, rows in row_of.items()}
    first, table = next(iter(tables.items()))
    held = len(set().union(*row_of.values()))
    notes = []
    if len(shared) < held:
        notes.append(
            f"{held - len(shared)} of {held} utterances are not in every view and are left out."
        )
    joined = Joined(
        table.isel(utterance=take[first]),
        {block: values[take[view]] for block, (values, view) in read.items()},
        notes,
    )
    return _finite_only(joined) if finite else joined


def read_block(store: Store, block: Block) -> xr.DataArray:
    """(utterance, *feature), lazy, with its coordinates.

    Raises:
        AnalysisError: no such capture or statistic.
    """
    if kind_of(block.view) == "egemaps":
        return store.features(block.view).transpose("utterance", ...)
    data = store.pooled(block.view)
    array = captured(data, block.capture, view=block.view)
    held = array.coords["statistic"].values.tolist()
    if block.statistic not in held:
        raise AnalysisError(
            f"View {block.view!r} holds no statistic {block.statistic!r}, only: "
            f"{', '.join(map(str, held))}."
        )
    picked = array.isel(statistic=held.index(block.statistic), drop=True)
    return picked.transpose("utterance", ...).assign_attrs(data.attrs)


def finite_block(store: Store, features: str) -> tuple[xr.DataArray, list[str]]:
    """`finite_only` of all layers of one block.

    Args:
        store: an open feature store.
        features: an expression of one term, without layers.

    Raises:
        AnalysisError: it names several terms or some layers, or no such capture or statistic.
    """
    return finite_only(read_block(store, one_block(features)))


def finite_only(array: xr.DataArray) -> tuple[xr.DataArray, list[str]]:
    """The utterances all of whose features are finite, and a note on the others, if there are any.

    One pass over the array, two blocks of it in memory at a time.

    Args:
        array: (utterance, *feature), lazy, as from `read_block`.
    """
    lazy = da.asarray(array.data)
    bad = np.concatenate([np.empty(0, np.int64), *in_runs(lazy, _not_finite_rows)])
    if not len(bad):
        return array, []
    keep = np.setdiff1d(np.arange(lazy.shape[0]), bad)
    ids = text_values(utterance_table(array), "id")[np.sort(bad)]
    view = str(array.attrs.get("view", NETWORK))
    return array.isel(utterance=keep), [_not_finite(view, ids) + "."]


def _not_finite_rows(blocks: Blocks) -> NDArray[np.int64]:
    found = [np.empty(0, np.int64)]
    for rows, block in blocks:
        bad = ~np.isfinite(block).reshape(len(block), -1).all(axis=1)
        found.append(rows.start + np.flatnonzero(bad))
    return np.concatenate(found)


def _not_finite(view: str, ids: Shaped[np.ndarray, " utterance"]) -> str:
    return (
        f"{len(ids)} utterances of view {view!r} have features that are not finite (the first is "
        f"{str(ids[0])!r}) and are left out"
    )


def unit_index(array: xr.DataArray) -> dict[str, NDArray[Any]]:
    """Columns that name each feature of (utterance, *feature): layer and unit, or the feature."""
    dims = [str(dim) for dim in array.dims if dim != "utterance"]
    places = np.indices([array.sizes[dim] for dim in dims])
    return {
        dim: place.reshape(-1)
        if dim in ("layer", "unit") or dim not in array.coords
        else array.coords[dim].to_numpy()[place.reshape(-1)].astype(str)
        for dim, place in zip(dims, places, strict=True)
    }


def _rows(ids: list[str], view: str) -> dict[str, int]:
    rows = {i: row for row, i in enumerate(ids)}
    if len(rows) != len(ids):
        twice = next(i for row, i in enumerate(ids) if rows[i] != row)
        raise AnalysisError(
            f"Utterance id {twice!r} is twice in view {view!r}; ids must be unique to join views."
        )
    return rows


def _finite_only(joined: Joined) -> Joined:
    keep = np.ones(joined.table.sizes["utterance"], dtype=bool)
    notes = list(joined.notes)
    for block, values in joined.blocks.items():
        finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if not finite.all():
            notes.append(_not_finite(block.view, joined.ids[~finite]) + " of every feature set.")
            warnings.warn(notes[-1], AnalysisWarning, stacklevel=4)
        keep &= finite
    kept = joined if keep.all() else joined.take(keep)
    return Joined(kept.table, kept.blocks, tuple(dict.fromkeys(notes)))
