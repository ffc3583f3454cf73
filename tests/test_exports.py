"""The files beside a report: which there are, that they are reproducible, that names are inert."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_contents import TARGETS, contents

from featurestore.report import latex
from featurestore.report.contents import Contents
from featurestore.report.exports import figures_of, tables_of, trace_stem, write_files
from featurestore.report.names import file_names
from featurestore.report.tables import long_table

HOSTILE = "_$x^{2}$ \"</text><script>alert('&')</script> \\input{/etc/passwd} \x1b[31m 张三 %#~"
SVG = "{http://www.w3.org/2000/svg}"

TRACES = {f"trace-s{n + 1}-000{n}-{target}" for n in range(3) for target in TARGETS}
STEMS = {
    *("table1", "table2", "folds", "comparisons", "permutations", "speakers", "stability"),
    *("thresholds", "map-valence", "map-arousal", "confounds", "curves", "trends"),
    *TRACES,
}
IN_PAPERS = {
    *("table1", "table2", "comparisons", "permutations", "speakers", "stability", "thresholds"),
    *("trends", "confounds", "curves"),
}
FIGURES = {
    *("map-valence", "map-arousal", "stability", "confounds", "layer-curves", "comparisons"),
    "permutations",
    *TRACES,
}


@pytest.fixture(scope="module")
def small() -> Contents:
    return contents(layers=3, units=8)


@pytest.fixture(scope="module")
def folder(small: Contents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new" / "folder"
    assert {file.parent for file in write_files(small, path)} == {path}
    return path


@pytest.fixture(scope="module")
def odd() -> Contents:
    """Contents in which whatever may be a name is hostile."""
    data = contents(
        layers=2, units=4, speakers=(HOSTILE, "[b]", "*", "é"), text=HOSTILE, title=HOSTILE
    )
    tables = {
        name: table.replace(
            {
                column: {"valence": HOSTILE, "all units, ridge": HOSTILE, "eGeMAPS": HOSTILE}
                for column in ("target", "feature_set", "second")
                if column in table
            }
        ).rename(columns={"valence_mean": f"{HOSTILE}_mean"})
        for name, table in vars(data).items()
        if isinstance(table, pd.DataFrame)
    }
    return replace(
        data,
        **tables,
        targets=(HOSTILE, "arousal"),
        layer_names=[HOSTILE, "b"],
        traces=[replace(data.traces[0], target=HOSTILE, features=HOSTILE)],
        caveats=[HOSTILE],
        lineage={"state": HOSTILE, "view": "\n\n"},
    )


# --- which files there are --------------------------------------------------------------------


def test_a_trace_is_a_table_of_its_frames(small: Contents, folder: Path) -> None:
    read = pd.read_csv(folder / "trace-s1-0000-arousal.csv")
    trace = small.traces[1]
    np.testing.assert_allclose(read["time_s"], trace.time_s)
    np.testing.assert_allclose(read["value"].mean(), trace.predicted)


def test_every_table_and_figure_is_written(small: Contents, folder: Path) -> None:
    expected = {f"{stem}.csv" for stem in STEMS} | {f"{stem}.tex" for stem in IN_PAPERS}
    expected |= {f"{stem}.{suffix}" for stem in FIGURES for suffix in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == expected
    assert set(tables_of(small)) == STEMS
    assert set(figures_of(small)) == FIGURES


def test_the_same_contents_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    written = write_files(contents(layers=3, units=8), tmp_path)
    assert len({path.name for path in written}) == len(written)
    for path in written:
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_files_are_replaced(small: Contents, tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_text("old")
    some = replace(Contents("", (), (), {}, pd.DataFrame()), results=small.results)
    names = [path.name for path in write_files(some, tmp_path)]
    assert names == ["table1.csv", "table1.tex", "table2.csv", "table2.tex", "folds.csv"]
    assert len((tmp_path / "folds.csv").read_text().splitlines()) == len(small.results) + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_what_is_empty_is_left_out(tmp_path: Path) -> None:
    assert write_files(Contents("", ("valence",), ("a",), {}, pd.DataFrame()), tmp_path) == []
    columns = {
        name: table.iloc[:0]
        for name, table in vars(contents(layers=1, units=2)).items()
        if isinstance(table, pd.DataFrame)
    }
    empty = replace(contents(layers=1, units=2), **columns, traces=())
    assert write_files(empty, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_target_without_a_map_has_no_file_of_one() -> None:
    data = contents(layers=1, units=2)
    one = replace(data, maps=data.maps[data.maps["target"] == "arousal"])
    assert [stem for stem in tables_of(one) if stem.startswith("map")] == ["map-arousal"]
    assert [stem for stem in figures_of(one) if stem.startswith("map")] == ["map-arousal"]


def test_tables_are_named_after_their_names() -> None:
    data = contents(layers=1, units=2)
    rows = data.results[data.results["table"] == "1"]
    names = ("1", "pooling", "../x", "1b")
    results = pd.concat([rows.assign(table=name) for name in names])
    found = [stem for stem in tables_of(replace(data, results=results)) if "table" in stem]
    assert found == ["table1", "table-pooling", "table-.._x", "table-1b"]


def test_odd_targets_have_files_of_their_own(tmp_path: Path) -> None:
    targets = ("a/b", "a b", "A_B", "..", "")
    data = contents(layers=1, units=2)
    rows = data.maps[data.maps["target"] == "arousal"]
    maps = pd.concat([rows.assign(target=target) for target in targets])
    traces = [replace(data.traces[2], target=target) for target in targets]
    some = replace(Contents("", targets, ("a",), {}, pd.DataFrame()), maps=maps, traces=traces)
    written = write_files(some, tmp_path)
    assert len({path.name.lower() for path in written}) == len(written) == 2 * 5 + 2 * 5 + 2 * 5
    assert {path.parent for path in written} == {tmp_path}
    assert all(path.name.isascii() and path.stat().st_size for path in written)


def test_a_trace_has_files_of_its_own_in_every_report() -> None:
    assert trace_stem("Ses01F_impro01_F000", "arousal") == "trace-Ses01F_impro01_F000-arousal"
    odd = [
        "a/b",
        "a b",
        "a_b",
        "..",
        "../x",
        "\x00",
        "张三",
        "李四",
        "x" * 41,
        "x" * 42,
        "x-1",
        "x",
    ]
    targets = ["arousal", "a" * 25, "a" * 26, "1-arousal", "arousal_", "_", "é"]
    stems = [trace_stem(id, target) for id in odd for target in targets]
    assert len(set(stems)) == len(stems)
    for stem in stems:
        assert file_names([stem]) == {stem: stem}  # safe, and not shortened


def test_two_models_of_one_utterance_have_files_each() -> None:
    data = contents(layers=1, units=2)
    twice = replace(data, traces=[data.traces[0], replace(data.traces[0], features="others")])
    found = [stem for stem in figures_of(twice) if stem.startswith("trace")]
    assert found == ["trace-s1-0000-valence", "trace-s1-0000-valence-2"]
    assert [stem for stem in tables_of(twice) if stem.startswith("trace")] == found


# --- CSV --------------------------------------------------------------------------------------


def test_csv_files_have_all_digits(small: Contents, folder: Path) -> None:
    given = {
        "folds": small.results,
        "table2": long_table(small.results[small.results["table"] == "2"]),
        "map-arousal": small.maps[small.maps["target"] == "arousal"].reset_index(drop=True),
        "speakers": small.speakers,
        "stability": small.stability,
        "thresholds": small.thresholds,
        "confounds": small.confounds,
        "comparisons": small.comparisons,
        "permutations": small.permutations,
        "curves": small.curves,
    }
    for stem, table in given.items():
        read = pd.read_csv(folder / f"{stem}.csv", engine="python")  # exact
        if "table" in table:
            read["table"] = read["table"].astype(str)
        pd.testing.assert_frame_equal(read, table, check_dtype=False, check_exact=True)
    assert ",NaN,NaN," in (folder / "map-valence.csv").read_text()
    assert b"\r" not in (folder / "folds.csv").read_bytes()


def test_csv_files_take_any_name(tmp_path: Path) -> None:
    names = ["a,b", 'a"b', "a\nb", "张三"]
    speakers = pd.DataFrame({"speaker": names, "utterances": 1})
    write_files(Contents("", (), (), {}, speakers), tmp_path)
    read = pd.read_csv(tmp_path / "speakers.csv")["speaker"]
    assert list(read) == names
    assert "张三" in (tmp_path / "speakers.tex").read_text(encoding="utf-8")


def test_no_name_is_a_formula(tmp_path: Path) -> None:
    live = ['=HYPERLINK("http://x")', "+1+1", "-x", "@SUM(A1)", "\t=1", "\r=1", "-0.1 to +0.2"]
    inert = ["a=b", "-0.5", "+3", "-inf", "'=1", ""]
    speakers = pd.DataFrame({"speaker": [*live, *inert], "=cmd_mean": -1.5})
    write_files(Contents("", (), (), {}, speakers), tmp_path)
    read = pd.read_csv(tmp_path / "speakers.csv", dtype={"speaker": str}, keep_default_na=False)
    assert list(read.columns) == ["speaker", "'=cmd_mean"]
    assert list(read["speaker"]) == [f"'{one}" for one in live] + inert
    assert set(read["'=cmd_mean"]) == {-1.5}


# --- LaTeX ------------------------------------------------------------------------------------


def rows_of_tex(text: str) -> list[list[str]]:
    body = re.split(r"\\(?:midrule|endlastfoot)\n", text)[-1]
    body = re.split(r"\\(?:bottomrule|end\{)", body)[0]
    return [line.removesuffix(r" \\").split(" & ") for line in body.strip().splitlines()]


def test_result_tables_in_latex(small: Contents, folder: Path) -> None:
    text = (folder / "table1.tex").read_text()
    assert text.startswith("% needs \\usepackage{booktabs}\n\\begin{table}[htbp]\n")
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1
    assert "\\label{tab:table1}" in text
    assert "\\begin{tabular}{llrrrrrrrr}" in text
    (caption,) = re.findall(r"\\caption\{(.*)\}\n", text)
    assert caption.startswith("Valence: 120 utterances, 6 speakers, 6 folds.")
    assert caption.endswith(small.caveats[0])
    expected = long_table(small.results[small.results["table"] == "1"])
    rows = rows_of_tex(text)
    assert len(rows) == len(expected)
    for row, (_, values) in zip(rows, expected.iterrows(), strict=True):
        assert row[:2] == [values["Target"], values["Features"]]
        assert row[2:] == [f"{value:.3f}" for value in values.iloc[2:]]


def test_an_undefined_mean_is_explained_in_the_caption() -> None:
    data = contents(layers=1, units=2)
    results = data.results.copy()
    results.loc[0, ["ccc", "r2"]] = np.nan
    table = tables_of(replace(data, results=results))["table1"]
    assert "train mean, valence: CCC is defined in 5 of 6 speakers." in table.caption


def test_numbers_have_three_decimals_and_a_minus() -> None:
    values = pd.DataFrame(
        {
            "feature_set": ["a", "b", "c", None],
            "null_low": [-0.12345, -0.0001, 1234.5, np.nan],
            "n": [3.0, np.nan, 4.0, 5.0],
            "p": [0.0004, 0.001, 1.0, np.nan],
            "Interval": ["-0.100 to +0.200", "+0.1 to +0.2", "-1 to 1", "x-y"],
            "permutations": [1, 2, 3, 4],
        }
    )
    text = latex.table(values, caption="c", label="l")
    assert rows_of_tex(text) == [
        ["a", "$-$0.123", "3", r"\textless{} 0.001", "$-$0.100 to $+$0.200", "1"],
        ["b", "0.000", "NaN", "0.001", "$+$0.1 to $+$0.2", "2"],
        ["c", "1234.500", "4", "1.000", "-1 to 1", "3"],
        ["NaN", "NaN", "5", "NaN", "x-y", "4"],
    ]
    assert "Features & Permuted low & n & p & Interval & Permutations" in text
    assert "{lrrrlr}" in text


def test_confounds_and_curves_in_latex_name_their_layers(small: Contents, folder: Path) -> None:
    text = (folder / "confounds.tex").read_text()
    assert "Covariate & Over & Layer & Mean \\textbar{}r\\textbar{}" in text
    rows = rows_of_tex(text)
    assert [row[0] for row in rows[:3]] == ["duration"] * 3
    assert [row[2] for row in rows[:3]] == [latex.escaped(one) for one in small.layer_names]
    rows = rows_of_tex((folder / "curves.tex").read_text())
    assert len(rows) == len(small.curves)
    assert {row[3] for row in rows} == {"CCC", "MSE"}
    assert "Mean" not in rows[0]


def test_measures_and_differences_are_headed_for_readers(folder: Path) -> None:
    rows = rows_of_tex((folder / "comparisons.tex").read_text())
    assert [row[1] for row in rows] == ["MSE", "CCC", "CCC pooled"] * 2
    rows = rows_of_tex((folder / "permutations.tex").read_text())
    assert [row[2] for row in rows] == ["CCC", "R2"] * 2
    assert rows[0][-2:] == ["0.001", "1000"]


def test_long_tables_break_over_pages() -> None:
    data = contents(layers=1, units=2, speakers=tuple(f"s{i}" for i in range(60)))
    table = tables_of(data)["stability"]
    assert table.paper is not None
    text = latex.table(table.paper, caption="Many.", label="tab:stability")
    assert "\\usepackage{longtable}" in text
    assert "\\begin{longtable}{ll" in text
    assert "\\endfirsthead" in text
    assert len(rows_of_tex(text)) == 120


def test_latex_prints_every_character_as_it_is() -> None:
    assert latex.escaped("_%&#${}") == r"\_\%\&\#\$\{\}"
    assert latex.escaped("a~b^c\\d") == r"a\textasciitilde{}b\textasciicircum{}c\textbackslash{}d"
    assert latex.escaped("<|>") == r"\textless{}\textbar{}\textgreater{}"
    assert latex.escaped('"') == r"{\ttfamily\char34}"
    assert latex.escaped("é 张三 Ω") == "é 张三 Ω"
    assert latex.escaped("a\n\n\tb\x00") == "a b\N{REPLACEMENT CHARACTER}"
    # After the end of a row, both would be options of it.
    assert latex.escaped("[1cm]") == "{[}1cm]"
    assert latex.escaped("*") == "{*}"


def test_hostile_names_are_inert_in_latex(odd: Contents, tmp_path: Path) -> None:
    for stem, table in tables_of(odd).items():
        if table.paper is None:
            continue
        text = latex.table(table.paper, caption=HOSTILE, label=f"tab:{stem}")
        bare = re.sub(r"\$[-+]\$|\\[$#&_%{}]| & |^%.*$", "", text, flags=re.MULTILINE)
        assert not re.search(r"[$#&_%~^]", bare), stem
        assert r"\input" not in text
        assert r"\textbackslash{}input\{/etc/passwd\}" in text
        braces = re.sub(r"\\[{}]", "", text)
        assert braces.count("{") == braces.count("}")
        columns = len(table.paper.columns)
        assert {len(row) for row in rows_of_tex(text.replace(r"\&", ""))} == {columns}
        assert not any(row[0].startswith(("[", "*")) for row in rows_of_tex(text))


# --- figures ----------------------------------------------------------------------------------


def test_hostile_names_are_inert_in_svg(odd: Contents, tmp_path: Path) -> None:
    written = [path for path in write_files(odd, tmp_path) if path.suffix == ".svg"]
    assert len(written) == 2 + 5 + 1
    seen = ""
    for path in written:
        root = ElementTree.parse(path).getroot()
        assert root.tag == f"{SVG}svg"
        assert not [element for element in root.iter() if "script" in str(element.tag).lower()]
        assert not [name for e in root.iter() for name in e.attrib if name.lower().startswith("on")]
        words = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
        assert any("<script>" in text for text in words), path.name
        seen += " ".join(words)
    assert "_$x^{2}$" in seen
    assert "张三" in seen
    assert r"\$" not in seen


def test_text_of_an_svg_is_text_without_a_date(folder: Path) -> None:
    for path in folder.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert "<dc:date>" not in text
        words = ["".join(e.itertext()) for e in ElementTree.fromstring(text).iter(f"{SVG}text")]
        assert "state 0123456789abcdef, view gcu-1a2b3c4d5e6f" in words


def test_png_files_say_what_they_show(folder: Path) -> None:
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            said = {key: value for key, value in image.info.items() if key != "Software"}
            assert round(said.pop("dpi")[0]) == 200
        assert said == {
            "featurestore.state": "0123456789abcdef",
            "featurestore.view": "gcu-1a2b3c4d5e6f",
            "featurestore.featurestore": "0.5.0",
        }


def test_nan_everywhere_can_be_written(tmp_path: Path) -> None:
    data = contents(layers=2, units=3)
    tables = {
        name: table.assign(
            **{
                column: np.nan
                for column in table.select_dtypes("float").columns
                if column not in ("confidence",)
            }
        )
        for name, table in vars(data).items()
        if isinstance(table, pd.DataFrame)
    }
    written = write_files(replace(data, **tables, traces=()), tmp_path)
    assert {path.stem for path in written if path.suffix == ".png"} == {
        stem for stem in FIGURES if not stem.startswith("trace")
    }
    text = (tmp_path / "stability.csv").read_text()
    assert pd.read_csv(StringIO(text))["similarity"].isna().all()
    assert {
        cell for row in rows_of_tex((tmp_path / "table1.tex").read_text()) for cell in row[2:]
    } == {"NaN"}


def test_one_speaker_one_layer(tmp_path: Path) -> None:
    many = contents(layers=1, units=4)
    tables = {
        name: table[table["speaker"] == "s1"]
        for name, table in vars(many).items()
        if isinstance(table, pd.DataFrame) and "speaker" in table
    }
    written = write_files(replace(many, **tables), tmp_path)
    assert {path.stem for path in written if path.suffix == ".svg"} == FIGURES
    rows = rows_of_tex((tmp_path / "table1.tex").read_text())
    assert {row[3] for row in rows} == {"NaN"}  # there is no variance over one fold
