from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_store import corpus, with_coords

from featurestore.analysis.comparison import compare, rows_of
from featurestore.analysis.correlation import correlate_all
from featurestore.analysis.regression import evaluate
from featurestore.errors import AnalysisError
from featurestore.files import replacing
from featurestore.report.comparisons import write_comparison
from featurestore.report.correlations import write_correlations
from featurestore.report.figures import heatmap, in_paper_order, overview
from featurestore.report.names import file_names
from featurestore.report.tables import long_table, markdown_table, write_tables

PNG = b"\x89PNG\r\n\x1a\n"


def test_correlations_by_speaker(tmp_path: Path) -> None:
    found = correlate_all(corpus(), by="speaker")
    written = write_correlations(found, tmp_path / "new" / "folder", notes=["weights: random:0"])
    names = {path.name for path in written}
    assert names == {
        "correlation-valence.csv",
        "correlation-arousal.csv",
        "overview.png",
        *(f"heatmap-s{i}.png" for i in range(5)),
    }
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == names
    assert all(path.read_bytes()[:8] == PNG for path in written if path.suffix == ".png")
    table = pd.read_csv(tmp_path / "new" / "folder" / "correlation-arousal.csv")
    assert table.columns.tolist() == ["group", "layer", "unit", "r", "p", "n"]
    assert len(table) == 5 * 6 * 8
    cell = table[(table["group"] == "s3") & (table["layer"] == 1) & (table["unit"] == 2)]
    expected = found["arousal"].sel(speaker="s3", layer=1, unit=2)
    assert cell["r"].item() == expected["r"].item()
    assert cell["n"].item() == expected["n"].item()
    dead = table[(table["layer"] == 4) & (table["unit"] == 5)]
    assert dead[["r", "p"]].isna().all(axis=None)


def test_pooled_correlations_have_one_map(tmp_path: Path) -> None:
    written = write_correlations(correlate_all(corpus(), targets=("arousal",)), tmp_path)
    assert [path.name for path in written] == ["correlation-arousal.csv", "heatmap-all.png"]
    assert (pd.read_csv(written[0])["group"] == "all").all()


def test_views_without_layers_get_tables_only(tmp_path: Path) -> None:
    found = correlate_all(corpus(), view="mfcc", capture="mfcc", by="speaker")
    written = write_correlations(found, tmp_path)
    assert [path.suffix for path in written] == [".csv", ".csv"]
    columns = pd.read_csv(written[0]).columns.tolist()
    assert columns == ["group", "coefficient", "r", "p", "n"]
    with pytest.raises(AnalysisError, match="layers and units"):
        heatmap(found, tmp_path / "x.png", group="s0")


def test_awkward_names_make_distinct_files(tmp_path: Path) -> None:
    stems = file_names(["A b", "a/b", "A_B", "..", "", "é$x", "x" * 300, "x" * 301])
    assert len({stem.lower() for stem in stems.values()}) == 8
    assert all(stem.isascii() and 0 < len(stem) < 100 for stem in stems.values())
    assert not any("/" in stem or stem.startswith(".") for stem in stems.values())
    names = np.array(["a/b", "a b", "$x^", "$y_{", "张三"] * 16, dtype=object)
    store = with_coords(corpus(), speaker=names)
    written = write_correlations(correlate_all(store, by="speaker"), tmp_path)
    assert len(set(written)) == len(written) == 2 + 5 + 1
    assert set(pd.read_csv(written[0])["group"]) == set(names)


def test_everything_undefined_can_still_be_drawn(tmp_path: Path) -> None:
    store = with_coords(corpus(), arousal=np.full(80, 2.0), valence=np.full(80, np.nan))
    found = correlate_all(store, by="speaker")
    heatmap(found, tmp_path / "h.png", group="s1")
    overview(found, tmp_path / "o.png")
    assert (tmp_path / "h.png").exists()
    assert (tmp_path / "o.png").exists()


def test_figure_errors(tmp_path: Path) -> None:
    by_speaker = correlate_all(corpus(), by="speaker")
    with pytest.raises(AnalysisError, match=r"'nobody'.*s0, s1"):
        heatmap(by_speaker, tmp_path / "x.png", group="nobody")
    with pytest.raises(AnalysisError, match="by='speaker'"):
        overview(correlate_all(corpus()), tmp_path / "x.png")
    for write in (heatmap, write_correlations):
        with pytest.raises(AnalysisError, match="at least one target"):
            write({}, tmp_path / "x.png")
    mixed = {"valence": by_speaker["valence"], **correlate_all(corpus(), targets=("arousal",))}
    with pytest.raises(AnalysisError, match="grouped differently"):
        write_correlations(mixed, tmp_path)
    assert in_paper_order(["dominance", "arousal", "valence"]) == [
        "valence",
        "arousal",
        "dominance",
    ]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tables(tmp_path: Path) -> None:
    results = evaluate(corpus(), features=5)
    written = write_tables(results, tmp_path / "t", notes=["valence and arousal are proxies"])
    assert [path.name for path in written] == ["table1.md", "table1.csv", "table1-folds.csv"]
    text = written[0].read_text(encoding="utf-8")
    header, ruler, *rest = text.splitlines()
    assert header.count("|") == ruler.count("|") == 1 + 10
    assert header.startswith("| Target | Features | MSE mean | MSE variance |")
    assert rest[0].startswith("| valence | train mean | ")
    assert "78 utterances, 5 speakers, 5 folds" in text
    assert "inside each training fold" in text
    assert "ddof = 1" in text
    assert "- valence and arousal are proxies" in text
    read = pd.read_csv(written[1])
    pd.testing.assert_frame_equal(read, long_table(results), check_dtype=False)
    with written[2].open(encoding="utf-8", newline="") as lines:
        assert len(list(csv.DictReader(lines))) == len(results)


def test_a_caption_keeps_the_capitals_of_a_target() -> None:
    results = evaluate(corpus(), targets=("arousal",), features=5).assign(target="emoAct")
    assert "EmoAct: 77 utterances, 5 speakers, 5 folds." in markdown_table(results)


def test_no_name_is_a_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    formula = '=HYPERLINK("http://example.org", "x")'
    results = evaluate(corpus(), targets=("arousal",), features=5)
    results = results.replace(
        {"speaker": {"s0": formula, "s1": "-5"}, "feature_set": {"train mean": "@SUM(1)"}}
    )
    results["fold"] = results["speaker"]
    write_tables(results, tmp_path)
    write_comparison(
        compare(rows_of(results, "@SUM(1)"), rows_of(results, "5 best of all units")), tmp_path
    )
    folds = pd.read_csv(tmp_path / "table1-folds.csv")
    assert set(folds["speaker"]) == {f"'{formula}", "-5", "s2", "s3", "s4"}
    assert "'@SUM(1)" in set(pd.read_csv(tmp_path / "table1.csv")["Features"])
    assert set(pd.read_csv(tmp_path / "comparison.csv")["first"]) == {"'@SUM(1)"}
    assert list(folds["mse"]) == pytest.approx(list(results["mse"]))


def test_undefined_cells_are_nan_and_explained(tmp_path: Path) -> None:
    store = with_coords(corpus(), arousal=np.full(80, 2.0))
    results = evaluate(store, targets=("arousal",), features=5)
    text = markdown_table(results)
    row = next(line for line in text.splitlines() if "| 5 best" in line)
    assert (
        row == "| arousal | 5 best of all units | NaN | NaN | NaN | NaN | NaN | NaN | NaN | NaN |"
    )
    assert "5 best of all units, arousal: CCC is defined in 0 of 5 speakers." in text
    write_tables(results, tmp_path)
    assert "5 best of all units,NaN,NaN" in (tmp_path / "table1.csv").read_text()
    with pytest.raises(AnalysisError, match="no row"):
        write_tables(results.iloc[:0], tmp_path)


def test_several_tables_at_once(tmp_path: Path) -> None:
    store = corpus()
    both = pd.concat(
        [evaluate(store, table=number, targets=("arousal",), features=5) for number in (1, 2)]
    )
    names = [path.name for path in write_tables(both, tmp_path)]
    assert names[0] == "table1.md"
    assert names[3] == "table2.md"
    assert "Table 2." in (tmp_path / "table2.md").read_text()
