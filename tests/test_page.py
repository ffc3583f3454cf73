"""The report's page: what is in the file, and what a browser makes of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_contents import contents

from featurestore.analysis.models import table_sets
from featurestore.report import page_figures
from featurestore.report.contents import Contents
from featurestore.report.page import page_html, write_page
from featurestore.report.page_data import UNDEFINED, inert_json, quantise, restore
from featurestore.report.page_sections import maps
from featurestore.report.page_tables import Table, interval, number
from featurestore.report.paper import PRINTED, printed

HOSTILE = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "%{x} %{customdata}",
    "$\\alpha$ &lt;b&gt;",
    "</script><b>bold</b>",
    "\u05e9\u05dc\u05d5\u05dd \U0001f600 \u202eabc \u2028",
)


class Parsed(HTMLParser):
    """Elements of a page, with the text of scripts, styles and headings."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            attributes, text = self.scripts.pop()
            self.scripts.append((attributes, text + data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str]:
        return [a["id"] for a in self.all("section") if a.get("id")]


def small(**changes: Any) -> Contents:
    return contents(layers=5, units=12, utterances=36, **changes)


@pytest.fixture(scope="module")
def html() -> str:
    return page_html(small(), files=["table1.csv", "a b.png"])


# -- the file


def test_nothing_in_it_asks_for_anything(html: str) -> None:
    page = Parsed(html)
    (library,) = [text for _, text in page.scripts if "plotly.js v" in text]
    own = html.replace(library, "")
    assert len(own) < 500_000  # it is really gone
    asks = r"""https?://|["'(=]//|@import|url\(|\ssrc(set)?=|<link|<base|<iframe"""
    assert not re.search(asks, own)
    for attributes in page.all("a"):
        assert (attributes["href"] or "").startswith(("#", "./"))


def test_the_policy_allows_exactly_its_own_scripts(html: str) -> None:
    page = Parsed(html)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    rules = {words[0]: words[1:] for words in (rule.split() for rule in (policy or "").split(";"))}
    run = [text for attributes, text in page.scripts if attributes.get("type") is None]
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in run
    }
    assert len(run) == 2
    assert set(rules.pop("script-src")) == hashes
    assert rules == {
        "default-src": ["'none'"],
        "style-src": ["'unsafe-inline'"],
        "img-src": ["data:", "blob:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    (data,) = [text for attributes, text in page.scripts if attributes.get("type") is not None]
    assert json.loads(data)["layers"]


def test_the_policy_stands_before_everything_it_is_about(html: str) -> None:
    names = [tag for tag, _ in Parsed(html).elements]
    assert names[:4] == ["html", "head", "meta", "meta"]
    assert html.index("Content-Security-Policy") < html.index("<style>")


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_survives_and_has_no_markup(value: Any) -> None:
    text = inert_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_json_has_no_numbers_that_browsers_refuse() -> None:
    value = {"a": [np.float64("nan"), float("inf"), np.array([1.5, np.nan])], "b": np.int64(3)}
    assert json.loads(inert_json(value)) == {"a": [None, None, [1.5, None]], "b": 3}
    surrogate = "file-\udc80"  # a name that is not UTF-8, as the file system gives it
    assert json.loads(inert_json(surrogate).encode()) == surrogate


def test_quantised_values_are_within_half_a_level() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(40, 3, 7)) * 10.0 ** rng.integers(-6, 6, (1, 3, 7))).astype("f4")
    values[:, 1, 2] = 4.25  # constant
    values[:, 2, 3] = np.nan  # unknown throughout
    values[5, 0, 0] = np.inf
    levels, low, high = quantise(values)
    back = np.moveaxis(restore(levels, low=low, high=high), -1, 0)
    known = np.isfinite(values)
    assert np.array_equal(np.isfinite(back), known)
    assert (levels == UNDEFINED).sum() == (~known).sum() == 41
    off = np.abs(back - values.astype("f8"))
    bound = (high - low) / 65534 / 2 * (1 + 1e-9)
    assert (off <= bound)[known].all()
    assert off[known].max() > 0  # the bound is not met because nothing was rounded
    assert (back[:, 1, 2] == 4.25).all()


def test_the_same_contents_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_page(small(), tmp_path / "new" / name, files=["x.csv"])
    first, second = (tmp_path / "new" / name for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in sorted(first.parent.iterdir())] == ["a.html", "b.html"]
    write_page(small(title="Another"), second)
    assert first.read_bytes() != second.read_bytes()


EMPTY = {
    "maps": ("maps", pd.DataFrame()),
    "stability": ("stability", pd.DataFrame()),
    "confounds": ("confounds", pd.DataFrame()),
    "layers": ("curves", pd.DataFrame()),
    "tables": ("results", pd.DataFrame()),
    "comparisons": ("comparisons", pd.DataFrame()),
    "controls": ("permutations", pd.DataFrame()),
    "traces": ("traces", ()),
    "lineage": ("lineage", {}),
    "notes": ("notes", ()),
}
ORDER = ["corpus", *EMPTY]


def test_sections_are_in_order_and_in_the_navigation(html: str) -> None:
    page = Parsed(html)
    assert page.sections == [*ORDER, "files"]
    links = [a["href"] for a in page.all("a") if (a["href"] or "").startswith("#")]
    assert links == ["#content", *(f"#{name}" for name in [*ORDER, "files"])]


@pytest.mark.parametrize("section", EMPTY)
def test_what_is_empty_is_left_out(section: str) -> None:
    name, nothing = EMPTY[section]
    html = page_html(dataclasses.replace(small(), **{name: nothing}))
    assert Parsed(html).sections == [other for other in ORDER if other != section]
    assert f'href="#{section}"' not in html


def test_a_report_of_nothing_is_a_page() -> None:
    nothing = Contents("Nothing", ("valence",), (), {}, pd.DataFrame())
    page = Parsed(page_html(nothing))
    assert page.sections == []
    assert len(page.all("h1")) == 1


def test_every_table_has_caption_and_scopes(html: str) -> None:
    page = Parsed(html)
    tables = page.all("table")
    assert len(tables) == len(page.all("caption")) == 9
    assert {a.get("scope") for a in page.all("th")} == {"col", "colgroup", "row"}
    regions = [a for a in page.all("div") if a.get("role") == "region"]
    assert len(regions) == len(tables)
    assert all(a["tabindex"] == "0" and a["aria-labelledby"] for a in regions)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_files_are_linked_beside_the_page() -> None:
    names = ["a b.png", "javascript:alert(1)", "//elsewhere.org/x", 'q".csv']
    page = Parsed(page_html(small(), files=names))
    links = [a["href"] for a in page.all("a") if (a["href"] or "").startswith("./")]
    assert links == [
        "./a%20b.png", "./javascript%3Aalert%281%29", "./" + "//elsewhere.org/x", "./q%22.csv"
    ]  # fmt: skip


def test_a_hostile_name_in_the_file_is_escaped_everywhere() -> None:
    harmless = Parsed(page_html(named(tuple("abcdef"))))
    page = Parsed(page_html(named(HOSTILE)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    for tag, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on")}, tag


@pytest.mark.parametrize("table", [1, 2])
def test_figures_of_the_paper_stand_beside_a_feature_set(table: int) -> None:
    names = [feature_set.name for feature_set in table_sets(table)]
    for target in ("valence", "arousal"):
        rows = PRINTED[str(table), target]
        matched = [printed(str(table), target=target, feature_set=name) for name in names]
        assert [row for row in matched if row] == list(rows)
    assert printed("pooling", target="valence", feature_set="eGeMAPS") is None


def test_figures_of_the_paper_are_said_to_be_of_another_corpus(html: str) -> None:
    cells = re.findall(r"<bdi>100 best of last 3 layers</bdi></th>\n(?:.*</td>\n)+", html)
    assert len(cells) == 2
    assert "0.661" in cells[0]
    assert "0.089" in cells[0]
    assert "0.357" in cells[1]
    assert "0.038" in cells[1]
    assert html.count("The paper: IEMOCAP, other weights") == 2
    assert "another corpus and other weights" in html


def test_names_of_targets_and_columns_keep_their_capitals() -> None:
    made = small()
    names = {"valence": "emoVal", "arousal": "EmoAct"}
    tables = {
        name: table.replace({"target": names})
        for name, table in vars(made).items()
        if isinstance(table, pd.DataFrame) and "target" in table
    }
    speakers = made.speakers.rename(columns=lambda name: name.replace("arousal", "EmoAct"))
    speakers = speakers.rename(columns={"sex": "homeTown"})
    changed = dataclasses.replace(made, targets=list(names.values()), speakers=speakers, **tables)
    html = page_html(changed)
    assert "<bdi>EmoVal</bdi></h3>" in html
    for said in (
        "EmoAct: similarity of each speaker",
        "EmoAct: differences in CCC",
        'class="group">EmoAct</th>',
        "EmoAct: 36 utterances, 6 folds.",
        ">HomeTown</th>",
    ):
        assert said in html
    assert "Emoact" not in html


def test_a_verdict_has_the_same_shape_in_every_report() -> None:
    made = small()
    given = ["undefined", "noisy", "odd", "own", "noisy", "noisy"] * 2
    changed = dataclasses.replace(made, stability=made.stability.assign(verdict=given))
    shapes = [verdict_shapes(one) for one in (made, changed)]
    assert list(shapes[0]) == ["shared", "own", "noisy"]
    assert list(shapes[1]) == ["own", "noisy", "undefined", "odd"]
    assert all(shapes[0][name] == shapes[1][name] for name in ("own", "noisy"))
    assert len(set({**shapes[0], **shapes[1]}.values())) == 5


def verdict_shapes(made: Contents) -> dict[str, str]:
    """Symbols of the verdicts in the figure of speakers."""
    drawn = page_figures.stability(made, "valence")["data"][1:]
    return {one["name"]: one["marker"]["symbol"] for one in drawn}


def test_an_interval_shows_on_which_side_of_zero_it_is() -> None:
    assert interval(-0.166, -0.0004) == "\u22120.166 to \u22120.0004"
    assert interval(-0.1, 0.0) == "\u22120.100 to +0.000"
    assert interval(0.00002, 0.1, signed=False) == "2.00e\u221205 to 0.100"
    assert Table("", ("a",), [[interval(-0.1, -0.00004)]]).numeric == [True]


def counted(**changes: Any) -> str:
    """What is said of the first map, with other thresholds."""
    made = small()
    return maps(dataclasses.replace(made, thresholds=made.thresholds.assign(**changes)))[0].counts


def test_without_covariates_there_is_no_partial_view() -> None:
    made, partial = small(), 'value="partial_r"'
    none = made.thresholds.assign(covariates="")
    assert partial not in page_html(dataclasses.replace(made, thresholds=none))
    assert "given" not in counted(covariates="")
    # Nothing known of covariates does not mean that there were none.
    for thresholds in (made.thresholds, pd.DataFrame()):
        assert partial in page_html(dataclasses.replace(made, thresholds=thresholds))


def test_of_units_that_stand_out_those_are_told_that_still_do() -> None:
    assert "0.05 (pooled over speakers); 3 of these also given duration, loudness. " in counted()


def test_permutations_are_told_of_where_there_are_enough() -> None:
    said = "In 5 % of 20 permutations of labels within speakers, the largest |r within speakers| of"
    assert counted(permutations=20).endswith(f". {said} all units exceeds 0.310.")
    for few in ({"permutations": 0}, {"permutations": 19}, {"threshold": np.nan}):
        assert counted(**few).endswith("loudness.")


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.25, "\u22120.250"), (0.00001, "1.00e\u221205"), (float("nan"), "\u2013"), (0.0, "0.000")],
)
def test_numbers_are_written_for_readers(value: float, text: str) -> None:
    assert number(value) == text


def test_columns_of_numbers_are_told_from_names_with_digits() -> None:
    rows = [
        ["100 best", "\u22120.10 to +0.20", "< 0.001", "1,000"],
        ["1 best", "\u2013", "0.5", "2"],
    ]
    assert Table("", ("a", "b", "c", "d"), rows).numeric == [False, True, True, True]
    assert Table("", ("a",), []).numeric == []


def named(names: tuple[str, ...]) -> Contents:
    """Contents in which everything that a corpus names is one of `names`."""
    made = small(speakers=names, text=names[0] + names[1], title=names[1] + names[4])
    return dataclasses.replace(
        made,
        layer_names=[f"{names[i % 6]}{i}" for i in range(5)],
        results=made.results.assign(feature_set=made.results["feature_set"] + names[0]),
        stability=made.stability.assign(verdict=names[1]),
        comparisons=made.comparisons.assign(first=names[0]),
        confounds=made.confounds.assign(covariate=made.confounds["covariate"] + names[2]),
        notes=[names[0]],
        caveats=[names[1]],
        statements=[names[4]],
        lineage={names[0]: names[1]},
        corpus={names[1]: names[0]},
    )


# -- the browser


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Opened:
    """A page in a browser, with everything it complained about or asked for."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.said: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda m: self.said.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(address)
        page.locator("main[aria-busy=false]").wait_for(timeout=60_000)

    def cell(self, layer: int, unit: int, *, map_: int = 0) -> tuple[float, float]:
        """Where a cell of a map is in the window, in pixels."""
        plot = self.page.locator(".map .cells").nth(map_)
        plot.scroll_into_view_if_needed()
        at = plot.evaluate(
            """(plot, [layer, unit]) => {
                const {xaxis, yaxis} = plot._fullLayout;
                const box = plot.getBoundingClientRect();
                return [box.x + xaxis._offset + xaxis.l2p(unit),
                        box.y + yaxis._offset + yaxis.l2p(layer)];
            }""",
            [layer, unit],
        )
        return at[0], at[1]

    def point(self, x: float, y: float, *, wanted: str) -> str:
        """What is said of the place that the mouse comes to, once `wanted` is part of it."""
        self.page.mouse.move(5, 5)
        self.page.mouse.move(x, y)
        label = self.page.locator(".hoverlayer .hovertext")
        for _ in range(100):
            text = plain("".join(label.all_text_contents()))
            if plain(wanted) in text:
                break
            self.page.wait_for_timeout(50)
        assert plain(wanted) in text
        return text

    def choose(self, name: str, value: str) -> None:
        """Set a switch of the maps and wait until they are drawn."""
        self.page.locator(f"input[name={name}][value={value}]").check()
        self.page.locator("main[aria-busy=false]").wait_for()

    def scatter(self, *, map_: int = 0) -> list[dict[str, Any]]:
        """What is drawn of the chosen unit: name, x, y and symbol per speaker."""
        plot = self.page.locator(".map .values").nth(map_)
        return plot.evaluate(
            """plot => plot.data.map(one => (
                {name: one.name, x: one.x, y: one.y, symbol: one.marker.symbol}))"""
        )

    def drawn_points(self, *, map_: int = 0) -> int:
        return self.page.locator(".map .values").nth(map_).locator("path.point").count()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    # Chromium's sandbox refuses to be root's, who runs the tests in a container.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox"] if root else []
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def shown() -> Contents:
    return small()


@pytest.fixture(scope="module")
def opened(browser: Any, shown: Contents, tmp_path_factory: Any) -> Iterator[Opened]:
    """The page of `shown`; whatever a test does with it, it has to stay quiet and offline."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(shown, path)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield Opened(page, path.as_uri())
    page.close()


@pytest.fixture
def quiet(opened: Opened) -> Iterator[Opened]:
    yield opened
    assert opened.said == []
    assert opened.requests == [opened.address]


def test_every_figure_is_drawn(quiet: Opened) -> None:
    plots = quiet.page.locator(".plot:visible")
    assert plots.count() == 21
    drawn = plots.evaluate_all("all => all.map(one => one.querySelectorAll('.main-svg').length)")
    assert all(drawn)
    unnamed = quiet.page.locator(".plot:not([aria-label])")
    assert unnamed.count() == 0
    assert "block_0_1" in quiet.page.locator(".map .cells").first.text_content()


def test_layer_0_is_at_the_bottom(quiet: Opened) -> None:
    assert quiet.cell(0, 0)[1] > quiet.cell(4, 0)[1]


def test_pointing_at_a_cell_says_what_it_is(quiet: Opened, shown: Contents) -> None:
    row = shown.maps.query("target == 'valence' and layer == 3 and unit == 7").iloc[0]
    text = quiet.point(*quiet.cell(3, 7), wanted=f"{shown.layer_names[3]}, unit 7")
    for said in (
        f"pooled r: {signed(row.r)} ({signed(row.low)} to {signed(row.high)})",  # far from zero
        f"q (pooled r): {probability(row.q)}",
        f"p_max: {probability(row.p_max)}",
        "I\u00b2: 0.30",
    ):
        assert plain(said) in text


def signed(value: float) -> str:
    return f"{value:+z.2f}".replace("-", "\u2212")


def probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def test_numbers_beside_zero_have_no_sign_but_ends_of_intervals_do(
    browser: Any, tmp_path: Path
) -> None:
    made = small()
    maps = made.maps.copy()
    maps.loc[0, ["r", "low", "high", "i2"]] = [-0.004, -0.25, -0.0004, -0.0]
    maps.loc[1, ["r", "low", "high", "i2"]] = [0.0, -1e-9, 0.003, -0.001]
    write_page(dataclasses.replace(made, maps=maps), tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    opened = Opened(page, (tmp_path / "report.html").as_uri())
    for unit, said in enumerate(
        ("+0.00 (\u22120.25 to \u22120.0004)", "+0.00 (+0.00 to +0.003)"),
    ):
        text = opened.point(*opened.cell(0, unit), wanted=f"pooled r: {said}")
        assert plain("I\u00b2: 0.00") in text
    page.close()


def test_a_click_shows_the_unit_by_speaker(quiet: Opened, shown: Contents) -> None:
    quiet.page.mouse.click(*quiet.cell(2, 9, map_=1))
    heading = quiet.page.locator(".unit h4").nth(1)
    assert heading.text_content() == f"{shown.layer_names[2]}, unit 9"
    assert quiet.page.locator(".unit h4").first.text_content() != heading.text_content()
    check_scatter(quiet, shown, "arousal", layer=2, unit=9, map_=1)
    curve = quiet.page.locator(".map .layer-curve").nth(1)
    assert curve.evaluate("plot => plot.layout.shapes.map(shape => shape.x0)") == [2]
    rows = shown.curves.query("target == 'arousal' and measure == 'ccc'")
    assert curve.evaluate("plot => plot.data[1].y") == pytest.approx(list(rows["value"]))


def check_scatter(
    opened: Opened, shown: Contents, target: str, *, layer: int, unit: int, map_: int
) -> None:
    """What is plotted is what the contents hold, within half a level."""
    assert shown.scatter is not None
    table, drawn = shown.scatter.utterances, opened.scatter(map_=map_)
    values = shown.scatter.values[:, layer, unit]  # noqa: PD011
    bound = (float(values.max()) - float(values.min())) / 65534 / 2 * (1 + 1e-6)
    assert [one["name"] for one in drawn] == list(dict.fromkeys(table["speaker"]))
    assert len({one["symbol"] for one in drawn}) == len(drawn)
    assert opened.drawn_points(map_=map_) == len(table)
    for one in drawn:
        chosen = (table["speaker"] == one["name"]).to_numpy()
        assert one["x"] == list(table[target][chosen])
        assert one["y"] == pytest.approx(values[chosen].astype("f8"), rel=0, abs=bound)


def test_the_keyboard_does_what_the_mouse_does(quiet: Opened, shown: Contents) -> None:
    plot = quiet.page.locator(".map .cells").first
    quiet.page.mouse.click(*quiet.cell(1, 3))
    quiet.page.locator("input[name=marks]:checked").focus()
    quiet.page.keyboard.press("Tab")
    assert plot.evaluate("plot => plot === document.activeElement")
    before = quiet.page.evaluate("scrollY")
    for key in ("ArrowUp", "ArrowUp", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowDown"):
        quiet.page.keyboard.press(key)
    readout = quiet.page.locator(".readout").first
    assert readout.get_attribute("aria-live") == "polite"
    assert (readout.text_content() or "").startswith(f"{shown.layer_names[2]}, unit 2; pooled r: ")
    assert quiet.page.locator(".unit h4").first.text_content() == f"{shown.layer_names[1]}, unit 3"
    quiet.page.keyboard.press("Enter")
    assert quiet.page.locator(".unit h4").first.text_content() == f"{shown.layer_names[2]}, unit 2"
    check_scatter(quiet, shown, "valence", layer=2, unit=2, map_=0)
    for key in ("PageDown", "Home", "ArrowLeft", "ArrowDown"):  # beyond the corner there is nothing
        quiet.page.keyboard.press(key)
    assert (readout.text_content() or "").startswith(f"{shown.layer_names[0]}, unit 0; ")
    assert quiet.page.evaluate("scrollY") == before
    quiet.page.keyboard.press("Tab")  # and there is a way out
    assert not plot.evaluate("plot => plot === document.activeElement")


@pytest.mark.parametrize(
    ("view", "said", "mark"),
    [
        ("r", "pooled r", "q"),
        ("r_within", "r within speakers", "p_max"),
        ("partial_r", "partial r", "partial_q"),
        ("r_between", "r between speakers' means", None),
        ("r_all", "r over all utterances", None),
    ],
)
def test_the_switch_changes_the_map(
    quiet: Opened, shown: Contents, view: str, said: str, mark: str | None
) -> None:
    quiet.choose("marks", "marked")
    quiet.choose("view", view)
    plot = quiet.page.locator(".map .cells").first
    rows = shown.maps[shown.maps["target"] == "valence"]
    expected = rows[view].to_numpy().reshape(5, 12)
    drawn = np.array(plot.evaluate("plot => plot.data[0].z"), np.float64)
    assert drawn == pytest.approx(expected, abs=1e-6, nan_ok=True)
    marks = plot.evaluate("plot => plot.data[1].x.map((x, i) => [plot.data[1].y[i], x])")
    stands = rows[rows[mark] < 0.05] if mark else rows[:0]
    assert marks == [list(pair) for pair in zip(stands["layer"], stands["unit"], strict=True)]
    quiet.point(*quiet.cell(4, 4), wanted=f"{said}: {signed(expected[4, 4])}")
    quiet.choose("marks", "alone")
    alone = np.array(plot.evaluate("plot => plot.data[0].z"), np.float64)
    hidden = np.isfinite(expected)
    if mark:
        hidden &= ~(rows[mark].to_numpy().reshape(5, 12) < 0.05)
        assert (alone[hidden] == 0).all()
    else:
        assert alone == pytest.approx(drawn, nan_ok=True)
    quiet.choose("view", "r")
    quiet.choose("marks", "marked")


def test_an_undefined_cell_is_grey_and_says_so(quiet: Opened) -> None:
    quiet.point(*quiet.cell(0, 5), wanted="pooled r: undefined")
    x, y = quiet.cell(0, 5)
    quiet.page.mouse.move(5, 5)
    picture = quiet.page.screenshot(clip={"x": x + 4, "y": y + 4, "width": 2, "height": 2})
    assert pixel(picture) == (0xB8, 0xB8, 0xB8)


def pixel(png: bytes) -> tuple[int, ...]:
    """Colour of the first pixel."""
    import io

    from matplotlib.image import imread

    return tuple(round(255 * float(part)) for part in imread(io.BytesIO(png))[0, 0, :3])


def test_utterances_are_chosen_by_keyboard(quiet: Opened, shown: Contents) -> None:
    visible = quiet.page.locator(".utterance:visible")
    assert visible.count() == 1
    first = visible.locator(".plot").get_attribute("data-figure")
    quiet.page.locator("#utterance").focus()
    quiet.page.keyboard.press("ArrowDown")
    assert visible.count() == 1
    plot = visible.locator(".plot")
    assert plot.get_attribute("data-figure") != first
    # The second has no audio, so there are only its two outputs, each with mean and label.
    assert plot.evaluate("plot => plot.data.map(one => one.type)") == ["scatter"] * 6
    one = shown.traces[2]
    drawn = plot.evaluate("plot => Array.from(plot._fullData[0].y)")
    assert drawn == pytest.approx(list(one.values), abs=1e-5)
    assert plot.evaluate("plot => plot.data[1].y[0]") == pytest.approx(one.predicted)
    assert plot.evaluate("plot => plot.data[2].y[0]") == one.truth
    assert one.text in (visible.text_content() or "")


def test_hostile_names_stay_text(browser: Any, tmp_path: Path) -> None:
    made = named(HOSTILE)
    write_page(made, tmp_path / "report.html", files=["<b>.csv"])
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    opened = Opened(page, (tmp_path / "report.html").as_uri())
    assert page.title() == made.title
    text = page.locator("body").text_content()
    for attempt in HOSTILE:
        assert attempt in text
    # Names in pictures: those of layers where one points, and ids and speakers of a unit's values.
    for layer, name in enumerate(made.layer_names):
        opened.point(*opened.cell(layer, 1), wanted=f"{name}, unit 1")
    page.mouse.click(*opened.cell(1, 1))
    for speaker in range(len(HOSTILE)):
        points = page.locator(".map .values").first.locator(".scatterlayer .trace").nth(speaker)
        point = points.locator("path.point").first
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        text = opened.point(*middle, wanted="speaker")
        assert any(plain(f"{name}-00") in text for name in HOSTILE)
        assert any(plain(f"speaker {name}") in text for name in HOSTILE)
    for index in range(3):
        page.locator("#utterance").select_option(str(index))
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.locator("img").count() == 0
    assert page.locator("svg a").count() == 0
    assert opened.said == []
    assert opened.requests == [opened.address]
    page.close()


def plain(text: str) -> str:
    """Without the spaces between lines of a label."""
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("kind", ["plain", "hostile"])
def test_a_phone_scrolls_tables_and_not_the_page(browser: Any, tmp_path: Path, kind: str) -> None:
    made = named(HOSTILE) if kind == "hostile" else contents()
    write_page(made, tmp_path / "report.html", files=["a" * 200 + ".csv"])
    page = browser.new_page(viewport={"width": 390, "height": 844})
    opened = Opened(page, (tmp_path / "report.html").as_uri())
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    wide = page.locator(".scroll").evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
    )
    assert wide > 3  # that there was something to scroll
    assert opened.said == []
    page.close()


def test_prints_have_figures_of_the_width_of_paper(quiet: Opened) -> None:
    widths = "all => all.map(one => one._fullLayout.width)"
    plots = quiet.page.locator(".plot:visible")
    before = plots.evaluate_all(widths)
    quiet.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert max(plots.evaluate_all(widths)) <= 640
    quiet.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    quiet.page.wait_for_timeout(300)
    assert plots.evaluate_all(widths) == before
