"""Heat maps of correlations, layers by units, and an overview of speakers by layers.

Figures are drawn without pyplot, so that nothing global is touched and no display is needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featurestore.analysis.correlation import chance_abs_r
from featurestore.errors import AnalysisError
from featurestore.provenance import Provenance
from featurestore.report.canvas import (
    ACCENT,
    BAR,
    DPI,
    LAYER_AXIS,
    SEQUENTIAL,
    colour_limit,
    colours,
    footer,
    frame,
    plain,
    style_bar,
    unit_map,
)
from featurestore.report.canvas import save as _save
from featurestore.report.wording import raised

ALL = "all"  # group name of correlations over all utterances

_FIRST = ("valence", "arousal")  # top to bottom, as in the paper


def group_dim(data: xr.Dataset) -> str | None:
    """Name of the dimension of groups, such as "speaker"; None for correlations over all."""
    extra = [str(dim) for dim in data["r"].dims if dim not in ("layer", "unit")]
    return extra[0] if extra else None


def in_paper_order(targets: Sequence[str]) -> list[str]:
    """Valence, then arousal, then the rest as given."""
    return [t for t in _FIRST if t in targets] + [t for t in targets if t not in _FIRST]


def heatmap(
    correlations: Mapping[str, xr.Dataset],
    path: str | os.PathLike[str],
    *,
    group: str | None = None,
    title: str | None = None,
    note: str | None = None,
    provenance: Provenance | None = None,
) -> None:
    """Draw r of every unit, one panel per target, with the mean |r| of each layer beside it.

    Colours are centred at 0 and share one symmetric scale; what is undefined is grey. The dotted
    line in the side panel is the mean |r| that unrelated values would show with as many utterances.

    Args:
        correlations: what `correlate` returned, per target: over (layer, unit), or with a dimension
            of groups in front.
        path: PNG file to write.
        group: which speaker (or other group) to draw; None where there are none.
        title: first line; names the group by default.
        note: a caveat printed below, such as that the weights are untrained.
        provenance: what the correlations were computed from, said below and in text chunks.

    Raises:
        AnalysisError: no correlations, not over layers and units, or no such group.
    """
    panels = {t: _one(correlations[t], group) for t in in_paper_order(list(correlations))}
    if not panels:
        raise AnalysisError("No correlations to draw; give at least one target.")
    limit = colour_limit([panel["r"].values for panel in panels.values()])
    figure = Figure(figsize=(11.5, 1.1 + 3.15 * len(panels)), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(len(panels), 2, width_ratios=(6.2, 1))
    images, strongest = [], []
    for row, (target, panel) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[row, 0])
        images.append(_map_panel(axes, panel, target, limit, last=row == len(panels) - 1))
        side = figure.add_subplot(grid[row, 1])
        strongest.append(_layer_panel(side, panel, first=row == 0, last=row == len(panels) - 1))
        side.sharey(axes)
    for _, side in strongest:
        side.set_xlim(0, 1.12 * max(value for value, _ in strongest))
    bar = figure.colorbar(images[0], ax=figure.axes, pad=0.012, aspect=42)
    ticks = (-limit, -limit / 2, 0.0, limit / 2, limit)
    bar.set_ticks(ticks, labels=[f"{tick:+.2g}" if tick else "0" for tick in ticks])
    style_bar(bar, "Pearson r")
    figure.suptitle(plain(title or _title(next(iter(panels.values())), group)), fontsize=13)
    undefined = any(bool(np.isnan(panel["r"].values).any()) for panel in panels.values())
    _finish(figure, path, note, undefined, provenance)


def overview(
    correlations: Mapping[str, xr.Dataset],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    note: str | None = None,
    provenance: Provenance | None = None,
) -> None:
    """Draw the mean |r| of each layer for every speaker, one panel per target.

    Args:
        correlations: what `correlate` returned with `by`, per target.
        path: PNG file to write.
        title: first line.
        note: a caveat printed below.
        provenance: what the correlations were computed from, said below and in text chunks.

    Raises:
        AnalysisError: no correlations, or not over groups, layers and units.
    """
    panels = {t: correlations[t] for t in in_paper_order(list(correlations))}
    by = group_dim(next(iter(panels.values()))) if panels else None
    if by is None:
        raise AnalysisError(
            "An overview compares groups; give correlations per speaker (by='speaker')."
        )
    strengths = {target: _strength(_checked(panel)) for target, panel in panels.items()}
    rows = max(len(values) for values in strengths.values())
    height = min(24.0, 1.9 + (0.23 if rows <= 40 else 0.15) * max(rows, 4))
    figure = Figure(figsize=(1.6 + 4.6 * len(panels), height), dpi=DPI, layout="constrained")
    top = max([0.05, *(float(v) for s in strengths.values() for v in s.flat if v == v)])
    image: Any = None
    shown: list[str] = []
    for column, (target, panel) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), column + 1)
        image = axes.imshow(
            np.ma.masked_invalid(strengths[target]),
            cmap=colours(SEQUENTIAL),
            vmin=0,
            vmax=top,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(plain(raised(target)), loc="left", fontweight="bold")
        _layer_ticks(axes, panel)
        labels = _group_labels(panel, by)
        # Repeated only where a target has other numbers of utterances.
        _group_ticks(axes, labels if labels != shown else [], count=len(labels), height=height)
        shown = labels
    bar = figure.colorbar(image, ax=figure.axes, pad=0.015, aspect=8 * height)
    style_bar(bar, "mean |r| of the layer's units")
    figure.suptitle(plain(title or f"Strength of correlation per {by} and layer"), fontsize=13)
    undefined = any(bool(np.isnan(values).any()) for values in strengths.values())
    hint = "Fewer utterances (n) give larger |r| by chance: compare rows of like n."
    _finish(figure, path, f"{note}\n{hint}" if note else hint, undefined, provenance)


def _checked(data: xr.Dataset) -> xr.Dataset:
    if not {"layer", "unit"} <= set(data["r"].dims):
        raise AnalysisError(
            f"A heat map is drawn over layers and units, these correlations are over "
            f"{tuple(data['r'].dims)}; use the view of a network."
        )
    return data.transpose(..., "layer", "unit")


def _one(data: xr.Dataset, group: str | None) -> xr.Dataset:
    """The (layer, unit) correlations of one group."""
    data, by = _checked(data), group_dim(data)
    if by is None:
        return data
    names = [str(value) for value in data[by].values]
    if group is None or str(group) not in names:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise AnalysisError(f"No {by} {group!r} in these correlations; choose one of: {shown}.")
    return data.isel({by: names.index(str(group))})


def _strength(data: xr.Dataset) -> NDArray[np.float64]:
    """Mean |r| over units, NaN for a layer without any that is defined."""
    r = np.abs(data["r"].values)
    known = ~np.isnan(r)
    total = np.where(known, r, 0).sum(axis=-1)
    count = known.sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _map_panel(axes: Axes, panel: xr.Dataset, target: str, limit: float, *, last: bool) -> Any:
    r = panel["r"].values
    image = unit_map(axes, r, limit, _layer_names(panel))
    if last:
        axes.set_xlabel("unit", fontsize=9)
    n = int(panel["n"].values.max(initial=0))
    axes.set_title(plain(f"{raised(target)}  (n = {n:,})"), loc="left", fontweight="bold")
    return image


def _layer_panel(axes: Axes, panel: xr.Dataset, *, first: bool, last: bool) -> tuple[float, Axes]:
    """Bars of mean |r| per layer; returns the largest value shown."""
    strength = _strength(panel)
    axes.barh(range(len(strength)), np.nan_to_num(strength), height=0.72, color=BAR)
    chance = chance_abs_r(int(panel["n"].values.max(initial=0)))
    if not math.isnan(chance):
        axes.axvline(chance, color=ACCENT, linestyle=":", linewidth=1.2, label="unrelated values")
        if first:
            axes.legend(loc="lower right", bbox_to_anchor=(1.06, 0.99), frameon=False, fontsize=7.5)
    axes.tick_params(labelleft=False, left=False, labelsize=8, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    if last:
        axes.set_xlabel("mean |r| of the layer", fontsize=9)
    shown = [0.02, *(float(v) for v in strength if v == v)]
    return max(*shown, 0.0 if math.isnan(chance) else chance), axes


def _layer_names(data: xr.Dataset) -> list[str]:
    if "layer_name" in data.coords:
        return [plain(str(name)) for name in data["layer_name"].values]
    return [str(layer) for layer in range(data.sizes["layer"])]


def _layer_ticks(axes: Axes, panel: xr.Dataset) -> None:
    names = _layer_names(panel)
    frame(axes)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_xlabel(LAYER_AXIS, fontsize=9)


def _group_labels(panel: xr.Dataset, by: str) -> list[str]:
    """Names of groups with their numbers of utterances."""
    counts = panel["n"].transpose(by, "layer", "unit").values
    return [
        plain(f"{str(name)[:24]}  (n = {int(n.max(initial=0)):,})")
        for name, n in zip(panel[by].values, counts, strict=True)
    ]


def _group_ticks(axes: Axes, labels: list[str], *, count: int, height: float) -> None:
    """Labels of rows; every second or so where `height` inches are too few."""
    step = max(1, math.ceil(count / (height / 0.14)))
    axes.set_yticks(range(0, count, step), labels[::step] or [""] * len(range(0, count, step)))
    axes.tick_params(axis="y", labelsize=7.5)


def _title(panel: xr.Dataset, group: str | None) -> str:
    parts = [str(panel.attrs.get(key, "")) for key in ("statistic", "capture", "view")]
    what = f"{parts[0]} of {parts[1]}, view {parts[2]}" if all(parts) else "pooled activations"
    by = str(panel.attrs.get("by", ALL))
    who = "All utterances" if group is None or by == ALL else f"{raised(by)} {group}"
    return f"{who}: how each unit ({what}) follows the labels"


def _finish(
    figure: Figure,
    path: str | os.PathLike[str],
    note: str | None,
    undefined: bool,
    provenance: Provenance | None,
) -> None:
    """Write the figure with what has to be said below it and inside the file."""
    grey = "undefined: constant values or n < 2" if undefined else ""
    if provenance is None:
        footer(figure, note, undefined=grey)
        _save(figure, path)
    else:
        said = f"{note}\n{provenance.footer}" if note else provenance.footer
        footer(figure, said, undefined=grey)
        _save(figure, path, provenance.png)
