"""A store's features as one table in one file, for software that does not read Zarr.

One row per utterance: its id, speaker, seconds of audio and labels, and one column per feature.
Features are read and written one block of utterances after the other, so that memory does not grow
with the corpus; the ids and labels alone are held as a whole.

The suffix chooses the format:

- `.parquet`: for pandas, Polars, R, DuckDB. Provenance is JSON under the key `featurestore` of the
  schema's metadata.
- `.npz`: for NumPy, without pickles: `features` (utterance, feature) float32, `feature_names`, one
  array per other column, and `provenance`, JSON text.
- `.arff`: for Weka, laid out as openSMILE's own sink does: `id` first, the labels last.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xarray as xr

from featurestore import __version__
from featurestore.analysis.features import captured
from featurestore.analysis.sets import END_LAYERS
from featurestore.corpus.manifest import COLUMNS
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.files import replacing
from featurestore.progress import Tick, progress_bar
from featurestore.store.summary import store_state
from featurestore.store.table import MEASURED
from featurestore.types import NETWORK, Statistic

if TYPE_CHECKING:
    from featurestore.store.reader import Store

_BLOCK_BYTES = 2**26  # of features that are written at a time, a row group of Parquet
_TEXT_VALUES = 2**20  # numbers that are text at the same time: 30 MB
_SHOWN = 20  # names that an error lists
_MEMBERS = ("features", "feature_names", "provenance")  # of a .npz, besides columns


@dataclass(frozen=True)
class ExportSummary:
    """What `export` wrote.

    Attributes:
        path: the file.
        store: where the features come from.
        view: the name of their view.
        utterances: rows.
        features: columns of features.
        labels: columns of labels.
        bytes: size of the file.
    """

    path: str
    store: str
    view: str
    utterances: int
    features: int
    labels: tuple[str, ...]
    bytes: int


def export(
    store: Store,
    path: str | os.PathLike[str],
    *,
    view: str = NETWORK,
    capture: str | None = None,
    layers: str | Sequence[int | str] = "all",
    statistics: Sequence[Statistic | str] = ("mean",),
    speakers: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    ids: bool = True,
    progress: bool | None = None,
) -> ExportSummary:
    """Write features of a view, one row per utterance, as Parquet, npz or ARFF.

    Features are float32 and named capture.statistic.layer.unit (`gate.mean.block_0_1.017`),
    `mfcc.mean.c03`, or as openSMILE names them. Equal stores and choices make equal files.

    Args:
        store: an open feature store.
        path: file to write, `.parquet`, `.npz` or `.arff`; it appears whole or not at all.
        view: name or kind; `network` is the encoder's.
        capture: capture point of a network; its first one by default.
        layers: of a network: "all", the "first" or "last" three (as `evaluate` has them), or layers
            by position from 0 and by name, as a sequence or as text such as "0,3,5-8".
        statistics: over the frames of an utterance; any of mean, std, min, max.
        speakers: whose utterances; everybody's by default.
        labels: which labels, in this order; all by default. Weka takes the last column of an ARFF
            file for the class to predict, and all others for features to predict it from.
        ids: whether to write the ids. In ARFF they are strings: most of Weka's learners refuse
            strings until the attribute is removed, where a nominal id would be learned by heart
            without a word. `scipy.io.arff` reads no strings at all and needs a file without ids.
        progress: whether to show a bar; None shows one on a terminal.

    Returns:
        What was written.

    Raises:
        FeatureStoreError: a suffix of no known format, or a path that no file can have.
        StoreError: no such view, layer, statistic, speaker or label; names those there are.
        AnalysisError: no such capture.
        OSError: the file cannot be written.
    """
    final = Path(path)
    write = _writer(final, store)
    features, attrs = _features(store, view, capture, layers, statistics)
    table = _table(store, view, features, attrs, speakers=speakers, labels=labels, ids=ids)
    with (
        progress_bar("Exporting", len(table.rows), unit="utterances", show=progress) as tick,
        replacing(final) as temporary,
    ):
        write(temporary, table, tick)
    return ExportSummary(
        path=str(final),
        store=store.path,
        view=table.provenance["view"],
        utterances=len(table.rows),
        features=len(table.names),
        labels=tuple(table.labels),
        bytes=final.stat().st_size,
    )


def _writer(path: Path, store: Store) -> Callable[[Path, _Table, Tick], None]:
    """How the file is written, once it is clear that it can be."""
    if re.match(r"[a-z][a-z0-9]+:/", str(path)):
        raise FeatureStoreError(
            f"'{path}' is a URL; export to a file on this machine and copy that there"
        )
    if path.suffix.lower() not in _WRITERS:
        raise FeatureStoreError(
            f"'{path}' has no suffix of a known format; name the file {', '.join(_WRITERS)}"
        )
    if path.is_dir():
        raise FeatureStoreError(f"{path} is a folder; give the name of a file")
    if "://" not in store.path and path.resolve().is_relative_to(Path(store.path).resolve()):
        raise FeatureStoreError(f"{path} lies inside the store; write the file somewhere else")
    return _WRITERS[path.suffix.lower()]


@dataclass(frozen=True, eq=False)
class _Table:
    """What is to be written, of which only ids and labels have been read.

    Attributes:
        rows: columns that are not features, one row per utterance: id, speaker, duration_s, labels.
        labels: names of the labels.
        names: of the features.
        categories: every value of each text column in the whole view.
        provenance: where the numbers come from.
        picked: (utterance,) which utterances of the view are rows.
        features: lazy (utterance, *feature).
    """

    rows: pd.DataFrame
    labels: list[str]
    names: list[str]
    categories: dict[str, list[str]]
    provenance: dict[str, Any]
    picked: np.ndarray
    features: xr.DataArray

    def blocks(self) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
        """Consecutive rows, and their features as contiguous float32 (utterance, feature)."""
        at, most = 0, max(1, _BLOCK_BYTES // (4 * len(self.names)))
        for values in _regrouped(self._read(), min(most, len(self.rows))):
            yield self.rows.iloc[at : at + len(values)], values
            at += len(values)

    def _read(self) -> Iterator[np.ndarray]:
        """Features of the rows, one stored block after the other."""
        stop = 0
        for size in self.features.chunksizes["utterance"]:
            start, stop = stop, stop + size
            rows = np.flatnonzero(self.picked[start:stop])
            if len(rows):
                values = np.asarray(self.features[start:stop].data.compute(), np.float32)
                yield values.reshape(size, -1)[rows]


def _regrouped(pieces: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows, this many at a time: a store of many small parts makes no tiny row groups.

    What is yielded holds until the next one: it is the same memory.
    """
    block, filled = np.empty((rows, 0), np.float32), 0
    for piece in pieces:
        if not block.size:
            block = np.empty((rows, piece.shape[1]), np.float32)
        while len(piece):
            part, piece = piece[: rows - filled], piece[rows - filled :]
            block[filled : filled + len(part)] = part
            filled += len(part)
            if filled == rows:
                yield block
                filled = 0
    if filled:
        yield block[:filled]


def _features(
    store: Store,
    view: str,
    capture: str | None,
    layers: str | Sequence[int | str],
    statistics: Sequence[str],
) -> tuple[xr.DataArray, dict[str, Any]]:
    """The chosen features, lazy (utterance, *feature), and facts of them: `names` names each."""
    if store.config(view).kind == "egemaps":
        if capture is not None or layers != "all" or tuple(statistics) != ("mean",):
            raise StoreError(
                f"view '{view}' has functionals of openSMILE and neither captures, layers nor "
                "statistics to choose from; leave these options out"
            )
        functionals = store.features(view).transpose("utterance", "feature")
        names = [str(name) for name in functionals["feature"].to_numpy()]
        return functionals, {**functionals.attrs, "names": names}
    data = store.pooled(view)
    array = captured(data, capture, view=view)
    kept = [str(name) for name in array["statistic"].to_numpy()]
    wanted = _known("statistic", statistics, kept, f"view '{view}'")
    array = array.sel(statistic=wanted)
    attrs = {**data.attrs, "capture": str(array.name), "statistics": wanted}
    if "layer" in array.dims:
        held = [str(name) for name in array["layer_name"].to_numpy()]
        chosen = _layers(layers, held)
        array = array.isel(layer=chosen)
        attrs["layers"] = inner = [held[layer] for layer in chosen]
        units = array.sizes["unit"]
        digits = max(3, len(str(units - 1)))
        inner = [f"{layer}.{unit:0{digits}d}" for layer in inner for unit in range(units)]
    elif layers != "all":
        raise StoreError(f"view '{view}' has no layers to choose from; leave the option out")
    else:
        inner = [f"c{one:02d}" for one in range(array.sizes["coefficient"])]
    attrs["names"] = [f"{array.name}.{statistic}.{one}" for statistic in wanted for one in inner]
    return array.transpose("utterance", "statistic", ...), attrs


def _layers(wanted: str | Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Positions of the layers asked for, ascending."""
    every = range(len(names))
    ends = {"all": every, "first": every[:END_LAYERS], "last": every[-END_LAYERS:]}
    if isinstance(wanted, str):
        wanted = [part.strip() for part in wanted.split(",") if part.strip()]
    found: set[int] = set()
    for one in map(str, wanted):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", one)
        if one in names:
            positions = range(names.index(one), names.index(one) + 1)
        elif one in ends:
            positions = ends[one]
        elif span:
            positions = range(int(span[1]), int(span[2] or span[1]) + 1)
        else:
            positions = range(0)
        if not positions or positions[-1] not in every:
            raise StoreError(
                f"no layer '{one}'; there are 0 to {len(names) - 1}, also called "
                f"{_listed(names)}, and 'all', 'first' and 'last' for every one or {END_LAYERS}"
            )
        found.update(positions)
    if not found:
        raise StoreError("no layer was asked for; 'all' takes every one")
    return sorted(found)


def _known(what: str, wanted: Sequence[str], held: Sequence[str], where: str) -> list[str]:
    """The names asked for, each once."""
    if isinstance(wanted, str):
        wanted = [wanted]
    for one in wanted:
        if one not in held:
            raise StoreError(f"{where} has no {what} '{one}'; it has: {_listed(held) or 'none'}")
    if not len(wanted):
        raise StoreError(f"no {what} was asked for; {where} has: {_listed(held) or 'none'}")
    return list(dict.fromkeys(wanted))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _table(
    store: Store,
    view: str,
    features: xr.DataArray,
    attrs: dict[str, Any],
    *,
    speakers: Sequence[str] | None,
    labels: Sequence[str] | None,
    ids: bool,
) -> _Table:
    utterances = store.utterances(view)
    every = [str(name) for name in utterances if name not in (*COLUMNS, *MEASURED)]
    chosen = every if labels is None else list(dict.fromkeys(labels))
    if chosen:
        _known("label", chosen, every, f"view '{view}'")
    picked = np.ones(len(utterances), bool)
    if speakers is not None:
        held = sorted(set(utterances["speaker"]) - {""})
        picked = utterances["speaker"].isin(_known("speaker", speakers, held, f"view '{view}'"))
        picked = picked.to_numpy(bool)
    columns = ["id"] * ids + ["speaker", "duration_s", *chosen]
    provenance = {key: value for key, value in attrs.items() if key != "names"}
    _refuse_clashes(chosen, attrs["names"])
    return _Table(
        rows=utterances.loc[picked, columns].reset_index(drop=True),
        labels=chosen,
        names=attrs["names"],
        # Of all utterances: Weka tests on other speakers only if both files declare the same.
        categories={
            name: sorted(set(utterances[name]) - {""})
            for name in columns
            if name != "id" and not pd.api.types.is_numeric_dtype(utterances[name])
        },
        provenance={
            "made_by": f"featurestore {__version__}",
            "store": store.path,
            "store_state": store_state(store.path),
            **provenance,
            "speakers": None if speakers is None else list(dict.fromkeys(speakers)),
        },
        picked=picked,
        features=features,
    )


def _refuse_clashes(labels: Sequence[str], features: Sequence[str]) -> None:
    taken = {*features, *_MEMBERS, "id", "speaker", "duration_s"}
    for label in labels:
        if label in taken:
            raise StoreError(
                f"label '{label}' has the name of another column of the file; leave it out by "
                "naming the labels to write (--target, in Python labels=)"
            )


def _write_parquet(path: Path, table: _Table, tick: Tick) -> None:
    text = [name for name in table.rows if name == "id" or name in table.categories]
    fields = [(str(name), _arrow(table.rows[name]).type) for name in table.rows]
    fields += [(name, pa.float32()) for name in table.names]
    said = {"featurestore": json.dumps(table.provenance, ensure_ascii=False)}
    schema = pa.schema(fields, metadata=said)
    # Activations repeat no values, and nobody filters by them: dictionaries would only be tried in
    # vain, and their minima and maxima make the footer several times as large.
    options = {"use_dictionary": text, "write_statistics": list(table.rows), "compression": "zstd"}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for rows, values in table.blocks():
            columns = [_arrow(rows[name]) for name in rows]
            columns += [pa.array(np.ascontiguousarray(column)) for column in values.T]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(rows))
            tick(len(rows))


def _arrow(column: pd.Series) -> pa.Array:
    """Numbers, or text; text that is missing is null."""
    if pd.api.types.is_numeric_dtype(column):
        return pa.array(column.to_numpy())
    return pa.array([value or None for value in column], pa.string())


def _write_npz(path: Path, table: _Table, tick: Tick) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        with _member(archive, "features") as file:
            shape = (len(table.rows), len(table.names))
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for rows, values in table.blocks():
                file.write(np.ascontiguousarray(values, "<f4").data)
                tick(len(rows))
        columns: dict[str, Any] = {
            "feature_names": np.array(table.names, np.str_),
            "provenance": np.array(json.dumps(table.provenance, ensure_ascii=False)),
        }
        for name in table.rows:
            numeric = pd.api.types.is_numeric_dtype(table.rows[name])
            columns[str(name)] = table.rows[name].to_numpy(None if numeric else np.str_)
        for name, values in columns.items():
            with _member(archive, name) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    # A member of this description has the date 1980, so that equal exports are equal files.
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _write_arff(path: Path, table: _Table, tick: Tick) -> None:
    # What Weka predicts comes last.
    before = [str(name) for name in table.rows if name not in table.labels]
    rows_at_a_time = max(1, _TEXT_VALUES // len(table.names))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in _arff_header(table, before))
        for rows, values in table.blocks():
            for start in range(0, len(rows), rows_at_a_time):
                part = slice(start, start + rows_at_a_time)
                cells = [_arff_cells(rows[name].iloc[part]) for name in before]
                cells += [_arff_numbers(column) for column in values[part].T]
                cells += [_arff_cells(rows[name].iloc[part]) for name in table.labels]
                lines = pc.binary_join_element_wise(
                    *cells, ",", null_handling="replace", null_replacement="?"
                )
                file.writelines(f"{line}\n" for line in lines.to_pylist())
            tick(len(rows))


def _arff_header(table: _Table, before: Sequence[str]) -> Iterator[str]:
    for key, value in table.provenance.items():
        yield f"% {key}: {json.dumps(value, ensure_ascii=False)}"
    relation = f"{Path(table.provenance['store']).name} {table.provenance['view']}"
    yield f"@relation {_quoted(relation)}"
    for name in [*before, *table.names, *table.labels]:
        values = table.categories.get(name)
        kind = "numeric"
        if name == "id":
            kind = "string"
        elif values is not None:
            # No value at all declares no nominal type; such a column is nothing but '?'.
            kind = f"{{{','.join(map(_quoted, values))}}}" if values else "numeric"
        plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]*", name)
        yield f"@attribute {name if plain else _quoted(name)} {kind}"
    yield "@data"


def _arff_cells(column: pd.Series) -> pa.Array:
    if pd.api.types.is_numeric_dtype(column):
        return _arff_numbers(column.to_numpy())
    return pa.array([_quoted(value) if value else None for value in column], pa.string())


def _arff_numbers(values: np.ndarray) -> pa.Array:
    """The shortest text that reads as the same number again; NaN is missing."""
    text = pc.cast(pa.array(np.ascontiguousarray(values), from_pandas=True), pa.string())
    if np.isinf(values).any():
        text = pc.replace_substring(text, "inf", "Infinity")  # as Java spells it
    return text


_ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\'\"%"} | {"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _quoted(text: str) -> str:
    """A value as Weka writes it (`weka.core.Utils.quote`), in quotes even where it needs none.

    Readers that learn from the first row what a quote is, as scipy's does, then know.
    """
    return f"'{text.translate(_ESCAPED)}'"


_WRITERS: dict[str, Callable[[Path, _Table, Tick], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".arff": _write_arff,
}
