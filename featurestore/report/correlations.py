"""Correlations as files: tidy tables, one heat map per group, and an overview."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from featurestore.errors import AnalysisError
from featurestore.files import replacing
from featurestore.provenance import Provenance
from featurestore.report.figures import ALL, group_dim, heatmap, overview
from featurestore.report.names import file_names
from featurestore.report.spreadsheet import csv_text
from featurestore.result_files import read_provenance, record_results


def write_correlations(
    correlations: Mapping[str, xr.Dataset],
    out_dir: str | os.PathLike[str],
    *,
    notes: Sequence[str] = (),
    provenance: Provenance | None = None,
) -> list[Path]:
    """Write what `correlate` found, for one or more targets.

    Files are replaced whole: an interrupted run leaves no half of one.

    Args:
        correlations: correlations per target, all with the same groups (`correlate_all`).
        out_dir: folder, made where it is missing.
        notes: caveats printed below the figures, such as that the weights are untrained.
        provenance: what the correlations were computed from, said in the figures and recorded in
            the folder's `provenance.json`.

    Returns:
        The files written: `correlation-<target>.csv` with columns group, layer, unit, r, p, n
        (group is "all" without groups; NaN where undefined), `heatmap-<group>.png`, and
        `overview.png` where there are groups. Correlations that are not over layers and units,
        such as those of MFCC, get tables only, with their own dimensions as columns.

    Raises:
        AnalysisError: no correlations, targets grouped differently, or a damaged
            `provenance.json`.
    """
    if not correlations:
        raise AnalysisError("No correlations to write; give at least one target.")
    folder = Path(out_dir)
    if provenance:
        read_provenance(folder)  # a damaged one is to be known before anything is written
    written = []
    targets = file_names(correlations)
    for target, data in correlations.items():
        path = folder / f"correlation-{targets[target]}.csv"
        with replacing(path) as temporary:
            temporary.write_text(csv_text(tidy(data)), encoding="utf-8", newline="\n")
        written.append(path)
    if all({"layer", "unit"} <= set(data["r"].dims) for data in correlations.values()):
        written += _write_figures(correlations, folder, " ".join(notes) or None, provenance)
    if provenance:
        record_results(folder, written, provenance)
    return written


def _write_figures(
    correlations: Mapping[str, xr.Dataset],
    folder: Path,
    note: str | None,
    provenance: Provenance | None,
) -> list[Path]:
    dims = {_group_column(data) for data in correlations.values()}
    if len(dims) > 1:
        raise AnalysisError(
            f"The targets are grouped differently ({', '.join(sorted(dims))}); correlate them all "
            "with the same 'by'."
        )
    by = dims.pop()
    if by == ALL:
        path = folder / f"heatmap-{ALL}.png"
        heatmap(correlations, path, note=note, provenance=provenance)
        return [path]
    written = []
    held = {t: [str(g) for g in data[by].to_numpy()] for t, data in correlations.items()}
    names = sorted({group for groups in held.values() for group in groups})
    for group, stem in file_names(names).items():
        path = folder / f"heatmap-{stem}.png"
        # A speaker may lack one target altogether and still be drawn for the others.
        have = {t: data for t, data in correlations.items() if group in held[t]}
        heatmap(have, path, group=group, note=note, provenance=provenance)
        written.append(path)
    if names:
        overview(correlations, folder / "overview.png", note=note, provenance=provenance)
        written.append(folder / "overview.png")
    return written


def _group_column(data: xr.Dataset) -> str:
    return group_dim(data) or ALL


def tidy(data: xr.Dataset) -> pd.DataFrame:
    """One row per group and unit: group, layer, unit, r, p, n."""
    grouped = str(data.attrs.get("by", group_dim(data) or ALL))
    dims = [str(dim) for dim in data["r"].dims if dim != grouped]
    by = [grouped] if grouped in data["r"].dims else []
    ordered = data.transpose(*by, *dims)
    axes = [_axis(ordered, dim) for dim in [*by, *dims]]
    grid = np.meshgrid(*axes, indexing="ij")
    columns: dict[str, Any] = {} if by else {"group": np.full(ordered["r"].size, ALL)}
    for name, values in zip([*by, *dims], grid, strict=True):
        columns["group" if name in by else name] = values.reshape(-1)
    for name in ("r", "p", "n"):
        columns[name] = ordered[name].to_numpy().reshape(-1)
    return pd.DataFrame(columns)


def _axis(data: xr.Dataset, dim: str) -> Any:
    return data[dim].to_numpy() if dim in data.coords else np.arange(data.sizes[dim])
