"""Figures of what models predict: by layer, against each other, against chance, frame by frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from featurestore.report.canvas import (
    ACCENT,
    OPEN,
    footer,
    layer_columns,
    legend,
    line_style,
    open_frame,
    plain,
    shortened,
    wrapped,
)
from featurestore.report.comparisons import comparison_figure, probability
from featurestore.report.contents import Contents, Trace
from featurestore.report.drawings import in_order, said_below

_MEASURES = {
    "ccc": "CCC",
    "ccc_pooled": "CCC pooled",
    "mse": "MSE",
    "r2": "R2",
    "pearson": "Pearson r",
}
_TOO_FEW = 3  # layers; a band of fewer is hardly to be seen
_DODGE = 0.08  # layers between intervals that would else lie on each other
_CERTAIN = 0.05  # of p


# --- by layer ---------------------------------------------------------------------------------


def draw_curves(contents: Contents) -> Figure:
    """How well each layer alone predicts each target, with intervals as bands.

    One row of panels per measure and one column per feature set, so that a trained network and its
    untrained control stand side by side on the same scale; targets differ in colour, dashes and
    marker.

    Args:
        contents: of the report, with `curves`.
    """
    table = contents.curves
    measures = in_order(table["measure"], _MEASURES)
    features = list(dict.fromkeys(table["features"]))
    targets = in_order(table["target"], contents.targets)
    size = (1.9 + 3.1 * len(features), 1.3 + 2.0 * len(measures))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(measures), len(features), squeeze=False, sharex=True, sharey="row")
    for line, measure in enumerate(measures):
        for column, name in enumerate(features):
            axes = grid[line][column]
            rows = table[(table["measure"] == measure) & (table["features"] == name)]
            for place, target in enumerate(targets):
                beside = _DODGE * (place - (len(targets) - 1) / 2)
                _curve(axes, rows[rows["target"] == target], line_style(place), beside)
            open_frame(axes)
            axes.grid(axis="y", color="0.92", linewidth=0.5)
            if not column:
                axes.set_ylabel(_measure(measure), fontsize=8)
            if not line:
                axes.set_title(shortened(name), loc="left", fontsize=9, fontweight="bold")
    for axes in grid[-1]:
        layer_columns(axes, [shortened(name) for name in contents.layer_names])
    keys = [Line2D([], [], markersize=4, **line_style(i)) for i in range(len(targets))]
    names = [shortened(target) for target in targets]
    columns = max(1, int(size[0] / 1.6))
    legend(figure, keys, names, loc="outside upper right", handlelength=3, ncols=columns)
    note = "Bands: bootstrap intervals over speakers."
    footer(figure, said_below(contents, note))
    return figure


def _curve(axes: Axes, rows: pd.DataFrame, style: Mapping[str, Any], beside: float) -> None:
    rows = rows.sort_values("layer")
    if rows.empty:
        return
    layer, value = rows["layer"].to_numpy(np.float64), rows["value"].to_numpy(np.float64)
    low, high = rows["low"].to_numpy(np.float64), rows["high"].to_numpy(np.float64)
    colour = style["color"]
    if len(layer) < _TOO_FEW:
        layer = layer + beside
        axes.vlines(layer, low, high, color=colour, linewidth=1.2)
    else:
        axes.fill_between(layer, low, high, color=colour, alpha=0.13, linewidth=0)
        for edge in (low, high):  # told apart in black and white by the dashes of their line
            axes.plot(
                layer, edge, color=colour, linestyle=style["linestyle"], linewidth=0.5, label="edge"
            )
    axes.plot(layer, value, linewidth=1.5, markersize=4, label="value", **style)


def _measure(name: str) -> str:
    better = {"mse": ", lower is better"}.get(name, "")
    return f"{plain(_MEASURES.get(name, name))}{better}"


# --- against each other, against chance -------------------------------------------------------


def draw_comparisons(contents: Contents) -> Figure:
    """Differences between feature sets with their intervals.

    Args:
        contents: of the report, with `comparisons`.
    """
    return comparison_figure(contents.comparisons, notes=said_below(contents).splitlines())


def draw_permutations(contents: Contents) -> Figure:
    """What was observed, against the interval of what permuted labels show.

    One row per target and feature set, one panel per measure; a dot is filled where p < 0.05.

    Args:
        contents: of the report, with `permutations`.
    """
    table = contents.permutations
    measures = in_order(table["measure"], _MEASURES)
    pairs = list(dict.fromkeys(zip(table["target"], table["feature_set"], strict=True)))
    figure = Figure(
        figsize=(2.6 + 2.9 * len(measures), 1.5 + 0.34 * len(pairs)), layout="constrained"
    )
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axes, measure in zip(panels, measures, strict=True):
        for row in table[table["measure"] == measure].to_dict("records"):
            _permuted(axes, row, pairs.index((row["target"], row["feature_set"])))
        open_frame(axes, sides=("top", "right", "left"))
        axes.set_xlabel(_measure(measure), fontsize=8)
        axes.use_sticky_edges = False  # bars would end at the frame
        axes.margins(x=0.06)
    names = [f"{shortened(target)}\n{shortened(name, most=34)}" for target, name in pairs]
    panels[0].set_yticks(range(len(pairs)), names, fontsize=7)
    panels[0].set_ylim(len(pairs) - 0.5, -0.5)
    keys = [
        Line2D([], [], linestyle="", marker="o", color=ACCENT, markersize=5),
        Line2D([], [], linestyle="", marker="o", color=ACCENT, mfc="white", markersize=5),
        Patch(color="0.8"),
        Line2D([], [], linestyle="", marker="|", color=OPEN, markersize=8),
    ]
    named = ["observed, p < 0.05", "observed", "labels permuted: interval", "mean"]
    legend(figure, keys, named, loc="outside upper right", ncols=4, columnspacing=1.2)
    counts = ", ".join(f"{count:,}" for count in dict.fromkeys(table["permutations"]))
    note = f"{counts} permutations of the labels."
    footer(figure, said_below(contents, note))
    return figure


def _permuted(axes: Axes, row: Mapping[str, Any], place: int) -> None:
    low, high = row["null_low"], row["null_high"]
    axes.barh(place, high - low, left=low, height=0.42, color="0.8")
    axes.plot(row["null_mean"], place, "|", color=OPEN, markersize=8)
    inside = ACCENT if row["p"] < _CERTAIN else "white"
    axes.plot(row["observed"], place, "o", color=ACCENT, mfc=inside, markersize=5, label="observed")
    text = probability(row["p"])
    axes.annotate(
        f"p {text}" if text.startswith("<") else f"p = {text}",
        (1, place),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
    )


# --- frame by frame ---------------------------------------------------------------------------


def draw_trace(contents: Contents, number: int) -> Figure:
    """A prediction for every frame of an utterance, below its sound where that is at hand.

    Args:
        contents: of the report.
        number: of the trace in `contents.traces`, from 0.
    """
    trace = contents.traces[number]
    panels = ["trace"]
    if trace.log_mel is not None and trace.log_mel.size:
        panels.insert(0, "mel")
    if trace.waveform is not None and trace.waveform.size:
        panels.insert(0, "waveform")
    heights = {"waveform": 0.8, "mel": 1.3, "trace": 2.0}
    figure = Figure(
        figsize=(7.4, 1.5 + sum(heights[panel] for panel in panels)), layout="constrained"
    )
    grid = figure.subplots(
        len(panels),
        1,
        squeeze=False,
        sharex=True,
        gridspec_kw={"height_ratios": [heights[panel] for panel in panels]},
    )
    draw = {"waveform": _waveform, "mel": _log_mel, "trace": _values}
    for panel, (axes,) in zip(panels, grid, strict=True):
        draw[panel](axes, trace)
    bottom = grid[-1][0]
    bottom.set_xlabel("time, s", fontsize=8)
    bottom.set_xlim(0, _end(trace))
    if trace.text:
        quoted = f"\N{LEFT DOUBLE QUOTATION MARK}{trace.text}\N{RIGHT DOUBLE QUOTATION MARK}"
        figure.suptitle(wrapped(quoted, width=90), fontsize=9.5, x=0.01, ha="left")
    who = (
        f"{shortened(trace.id, most=40)}, speaker {shortened(trace.speaker)} (held out)\n"
        f"{shortened(trace.target)} from {shortened(trace.features, most=40)}"
    )
    grid[0][0].set_title(who, loc="left", fontsize=8, fontweight="bold")
    footer(figure, said_below(contents))
    return figure


def _end(trace: Trace) -> float:
    """Seconds that are shown: of the audio, or of the frames where its duration is unknown."""
    last = float(trace.time_s[-1]) if len(trace.time_s) else 0.0
    return max(last, 0.0 if math.isnan(trace.duration_s) else trace.duration_s) or 1.0


def _waveform(axes: Axes, trace: Trace) -> None:
    assert trace.waveform is not None
    time = np.linspace(0, _end(trace), len(trace.waveform))
    axes.fill_between(time, *trace.waveform.T, color=ACCENT, linewidth=0.3)
    open_frame(axes, sides=("top", "right", "bottom"))
    axes.tick_params(bottom=False, labelbottom=False)
    top = max(0.01, float(np.abs(trace.waveform).max(initial=0)))
    axes.set_ylim(-1.05 * top, 1.05 * top)
    axes.set_ylabel("wave", fontsize=8)


def _log_mel(axes: Axes, trace: Trace) -> None:
    assert trace.log_mel is not None
    axes.imshow(
        trace.log_mel,
        cmap="gray_r",
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0, _end(trace), -0.5, len(trace.log_mel) - 0.5),
    )
    open_frame(axes)
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("mel band", fontsize=8)


def _values(axes: Axes, trace: Trace) -> None:
    colour = line_style(0)["color"]
    keys: list[tuple[Any, str]] = []
    if math.isfinite(trace.low) and math.isfinite(trace.high):
        band = axes.axhspan(trace.low, trace.high, color="0.93", zorder=0)
        keys.append((band, f"training labels, {trace.low:.3g} to {trace.high:.3g}"))
    (line,) = axes.plot(trace.time_s, trace.values, color=colour, linewidth=1.4, label="trace")
    keys.insert(0, (line, "each frame"))
    mean = axes.axhline(trace.predicted, color=colour, linestyle="--", linewidth=1.2, label="mean")
    keys.insert(1, (mean, f"their mean, the prediction: {trace.predicted:.2f}"))
    if math.isfinite(trace.truth):
        truth = axes.axhline(trace.truth, color="#b5432a", linestyle="-.", linewidth=1.2)
        keys.insert(2, (truth, f"label: {trace.truth:.2f}"))
    open_frame(axes)
    axes.set_ylabel(shortened(trace.target), fontsize=8)
    legend(
        axes,
        [handle for handle, _ in keys],
        [name for _, name in keys],
        loc="upper left",
        bbox_to_anchor=(0, -0.2),
        ncols=4,
        columnspacing=1.3,
    )
