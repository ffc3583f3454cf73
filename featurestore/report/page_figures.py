"""The page's figures as plotly.js takes them, but for the maps, which its script draws.

Text is given as it is, with line feeds between lines: the script escapes all of it at one place, so
that a name with markup in it is drawn as written. Hence no template (`hovertemplate` and the like)
is used either: they would be evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from featurestore.report.comparisons import reach
from featurestore.report.contents import Contents
from featurestore.report.page_tables import MEASURES, interval, number, records

Spec = dict[str, Any]

# Okabe and Ito's colours, darkened until they can be read on white; beside them lines differ in
# dashes and markers in shape, so that a print in black and white can be read as well.
COLOURS = ("#0b5a8f", "#b5432a", "#00705a", "#7d3c78", "#8a6200", "#333333", "#3a7fb0")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down")
INK, QUIET, PALE = "#1f2328", "#5a636d", "#c9ced4"
# ColorBrewer's RdBu: red and blue stay apart under every common colour blindness, and in black and
# white the distance from 0 is the darkness. UNDEFINED is as in the figures for print.
DIVERGING = (
    *("#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7"),
    *("#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"),
)
UNDEFINED = "#b8b8b8"
STYLE = {
    "colours": COLOURS,
    "symbols": SYMBOLS,
    "ink": INK,
    "quiet": QUIET,
    "diverging": DIVERGING,
    "undefined": UNDEFINED,
}

# In this order, so that a verdict has the same shape in every report.
_VERDICTS = ("shared", "own", "noisy", "undefined")
_MOST_NAMES = 26  # of layers that fit side by side
_SHORT = 22


def short(text: Any, length: int = _SHORT) -> str:
    """Text that fits beside an axis; all of it is said where one points at it."""
    text = " ".join(str(text).split())
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def layer_axis(contents: Contents) -> Spec:
    """The x axis of everything that goes over layers."""
    count = len(contents.layer_names)
    shown = range(0, count, max(1, math.ceil(count / _MOST_NAMES)))
    return {
        "title": {"text": "layer, from audio to text"},
        "tickvals": list(shown),
        "ticktext": [short(contents.layer_names[layer], 16) for layer in shown],
        "range": [-0.5, count - 0.5],
        "tickangle": -90,
        "showgrid": False,
    }


def curve(contents: Contents, measure: str, *, target: str | None = None) -> Spec:
    """A measure by layer, a line and a band per target and kind of features."""
    rows = contents.curves[contents.curves["measure"] == measure]
    if target is not None:
        rows = rows[rows["target"] == target]
    several = len(set(rows["features"])) > 1
    data: list[Spec] = []
    for (name, features), group in rows.groupby(["target", "features"], sort=False):
        place = _place(contents.curves, str(name), str(features))
        label = f"{name}, {features}" if several else str(name)
        data += _line(contents, group.sort_values("layer"), label, place)
    sense = {"ccc": " (higher is better)", "mse": " (lower is better)"}.get(measure, "")
    title = f"{MEASURES.get(measure, measure)}{sense}"
    return {
        "data": data,
        "layout": {
            "height": 380,
            "showlegend": len(data) > 2,
            "xaxis": layer_axis(contents),
            "yaxis": {"title": {"text": title}, "zeroline": measure == "ccc"},
        },
    }


def layer_curves(contents: Contents) -> dict[str, Spec]:
    """The curve of each target's CCC, to stand beside one of its units."""
    if contents.curves.empty:
        return {}
    rows = contents.curves[contents.curves["measure"] == "ccc"]
    held = set(rows["target"].map(str))
    return {str(t): curve(contents, "ccc", target=t) for t in contents.targets if str(t) in held}


def _place(rows: pd.DataFrame, target: str, features: str) -> int:
    """The same colour and marker for the same line in every figure."""
    pairs = dict.fromkeys(zip(rows["target"].map(str), rows["features"].map(str), strict=True))
    return list(pairs).index((target, features))


def _line(contents: Contents, rows: pd.DataFrame, label: str, place: int) -> list[Spec]:
    band = rows[np.isfinite(rows["low"]) & np.isfinite(rows["high"])]
    texts = [
        f"{label}\n{_layer(contents, row['layer'])}\n"
        f"{number(row['value'])} ({interval(row['low'], row['high'], signed=False)})"
        for row in records(rows)
    ]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [*band["layer"], *reversed(list(band["layer"]))],
            "y": [*band["high"], *reversed(list(band["low"]))],
            "fill": "toself",
            "fillcolor": COLOURS[place % len(COLOURS)],
            "opacity": 0.14,
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": short(label, 40),
            "x": list(rows["layer"]),
            "y": list(rows["value"]),
            **_stroke(place),
            "hovertext": texts,
            "hoverinfo": "text",
        },
    ]


def _stroke(place: int) -> Spec:
    """Of one curve among several: told apart without its colour too."""
    colour = COLOURS[place % len(COLOURS)]
    return {
        "line": {"color": colour, "width": 2, "dash": DASHES[place % len(DASHES)]},
        "marker": {"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8, "color": colour},
    }


def _layer(contents: Contents, layer: float) -> str:
    names = contents.layer_names
    return str(names[int(layer)]) if int(layer) < len(names) else f"layer {int(layer)}"


def stability(contents: Contents, target: str) -> Spec:
    """Per speaker, the similarity to the others and the ceiling that it could reach."""
    rows = contents.stability[contents.stability["target"] == target]
    seen = list(dict.fromkeys(contents.stability["verdict"].map(str)))
    verdicts = [*_VERDICTS, *(one for one in seen if one not in _VERDICTS)]
    places = list(range(len(rows)))
    speakers = [str(name) for name in rows["speaker"]]
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "ceiling",
            "x": list(rows["ceiling"]),
            "y": places,
            "marker": {"symbol": "line-ns-open", "size": 13, "color": INK, "line": {"width": 2}},
            "hovertext": [
                f"{speaker}\nceiling {number(value)}"
                for speaker, value in zip(speakers, rows["ceiling"], strict=True)
            ],
            "hoverinfo": "text",
        }
    ]
    for index, verdict in enumerate(verdicts):
        if verdict not in seen:
            continue
        chosen = [place for place in places if str(rows["verdict"].iloc[place]) == verdict]
        values = [rows["similarity"].iloc[place] for place in chosen]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": short(verdict, 40),
                "x": values,
                "y": chosen,
                "marker": _marker(index, size=10),
                "hovertext": [
                    f"{speakers[place]}\nsimilarity {number(value)}\n{verdict}"
                    for place, value in zip(chosen, values, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 120 + (22 if len(rows) <= 40 else 12) * max(len(rows), 3),
            "showlegend": True,
            "xaxis": {"title": {"text": "similarity to the other speakers"}, "zeroline": True},
            "yaxis": {
                "tickvals": places,
                "ticktext": [short(name, 14) for name in speakers],
                "range": [len(rows) - 0.5, -0.5],
            },
        },
    }


def _marker(place: int, *, size: int) -> Spec:
    return {
        "symbol": SYMBOLS[place % len(SYMBOLS)],
        "color": COLOURS[place % len(COLOURS)],
        "size": size,
        "opacity": 1,
    }


def confounds(contents: Contents, kind: str) -> Spec:
    """Mean |r| of each covariate by layer, and what unrelated values show."""
    rows = contents.confounds[contents.confounds["kind"] == kind]
    data: list[Spec] = []
    for place, (covariate, group) in enumerate(rows.groupby("covariate", sort=False)):
        group = group.sort_values("layer")
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": short(covariate, 40),
                "x": list(group["layer"]),
                "y": list(group["mean_abs_r"]),
                **_stroke(place),
                "hovertext": [
                    f"{covariate}\n{_layer(contents, row['layer'])}\nmean |r| "
                    f"{number(row['mean_abs_r'])}\nlargest {number(row['max_abs_r'])}"
                    for row in records(group)
                ],
                "hoverinfo": "text",
            }
        )
    for index, chance in enumerate(sorted(set(rows["chance"].dropna()))):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "unrelated values",
                "x": [-0.5, len(contents.layer_names) - 0.5],
                "y": [chance, chance],
                "line": {"color": QUIET, "width": 1.5, "dash": "dot"},
                "showlegend": not index,
                "hovertext": [f"unrelated values: {number(chance)}"] * 2,
                "hoverinfo": "text",
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 380,
            "showlegend": True,
            "xaxis": layer_axis(contents),
            "yaxis": {"title": {"text": "mean |r| of the layer's units"}, "rangemode": "tozero"},
        },
    }


def forest(contents: Contents, target: str, measure: str) -> Spec:
    """A dot per difference with its interval; filled where the interval leaves zero out."""
    table = contents.comparisons
    rows = records(table[(table["target"] == target) & (table["measure"] == measure)])
    most = reach(table[table["measure"] == measure])
    lower = measure == "mse"
    data: list[Spec] = []
    for place, row in enumerate(rows):
        apart = row["low"] > 0 or row["high"] < 0
        favoured = (row["difference"] < 0) == lower
        colour = (COLOURS[0] if favoured else COLOURS[1]) if apart else QUIET
        symbol = ("circle" if favoured else "square") if apart else "circle-open"
        text = (
            f"{row['first']}\nagainst {row['second']}\n{number(row['difference'], signed=True)} "
            f"({interval(row['low'], row['high'])})"
        )
        low, high, at = (_within(row[name], most) for name in ("low", "high", "difference"))
        if at != row["difference"] and at == at:
            symbol = "triangle-left" if at < 0 else "triangle-right"
        data.append(_whisker([low, high], place, colour, text, width=2.5))
        data.append(_dot(at, place, colour, symbol, text))
    title = f"{MEASURES.get(measure, measure)}, first minus second"
    names = [f"{row['first']} against {row['second']}" for row in rows]
    ends = [_within(row[end], most) for row in rows for end in ("low", "high", "difference")]
    return {"data": data, "layout": _rows_layout(names, title, ends)}


def _within(value: float, most: float) -> float:
    return min(max(value, -most), most) if math.isfinite(value) else value


def permutations(contents: Contents, measure: str) -> Spec:
    """What was observed as a dot beside the interval of shuffled labels."""
    table = contents.permutations
    rows = records(table[table["measure"] == measure])
    data: list[Spec] = []
    for place, row in enumerate(rows):
        said = f"{row['target']}: {row['feature_set']}"
        null = f"{said}\nshuffled {number(row['null_mean'])} " + (
            f"({interval(row['null_low'], row['null_high'])})"
        )
        data.append(_whisker([row["null_low"], row["null_high"]], place, PALE, null, width=9))
        data.append(_dot(row["null_mean"], place, INK, "line-ns-open", null))
        observed = f"{said}\nobserved {number(row['observed'])}"
        data.append(_dot(row["observed"], place, COLOURS[0], "diamond", observed))
    names = [f"{row['target']}: {row['feature_set']}" for row in rows]
    ends = [row[end] for row in rows for end in ("null_low", "null_high", "observed")]
    return {"data": data, "layout": _rows_layout(names, MEASURES.get(measure, measure), ends)}


def _whisker(ends: Sequence[float], place: int, colour: str, text: str, *, width: float) -> Spec:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(ends),
        "y": [place, place],
        "line": {"color": colour, "width": width},
        "hovertext": [text, text],
        "hoverinfo": "text",
    }


def _dot(value: float, place: int, colour: str, symbol: str, text: str) -> Spec:
    line = {"width": 2, "color": colour}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [value],
        "y": [place],
        "marker": {"symbol": symbol, "size": 11, "color": colour, "line": line, "opacity": 1},
        "hovertext": [text],
        "hoverinfo": "text",
    }


def _rows_layout(names: Sequence[str], title: str, shown: Sequence[float]) -> Spec:
    """Rows whose names stand above them, where a narrow screen has room as well."""
    known = [0.0, *(value for value in shown if math.isfinite(value))]
    room = 0.06 * ((max(known) - min(known)) or 1.0)
    span = [min(known) - room, max(known) + room]
    return {
        "height": 76 + 50 * len(names),
        "margin": {"l": 12, "r": 12, "t": 8, "b": 52},
        "xaxis": {"title": {"text": title}, "zeroline": True, "range": span},
        "yaxis": {"visible": False, "range": [len(names) - 0.5, -0.75]},
        "annotations": [
            {
                "text": short(name, 56),
                "xref": "paper",
                "x": 0,
                "xanchor": "left",
                "y": place,
                "yshift": 18,
                "showarrow": False,
                "align": "left",
                "bgcolor": "rgba(255, 255, 255, 0.85)",
                "borderpad": 1,
            }
            for place, name in enumerate(names)
        ],
    }
