"""What is wrong with a study is said before its ingest, and nobody's files are replaced."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import small_corpus, small_study, tiny_studies

import featurestore as fs
from featurestore.errors import AnalysisError, FeatureStoreError
from featurestore.report.exports import names_of, usual_names, write_files
from featurestore.result_files import check_results, claim_results, read_provenance, record_results
from featurestore.study.bundle import read_bundle
from featurestore.study.checks import PAGE, check_places, check_study
from featurestore.study.config import Pair, SetPlan, Study, TracePlan
from featurestore.study.run import ingest_study, report, reproduce, run_study
from featurestore.study.sets import RIDGE


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with tiny_studies():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checked")
    small_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose store is there already."""
    folder = tmp_path_factory.mktemp("ingested")
    small_corpus(folder)
    study = small_study(folder)
    ingest_study(study, progress=False)
    return study


@pytest.fixture
def study(corpus: Path, tmp_path: Path) -> Study:
    """Of the corpus, with a store and a report that are not there yet."""
    return small_study(corpus, store=str(tmp_path / "a.store"), output=str(tmp_path / "out"))


def changed(study: Study, part: str, **changes: Any) -> Study:
    return dataclasses.replace(
        study, **{part: dataclasses.replace(getattr(study, part), **changes)}
    )


def own(features: str, name: str = "mine") -> dict[str, Any]:
    return {"sets": (SetPlan(name, features),)}


# --- what a study says --------------------------------------------------------------------------

OF_INGEST = [
    ({"weights": "nowhere.safetensors"}, "nowhere.safetensors"),
    ({"controls": ("tiny:0", "nowhere.safetensors")}, "nowhere.safetensors"),
    ({"precision": "foo"}, "unknown precision 'foo'"),
    ({"views": ("network", "mfccs")}, "unknown view 'mfccs'"),
    ({"views": ("mfcc",), "controls": ()}, "no view 'network' of a network"),
    ({"captures": ("gate", "gait")}, "unknown capture 'gait'"),
]
OF_ANALYSIS = [
    ({"targets": ("valence", "joy")}, "No label 'joy'"),
    ({"targets": ("emotion",)}, "Label 'emotion' is text"),
    ({"folds": "dialect"}, "No column 'dialect'"),
    ({"folds": "speaker:9"}, "2 to 5"),
    ({"folds": "emotion"}, "would be tested on a speaker it has heard"),
    ({"covariates": ("duration", "shimmer")}, "No covariate 'shimmer'"),
    ({"confounds": ("sex=x",)}, "never is 'x'"),
    ({"capture": "gait"}, "no capture 'gait', only: gate, skip"),
    ({"view": "gcu"}, "no view 'gcu'"),
]
OF_ALL = [
    (own("network", RIDGE), f"'{RIDGE}' is there twice"),
    ({"sets": (*own("network")["sets"], *own("mfcc")["sets"])}, "'mine' is there twice"),
    (own("network + egemaps"), "no view 'egemaps'; there will be: tiny-"),
    (own("network.loud"), "no capture 'loud'"),
    (own("network[4:]"), "holds none of the 4 layers"),
    ({"comparisons": (Pair(RIDGE, "oak"),)}, "No feature set 'oak' to compare"),
    ({"comparisons": (Pair(RIDGE, "eGeMAPS"),)}, "No feature set 'eGeMAPS' to compare"),
    ({"traces": TracePlan(ids=("u003", "u999"))}, "no utterance 'u999'"),
    ({"manifest": "nowhere.csv"}, "nowhere.csv"),
]


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        *(("ingest", *one) for one in OF_INGEST),
        *(("analysis", *one) for one in OF_ANALYSIS),
        *(("", *one) for one in OF_ALL),
    ],
)
def test_a_mistake_is_found_before_the_ingest(
    study: Study, tmp_path: Path, part: str, changes: dict[str, Any], words: str
) -> None:
    wrong = changed(study, part, **changes) if part else dataclasses.replace(study, **changes)
    with pytest.raises((FeatureStoreError, FileNotFoundError)) as caught:
        run_study(wrong, progress=False)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": ("duration_s", "arousal")},
        {"folds": "session", "covariates": ("duration", "loudness", "sex"), "capture": "skip"},
    ],
)
def test_what_can_be_done_is_not_refused(
    study: Study, tmp_path: Path, changes: dict[str, Any]
) -> None:
    right = changed(study, "analysis", **changes)
    sets = (SetPlan("mine", "network.skip.max[-1] + mfcc.mfcc.mean"),)
    check_study(dataclasses.replace(right, sets=sets, comparisons=(Pair("mine", RIDGE),)))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_there_counts_too(ingested: Study, tmp_path: Path) -> None:
    asked = dataclasses.replace(ingested, output=str(tmp_path / "out"))
    table = fs.read_manifest(asked.manifest)
    one = table[table["speaker"] == "s0"]
    fs.write_manifest(one, tmp_path / "one.csv")
    few = dataclasses.replace(asked, manifest=str(tmp_path / "one.csv"))
    check_study(few)  # the other speakers are in the store
    with pytest.raises(AnalysisError, match="at least 2 speakers"):
        check_study(dataclasses.replace(few, store=str(tmp_path / "new.store")))
    view = next(v for v in fs.open_store(asked.store).views if v.startswith("tiny"))
    bare = changed(dataclasses.replace(asked, manifest=""), "analysis", view=view)
    check_study(bare)
    for part, changes, words in (
        ("analysis", {"folds": "dialect"}, "No column 'dialect'"),
        ("traces", {"ids": ("u999",)}, "no utterance 'u999'"),
    ):
        with pytest.raises(AnalysisError, match=words):
            check_study(changed(bare, part, **changes))


# --- where it is written ------------------------------------------------------------------------


def refused(study: Study, bundle: Path | None = None) -> str:
    """What is said, by a study and by a report, before anything is computed."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.study.run.ingest_study", None)
        patch.setattr("featurestore.study.run.analyse", None)
        for run in (run_study, report):
            with pytest.raises(AnalysisError) as caught:
                run(study, bundle=bundle, progress=False)
            said.append(str(caught.value))
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize(
    "name", [PAGE, "speakers.csv", "table1.tex", "map-arousal.png", "trace-u003-arousal.svg"]
)
def test_files_of_others_are_not_replaced(study: Study, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    (tmp_path / "out" / "notes.txt").write_text("not in the way")
    said = refused(dataclasses.replace(study, traces=TracePlan(ids=("u003",))))
    assert said.startswith(f"{tmp_path / 'out' / name} is there already")
    assert "another folder (-o)" in said
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_names_that_only_the_findings_tell_are_asked_for_before_the_first_file(
    ingested: Study, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    study = changed(dataclasses.replace(ingested, output=str(out)), "traces", count=30)
    (out / "trace-u003-arousal.csv").write_text("mine")
    with pytest.raises(AnalysisError, match=r"trace-u003-arousal\.csv is there already"):
        run_study(study, progress=False)
    assert {path.name for path in out.iterdir()} == {"trace-u003-arousal.csv", "cache"}
    (out / "trace-u003-arousal.csv").unlink()
    made = run_study(study, progress=False)
    assert not made.made  # what was computed for the first run was kept
    names = {path.name for path in made.files}
    usual = {PAGE, *usual_names(study.analysis.targets)}
    assert {name for name in names if not name.startswith("trace-")} <= usual
    assert names == {PAGE, *names_of(made.contents)}
    run_study(study, progress=False)  # its own files it replaces


def test_a_run_that_was_interrupted_can_be_run_again(ingested: Study, tmp_path: Path) -> None:
    study = dataclasses.replace(ingested, output=str(tmp_path / "out"))

    def interrupted(contents: Any, folder: Path) -> list[Path]:
        write_files(contents, folder)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.study.run.write_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, progress=False)
    assert (tmp_path / "out" / "speakers.csv").exists()
    checked = {one.file: one for one in check_results(tmp_path / "out")}
    assert {one.status for one in checked.values()} == {"changed"}
    assert "run it again" in checked["speakers.csv"].said
    run_study(study, progress=False)
    assert {one.status for one in check_results(tmp_path / "out")} == {"current"}


def test_a_claim_keeps_what_is_known_of_a_file(ingested: Study, tmp_path: Path) -> None:
    from featurestore.provenance import reading

    with reading(ingested.store) as source:
        origin = source.provenance(views=[source.store.views[0]])
    claim_results(tmp_path / "out", ["a.csv"], origin)
    (tmp_path / "out" / "a.csv").write_text("1")
    record_results(tmp_path / "out", [tmp_path / "out" / "a.csv"], origin)
    before = read_provenance(tmp_path / "out")["a.csv"]
    claim_results(tmp_path / "out", ["a.csv", "b.csv"], origin)
    assert read_provenance(tmp_path / "out")["a.csv"] == before
    record_results(tmp_path / "out", [tmp_path / "out" / "a.csv"], origin, instead_of=["b.csv"])
    assert set(read_provenance(tmp_path / "out")) == {"a.csv"}


def test_an_output_in_a_store_is_refused(ingested: Study, study: Study, tmp_path: Path) -> None:
    for place in (study.store, f"{study.store}/out"):  # a store that is not there yet
        said = refused(dataclasses.replace(study, output=place))
        assert f"the feature store {study.store}" in said
    for place in (ingested.store, f"{ingested.store}/views/out"):  # another one
        said = refused(dataclasses.replace(study, output=place))
        assert "holds nothing but features" in said
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        assert "is a file" in refused(dataclasses.replace(study, output=str(place)))


def test_a_bundle_replaces_nothing_but_a_bundle(
    ingested: Study, study: Study, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    assert f"{tmp_path / 'folder'} is a folder" in refused(study, tmp_path / "folder")
    (tmp_path / "a.csv").write_text("mine")
    assert f"{tmp_path / 'a.csv'} is there already" in refused(study, tmp_path / "a.csv")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("bundle.json", '["mine"]')
    assert "is no bundle" in refused(study, tmp_path / "b.zip")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "is no bundle" in refused(study, tmp_path / "dangling")
    assert "feature store" in refused(study, Path(ingested.store) / "a.zip")
    assert "is a file" in refused(study, tmp_path / "a.csv" / "b.zip")
    assert (tmp_path / "a.csv").read_text() == "mine"
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("bundle.json", json.dumps({"format": "featurestore bundle"}))
    check_places(study, tmp_path / "c.zip")
    check_places(study, tmp_path / "new" / "d.zip")
    assert not (tmp_path / "new").exists()


def test_a_bundle_is_made_again_in_a_folder_of_its_own(ingested: Study, tmp_path: Path) -> None:
    study = dataclasses.replace(ingested, output=str(tmp_path / "out"))
    run_study(study, bundle=tmp_path / "a.zip", progress=False)
    before = {path.name: os.stat(path).st_mtime_ns for path in (tmp_path / "out").iterdir()}
    found = read_bundle(tmp_path / "a.zip")
    with pytest.raises(AnalysisError, match=f"{tmp_path / 'out'} is not empty"):
        reproduce(found, tmp_path / "out", progress=False)
    assert {p.name: os.stat(p).st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    with pytest.raises(AnalysisError, match="feature store"):
        reproduce(found, Path(ingested.store) / "again", progress=False)
    (tmp_path / "again").mkdir()
    _, compared = reproduce(found, tmp_path / "again", progress=False)
    assert compared["same"].all()
