"""Figures of what units follow: maps with their tests, stability across speakers, confounds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from featurestore.errors import AnalysisError
from featurestore.report.canvas import (
    ACCENT,
    BAR,
    QUIET,
    colour_limit,
    footer,
    layer_columns,
    legend,
    line_style,
    open_frame,
    shortened,
    style_bar,
    unit_map,
    wrapped,
)
from featurestore.report.contents import Contents
from featurestore.report.wording import covariates_of

SIGNIFICANT = 0.05  # of q, the false discovery rate
_ROW = 0.155  # inches of a speaker's row
_MOST_ROWS = 130  # rows that are named, one under the other

# Shapes differ, so that a verdict can be told without its colour.
_VERDICTS: Mapping[str, Mapping[str, Any]] = {
    "shared": {"marker": "o", "color": "#0072b2"},
    "own": {"marker": "D", "color": "#d98200"},
    "noisy": {"marker": "X", "color": "0.35"},
    "undefined": {"marker": "s", "color": "0.35", "markerfacecolor": "white"},
}
_OTHER = ("^", "v", "P", "p")


def said_below(contents: Contents, *notes: str) -> str:
    """Lines below a figure: how to read it, caveats, and the state that it was computed from."""
    known = [
        f"{key} {contents.lineage[key]}" for key in ("state", "view") if key in contents.lineage
    ]
    return "\n".join([*notes, *contents.caveats, ", ".join(known)]).strip()


def rows_of_target(table: pd.DataFrame, target: str) -> pd.DataFrame:
    """The rows of a target; none of a table that is empty."""
    return table if table.empty else table[table["target"] == target]


def in_order(values: pd.Series, known: Collection[Any]) -> list[Any]:
    """Distinct values, those in `known` first and in its order."""
    seen = list(dict.fromkeys(values))
    return [one for one in known if one in seen] + [one for one in seen if one not in known]


# --- maps -------------------------------------------------------------------------------------


def draw_map(contents: Contents, target: str) -> Figure:
    """Draw r of every unit, pooled over speakers, and below it without what covariates explain.

    A tick marks a cell of q < 0.05: in its upper half if r > 0, in its lower half if r < 0, which
    can be told in black and white. Both maps share their colours, centred at 0; what is undefined
    is grey. The bars are the share of each layer's defined units that are marked.

    Args:
        contents: of the report.
        target: label.

    Raises:
        AnalysisError: the report has no map of this target.
    """
    rows = rows_of_target(contents.maps, target)
    if rows.empty:
        held = ", ".join(map(str, contents.maps.get("target", pd.Series(dtype=str)).unique()))
        raise AnalysisError(f"No map of {target!r} in this report; there are: {held or 'none'}.")
    panels = _map_panels(contents, rows, target)
    limit = colour_limit([panel.r for panel in panels])
    layers = len(contents.layer_names)
    height = 1.0 + len(panels) * max(1.1, 0.65 + 0.152 * min(layers, 40))
    figure = Figure(figsize=(7.6, height), layout="constrained")
    grid = figure.add_gridspec(len(panels), 2, width_ratios=(6.4, 1))
    image: Any = None
    bars: Axes | None = None
    for line, panel in enumerate(panels):
        axes = figure.add_subplot(grid[line, 0])
        image = _map(axes, panel, limit, contents.layer_names)
        axes.set_title(panel.title, loc="left", fontsize=8.5, fontweight="bold")
        bars = figure.add_subplot(grid[line, 1], sharex=bars)
        _shares(bars, panel)
        bars.set_ylim(axes.get_ylim())
        if line == len(panels) - 1:
            axes.set_xlabel("unit", fontsize=9)
            bars.set_xlabel("% of units\nwith q < 0.05", fontsize=8)
    _colour_bar(figure, image, limit)
    undefined = any(bool(np.isnan(panel.r).any()) for panel in panels)
    note = (
        "Ticks: q < 0.05 (false discovery rate), in the upper half of a cell if r > 0, in the "
        "lower half if r < 0."
    )
    footer(figure, said_below(contents, note), undefined="undefined" if undefined else "")
    return figure


def _colour_bar(figure: Figure, image: Any, limit: float) -> None:
    bar = figure.colorbar(image, ax=figure.axes, pad=0.012, aspect=14 * figure.get_figheight())
    ticks = (-limit, -limit / 2, 0.0, limit / 2, limit)
    names = [f"{one:+.2g}".replace("-", "\N{MINUS SIGN}") if one else "0" for one in ticks]
    bar.set_ticks(ticks, labels=names)
    style_bar(bar, "r")


@dataclass(frozen=True, eq=False)
class _Panel:
    title: str
    r: Float64[np.ndarray, "layer unit"]
    marked: Bool[np.ndarray, "layer unit"]


def _map_panels(contents: Contents, rows: pd.DataFrame, target: str) -> list[_Panel]:
    """The map, and the partial one if there are covariates and anything of it is known."""
    covariates = covariates_of(contents.thresholds, target)
    shape = (len(contents.layer_names), int(rows["unit"].max()) + 1)
    cell = (rows["layer"].to_numpy(int), rows["unit"].to_numpy(int))
    found = []
    for value, q, what in (
        ("r", "q", "pooled over speakers"),
        ("partial_r", "partial_q", f"without {covariates or 'covariates'}"),
    ):
        unknown = value not in rows or rows[value].isna().all()
        if value == "partial_r" and (covariates == "" or unknown):
            continue  # without covariates it is the map above again
        r, marked = np.full(shape, np.nan), np.zeros(shape, bool)
        r[cell] = rows[value].to_numpy(np.float64)
        marked[cell] = (rows[q] < SIGNIFICANT).to_numpy()
        marked &= np.isfinite(r)
        said_q = q.replace("_", " ")
        count = f"{marked.sum():,} of {np.isfinite(r).sum():,} units with {said_q} < {SIGNIFICANT}"
        name = f"{shortened(target)}: {value.replace('_', ' ')}"
        said = wrapped(what, width=78 - len(name), most=2)
        found.append(_Panel(f"{name} {said}\n{count}", r, marked))
    return found


def _map(axes: Axes, panel: _Panel, limit: float, names: Sequence[str]) -> Any:
    r = panel.r
    image, units = unit_map(axes, r, limit, [shortened(name) for name in names]), r.shape[1]
    layer, unit = np.nonzero(panel.marked)
    half = np.where(r[layer, unit] > 0, 1, -1)
    ends = [layer + 0.06 * half, layer + 0.42 * half]
    dark = np.abs(r[layer, unit]) > 0.6 * limit
    ticks = LineCollection(
        list(np.stack([np.stack([unit, end], axis=-1) for end in ends], axis=1)),
        colors=["white" if one else "black" for one in dark],
        linewidths=float(np.clip(140 / units, 0.2, 1.1)),
        label="significant",
    )
    axes.add_collection(ticks, autolim=False)
    return image


def _shares(axes: Axes, panel: _Panel) -> None:
    """Bars of the share of a layer's defined units that are significant, in percent."""
    known = np.isfinite(panel.r).sum(axis=1)
    share = 100 * panel.marked.sum(axis=1) / np.maximum(known, 1)
    axes.barh(range(len(share)), share, height=0.72, color=BAR)
    open_frame(axes)
    axes.tick_params(labelleft=False, left=False)
    axes.set_xlim(0, max(5.0, axes.get_xlim()[1], 1.08 * share.max(initial=0)))


# --- stability --------------------------------------------------------------------------------


def draw_stability(contents: Contents) -> Figure:
    """How alike each speaker's map is to that of the others, beside how alike it could be.

    One row per speaker, the most alike first, one panel per target; the tick is the ceiling that
    the reliability of the maps allows, the marker's shape is the verdict.

    Args:
        contents: of the report, with `stability`.
    """
    table = contents.stability.fillna({"verdict": "no verdict"})
    ranks = table.groupby("speaker", sort=False)["similarity"].mean()
    speakers = list(ranks.sort_values(ascending=False, kind="stable").index)
    targets = in_order(table["target"], contents.targets)
    height = min(22.0, 1.55 + _ROW * max(4, len(speakers)))
    width = 2.2 + 2.7 * len(targets)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(targets), squeeze=False, sharey=True, sharex=True)[0]
    styles = _verdict_styles(table["verdict"])
    for axes, target in zip(panels, targets, strict=True):
        _similarities(axes, table[table["target"] == target], speakers, styles)
        axes.set_title(shortened(target), loc="left", fontsize=9, fontweight="bold")
        axes.set_xlabel("similarity to the others", fontsize=8)
    step = -(-len(speakers) // _MOST_ROWS)
    names = [shortened(speaker) for speaker in speakers[::step]]
    panels[0].set_yticks(range(0, len(speakers), step), names, fontsize=7)
    panels[0].set_ylim(len(speakers) - 0.4, -0.6)
    keys = [Line2D([], [], linestyle="", markersize=5, **style) for style in styles.values()]
    ceiling = Line2D([], [], linestyle="", marker="|", markersize=7, color=ACCENT)
    named = [*(shortened(verdict) for verdict in styles), "ceiling"]
    place = {"loc": "outside upper right", "ncols": min(4, len(named))}
    legend(figure, [*keys, ceiling], named, **place)
    note = "Similarity: correlation with the map of the other speakers, between -1 and 1."
    footer(figure, said_below(contents, note))
    return figure


def _verdict_styles(verdicts: pd.Series) -> dict[str, Mapping[str, Any]]:
    """Marker of each verdict that occurs, the known ones first."""
    seen = [str(one) for one in dict.fromkeys(verdicts)]
    other = [one for one in seen if one not in _VERDICTS]
    return {
        **{one: style for one, style in _VERDICTS.items() if one in seen},
        **{one: {"marker": _OTHER[i % len(_OTHER)], "color": "k"} for i, one in enumerate(other)},
    }


def _similarities(
    axes: Axes,
    rows: pd.DataFrame,
    speakers: Sequence[str],
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    places = {speaker: place for place, speaker in enumerate(speakers)}
    row = rows["speaker"].map(places).to_numpy(np.float64)
    similarity = rows["similarity"].to_numpy(np.float64)
    ceiling = rows["ceiling"].to_numpy(np.float64)
    open_frame(axes, sides=("top", "right", "left"))
    axes.axvline(0, color=ACCENT, linewidth=0.7, zorder=0)
    axes.hlines(row, similarity, ceiling, color="0.75", linewidth=0.9, zorder=1)
    axes.plot(ceiling, row, "|", color=ACCENT, markersize=7, zorder=2, label="ceiling")
    for verdict, style in styles.items():
        chosen = (rows["verdict"] == verdict).to_numpy()
        axes.plot(
            similarity[chosen], row[chosen], linestyle="", markersize=4.5, label=verdict, **style
        )
    axes.grid(axis="y", color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)


# --- confounds --------------------------------------------------------------------------------


def draw_confounds(contents: Contents) -> Figure:
    """Mean |r| of each layer's units with what is no emotion, and what chance alone would show.

    One panel per kind of correlation, one line per covariate; dotted lines are chance.

    Args:
        contents: of the report, with `confounds`.
    """
    table = contents.confounds
    kinds = list(dict.fromkeys(table["kind"]))
    covariates = list(dict.fromkeys(table["covariate"]))
    figure = Figure(
        figsize=(2.2 + 2.9 * len(kinds), max(3.5, 1.6 + 0.17 * len(covariates))),
        layout="constrained",
    )
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        rows = table[table["kind"] == kind]
        for place, covariate in enumerate(covariates):
            line = rows[rows["covariate"] == covariate].sort_values("layer")
            _confound(axes, line, line_style(place))
        open_frame(axes)
        layer_columns(axes, [shortened(name) for name in contents.layer_names])
        axes.set_title(shortened(kind), loc="left", fontsize=9, fontweight="bold")
    shown = np.array([0.02, *table["mean_abs_r"], *table["chance"]], np.float64)
    panels[0].set_ylim(0, 1.06 * float(np.nanmax(shown)))
    panels[0].set_ylabel("mean |r| of the layer's units", fontsize=8)
    keys = [Line2D([], [], markersize=4, **line_style(i)) for i in range(len(covariates))]
    chance = Line2D([], [], color=QUIET, linestyle=":", linewidth=1.2)
    named = [*(shortened(one) for one in covariates), "chance"]
    legend(figure, [*keys, chance], named, loc="outside right upper")
    note = "Dotted: the mean |r| that unrelated values would show with as many utterances."
    footer(figure, said_below(contents, note))
    return figure


def _confound(axes: Axes, rows: pd.DataFrame, style: Mapping[str, Any]) -> None:
    if rows.empty:
        return
    axes.plot(rows["layer"], rows["mean_abs_r"], linewidth=1.3, markersize=4, **style)
    # A line of its own colour where covariates have chances of their own.
    layer, chance = rows["layer"].to_numpy(np.float64), rows["chance"].to_numpy(np.float64)
    if len(layer) == 1:
        layer, chance = np.array([layer[0] - 0.4, layer[0] + 0.4]), np.repeat(chance, 2)
    axes.plot(layer, chance, ":", color=style["color"], linewidth=1.1, alpha=0.8, label="chance")
