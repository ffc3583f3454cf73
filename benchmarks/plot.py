"""Bars of what was measured: ours above theirs, the machine's limit as a mark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from featurestore.benchmarks.report import Report, Row, ratio_text
from featurestore.files import replacing

# Dark, light and white, hatched differently: apart in grey and under every colour blindness.
OURS: dict[str, Any] = {"facecolor": "#1f4e79", "edgecolor": "#1f4e79"}
SOFTWARE: dict[str, Any] = {"facecolor": "#f2b872", "edgecolor": "#8a5a1a", "hatch": "////"}
SELF: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.35", "hatch": "...."}
LIMIT: dict[str, Any] = {"color": "black", "linewidth": 2.2}
HEIGHT = 0.4  # of a bar; a pair of them and its gap take 1
HEADING = 0.72  # the line that names a stage
DPI = 150


@dataclass(frozen=True)
class _Place:
    """Where a row's bars go, downwards from 0."""

    row: Row
    y: float
    heading: float | None


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw bench.png and bench.svg.

    Returns:
        Their paths; none where nothing was timed.
    """
    timed = [row for row in report.rows if row.ours is not None]
    panels = [
        rows
        for by_call in (False, True)
        if (rows := [row for row in timed if row.by_call == by_call])
    ]
    if not panels:
        return []
    placed = [_places(rows) for rows in panels]
    heights = [places[-1].y + 0.6 for places in placed]
    size = (10.0, 1.6 + 0.8 * len(panels) + 0.36 * sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for one, places in zip(axes, placed, strict=True):
        _panel(one, places, report)
    _captions(figure, axes[0], report)
    paths = []
    # Text in the SVG stays text, and the same results give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "bench", "hatch.linewidth": 0.6}):
        for kind in ("png", "svg"):
            metadata = {"Date": None} if kind == "svg" else None
            with replacing(folder / f"bench.{kind}") as temporary:
                figure.savefig(
                    temporary, format=kind, dpi=DPI, facecolor="white", metadata=metadata
                )
            paths.append(folder / f"bench.{kind}")
    return paths


def _places(rows: Sequence[Row]) -> list[_Place]:
    places, y = [], 0.0
    for _, group in itertools.groupby(rows, key=lambda row: row.stage):
        heading: float | None = y
        y += HEADING
        for row in group:
            places.append(_Place(row, y, heading))
            heading, y = None, y + 1.0
        y += 0.25
    return places


def _panel(axes: Axes, places: Sequence[_Place], report: Report) -> None:
    by_call = places[0].row.by_call
    values = [value for place in places for value in _values(place.row, by_call) if value]
    limits = report.limits.speeds if report.limits and not by_call else {}
    values += [limits[place.row.limit] for place in places if place.row.limit in limits]
    low = 10.0 ** math.floor(math.log10(min(values)) - 0.15)
    high = max(values) ** 1.1 * low**-0.1  # room for the number behind the longest bar
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    for place in places:
        _pair(axes, place, low)
        if place.row.limit in limits:
            at, ends = limits[place.row.limit], (place.y - HEIGHT * 1.1, place.y + HEIGHT * 1.1)
            axes.plot([at, at], ends, color="white", linewidth=4.5, zorder=3)
            axes.plot([at, at], ends, **LIMIT, zorder=4)
    bottom = places[-1].y + 0.55
    axes.set_ylim(bottom, -0.55)
    axes.set_yticks([])
    axes.set_xlabel(
        "milliseconds per call: shorter is faster"
        if by_call
        else "seconds of audio per second: longer is faster",
        fontsize=9,
    )
    axes.grid(axis="x", color="0.88", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _values(row: Row, by_call: bool) -> tuple[float | None, float | None]:
    if not by_call:
        return row.speed, row.reference_speed
    ours, theirs = (1e3 * side.median if side else None for side in (row.ours, row.theirs))
    return ours, theirs


def _pair(axes: Axes, place: _Place, low: float) -> None:
    row = place.row
    beside: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "fontsize": 8, "va": "center"}
    if place.heading is not None:
        axes.annotate(row.stage, (-0.01, place.heading), ha="right", fontweight="bold", **beside)
    axes.annotate(f"beside {row.reference}", (-0.01, place.y), ha="right", **beside)
    sides = zip(
        (place.y - HEIGHT / 2, place.y + HEIGHT / 2), _values(row, row.by_call), strict=True
    )
    styles = (OURS, SOFTWARE if row.against == "software" else SELF)
    for (y, value), style in zip(sides, styles, strict=True):
        if value is None:
            axes.annotate(row.missing, (0.005, y), color="0.3", style="italic", **beside)
            continue
        axes.barh(y, value - low, left=low, height=HEIGHT * 0.92, linewidth=0.6, **style)
        label = f"{value:,.1f}" if row.by_call and value < 100 else f"{value:,.0f}"
        axes.annotate(
            label,
            (value, y),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )
    if row.ratio is not None:
        axes.annotate(ratio_text(row.ratio), (1.045, place.y), ha="right", **beside)


def _captions(figure: Figure, first: Axes, report: Report) -> None:
    against = {row.against for row in report.rows}
    handles: list[Any] = [Patch(**OURS, label="featurestore")]
    if "software" in against:
        handles.append(Patch(**SOFTWARE, label="other software"))
    if "self" in against:
        handles.append(Patch(**SELF, label="a part of featurestore, or the machine alone"))
    if report.limits:
        handles.append(Line2D([], [], **LIMIT, label="limit of the machine, as measured"))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=8
    )
    first.annotate(
        "ratio",
        (1.045, -0.35),
        xycoords=first.get_yaxis_transform(),
        ha="right",
        va="center",
        fontsize=8,
        fontweight="bold",
    )
    facts, corpus = report.machine, report.corpus
    device = facts["cpu"] if facts["jax_platform"] == "cpu" else facts["jax_device"]
    figure.supxlabel(
        f"{device}, {facts['cores']} cores; {corpus['name']}: {corpus['utterances']:,} files, "
        f"{corpus['audio_s'] / 60:,.0f} min. Ratio: their time over ours, median of "
        f"{report.repeats} {'pair' if report.repeats == 1 else 'pairs'} in turns.",
        fontsize=8,
        x=0.01,
        ha="left",
        color="0.3",
    )
