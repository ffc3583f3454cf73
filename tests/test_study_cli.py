"""`report`, `map`, `trace`, `study`, and sets of one's own for `evaluate`, as a user meets them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits
from tiny_study import SENTENCE, small_corpus, small_study, tiny_networks

import featurestore as fs
from featurestore.analysis.comparison import compare, rows_of
from featurestore.analysis.models import FeatureSet
from featurestore.analysis.regression import evaluate
from featurestore.cli import main
from featurestore.result_files import check_results, read_provenance
from featurestore.study.config import read_study
from featurestore.study.run import ingest_study

QUICK = ("--permutations", 5, "--quiet")


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command wrote."""

    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object, code: int = 0) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["featurestore", *map(str, arguments)])
        try:
            main()
            ended = 0
        except SystemExit as stop:
            ended = int(stop.code or 0)
        said = Said(*capsys.readouterr())
        assert ended == code, said
        return said

    return run


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with threadpool_limits(1), tiny_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.report.exports._DPI", 30)
        yield


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from featurestore.report import exports

    every = exports.figures_of
    monkeypatch.setattr(
        exports,
        "figures_of",
        lambda contents: {k: v for k, v in every(contents).items() if k == "comparisons"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commands")
    small_corpus(root)
    study = small_study(root)
    ingest_study(dataclasses.replace(study, store=str(root / "c.store")), progress=False)
    return root


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    """Two untrained networks, so the view has to be named."""
    return folder / "c.store"


@pytest.fixture(scope="module")
def view(store: Path) -> str:
    opened = fs.open_store(store)
    return next(v for v in opened.views if opened.config(v).weights_source == "random:7")


def sources(folder: Path) -> set[str]:
    """Kinds of the views that the results of a folder were computed from."""
    found = read_provenance(folder)
    return {view.split("-")[0] for facts in found.values() for view in facts["views"]}


# --- report, map, trace -------------------------------------------------------------------------


@pytest.mark.usefixtures("few_figures")
def test_report_writes_a_page_files_and_a_bundle(
    run: Run, store: Path, view: str, tmp_path: Path
) -> None:
    out, bundle = tmp_path / "report", tmp_path / "a.zip"
    asked = ("report", store, "--view", view, "-o", out, *QUICK)
    done = run(*asked, "--title", "A & B", "--bundle", bundle)
    lines = done.out.splitlines()
    assert lines[-1] == str(out / "index.html")
    assert lines[-2].startswith(f"{bundle}: pooled data")
    assert "stages computed;" in lines[-3]
    assert any("units follow arousal" in line for line in lines)
    assert any(line.startswith("note: Weights random:7: an untrained network") for line in lines)
    assert "A &amp; B" in (out / "index.html").read_text(encoding="utf-8")
    assert bundle.exists()
    assert {one.status for one in check_results(out)} == {"current"}
    again = run(*asked, "--json").json
    assert again["computed"] == []
    assert len(again["from_an_earlier_run"]) > 15
    assert again["bundle"] is None
    assert (again["page"], again["files"][0]) == (str(out / "index.html"),) * 2
    assert {row["target"] for row in again["results"]} == {"valence", "arousal"}
    assert len(again["comparisons"]) > 20
    only = run(*asked, "-t", "arousal", "--folds", "session", "--capture", "skip", "--json").json
    assert {row["target"] for row in only["results"]} == {"arousal"}
    assert "current" in run("results", out).out


def test_map_correlates_with_whatever_the_store_has(
    run: Run, store: Path, view: str, tmp_path: Path
) -> None:
    asked = ("map", store, "--view", view, "-t", "arousal", "--permutations", 5)
    done = run(*asked, "-o", tmp_path)
    assert "units follow arousal" in done.out
    assert "Given duration, loudness" in done.out
    for name in ("map-arousal.png", "map-arousal.csv", "confounds.csv", "stability.svg"):
        assert (tmp_path / name).exists()
    assert len(pd.read_csv(tmp_path / "map-arousal.csv")) == 4 * 6
    assert sources(tmp_path) == {"tiny", "mfcc"}
    facts = run(
        *asked, "-o", tmp_path / "b", "--partial", "duration", "--confound", "sex", "--json"
    ).json  # fmt: skip
    (row,) = facts["maps"]
    assert (row["target"], row["covariates"], row["permutations"]) == ("arousal", "duration", 5)
    assert sources(tmp_path / "b") == {"tiny"}
    assert set(pd.read_csv(tmp_path / "b" / "confounds.csv")["covariate"]) == {"sex=m"}


def test_map_does_without_loudness_where_nothing_was_heard_but_the_network(
    run: Run, tmp_path: Path
) -> None:
    small_corpus(tmp_path, speakers=2, each=5)
    study = small_study(tmp_path)
    plan = dataclasses.replace(study.ingest, controls=(), views=("network",))
    ingest_study(dataclasses.replace(study, ingest=plan), progress=False)
    done = run("map", study.store, "-o", tmp_path / "out", "--permutations", 0)
    assert "Given duration, " in done.out
    assert "note: The store has no loudness, so the partial map does without." in done.out
    said = run(
        "map", study.store, "-o", tmp_path / "b", "--partial", "loudness", "--permutations", 0,
        code=1,
    ).err  # fmt: skip
    assert "eGeMAPS" in said


def test_trace_follows_an_utterance(run: Run, store: Path, view: str, tmp_path: Path) -> None:
    asked = ("trace", store, "--view", view, "--id", "u003", "-t", "arousal")
    done = run(*asked, "-o", tmp_path)
    assert done.out.startswith("u003, arousal: predicted ")
    curve = pd.read_csv(tmp_path / "trace-u003-arousal.csv")
    assert (tmp_path / "trace-u003-arousal.png").exists()
    other = ("trace", store, "--view", view, "--id", "u004", "-t", "arousal", "-o", tmp_path)
    run(*other)
    assert {p.stem for p in tmp_path.glob("trace-*.csv")} == {
        "trace-u003-arousal",
        "trace-u004-arousal",
    }
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "trace-u003-arousal.csv"), curve)
    facts = run(
        *asked, "--id", "u004", "--features", "network.mean[0] + network.skip.mean[-1]",
        "--model", "ols", "--best", 3, "-o", tmp_path / "b", "--json",
    ).json  # fmt: skip
    assert [row["id"] for row in facts["traces"]] == ["u003", "u004"]
    assert facts["traces"][0]["frames"] == len(curve)
    for row in facts["traces"]:
        assert row["predicted"] == pytest.approx(row["from_pooled"], rel=0.05)
    assert facts["traces"][0]["features"].startswith("3 best of network.mean[0] + network.skip")
    assert sources(tmp_path / "b") == {"tiny"}


def test_a_label_that_is_named_twice_counts_once(
    run: Run, store: Path, view: str, tmp_path: Path
) -> None:
    twice = ("--view", view, "-t", "arousal", "-t", "arousal", "--json")
    said = run("map", store, *twice, "-o", tmp_path / "a", "--permutations", 0).json
    assert [row["target"] for row in said["maps"]] == ["arousal"]
    said = run("trace", store, *twice, "--id", "u003", "--id", "u003", "-o", tmp_path / "b").json
    assert [(row["id"], row["target"]) for row in said["traces"]] == [("u003", "arousal")]
    sets = ("--set", "mfcc", "--set", "network", "--model", "ridge", "--compare")
    said = run("evaluate", store, *twice, *sets, "-o", tmp_path / "c").json
    assert [row["target"] for row in said["rows"]] == ["arousal"] * 2


@pytest.mark.usefixtures("few_figures")
def test_a_report_of_a_label_that_is_named_twice(
    run: Run, store: Path, view: str, tmp_path: Path
) -> None:
    twice = ("-t", "arousal", "-t", "arousal")
    said = run("report", store, "--view", view, *twice, "-o", tmp_path, *QUICK, "--json").json
    assert {row["target"] for row in said["comparisons"]} == {"arousal"}


@pytest.mark.parametrize("command", ["report", "map"])
def test_a_seed_is_no_negative_number(run: Run, store: Path, tmp_path: Path, command: str) -> None:
    said = run(command, store, "-o", tmp_path / "x", "--seed", -1, code=2).err
    assert "--seed" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "nowhere.store", "-o", "x"), "not a feature store"),
        (("report", "STORE", "-o", "x"), "several views"),
        (("report", "STORE", "--view", "gcu", "-o", "x"), "no view 'gcu'"),
        (("report", "STORE", "--view", "VIEW", "--capture", "gait", "-o", "x"), "'gait'"),
        (("report", "STORE", "--view", "VIEW", "-t", "joy", "-o", "x"), "No label 'joy'"),
        (("report", "STORE", "--view", "VIEW", "--folds", "speaker:9", "-o", "x"), "2 to 5"),
        (("map", "STORE", "--view", "mfcc", "-o", "x"), "no view 'mfcc' of a network"),
        (("map", "STORE", "--view", "VIEW", "--partial", "age", "-o", "x"), "No covariate 'age'"),
        (("map", "STORE", "--view", "VIEW", "--statistic", "median", "-o", "x"), "median"),
        (("trace", "STORE", "--view", "VIEW", "--id", "u9", "-o", "x"), "No utterance 'u9'"),
        (
            ("trace", "STORE", "--view", "VIEW", "--id", "u003", "--model", "oak", "-o", "x"),
            "accepted: ols, ridge",
        ),
        (
            ("trace", "STORE", "--view", "VIEW", "--id", "u003", "--features", "a b", "-o", "x"),
            "is no term",
        ),
        (("study", "run", "nowhere.toml"), "nowhere.toml"),
        (("study", "reproduce", "nowhere.zip", "-o", "x"), "nowhere.zip"),
        (("evaluate", "STORE", "--view", "VIEW", "--set", "a = ", "-o", "x"), "is no term"),
        (
            ("evaluate", "STORE", "--view", "VIEW", "--set", "mfcc", "--model", "oak", "-o", "x"),
            "accepted: ols, ridge",
        ),
        (
            ("evaluate", "STORE", "--set", "mfcc", "--set", "mfcc", "--view", "VIEW", "-o", "x"),
            "twice",
        ),
        (("evaluate", "STORE", "--set", "mfcc", "--compare", "-o", "x"), "--set at least twice"),
        (("evaluate", "STORE", "--view", "VIEW", "--compare", "-o", "x"), "--set at least twice"),
        (
            ("evaluate", "STORE", "--set", "mfcc", "--capture", "skip", "-o", "x"),
            "network.skip.mean",
        ),
        (("evaluate", "STORE", "--model", "ols", "-o", "x"), "--model ols is for sets"),
        (("evaluate", "STORE", "--best", "5", "-o", "x"), "--best 5 is for sets"),
        (("evaluate", "STORE", "--scale", "none", "-o", "x"), "--scale none is for sets"),
        (("evaluate", "STORE", "--select", "pca", "-o", "x"), "--select pca is for sets"),
        (("evaluate", "STORE", "--set", "mfcc", "--table", "1", "-o", "x"), "--table 1 is for"),
        (("evaluate", "STORE", "--set", "mfcc", "--features", "100", "-o", "x"), "--best 100"),
        (("evaluate", "STORE", "--set", "mfcc", "--select", "pca", "-o", "x"), "--best 100"),
    ],
)
def test_errors_are_one_line(
    run: Run, store: Path, view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    named = {"STORE": str(store), "VIEW": view}
    done = run(*(named.get(one, one) for one in arguments), code=1)
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err


# --- study --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_figures")
def test_a_study_from_its_template_to_its_reproduction(run: Run, tmp_path: Path) -> None:
    small_corpus(tmp_path)
    file = tmp_path / "small.toml"
    assert f"study run {file}" in run("study", "init", file).out
    assert "is there already" in run("study", "init", file, code=1).err
    text = file.read_text()
    for default, quick in (
        ('weights = "default"', 'weights = "tiny:7"'),
        ('"random:0", "random:1", "random:2"', '"tiny:0"'),
        ('"network", "mfcc", "egemaps"', '"network", "mfcc"'),
        ("permutations = 1000", "permutations = 5"),
        ("resamples = 9999", "resamples = 49"),
        ("count = 4", "count = 1"),
    ):
        assert default in text
        text = text.replace(default, quick)
    file.write_text(text)

    plan = run("study", "run", file, "--dry-run").out
    assert "networks tiny:7, tiny:0" in plan
    assert str(tmp_path / "small-report") in plan
    said = run("study", "run", file, "--dry-run", "--json").json
    assert said["study"] == json.loads(json.dumps(read_study(file).to_dict()))
    assert said["plan"] == plan.splitlines()
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".wav") == [
        "manifest.csv",
        "small.toml",
    ]

    bundle = tmp_path / "small.zip"
    done = run("study", "run", file, "--quiet", "--bundle", bundle)
    assert done.out.startswith(plan)
    assert done.out.splitlines()[-1] == str(tmp_path / "small-report" / "index.html")
    again = run("study", "run", file, "--quiet", "--json").json
    assert again["computed"] == []
    assert "manifest.csv" not in "".join(again["notes"])
    made = run("study", "reproduce", bundle, "-o", tmp_path / "again", "--quiet", "--json").json
    assert made["same"] is True
    assert {row["same"] for row in made["tables"]} == {True}
    assert SENTENCE not in (tmp_path / "again" / "index.html").read_text(encoding="utf-8")


def test_a_dry_run_finds_what_is_wrong(run: Run, tmp_path: Path) -> None:
    small_corpus(tmp_path)
    text = """
        store = "a.store"
        output = "out"
        manifest = "manifest.csv"
        [ingest]
        weights = "tiny:7"
        controls = ["tiny:0"]
        views = ["network", "mfcc"]
        precision = "parity"
        [[sets]]
        name = "mine"
        features = "network"
        model = "ridge"
    """
    for old, new, words in (
        ('"parity"', '"foo"', "unknown precision 'foo'"),
        ('"ridge"', '"forest"', "model = 'forest'; accepted: ols, ridge"),
        ('"tiny:0"', '"nowhere"', "nowhere"),
    ):
        file = tmp_path / "wrong.toml"
        file.write_text(text.replace(old, new))
        said = run("study", "run", file, "--dry-run", "--json", code=1)
        assert said.out == ""
        assert words in said.err
    (tmp_path / "right.toml").write_text(text)
    assert run("study", "run", tmp_path / "right.toml", "--dry-run", "--json").json["plan"]
    asked = ("study", "run", tmp_path / "right.toml", "--dry-run", "--bundle", tmp_path)
    assert "is a folder" in run(*asked, code=1).err
    assert not (tmp_path / "a.store").exists()


def test_results_are_put_where_nothing_else_is(
    run: Run, store: Path, view: str, tmp_path: Path
) -> None:
    of = ("--view", view, "-t", "arousal")
    commands: dict[str, tuple[object, ...]] = {
        "thresholds.csv": ("map", store, *of, "--permutations", 0),
        "trace-u003-arousal.png": ("trace", store, *of, "--id", "u003"),
        "speakers.csv": ("report", store, *of, *QUICK),
    }
    for name, asked in commands.items():
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine")
        (out / "notes.txt").write_text("not in the way")
        assert f"{out / name} is there already" in run(*asked, "-o", out, code=1).err
        assert {path.name for path in out.iterdir()} == {name, "notes.txt"}
        assert (out / name).read_text() == "mine"
        said = run(*asked, "-o", store / "out", code=1).err
        assert f"lies in the feature store {store}" in said
    (tmp_path / "speakers.csv" / "thresholds.csv").write_text("of no map")
    trace = (*commands["trace-u003-arousal.png"], "-o", tmp_path / "speakers.csv")
    run(*trace)
    run(*trace)


@pytest.mark.usefixtures("few_figures")
def test_results_of_an_older_store_are_named(run: Run, tmp_path: Path) -> None:
    table = small_corpus(tmp_path, speakers=3, each=4)
    study = small_study(tmp_path)
    plan = dataclasses.replace(study.ingest, controls=(), views=("network",))
    study = dataclasses.replace(study, ingest=plan)
    ingest_study(study, progress=False)
    out = tmp_path / "out"
    run("map", study.store, "-t", "arousal", "-o", out, "--permutations", 0)
    changed = table.assign(arousal=table["arousal"].to_numpy()[::-1])
    fs.write_manifest(changed, tmp_path / "manifest.csv")
    ingest_study(study, progress=False)
    done = run("report", study.store, "-t", "valence", "-o", out, "--permutations", 0, "-q")
    assert "computed from an older state of the store" in done.err
    assert "map-arousal.csv" in done.err


# --- evaluate -----------------------------------------------------------------------------------


def test_sets_of_ones_own_are_evaluated_and_compared(
    run: Run, store: Path, view: str, tmp_path: Path
) -> None:
    sets = ("--set", "k = 3, end = network[-1] + mfcc.mean", "--set", "network.skip.max")
    options = ("--model", "ridge", "--best", 3, "--select", "pca", "--scale", "robust")
    asked = ("evaluate", store, "--view", view, "-t", "arousal", *sets, *options)
    done = run(*asked, "--folds", "speaker:3", "--compare", "--note", "by hand", "-o", tmp_path)
    names = {"table-own.md", "table-own.csv", "table-own-folds.csv"}
    names |= {"comparison.md", "comparison.csv", "comparison.png", "provenance.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    rows = pd.read_csv(tmp_path / "table-own-folds.csv", dtype={"fold": str})
    wanted = [
        FeatureSet(name, said, 3, "pca", "robust", "ridge")
        for name, said in (
            ("k = 3, end", f"{view}[-1] + mfcc.mean"),
            ("network.skip.max", f"{view}.skip.max"),
        )
    ]
    again = evaluate(
        fs.open_store(store), targets="arousal", sets=wanted, folds="speaker:3", view=view
    )
    pd.testing.assert_frame_equal(rows, again, check_dtype=False)
    assert set(rows["fold"]) == {"1", "2", "3"}
    expected = compare(*(rows_of(again, one.name) for one in wanted))
    found = pd.read_csv(tmp_path / "comparison.csv")
    np.testing.assert_allclose(found["difference"], expected["difference"])
    assert "| k = 3, end | network.skip.max |" in done.out
    assert done.out.count("by hand") == 2
    assert sources(tmp_path) == {"tiny", "mfcc"}
    facts = read_provenance(tmp_path)["comparison.csv"]
    assert facts["options"]["sets"] == [sets[1], sets[3]]
    assert facts["options"] | {"sets": 0} == {
        "sets": 0, "model": "ridge", "best": 3, "select": "pca", "scale": "robust",
        "folds": "speaker:3",
    }  # fmt: skip
    assert {one.status for one in check_results(tmp_path)} == {"current"}
    said = run(*asked, "--compare", "-o", tmp_path / "b", "--json").json
    assert [row["feature_set"] for row in said["rows"]] == ["k = 3, end", "network.skip.max"]
    assert {row["measure"] for row in said["comparisons"]} == {"mse", "ccc", "ccc_pooled"}
    assert len(said["files"]) == 6


def test_the_first_set_is_compared_with_each_other_one(
    run: Run, store: Path, view: str, tmp_path: Path
) -> None:
    sets = [part for name in ("mfcc", "first3", "network.std") for part in ("--set", name)]
    said = run(
        "evaluate", store, "--view", view, "-t", "valence", *sets, "--model", "ridge", "--compare",
        "-o", tmp_path, "--json",
    ).json  # fmt: skip
    pairs = {(row["first"], row["second"]) for row in said["comparisons"]}
    assert pairs == {("mfcc", "first3"), ("mfcc", "network.std")}


def test_tables_are_what_they_were_and_take_folds(
    run: Run, store: Path, view: str, tmp_path: Path
) -> None:
    asked = ("evaluate", store, "--view", view, "--features", 4, "-t", "arousal")
    for number in (1, 2):
        done = run(*asked, "--table", number, "-o", tmp_path)
        assert f"Table {number}. Arousal: " in done.out
        assert "leaving one speaker out" in done.out
    assert {path.name for path in tmp_path.iterdir()} == {
        "table1.md", "table1.csv", "table1-folds.csv", "table2.md", "table2.csv",
        "table2-folds.csv", "provenance.json",
    }  # fmt: skip
    facts = read_provenance(tmp_path)
    assert len(facts["table1.csv"]["views"]) == 2
    assert facts["table2.csv"]["views"] == [view]
    run(*asked, "--folds", "session", "-o", tmp_path / "b")
    assert set(pd.read_csv(tmp_path / "b" / "table1-folds.csv")["fold"]) == {"A", "B"}
    assert read_provenance(tmp_path / "b")["table1.csv"]["options"]["folds"] == "session"
