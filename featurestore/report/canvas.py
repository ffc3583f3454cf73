"""What all figures share: colours, text that is drawn as it is, and files that are reproducible.

Figures are drawn without pyplot, so that nothing global is touched and no display is needed.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import Patch
from numpy.typing import NDArray

from featurestore.files import replacing

DPI = 150

DIVERGING = "RdBu_r"  # red and blue stay apart under every common colour blindness
SEQUENTIAL = "viridis"
UNDEFINED = "0.72"  # grey
ACCENT = "0.25"
QUIET = "0.55"
BAR = "#4c6a8a"
BETTER, WORSE, OPEN = "#1b6ca8", "#b5432a", "0.45"

LAYER_AXIS = "layer,  input \N{RIGHTWARDS ARROW} output"
MOST_LAYERS = 26  # whose names fit one under the other
LONGEST = 28  # characters of a name beside a row

_PER_INCH = 15  # characters of the footer, of 8 points

# Okabe and Ito (2008), ordered so that neighbours differ in lightness. Numbers of colours, dashes
# and markers share no divisor, so that one of them still tells lines apart in black and white.
_COLOURS = ("#0072b2", "#d98200", "#000000", "#cc79a7", "#009e73")
_DASHES = ("-", "--", "-.", (0, (1, 1.4)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# XML has no place for these, and no font has a shape for them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

# Of those that come with operating systems: the default font lacks the scripts of these.
_SCRIPTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Nirmala UI",
    "Arial Unicode MS",
)


def plain(text: object) -> str:
    """Text as it is: a dollar sign in a speaker's name does not start a formula."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text)).replace("$", r"\$")


def shortened(text: object, *, most: int = LONGEST) -> str:
    """A name on one line, at most so many columns wide: its middle goes, since ends differ."""
    name = " ".join(str(text).split())
    if _columns(name) > most:
        head, tail = name[: most // 2], name[len(name) - (most - 1) // 2 :]
        while _columns(head) > most // 2:
            head = head[:-1]
        while _columns(tail) > (most - 1) // 2:
            tail = tail[1:]
        name = f"{head}\N{HORIZONTAL ELLIPSIS}{tail}"
    return plain(name)


def wrapped(text: object, *, width: int, most: int = 3) -> str:
    """Text on lines of at most `width` columns, cut after `most` lines."""
    lines = [""]
    for word in str(text).split():
        pieces = [word]
        while _columns(pieces[-1]) > width:  # Chinese and Japanese have no spaces
            cut = next(i for i in range(1, len(word)) if _columns(pieces[-1][: i + 1]) > width)
            pieces[-1:] = [pieces[-1][:cut], pieces[-1][cut:]]
        for piece in pieces:
            longer = f"{lines[-1]} {piece}".strip()
            if _columns(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(piece)
    if len(lines) > most:
        last = lines[most - 1]
        while last and _columns(last) > width - 2:
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last} \N{HORIZONTAL ELLIPSIS}"]
    return plain("\n".join(lines))


def _columns(text: str) -> int:
    """How wide text is, in letters: those of East Asia count twice."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def colours(name: str) -> Any:
    """A colour map in which what is undefined is grey."""
    return matplotlib.colormaps[name].with_extremes(bad=UNDEFINED)


def colour_limit(values: Sequence[NDArray[Any]]) -> float:
    """Largest |r|, rounded up to 0.1 so that the colour bar ends at a readable number."""
    largest = max((float(np.abs(v[~np.isnan(v)]).max(initial=0)) for v in values), default=0.0)
    return min(1.0, math.ceil(largest * 10) / 10) or 1.0


def line_style(position: int) -> dict[str, Any]:
    """Colour, dashes and marker of the so-manieth line of a figure."""
    return {
        "color": _COLOURS[position % len(_COLOURS)],
        "linestyle": _DASHES[position % len(_DASHES)],
        "marker": _MARKERS[position % len(_MARKERS)],
    }


def unit_map(axes: Axes, r: NDArray[np.float64], limit: float, names: Sequence[str]) -> Any:
    """Draw r of layers by units, the first layer at the bottom; returns the image.

    Args:
        axes: to draw on.
        r: (layer, unit), NaN where undefined.
        limit: |r| of the strongest colours.
        names: of the layers.
    """
    image = axes.imshow(
        np.ma.masked_invalid(r),
        cmap=colours(DIVERGING),
        vmin=-limit,
        vmax=limit,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    frame(axes)
    layer_rows(axes, names)
    axes.set_xticks(range(0, r.shape[1], max(1, r.shape[1] // 8)))
    return image


def frame(axes: Axes) -> None:
    """A thin frame with short ticks."""
    axes.tick_params(length=2, labelsize=8)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_color(ACCENT)


def open_frame(axes: Axes, *, sides: Sequence[str] = ("top", "right")) -> None:
    """A thin frame without some of its sides."""
    frame(axes)
    axes.tick_params(labelsize=7.5)
    axes.spines[list(sides)].set_visible(False)
    if "left" in sides:
        axes.tick_params(axis="y", length=0)


def style_bar(bar: Any, label: str) -> None:
    """A colour bar without a frame."""
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)


def layer_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names of layers beside the rows of a map, and lines between groups of layers."""
    step = math.ceil(len(names) / MOST_LAYERS)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=7)
    for layer in range(1, len(names)):
        if names[layer].rsplit("_", 1)[0] != names[layer - 1].rsplit("_", 1)[0]:
            axes.axhline(layer - 0.5, color=ACCENT, linewidth=0.6)
    axes.set_ylabel(LAYER_AXIS if len(names) > 8 else "layer", fontsize=9)


def layer_columns(axes: Axes, names: Sequence[str]) -> None:
    """Names of layers below the columns of a figure."""
    step = math.ceil(len(names) / MOST_LAYERS)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=7)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel(LAYER_AXIS if len(names) > 1 else "layer", fontsize=8)


def legend(
    where: Figure | Axes, handles: Sequence[Any], names: Sequence[str], **options: Any
) -> Any:
    """A legend of any names, also such as matplotlib would leave out for their first letter."""
    made = where.legend(
        list(handles),
        [str(i) for i in range(len(names))],
        **{"frameon": False, "fontsize": 7.5, **options},
    )
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(name)
    return made


def footer(figure: Figure, note: str | None, *, undefined: str = "") -> None:
    """What has to be said below a figure.

    Args:
        figure: with a constrained layout.
        note: lines, which are wrapped to the figure's width.
        undefined: what grey cells mean; "" where there are none.
    """
    if undefined:
        figure.legend(
            handles=[Patch(color=UNDEFINED, label=undefined)],
            loc="outside lower right",
            frameon=False,
            fontsize=8,
        )
    if note:
        # Neither cut off at the edge nor below the legend.
        width = figure.get_figwidth() - (0.55 + len(undefined) / _PER_INCH if undefined else 0)
        at = int(width * _PER_INCH)
        lines = [wrapped(line, width=at, most=99) for line in note.splitlines()]
        figure.supxlabel("\n".join(lines), fontsize=8, x=0.01, ha="left", color="0.3")


@contextmanager
def all_scripts() -> Iterator[None]:
    """Letters that the default font lacks come from this machine's other fonts, where it has any.

    For the time in which figures are drawn and saved.
    """
    installed = {font.name for font in fontManager.ttflist}
    fonts: Any = {"font.family": ["sans-serif", *(name for name in _SCRIPTS if name in installed)]}
    with matplotlib.rc_context(fonts):
        yield


def save(
    figure: Figure,
    path: str | os.PathLike[str],
    chunks: Mapping[str, str | None] | None = None,
    *,
    format: Literal["png", "svg"] = "png",
    dpi: int = DPI,
) -> None:
    """Write a figure whole or not at all; the same figure is the same bytes.

    Text of an SVG stays text: it can be searched, copied and edited, a reader's own fonts have the
    scripts that ours lack, and the file is half as large.

    Args:
        figure: to be written.
        path: file.
        chunks: text inside the file: of a PNG any, of an SVG what Dublin Core has names for.
        format: of the file.
        dpi: dots per inch of a PNG, and of the maps inside an SVG.
    """
    settings: Any = {"svg.hashsalt": "featurestore", "svg.fonttype": "none"}
    metadata = {**(chunks or {}), **({"Date": None} if format == "svg" else {})}
    with (
        replacing(path) as temporary,
        warnings.catch_warnings(),
        matplotlib.rc_context(settings),
    ):
        # Names in scripts that no font has are drawn as boxes; files and tables keep them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format=format, dpi=dpi, facecolor="white", metadata=metadata)
