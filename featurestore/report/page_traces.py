"""A model's output over the time of an utterance, as plotly.js takes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from featurestore.report.contents import Trace
from featurestore.report.page_data import encoded
from featurestore.report.page_figures import COLOURS, INK, QUIET, Spec
from featurestore.report.page_tables import number

_WAVEFORM, _PICTURE, _OUTPUT = 70, 110, 150  # heights of panels, pixels
_GAP, _TOP, _BOTTOM = 34, 24, 52
_FLOOR_DB = -80.0

_Panel = tuple[int, str, Spec, list[Spec]]  # height, title, y axis and what is drawn


def by_utterance(traces: Sequence[Trace]) -> list[list[Trace]]:
    """Traces of the same utterance and features together, in the order given."""
    found: dict[tuple[str, str, str], list[Trace]] = {}
    for trace in traces:
        found.setdefault((trace.speaker, trace.id, trace.features), []).append(trace)
    return list(found.values())


def utterance(traces: Sequence[Trace]) -> Spec:
    """Model outputs over time, one panel per target, under waveform and log-mel picture.

    Args:
        traces: of one utterance.
    """
    first = traces[0]
    ends = [first.duration_s, *(float(t.time_s[-1]) for t in traces if len(t.time_s))]
    end = max((e for e in ends if math.isfinite(e)), default=1.0)
    panels: list[_Panel] = []
    if first.waveform is not None:
        panels.append(_waveform(first.waveform, _length(first, end)))
    if first.log_mel is not None:
        panels.append(_log_mel(first.log_mel, first.time_s, _length(first, end)))
    panels += [_output(trace, end) for trace in traces]
    return _stacked(panels, end)


def _stacked(panels: Sequence[_Panel], end: float) -> Spec:
    """Panels one under the other, over the same time."""
    inner = sum(height for height, *_ in panels) + _GAP * (len(panels) - 1)
    data: list[Spec] = []
    layout: Spec = {
        "height": inner + _TOP + _BOTTOM,
        "margin": {"l": 58, "r": 14, "t": _TOP, "b": _BOTTOM},
        "annotations": [],
    }
    top = inner
    for index, (height, title, axis, drawn) in enumerate(panels):
        suffix = str(index + 1) if index else ""  # plotly.js calls the first axis "y"
        layout[f"yaxis{suffix}"] = {**axis, "domain": [(top - height) / inner, top / inner]}
        layout["annotations"].append(_panel_title(title, top / inner))
        data += [{**one, "yaxis": f"y{suffix}"} for one in drawn]
        layout["xaxis"] = {"title": {"text": "time (s)"}, "range": [0, end], "anchor": f"y{suffix}"}
        top -= height + _GAP
    return {"data": data, "layout": layout}


def _panel_title(title: str, top: float) -> Spec:
    place = {"xref": "paper", "yref": "paper", "x": 0, "y": top}
    return {"text": title, **place, "xanchor": "left", "yanchor": "bottom", "showarrow": False}


def _length(trace: Trace, end: float) -> float:
    return trace.duration_s if math.isfinite(trace.duration_s) else end


def _centres(count: int, length: float) -> Float64[np.ndarray, " point"]:
    return (np.arange(count) + 0.5) * length / max(1, count)


def _waveform(points: Float[np.ndarray, "point 2"], length: float) -> _Panel:
    points = np.asarray(points, np.float64)
    times = _centres(len(points), length)
    drawn = {
        "type": "scatter",
        "mode": "lines",
        "x": encoded(np.concatenate([times, times[::-1]]), "f4"),
        "y": encoded(np.concatenate([points[:, 1], points[::-1, 0]]), "f4"),
        "fill": "toself",
        "fillcolor": QUIET,
        "line": {"width": 0.5, "color": QUIET},
        "hoverinfo": "skip",
    }
    largest = float(np.nanmax(np.abs(points), initial=0.05))
    axis = {"range": [-largest, largest], "zeroline": False, "nticks": 3}
    return _WAVEFORM, "waveform", axis, [drawn]


def _log_mel(
    picture: Float[np.ndarray, "mel frame"], times: Float64[np.ndarray, " frame"], length: float
) -> _Panel:
    mels, frames = picture.shape
    # Whole decibels are more than a picture shows; silence is the least of them.
    decibels = np.rint(np.clip(np.nan_to_num(picture, nan=_FLOOR_DB), _FLOOR_DB, 0))
    drawn: dict[str, Any] = {
        "type": "heatmap",
        "x": encoded(times if frames == len(times) else _centres(frames, length), "f4"),
        "z": encoded(decibels, "i1"),
        "zmin": _FLOOR_DB,
        "zmax": 0,
        "colorscale": [[0, "#ffffff"], [1, INK]],
        "showscale": False,
        "hoverinfo": "skip",
    }
    axis = {"range": [-0.5, mels - 0.5], "showgrid": False, "zeroline": False, "nticks": 3}
    return _PICTURE, f"log-mel, {mels} bands (darker is louder)", axis, [drawn]


def _output(trace: Trace, end: float) -> _Panel:
    values = np.asarray(trace.values, np.float64)
    shown = [*values, trace.predicted, trace.truth, trace.low, trace.high]
    known = [float(value) for value in shown if math.isfinite(value)] or [0.0]
    room = 0.06 * ((max(known) - min(known)) or 1.0)
    axis = {"range": [min(known) - room, max(known) + room], "zeroline": False, "nticks": 5}
    label = number(trace.truth, digits=2) if math.isfinite(trace.truth) else "unknown"
    title = f"{trace.target}: mean {number(trace.predicted, digits=2)}, label {label}"
    output = {
        "type": "scatter",
        "mode": "lines",
        "x": encoded(trace.time_s, "f4"),
        "y": encoded(values, "f4"),
        "line": {"color": COLOURS[0], "width": 1.5},
        "hoverinfo": "x+y",
    }
    predicted = _level(trace.predicted, end, COLOURS[0], "dash")
    truth = _level(trace.truth, end, COLOURS[1], "dot")
    return _OUTPUT, title, axis, [output, predicted, truth]


def _level(value: float, end: float, colour: str, dash: str) -> Spec:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [0, end],
        "y": [value, value],
        "line": {"color": colour, "width": 1.75, "dash": dash},
        "hoverinfo": "skip",
    }
