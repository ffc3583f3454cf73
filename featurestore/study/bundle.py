"""A study without its audio, in one file: pooled data, folds, results. It makes the tables again.

A zip archive of plain files: `bundle.json`, `utterances.parquet`, `folds.parquet`, one `.npy` for
each view's pooled values, and one Parquet file per table. Paths, transcripts, waveforms and frames
are left out, and so is every text column that the study does not read, since a transcript may be
among them; utterance ids, speakers, labels and the SHA-256 of each recording are in it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from featurestore import __version__
from featurestore.analysis.features import is_numeric, text_values, utterance_table
from featurestore.analysis.sets import kind_of
from featurestore.analysis.trace import Trace
from featurestore.errors import AnalysisError
from featurestore.files import replacing
from featurestore.result_files import check_output
from featurestore.study.analyses import DESCRIBED, Findings, labelled_folds
from featurestore.study.config import Study, from_dict
from featurestore.study.views import StudiedStore, ViewFacts, view_named

_FORMAT, _VERSION = "featurestore bundle", 1
_LEFT_OUT = ("path", "text", "audio_stamp", "start", "end", "frame_count")
_DESCRIBING = ("id", "speaker", "session", "audio_sha256", "ratings", "intensity")
_TIME = (1980, 1, 1, 0, 0, 0)  # of every file in the archive: the same study is the same bytes


def write_bundle(
    path: str | os.PathLike[str],
    *,
    store: StudiedStore,
    study: Study,
    findings: Findings,
    traces: Sequence[Trace],
    lineage: Mapping[str, str],
    notes: Sequence[str] = (),
) -> None:
    """Write a study's pooled data, folds and results.

    Args:
        path: zip file to write, replaced whole.
        store: that was studied.
        study: its file.
        findings: of the analyses.
        traces: of some utterances; without their audio and text.
        lineage: of the report.
        notes: of the report, besides those of the findings.
    """
    views: dict[str, dict[str, Any]] = {}
    tables = []
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for view, captures in _read(findings, store.facts).items():
            arrays, table, facts = _pooled(store, view, captures)
            views[view] = facts
            tables.append(table[[name for name in table if _kept(table, str(name), study)]])
            for name, values in arrays.items():
                _add(archive, f"pooled/{view}/{name}.npy", _npy(values))
        whole = pd.concat(tables, ignore_index=True).drop_duplicates("id").sort_values("id")
        _add(archive, "utterances.parquet", _parquet(whole))
        _add(archive, "folds.parquet", _parquet(_folds(findings, study)))
        for name, found in findings.tables.items():
            _add(archive, f"tables/{name}.parquet", _parquet(found))
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "featurestore": __version__,
            "study": _without_places(study).to_dict(),
            "main": findings.main.name,
            "facts": {name: asdict(one) for name, one in store.facts.items()},
            "views": views,
            "notes": list(dict.fromkeys([*findings.notes, *notes])),
            "lineage": dict(lineage),
            "traces": [_plain(one) for one in traces],
        }
        _add(archive, "bundle.json", json.dumps(about, ensure_ascii=False).encode())


def check_bundle(path: str | os.PathLike[str], *, store: str = "") -> None:
    """Refuse to write a bundle over anything but a bundle.

    Args:
        path: zip file that is to be written.
        store: that is studied, there or not.

    Raises:
        AnalysisError: a folder, another file, or a place in a store; names it.
    """
    name = os.fspath(path)
    if os.path.isdir(path):
        raise AnalysisError(
            f"{name} is a folder; name the zip file to write, such as "
            f"{os.path.join(name, 'study.zip')}."
        )
    check_output(Path(path).parent, store=store)
    if os.path.lexists(path) and not _is_bundle(path):
        raise AnalysisError(
            f"{name} is there already and is no bundle; move it away, or name another file."
        )


def _is_bundle(path: str | os.PathLike[str]) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("bundle.json"))["format"] == _FORMAT
    except _DAMAGED:
        return False


def _kept(table: pd.DataFrame, name: str, study: Study) -> bool:
    """Whether a column of the utterances is in a bundle: numbers, and texts that are read."""
    plan = study.analysis
    read = {*_DESCRIBING, *DESCRIBED, plan.emotion, plan.folds}
    read |= {one.partition("=")[0] for one in (*plan.covariates, *plan.confounds)}
    return name not in _LEFT_OUT and (is_numeric(table[name].to_numpy()) or name in read)


def _without_places(study: Study) -> Study:
    """The study without the folders of the machine that it ran on."""
    plan = study.ingest
    bare = dataclasses.replace(
        plan, weights=last_part(plan.weights), controls=tuple(map(last_part, plan.controls))
    )
    return dataclasses.replace(
        study, store=last_part(study.store), output="", manifest="", ingest=bare
    )


def last_part(place: str) -> str:
    """The name of a file, folder or URL without those that it lies in."""
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle in memory: a store of pooled data, and what was found in it.

    Attributes:
        study: its file.
        facts: of the views.
        tables: that were found, by name.
        traces: of some utterances.
        lineage: of the report.
        notes: of the report.
        folds: utterance id and fold.
        arrays: pooled values by view and capture; "" for eGeMAPS.
        held: what arrays hold: statistics, layers or features, and ids, by view.
        labels: utterances, with speakers and labels, by id.
    """

    study: Study
    facts: dict[str, ViewFacts]
    tables: dict[str, pd.DataFrame]
    traces: list[Trace]
    lineage: dict[str, str]
    notes: list[str]
    folds: pd.DataFrame
    arrays: dict[tuple[str, str], np.ndarray]
    held: dict[str, dict[str, Any]]
    labels: pd.DataFrame

    @property
    def views(self) -> list[str]:
        """Names of the views."""
        return sorted(self.held)

    @property
    def kinds(self) -> set[str]:
        """Kinds of the views."""
        return {kind_of(name) for name in self.held}

    def pooled(self, view: str) -> xr.Dataset:
        """As `Store.pooled`, with the statistics that the study used."""
        name = self._named(view)
        held = self.held[name]
        dims = ("statistic", "utterance", *held["dims"])
        variables = {
            capture: (dims, da.from_array(values, chunks=(1, 4096, *values.shape[2:])))
            for (owner, capture), values in self.arrays.items()
            if owner == name
        }
        coords: dict[str, Any] = {"statistic": held["statistics"], **self._coords(held["ids"])}
        if held["layer_names"]:
            coords["layer"] = np.arange(len(held["layer_names"]))
            coords["layer_name"] = ("layer", held["layer_names"])
        return xr.Dataset(variables, coords, {"view": name})

    def features(self, view: str) -> xr.DataArray:
        """As `Store.features`."""
        name = self._named(view)
        held = self.held[name]
        values = da.from_array(self.arrays[name, ""], chunks=(4096, -1))
        coords = {"feature": held["features"], **self._coords(held["ids"])}
        return xr.DataArray(values, coords, ("utterance", "feature"), attrs={"view": name})

    def _named(self, view: str) -> str:
        found = [name for name in self.held if view in (name, kind_of(name))]
        if len(found) != 1:
            raise AnalysisError(
                f"The bundle has no view {view!r}, or several; it has: {', '.join(self.views)}."
            )
        return found[0]

    def _coords(self, ids: list[str]) -> dict[str, Any]:
        rows = self.labels.loc[ids].reset_index()
        return {
            str(name): (
                "utterance",
                rows[name].to_numpy()
                if rows[name].dtype.kind in "if"
                else rows[name].to_numpy(object),
            )
            for name in rows.columns
        }


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle.

    Raises:
        AnalysisError: no bundle, a damaged one, or one of a newer version.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                about = json.loads(archive.read("bundle.json"))
                _check_format(about, name)
                return _opened(archive, about, name)
        except _DAMAGED as error:
            raise AnalysisError(f"{name} is no bundle, or a damaged one: {error}") from error


# What zipfile, json, NumPy and Arrow say of bytes that are not what was written.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError),
    *(KeyError, ValueError, TypeError, AttributeError),
)


def _check_format(about: Mapping[str, Any], name: str) -> None:
    if about.get("format") != _FORMAT:
        raise ValueError(f"its format is {about.get('format')!r}, not {_FORMAT!r}")
    if about["version"] > _VERSION:
        raise AnalysisError(
            f"{name} is a bundle of version {about['version']}, and featurestore {__version__} "
            f"reads {_VERSION}; install the newest featurestore."
        )


def _check_arrays(arrays: Mapping[tuple[str, str], np.ndarray], held: Mapping[str, Any]) -> None:
    """Refuse views without values, or with those of other utterances."""
    for view, facts in held.items():
        own = [values for (owner, _), values in arrays.items() if owner == view]
        axis = 1 if facts["statistics"] else 0
        if not own or any(values.shape[axis] != len(facts["ids"]) for values in own):
            raise ValueError(f"the values of view {view!r} are missing or of other utterances")


def _opened(archive: zipfile.ZipFile, about: dict[str, Any], name: str) -> Bundle:
    arrays, tables = {}, {}
    for member in archive.namelist():
        folder, _, rest = member.partition("/")
        if folder == "pooled":
            view, _, capture = rest.removesuffix(".npy").partition("/")
            key = "" if capture == "features" else capture
            arrays[view, key] = np.load(io.BytesIO(archive.read(member)), allow_pickle=False)
        elif folder == "tables":
            tables[rest.removesuffix(".parquet")] = _read_parquet(archive, member)
    _check_arrays(arrays, about["views"])
    return Bundle(
        study=from_dict(about["study"], name=name),
        facts={key: _view_facts(one) for key, one in about["facts"].items()},
        tables=tables,
        traces=[_trace(one) for one in about["traces"]],
        lineage=about["lineage"],
        notes=[str(one) for one in about["notes"]],
        folds=_read_parquet(archive, "folds.parquet"),
        arrays=arrays,
        held=about["views"],
        labels=_read_parquet(archive, "utterances.parquet").set_index("id"),
    )


def _view_facts(plain: dict[str, Any]) -> ViewFacts:
    lists = {key: tuple(plain[key]) for key in ("captures", "layer_names")}
    return ViewFacts(**{**plain, **lists})


def _read(findings: Findings, facts: Mapping[str, ViewFacts]) -> dict[str, dict[str, list[str]]]:
    """Statistics that were read, by view and capture."""
    found: dict[str, dict[str, list[str]]] = {}
    for block in findings.joined.blocks:
        captures = found.setdefault(view_named(facts, block.view), {})
        captures.setdefault(block.capture or "", []).append(block.statistic or "")
    return found


def _pooled(
    store: StudiedStore, view: str, captures: Mapping[str, Sequence[str]]
) -> tuple[dict[str, np.ndarray], pd.DataFrame, dict[str, Any]]:
    """Arrays of a view by capture, its utterances, and what the arrays hold."""
    if kind_of(view) == "egemaps":
        array = store.features(view)
        table = utterance_table(array)
        facts: dict[str, Any] = {"features": array["feature"].to_numpy().astype(str).tolist()}
        arrays = {"features": np.asarray(array.to_numpy(), np.float32)}
        facts |= {"statistics": [], "dims": ["feature"], "layer_names": []}
    else:
        data = store.pooled(view)
        table = utterance_table(next(iter(data.data_vars.values())))
        statistics = list(dict.fromkeys(s for names in captures.values() for s in names))
        arrays = {}
        # In the view's own order: the first one is what an expression without a capture means.
        for place, capture in enumerate(map(str, data.data_vars)):
            if capture in captures or (not place and "" in captures):
                picked = data[capture].sel(statistic=statistics)
                arrays[capture] = np.asarray(picked.to_numpy(), np.float32)
                dims = [str(dim) for dim in picked.dims[2:]]
        names = data["layer_name"].to_numpy().tolist() if "layer_name" in data.coords else []
        facts = {"features": [], "statistics": statistics, "dims": dims, "layer_names": names}
    facts["ids"] = text_values(table, "id").tolist()
    rows = pd.DataFrame({str(name): table[name].to_numpy() for name in table.coords})
    return arrays, rows, facts


def _folds(findings: Findings, study: Study) -> pd.DataFrame:
    ids = findings.joined.ids
    fold = np.full(len(ids), "", object)
    for split in labelled_folds(findings.joined, study):
        fold[split.test] = split.name
    return pd.DataFrame({"id": ids, "fold": fold})


def _plain(one: Trace) -> dict[str, Any]:
    found = asdict(one) | {"text": "", "waveform": None, "log_mel": None}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}


def _trace(plain: dict[str, Any]) -> Trace:
    arrays = {key: np.array(plain[key], np.float64) for key in ("time_s", "values")}
    return Trace(**{**plain, **arrays})


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _TIME), content, zipfile.ZIP_DEFLATED, 1)


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _parquet(table: pd.DataFrame) -> bytes:
    plain = table.reset_index(drop=True)
    plain.attrs = {}
    return plain.to_parquet()


def _read_parquet(archive: zipfile.ZipFile, name: str) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(archive.read(name)))
