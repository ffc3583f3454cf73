"""Studies: what is computed, what is computed again, and what is said about what is missing."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from tiny_study import (
    PLAN,
    SENTENCE,
    Altered,
    relabelled,
    small_corpus,
    small_study,
    stages,
    tiny_networks,
)

import featurestore as fs
from featurestore.errors import AnalysisError, FeatureStoreError
from featurestore.result_files import check_results, read_provenance
from featurestore.study.analyses import Findings, analyse
from featurestore.study.assemble import chosen_ids, corpus_facts, speaker_table
from featurestore.study.cache import Cache
from featurestore.study.config import IngestPlan, Pair, SetPlan, Study, TracePlan
from featurestore.study.run import Report, ingest_study, report, run_study
from featurestore.study.sets import RIDGE
from featurestore.study.statements import statements
from featurestore.study.views import Studied

COMMAND = "study /home/me/it.toml --bundle=../mine/a.zip -o 'C:\\my folder\\the report'"
TABLES = (
    *("speakers", "maps", "thresholds", "stability", "confounds", "curves", "results"),
    *("comparisons", "permutations", "trends"),
)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Matrices as small as these take longest where many threads wait; figures need few dots."""
    with threadpool_limits(1), tiny_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.report.exports._DPI", 30)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    small_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def study(corpus: Path) -> Study:
    return small_study(corpus)


@pytest.fixture(scope="module")
def store(study: Study) -> Studied:
    ingest_study(study, progress=False)
    return Studied(fs.open_store(study.store))


@pytest.fixture(scope="module")
def main(store: Studied) -> str:
    return next(one.name for one in store.facts.values() if one.weights_source == "random:7")


@pytest.fixture(scope="module")
def asked(study: Study, main: str) -> Study:
    """The study as `run_study` passes it on: about the view of its own weights."""
    return planned(study, view=main)


def planned(study: Study, **changes: Any) -> Study:
    return dataclasses.replace(study, analysis=dataclasses.replace(study.analysis, **changes))


def found(store: Any, study: Study, folder: Path | None = None) -> tuple[Findings, Cache]:
    cache = Cache(folder)
    return analyse(store, study, cache=cache, progress=False), cache


@pytest.fixture(scope="module")
def kept(store: Studied, asked: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the study."""
    folder = tmp_path_factory.mktemp("kept")
    found(store, asked, folder)
    return folder


# --- from a manifest to a report ----------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Report]:
    """The recogniser's architecture, all views, every part of a report."""
    pytest.importorskip("opensmile", reason="the extra 'egemaps' is not installed")
    folder = tmp_path_factory.mktemp("whole")
    small_corpus(folder)
    asked = small_study(
        folder,
        ingest=IngestPlan("random:7", ("random:0",)),
        analysis=dataclasses.replace(PLAN, folds="speaker:2", permutations=3),
        traces=TracePlan(count=1),
    )
    return asked, run_study(asked, command=COMMAND, progress=False)


def test_everything_that_a_report_shows_is_there(whole: tuple[Study, Report]) -> None:
    contents = whole[1].contents
    for name in TABLES:
        assert len(getattr(contents, name)), name
    assert set(contents.results["table"]) == {"1", "2", "pooling", "baselines", "controls"}
    assert contents.maps.shape[0] == 2 * 15 * 128
    assert set(contents.confounds["covariate"]) >= {"duration", "loudness", "f0", "sex=m"}
    assert len(contents.traces) == 2  # an utterance, two targets
    assert contents.scatter is not None
    assert contents.scatter.values.shape == (30, 15, 128)
    assert "random:7" in contents.caveats[0]
    assert not any("absent" in note or "no control" in note for note in contents.notes)
    pairs = set(zip(contents.comparisons["first"], contents.comparisons["second"], strict=True))
    assert (RIDGE, "mean of the random networks") in pairs
    assert (RIDGE, "eGeMAPS, ridge, robust scaling") in pairs
    assert ("4 best of first 3 layers", "4 best of last 3 layers") in pairs
    assert json.loads(contents.lineage["study"])["folds"] == "speaker:2"


def test_every_file_is_written_and_its_origin_is_current(whole: tuple[Study, Report]) -> None:
    study, made = whole
    folder = Path(study.output)
    assert made.page == made.files[0] == folder / "index.html"
    names = {path.name for path in made.files}
    assert {"map-arousal.png", "table1.tex", "comparisons.csv", "comparisons.tex"} <= names
    assert sum(name.startswith("trace-u") and name.endswith("-valence.svg") for name in names) == 1
    assert names == {path.name for path in folder.iterdir()} - {"provenance.json", "cache"}
    checked = check_results(folder)
    assert {one.file for one in checked} == names
    assert {one.status for one in checked} == {"current"}
    facts = read_provenance(folder)["index.html"]
    views = fs.open_store(study.store).views
    assert sorted(facts["views"]) == sorted(views)  # both networks, MFCC and eGeMAPS
    assert (facts["weights_source"], facts["command"]) == ("random:7", COMMAND)
    assert made.contents.lineage["command"] == "study it.toml --bundle=a.zip -o 'the report'"
    page = made.page.read_text(encoding="utf-8")
    assert str(folder.parent) not in page.replace(SENTENCE, "")


def test_what_is_said_has_its_interval_and_no_undefined_number(whole: tuple[Study, Report]) -> None:
    said = whole[1].contents.statements
    assert len(said) > 20
    assert not any("nan" in one.lower().split() or "NaN" in one for one in said)
    interval = re.compile(r"\([+\N{MINUS SIGN}][0-9.]+ to [+\N{MINUS SIGN}][0-9.]+\)|95 %|too few")
    for one in said:
        told = "speakers show the pattern" in one or "no speaker can be judged" in one
        assert interval.search(one) or told, one


# --- running again ------------------------------------------------------------------------------


def texts(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".csv", ".tex")}


def test_a_second_run_computes_nothing_and_says_the_same(
    study: Study, store: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.report.exports.figures_of", lambda contents: {})
    output = tmp_path / "report"
    again = dataclasses.replace(study, output=str(output))
    first = run_study(again, progress=False)
    before = texts(output)
    assert not first.used
    assert len(first.made) > 15
    (output / "cache" / "notes.txt").write_text("mine")
    second = run_study(again, progress=False)
    assert not second.made
    assert sorted(second.used) == sorted(first.made)
    assert texts(output) == before
    assert second.contents.notes == first.contents.notes
    assert second.contents.statements == first.contents.statements
    assert (output / "cache" / "notes.txt").exists()


def test_what_a_report_no_longer_has_is_deleted_unless_it_was_changed(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.report.exports.figures_of", lambda contents: {})
    output = tmp_path / "report"
    two = dataclasses.replace(study, output=str(output))
    run_study(two, progress=False)
    first, *others = two.analysis.targets
    assert others
    (output / "mine.csv").write_text("my own")
    (output / f"map-{others[0]}.csv").write_text("changed by hand")
    plan = dataclasses.replace(two.analysis, targets=(first,))
    run_study(dataclasses.replace(two, analysis=plan), progress=False)
    left = {path.name for path in output.iterdir()}
    assert f"map-{first}.csv" in left
    assert "mine.csv" in left
    assert f"map-{others[0]}.csv" in left  # kept, and no longer current
    assert not [name for name in left if name.startswith("trace") and others[0] in name]
    stale = {one.file: one.status for one in check_results(output)}
    assert stale[f"map-{others[0]}.csv"] == "changed"


def sets_made(cache: Cache) -> int:
    return stages(cache)[0].get("set", 0)


def test_only_what_depends_on_a_choice_is_computed_again(
    store: Studied, asked: Study, kept: Path
) -> None:
    nothing = found(store, asked, kept)[1]
    assert not nothing.made
    for changes, made in (
        ({"seed": 1}, {"maps", "permutations", "comparisons"}),
        ({"permutations": 8}, {"maps", "permutations"}),
        ({"resamples": 48}, {"maps", "comparisons"}),
        ({"covariates": ("duration",)}, {"maps"}),
        ({"confounds": ("sex",)}, {"confounds"}),
        ({"emotion": "none"}, {"set", "comparisons"}),
        ({"folds": "session"}, {"set", "layers", "permutations", "comparisons"}),
        ({"folds": "speaker:5"}, {"set", "layers", "permutations"}),
    ):
        cache = found(store, planned(asked, **changes), kept)[1]
        assert set(cache.made) - {"comparisons"} == made - {"comparisons"}, changes
        assert made <= {*cache.made, "comparisons"}
        if "set" not in made:
            assert ("comparisons" in cache.made) == ("comparisons" in made), changes


def test_one_label_changes_all_that_it_is_in(store: Studied, asked: Study, kept: Path) -> None:
    def one_more(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
        values[3] += 0.25
        return values

    changed = Altered(store, relabelled(arousal=one_more))
    cache = found(changed, asked, kept)[1]
    assert set(cache.used) == {"confounds"}  # which no target is in
    assert {"maps", "set", "layers", "permutations", "comparisons"} == set(cache.made)


def test_labels_of_a_new_manifest_are_followed(corpus: Path, tmp_path: Path) -> None:
    table = small_corpus(tmp_path, speakers=3, each=4)
    study = small_study(tmp_path, ingest=IngestPlan("tiny:7", (), ("network",)))
    ingest_study(study, progress=False)
    before = found(Studied(fs.open_store(study.store)), study, tmp_path / "c")[0].tables["results"]
    changed = table.assign(valence=table["valence"].to_numpy()[::-1])
    fs.write_manifest(changed, tmp_path / "manifest.csv")
    ingest_study(study, progress=False)
    findings, cache = found(Studied(fs.open_store(study.store)), study, tmp_path / "c")
    after = findings.tables["results"]
    assert "set" in cache.made
    for target, same in (("arousal", True), ("valence", False)):
        a, b = (one.loc[one["target"] == target, "mse"].to_numpy() for one in (before, after))
        assert bool((a == b).all()) == same


def test_a_set_of_ones_own_is_all_that_it_adds(store: Studied, asked: Study, kept: Path) -> None:
    plans = (
        SetPlan("last layer, support vectors", "network.mean[-1]", model="svr"),
        SetPlan("two views", "network.skip.max + mfcc.mean", best=3, scale="robust"),
    )
    pairs = (
        Pair("last layer, support vectors", RIDGE),
        Pair("two views", "mean of the random networks"),
    )
    more = dataclasses.replace(asked, sets=plans, comparisons=pairs)
    findings, cache = found(store, more, kept)
    assert stages(cache)[0] == {"set": 2, "comparisons": 1}
    results, comparisons = findings.tables["results"], findings.tables["comparisons"]
    own = results[results["table"] == "own"]
    assert list(own["feature_set"].unique()) == [one.name for one in plans]
    assert dict(own.groupby("feature_set")["n_features"].first()) == {
        "last layer, support vectors": 6,
        "two views": 3,
    }
    said = comparisons[["first", "second"]].drop_duplicates().to_numpy().tolist()
    assert said[-3:-1] == [["last layer, support vectors", RIDGE], [*vars(pairs[1]).values()]]
    renamed = dataclasses.replace(more, sets=(plans[0], dataclasses.replace(plans[1], best=2)))
    assert stages(found(store, renamed, kept)[1])[0] == {"set": 1, "comparisons": 1}


def test_one_more_random_network_leaves_the_other_sets_alone(
    store: Studied, asked: Study, kept: Path, main: str
) -> None:
    control = next(one.name for one in store.facts.values() if one.weights_source == "random:0")
    less = Altered(store, lacking=(control,))
    findings, cache = found(less, asked, kept)
    assert stages(cache)[0] == {"comparisons": 1}
    assert any("no view of an untrained network" in note for note in findings.notes)
    assert set(findings.tables["curves"]["features"]) == {"mean of gate, weights random:7"}
    folder = kept.parent / "fewer"
    found(less, asked, folder)
    cache = found(store, asked, folder)[1]
    assert stages(cache)[0] == {"set": 1, "layers": 1, "comparisons": 1}


def test_wrong_sets_and_comparisons_are_refused_at_once(store: Studied, asked: Study) -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(FeatureStoreError) as caught:
            found(store, dataclasses.replace(asked, **changes))
        return str(caught.value)

    said = refused(comparisons=(Pair(RIDGE, "oak"),))
    assert "'oak'" in said
    assert "there are: train mean; 4 best of all units;" in said
    assert "mean of the random networks" in said
    assert "twice" in refused(sets=(SetPlan(RIDGE, "mfcc"),))
    assert "twice" in refused(sets=(SetPlan("a", "mfcc"), SetPlan("a", "network")))
    assert "'egemaps'" in refused(sets=(SetPlan("a", "network + egemaps"),))
    assert "'loud'" in refused(sets=(SetPlan("a", "network.loud"),))


# --- what is missing ----------------------------------------------------------------------------


def test_a_store_without_baselines_says_so(store: Studied, asked: Study) -> None:
    findings = found(Altered(store, lacking=("mfcc",)), asked)[0]
    said = "\n".join(findings.notes)
    assert "no eGeMAPS view, so 5 feature sets are absent: eGeMAPS; eGeMAPS, robust" in said
    assert "no MFCC view, so 2 feature sets are absent: MFCC mean + std; MFCC mean + std, r" in said
    assert "no loudness, so the partial map does without" in said
    names = set(findings.tables["results"]["feature_set"])
    assert not any("MFCC" in name or "eGeMAPS" in name for name in names)
    assert RIDGE in names
    assert set(findings.tables["thresholds"]["covariates"]) == {"duration"}
    assert "loudness" not in set(findings.tables["confounds"]["covariate"])


def test_a_store_as_it_is_and_without_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.study.run.write_files", lambda contents, folder: [])
    small_corpus(tmp_path, speakers=3, each=4)
    plan = IngestPlan("tiny:7", (), ("network",), frames=False)
    study = small_study(tmp_path, ingest=plan)
    ingest_study(study, progress=False)
    (tmp_path / "manifest.csv").unlink()
    made = run_study(dataclasses.replace(study, manifest=""), progress=False)
    assert not made.contents.traces
    assert any("without frames, so there are no traces" in one for one in made.contents.notes)
    assert made.page.exists()


def test_what_could_not_be_read_is_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.study.run.write_files", lambda contents, folder: [])
    table = small_corpus(tmp_path, speakers=3, each=4)
    Path(table["path"].iloc[4]).write_bytes(b"no audio")
    study = small_study(tmp_path, ingest=IngestPlan("tiny:7", ("tiny:0",), ("network",)))
    made = run_study(study, progress=False)
    (note,) = (one for one in made.contents.notes if "could not be read" in one)
    assert note.startswith("1 utterances could not be read: u004 (")
    assert Path(table["path"].iloc[4]).name in note
    assert str(tmp_path) not in note
    assert str(tmp_path) not in made.page.read_text(encoding="utf-8")
    assert made.contents.corpus["utterances"] == "11"


def test_a_label_that_a_speaker_lacks(store: Studied, asked: Study) -> None:
    def without(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
        return np.where(speakers == "s1", np.nan, values)

    findings = found(Altered(store, relabelled(arousal=without)), asked)[0]
    results = findings.tables["results"]
    held = results.groupby("target")["speaker"].unique()
    assert sorted(held["arousal"]) == ["s0", "s2", "s3", "s4"]
    assert sorted(held["valence"]) == ["s0", "s1", "s2", "s3", "s4"]
    assert np.isfinite(results["mse"]).all()
    said = "\n".join(findings.notes)
    assert "arousal: 6 of 30 utterances have no label" in said
    assert "no label for 1 speakers: s1" in said
    assert "Table 2: arousal: 4 of 20 utterances have no label" in said
    row = speaker_table(findings.joined.table, ["arousal"]).set_index("speaker").loc["s1"]
    assert (row["arousal_missing"], row["utterances"]) == (6, 6)
    assert np.isnan(row["arousal_mean"])
    facts = corpus_facts(findings.joined.table, ["arousal"])
    assert facts["arousal"].endswith("; 6 utterances without")
    assert not any("nan" in one.split() for one in statements(findings.tables))


def test_a_speaker_with_two_utterances(store: Studied, asked: Study) -> None:
    def few(data: Any) -> Any:
        speakers = data["speaker"].to_numpy().astype(str)
        own = np.flatnonzero(speakers == "s2")
        return data.isel(utterance=np.setdiff1d(np.arange(len(speakers)), own[2:]))

    findings = found(Altered(store, few), asked)[0]
    results, stability = findings.tables["results"], findings.tables["stability"]
    assert set(results.loc[results["speaker"] == "s2", "n_test"]) <= {1, 2}
    assert set(stability.loc[stability["speaker"] == "s2", "verdict"]) == {"undefined"}
    assert any("1 speakers with fewer than 4 utterances" in one for one in findings.notes)


def test_a_label_that_never_changes(store: Studied, asked: Study) -> None:
    def same(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
        return np.full_like(values, 3.0)

    changed = Altered(store, relabelled(arousal=same))
    findings = found(changed, asked)[0]
    tables = findings.tables
    thresholds = tables["thresholds"].set_index("target")
    assert thresholds.loc["arousal", "defined"] == 0
    assert thresholds.loc["valence", "defined"] > 0
    own = tables["results"].query("target == 'arousal'")
    assert own["ccc"].isna().all()
    mean = own[own["feature_set"] == "train mean"]
    assert (mean["mse"] == 0).all()
    said = statements(tables)
    assert "No unit has a defined correlation with arousal." in said
    assert not any("nan" in one.split() or "inf" in one.split() for one in said)
    assert any("arousal: the label never changes for: s0, s1" in one for one in findings.notes)


def test_too_few_agreed_utterances_are_no_reason_to_stop(store: Studied, asked: Study) -> None:
    def mostly(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
        return np.where(speakers == "s0", values, "xxx")

    findings = found(Altered(store, relabelled(emotion=mostly)), asked)[0]
    (note,) = (one for one in findings.notes if one.startswith("Table 2: "))
    assert "4 of 30 utterances have an agreed category, which is too few, so all are used." in note
    two = findings.tables["results"].query("table == '2' and target == 'arousal'")
    assert two.groupby("feature_set")["n_test"].sum().unique().tolist() == [30]
    findings = found(store, planned(asked, disagreement="neu"))[0]
    assert "Table 2: 20 of 30 utterances have an agreed category." in findings.notes


def test_an_utterance_without_speaker_and_label_does_not_stop_a_study(
    store: Studied, asked: Study
) -> None:
    def unlabelled(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
        values[0] = np.nan
        return values

    def nobody(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
        values[0] = ""
        return values

    label = relabelled(arousal=unlabelled, valence=unlabelled, speaker=nobody)
    plan = planned(asked, confounds=("arousal",))  # others are known of whoever it is
    findings = found(Altered(store, label), plan)[0]
    assert set(findings.tables["results"]["speaker"]) == {"s0", "s1", "s2", "s3", "s4"}


def test_unknown_labels_and_folds_are_named(store: Studied, asked: Study) -> None:
    with pytest.raises(AnalysisError, match=r"'dominance'.*arousal"):
        found(store, planned(asked, targets=("dominance",)))
    with pytest.raises(AnalysisError, match="'dialect'"):
        found(store, planned(asked, folds="dialect"))
    with pytest.raises(AnalysisError, match="'shimmer'"):
        found(store, planned(asked, covariates=("shimmer",)))


def test_utterances_to_trace_are_of_high_and_low_labels(store: Studied, asked: Study) -> None:
    findings = found(store, asked)[0]
    table = findings.joined.table
    values = dict(zip(findings.joined.ids.tolist(), table["arousal"].to_numpy(), strict=True))
    who = dict(zip(findings.joined.ids.tolist(), table["speaker"].to_numpy(), strict=True))
    for count in (1, 3, 5):
        plan = dataclasses.replace(asked, traces=TracePlan(count=count))
        ids = chosen_ids(findings, plan)
        assert len({who[one] for one in ids}) == count
        assert values[ids[0]] == max(values.values())
        if count > 1:
            lowest = sorted(values.values())[:7]  # of a speaker who is not there yet
            assert values[ids[-1]] in lowest
    assert chosen_ids(findings, dataclasses.replace(asked, traces=TracePlan(count=0))) == []
    assert len(chosen_ids(findings, dataclasses.replace(asked, traces=TracePlan(count=99)))) == 30
    named = dataclasses.replace(asked, traces=TracePlan(ids=("u003",)))
    assert chosen_ids(findings, named) == ["u003"]
    with pytest.raises(AnalysisError, match="No utterance 'u999'"):
        report(dataclasses.replace(named, traces=TracePlan(ids=("u999",))), progress=False)
