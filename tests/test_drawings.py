"""What the figures of a report show, and that every text of theirs can be read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from report_contents import contents

from featurestore.errors import AnalysisError
from featurestore.report import canvas
from featurestore.report.contents import Contents
from featurestore.report.drawings import draw_confounds, draw_map, draw_stability
from featurestore.report.exports import figures_of
from featurestore.report.model_drawings import (
    draw_comparisons,
    draw_curves,
    draw_permutations,
    draw_trace,
)

HOSTILE = "_$x^{2}$ </text><script>alert('&')</script> \x1b[31m \\alpha %"
LONG = "a speaker whose name is far too long for any figure that is meant to be read, the first"


def lines(axes: Axes, label: str) -> list[Line2D]:
    return [line for line in axes.get_lines() if line.get_label() == label]


def texts(figure: Figure) -> list[Text]:
    """All that is to be read: of ticks only those within the axes."""
    found = list(figure.texts)
    for key in figure.legends + [axes.get_legend() for axes in figure.axes if axes.get_legend()]:
        found += key.get_texts()
    for name in ("_suptitle", "_supxlabel"):
        found += [getattr(figure, name)] if getattr(figure, name) else []
    for axes in figure.axes:
        found += [axes.title, axes._left_title, axes._right_title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            margin = 1e-9 * (high - low)
            found.append(axis.label)
            found += [
                tick.label1
                for tick in axis.get_major_ticks()
                if low - margin <= tick.get_loc() <= high + margin
            ]
            found += [tick.label2 for tick in axis.get_major_ticks() if tick.label2.get_visible()]
    return [t for t in dict.fromkeys(found) if t.get_visible() and t.get_text().strip()]


def assert_readable(figure: Figure) -> None:
    """Nothing is cut off, lies on something else or is smaller than 7 points."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    for _ in range(2):  # saving a figure lays it out twice, too
        figure.draw(renderer)
    page = figure.bbox.padded(1)
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts(figure)]
    assert len(boxes) > 4
    for name, box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1, f"{name!r} is cut off: {box}"
        assert page.y0 <= box.y0 < box.y1 <= page.y1, f"{name!r} is cut off: {box}"
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-0.8).overlaps(b.padded(-0.8)), f"{one!r} lies on {other!r}"
    assert min(text.get_fontsize() for text in texts(figure)) >= 7


@pytest.fixture(autouse=True)
def _missing_letters() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


CASES: dict[str, Callable[[], Contents]] = {
    "usual": contents,
    "24 speakers": lambda: contents(
        layers=3, units=8, utterances=48, speakers=tuple(f"s{i:02d}" for i in range(24))
    ),
    "60 speakers": lambda: contents(
        layers=3, units=8, utterances=120, speakers=tuple(f"Ses{i:02d}F" for i in range(60))
    ),
    "one layer": lambda: contents(layers=1, units=8),
    "many layers": lambda: contents(layers=60, units=32),
    "odd names": lambda: contents(
        layers=2, units=4, speakers=(HOSTILE, LONG), text=f"{HOSTILE} 他们在门口说话 " * 20
    ),
    "odd targets": lambda: renamed(contents(layers=2, units=4), {"valence": HOSTILE}),
}


def renamed(data: Contents, names: dict[str, str]) -> Contents:
    """The same contents with other names of targets."""
    tables = {
        name: table.replace({"target": names})
        for name, table in vars(data).items()
        if isinstance(table, pd.DataFrame) and "target" in table
    }
    traces = [replace(one, target=names.get(one.target, one.target)) for one in data.traces]
    targets = [names.get(target, target) for target in data.targets]
    return replace(data, targets=targets, traces=traces, **tables)


@pytest.mark.parametrize("case", CASES)
def test_every_text_can_be_read(case: str) -> None:
    drawn = figures_of(CASES[case]())
    assert {"stability", "confounds", "layer-curves", "comparisons", "permutations"} < set(drawn)
    traces = [name for name in drawn if name.startswith("trace")]
    alike = {*traces[1:2], *traces[3:]}  # like the first and the third
    for name, draw in drawn.items():
        if name not in alike:
            assert_readable(draw())


# --- maps -------------------------------------------------------------------------------------


def grid(data: Contents, target: str, column: str) -> np.ndarray:
    rows = data.maps[data.maps["target"] == target]
    return rows.pivot_table(index="layer", columns="unit", values=column, dropna=False).to_numpy()


def ticks(axes: Axes) -> np.ndarray:
    (found,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    return np.array([segment for segment in found.get_segments() if len(segment)]).reshape(-1, 2, 2)


def test_a_map_has_a_tick_in_each_significant_cell() -> None:
    data = contents()
    rows = data.maps["target"] == "arousal"
    data.maps.loc[rows & (data.maps["unit"] == 3), "partial_q"] = 0.01
    figure = draw_map(data, "arousal")
    pooled, shares, partial, partial_shares = figure.axes[:4]
    for axes, value, q in ((pooled, "r", "q"), (partial, "partial_r", "partial_q")):
        r = grid(data, "arousal", value)
        np.testing.assert_array_equal(np.ma.filled(axes.images[0].get_array(), np.nan), r)
        marks = ticks(axes)
        expected = {(layer, unit) for layer, unit in np.argwhere(grid(data, "arousal", q) < 0.05)}
        layer, unit = marks[:, :, 1].mean(axis=1).round().astype(int), marks[:, 0, 0].astype(int)
        assert set(zip(layer, unit, strict=True)) == expected
        assert len(marks) == len(expected) > 0
        above = marks[:, :, 1].mean(axis=1) > layer
        np.testing.assert_array_equal(above, r[layer, unit] > 0)
    assert len(ticks(partial)) == 15
    assert {bar.get_width() for bar in partial_shares.patches} == {100 / 128, 100 / 127}
    count = (grid(data, "arousal", "q") < 0.05).sum(axis=1)
    known = np.isfinite(grid(data, "arousal", "r")).sum(axis=1)
    widths = [bar.get_width() for bar in shares.patches]
    np.testing.assert_allclose(widths, 100 * count / known)
    assert f"\n{count.sum()} of 1,919 units" in pooled.get_title(loc="left")
    assert "without duration, loudness" in partial.get_title(loc="left")
    assert "\n15 of 1,919 units with partial q < 0.05" in partial.get_title(loc="left")
    assert pooled.images[0].get_clim() == partial.images[0].get_clim()
    assert pooled.images[0].norm.vmin == -pooled.images[0].norm.vmax


def test_ticks_stand_out_from_their_cells() -> None:
    axes = draw_map(contents(), "valence").axes[0]
    (marks,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    image = axes.images[0]
    for colour, ((unit, low), (_, high)) in zip(
        marks.get_colors(), marks.get_segments(), strict=True
    ):
        value = image.get_array()[round((low + high) / 2), round(unit)]
        assert abs(luminance(colour) - luminance(image.cmap(image.norm(value)))) > 0.25


def luminance(colour: Any) -> float:
    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def test_a_partial_map_that_is_unknown_is_left_out() -> None:
    data = contents(layers=2, units=4)
    maps = data.maps.assign(partial_r=np.nan, partial_q=np.nan)
    figure = draw_map(replace(data, maps=maps), "valence")
    assert sum(bool(axes.images) for axes in figure.axes) == 1
    none = data.thresholds.assign(covariates="")
    figure = draw_map(replace(data, thresholds=none), "valence")  # where it is known, and the same
    assert sum(bool(axes.images) for axes in figure.axes) == 1
    figure = draw_map(replace(data, thresholds=pd.DataFrame()), "valence")
    assert "without covariates" in figure.axes[2].get_title(loc="left")
    nothing = maps.assign(r=np.nan, q=np.nan)
    figure = draw_map(replace(data, maps=nothing), "valence")
    assert len(ticks(figure.axes[0])) == 0
    assert_readable(figure)
    with pytest.raises(AnalysisError, match=r"'dominance'.*valence, arousal"):
        draw_map(data, "dominance")
    with pytest.raises(AnalysisError, match="there are: none"):
        draw_map(replace(data, maps=pd.DataFrame()), "valence")


# --- stability, confounds ---------------------------------------------------------------------


def test_a_speaker_has_the_marker_of_its_verdict() -> None:
    data = contents()
    data.stability.loc[0, "verdict"] = "something else"
    data.stability.loc[3, "verdict"] = "undefined"
    data.stability.loc[1, ["similarity", "ceiling"]] = np.nan
    figure = draw_stability(data)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(names) == sorted(data.speakers["speaker"])
    for axes, (_, rows) in zip(
        figure.axes, data.stability.groupby("target", sort=False), strict=True
    ):
        markers = set()
        for verdict, chosen in rows.groupby("verdict"):
            (line,) = lines(axes, verdict)
            np.testing.assert_array_equal(line.get_xdata(), chosen["similarity"])
            assert [names[int(y)] for y in line.get_ydata()] == list(chosen["speaker"])
            markers.add(line.get_marker())
        assert len(markers) == rows["verdict"].nunique()
        (ceiling,) = lines(axes, "ceiling")
        np.testing.assert_array_equal(ceiling.get_xdata(), rows["ceiling"])
    keys = [text.get_text() for text in figure.legends[0].get_texts()]
    assert keys == ["shared", "own", "noisy", "undefined", "something else", "ceiling"]
    assert_readable(figure)


def test_the_most_alike_speaker_is_on_top() -> None:
    data = contents()
    figure = draw_stability(data)
    mean = data.stability.groupby("speaker")["similarity"].mean()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == list(mean.sort_values(ascending=False).index)
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top


def test_confounds_are_drawn_with_their_chance() -> None:
    data = contents()
    data.confounds.loc[data.confounds["covariate"] == "loudness", "chance"] = 0.11
    within, overall = draw_confounds(data).axes
    assert within.get_title(loc="left") == "within speakers"
    drawn = [line for line in within.get_lines() if line.get_label() != "chance"]
    assert len(drawn) == 2
    assert len([line for line in overall.get_lines() if line.get_label() != "chance"]) == 1
    np.testing.assert_allclose(drawn[0].get_ydata(), 0.1 + 0.02 * np.arange(15))
    assert [set(line.get_ydata()) for line in lines(within, "chance")] == [{0.08}, {0.11}]
    assert len({line.get_marker() for line in drawn}) == 2
    assert len({line.get_linestyle() for line in drawn}) == 2


# --- models -----------------------------------------------------------------------------------


def two_feature_sets() -> Contents:
    data = contents(layers=6, units=4)
    control = data.curves.assign(features="random weights", value=0.05, low=0.0, high=0.1)
    curves = pd.concat([data.curves, control], ignore_index=True)
    curves["value"] += (curves["target"] == "arousal") * 0.1
    return replace(data, curves=curves)


def test_curves_have_a_panel_per_measure_and_feature_set() -> None:
    data = two_feature_sets()
    figure = draw_curves(data)
    assert len(figure.axes) == 4
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["gate mean", "random weights", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["CCC", "MSE, lower is better"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    for axes, (measure, features) in zip(
        figure.axes,
        itertools.product(("ccc", "mse"), ("gate mean", "random weights")),
        strict=True,
    ):
        rows = data.curves[
            (data.curves["measure"] == measure) & (data.curves["features"] == features)
        ]
        drawn = lines(axes, "value")
        for line, target in zip(drawn, data.targets, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), rows[rows["target"] == target]["value"])
        assert len({line.get_marker() for line in drawn}) == 2
        assert len({line.get_linestyle() for line in drawn}) == 2
        assert len(axes.collections) == 2  # bands
        edges = {tuple(line.get_ydata()) for line in lines(axes, "edge")}
        assert tuple(rows[rows["target"] == "valence"]["low"]) in edges
    assert_readable(figure)


def test_lines_differ_in_black_and_white() -> None:
    styles = [canvas.line_style(i) for i in range(20)]
    assert len({(str(s["linestyle"]), s["marker"]) for s in styles}) == 20
    for one, other in itertools.pairwise(styles):
        assert one["marker"] != other["marker"]
        assert one["linestyle"] != other["linestyle"]


def test_curves_of_one_layer_lie_beside_each_other() -> None:
    (axes, _) = draw_curves(contents(layers=1, units=4)).axes
    places = [line.get_xdata()[0] for line in lines(axes, "value")]
    assert len(set(places)) == 2
    assert sum(places) == pytest.approx(0)


def test_comparisons_are_filled_where_the_interval_leaves_out_zero() -> None:
    data = contents(layers=2, units=4)
    table = data.comparisons
    table[["difference", "low", "high"]] = [-0.2, -0.3, -0.1]
    table.loc[table["target"] == "arousal", "high"] = 0.1
    figure = draw_comparisons(replace(data, comparisons=table))
    dots = [[line for line in axes.get_lines() if line.get_marker() == "o"] for axes in figure.axes]
    assert [axes.get_xlabel() for axes in figure.axes[::2]] == [
        "difference in MSE (lower is better)",
        "difference in CCC (higher is better)",
        "difference in CCC pooled (higher is better)",
    ]
    assert [dot.get_xdata()[0] for (dot,) in dots] == [-0.2] * 6
    filled = [dot.get_markerfacecolor() == dot.get_color() for (dot,) in dots]
    assert filled == [True, False] * 3
    only = table[table["measure"] == "ccc"].assign(low=np.nan, high=np.nan)
    assert_readable(draw_comparisons(replace(data, comparisons=only)))


def test_permutations_show_what_was_observed_and_the_null() -> None:
    data = contents(layers=2, units=4)
    table = data.permutations.assign(observed=[0.5, 0.4, 0.02, 0.01], p=[0.0005, 0.04, 0.3, np.nan])
    figure = draw_permutations(replace(data, permutations=table))
    ccc, r2 = figure.axes
    assert (ccc.get_xlabel(), r2.get_xlabel()) == ("CCC", "R2")
    assert [line.get_xdata()[0] for line in lines(ccc, "observed")] == [0.5, 0.02]
    assert [line.get_xdata()[0] for line in lines(r2, "observed")] == [0.4, 0.01]
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ccc.patches] == [
        (-0.05, pytest.approx(0.06))
    ] * 2
    assert [text.get_text() for text in ccc.texts] == ["p < 0.001", "p = 0.300"]
    assert [text.get_text() for text in r2.texts] == ["p = 0.040", "p = NaN"]
    fillings = [
        line.get_markerfacecolor() for axes in (ccc, r2) for line in lines(axes, "observed")
    ]
    assert [one == "white" for one in fillings] == [False, True, False, True]
    low, high = ccc.get_xlim()
    assert low < -0.05
    assert high > 0.5


# --- traces -----------------------------------------------------------------------------------


def test_a_trace_has_its_sound_above_it() -> None:
    data = contents(layers=2, units=4)
    wave, mel, trace = draw_trace(data, 0).axes
    given = data.traces[0]
    np.testing.assert_array_equal(mel.images[0].get_array(), given.log_mel)
    assert mel.images[0].get_extent()[:2] == [0, given.duration_s]
    edges = wave.collections[0].get_paths()[0].vertices[:, 1]
    assert given.waveform is not None
    assert edges.min() == pytest.approx(given.waveform.min())
    (line,) = lines(trace, "trace")
    np.testing.assert_array_equal(line.get_xdata(), given.time_s)
    np.testing.assert_array_equal(line.get_ydata(), given.values)
    (mean,) = lines(trace, "mean")
    assert set(mean.get_ydata()) == {given.predicted}
    assert mean.get_linestyle() == "--"
    keys = [text.get_text() for text in trace.get_legend().get_texts()]
    assert keys[1:] == [
        f"their mean, the prediction: {given.predicted:.2f}",
        "label: 4.00",
        "training labels, 1 to 5",
    ]


def test_a_trace_without_sound_label_or_text() -> None:
    data = contents(layers=2, units=4, text="")
    (trace,) = draw_trace(data, 2).axes
    assert data.traces[2].waveform is None
    assert lines(trace, "trace")
    unknown = replace(
        data.traces[2], truth=np.nan, low=np.nan, high=np.nan, duration_s=np.nan, id="x"
    )
    figure = draw_trace(replace(data, traces=[unknown]), 0)
    assert len(figure.axes[0].get_legend().get_texts()) == 2
    assert figure.axes[0].get_xlim() == (0, unknown.time_s[-1])
    assert figure._suptitle is None
    assert_readable(figure)


def test_the_transcript_is_the_title() -> None:
    figure = draw_trace(contents(layers=2, units=4, text="that costs $5 or $6"), 0)
    assert figure._suptitle is not None
    assert figure._suptitle.get_text() == r"“that costs \$5 or \$6”"


# --- text -------------------------------------------------------------------------------------


def test_caveats_and_state_are_said_below_every_figure() -> None:
    data = contents(layers=2, units=4)
    for name, draw in figures_of(data).items():
        figure = draw()
        said = figure._supxlabel.get_text().replace("\n", " ")
        assert data.caveats[0] in said, name
        assert "state 0123456789abcdef, view gcu-1a2b3c4d5e6f" in said


def test_names_are_shortened_in_their_middle() -> None:
    assert canvas.shortened("short") == "short"
    assert canvas.shortened("one\ntwo\t three") == "one two three"
    assert canvas.shortened("abcdefghij" * 9, most=9) == "abcd…ghij"
    assert canvas.shortened("张" * 40, most=9) == "张张…张张"
    assert canvas.shortened("$x$\x00") == "\\$x\\$\N{REPLACEMENT CHARACTER}"
    assert canvas.wrapped("aa bb cc dd", width=5) == "aa bb\ncc dd"
    assert canvas.wrapped("张" * 7, width=5) == "张张\n张张\n张 …"
    assert canvas.wrapped("aa bb cc dd", width=2, most=2) == "aa\n …"
    assert canvas.wrapped("", width=5) == ""


def test_fonts_of_the_machine_lend_their_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "_SCRIPTS", ("DejaVu Serif", "a font that nobody has"))
    before = list(matplotlib.rcParams["font.family"])
    with canvas.all_scripts():
        assert matplotlib.rcParams["font.family"] == ["sans-serif", "DejaVu Serif"]
    assert matplotlib.rcParams["font.family"] == before
