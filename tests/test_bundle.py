"""Bundles: a study without its audio, which makes its tables again anywhere."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_study import SENTENCE, small_corpus, small_study, tiny_studies
from typer.testing import CliRunner

import featurestore as fs
from featurestore.errors import AnalysisError, FeatureStoreError
from featurestore.study.bundle import read_bundle, write_bundle
from featurestore.study.config import IngestPlan, Pair, SetPlan, Study
from featurestore.study.run import Report, compare_tables, report, reproduce, run_study


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with tiny_studies():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a corpus, its weights and its store, all under a name that must not get out."""
    root = tmp_path_factory.mktemp("bundled") / "private-folder-of-a-person"
    small_corpus(root)
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Study, Report]:
    plan = small_study(folder)
    study = dataclasses.replace(
        plan,
        title="",
        analysis=dataclasses.replace(plan.analysis, capture="skip"),
        sets=(SetPlan("by name", "network.mean + mfcc.max", model="ridge"),),
        comparisons=(Pair("by name", "all units, ridge"),),
    )
    return study, run_study(study, bundle=folder / "study.zip", progress=False)


@pytest.fixture(scope="module")
def bundle(folder: Path, made: tuple[Study, Report]) -> Path:
    return folder / "study.zip"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(bundle, tmp_path / "copy.zip"))


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """The archive with other members; None drops one."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            new = change(name, content)
            if new is not None:
                archive.writestr(name, new)


def about(path: Path, **changes: Any) -> None:
    """Other entries of `bundle.json`."""

    def change(name: str, content: bytes) -> bytes:
        if name != "bundle.json":
            return content
        return json.dumps({**json.loads(content), **changes}).encode()

    rewrite(path, change)


def command(*arguments: object) -> Any:
    from featurestore.cli import study as _  # noqa: F401  # the commands register themselves
    from featurestore.cli.app import app

    return CliRunner().invoke(app, [str(one) for one in arguments])


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() != "x86_64", reason="OpenBLAS has other kernels elsewhere")
def test_every_table_is_made_again_on_another_processor(copy: Path, tmp_path: Path) -> None:
    code = "from featurestore.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "study", "reproduce", copy, "-o", tmp_path / "again"],
        env={**os.environ, "OPENBLAS_CORETYPE": "Nehalem"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"the same \(to (\S+)\)", done.stdout)
    assert len(found) >= 8
    assert max(map(float, found)) > 0  # the kernels are others, and so are the last bits


def test_every_table_is_made_again_where_the_store_is_gone(
    folder: Path, made: tuple[Study, Report], copy: Path, tmp_path: Path
) -> None:
    study, first = made
    hidden = folder.rename(folder.with_name("moved"))
    try:
        again, compared = reproduce(read_bundle(copy), tmp_path / "again", progress=False)
    finally:
        hidden.rename(folder)
    assert compared["same"].all(), compared
    assert set(compared["table"]) >= {"maps", "results", "comparisons", "permutations", "trends"}
    assert (compared["largest"] == 0).all()
    assert (compared["rows"] > 0).all()
    for path in Path(study.output).glob("*.csv"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    assert again.contents.statements == first.contents.statements
    assert again.contents.title == first.contents.title
    assert again.contents.lineage["state"] == first.contents.lineage["state"]
    assert "bundle" in again.contents.lineage["made again from"]
    assert again.contents.notes == first.contents.notes
    assert json.loads(again.contents.lineage["own comparisons"]) == [
        {"first": "by name", "second": "all units, ridge"}
    ]
    assert json.loads(again.contents.lineage["own sets"])[0]["model"] == "ridge"
    assert not again.used


def test_what_was_read_is_what_is_there(bundle: Path, made: tuple[Study, Report]) -> None:
    found, study = read_bundle(bundle), made[0]
    store = fs.open_store(study.store)
    assert found.views == sorted(store.views)
    for view in found.views:
        stored = store.pooled(view)
        for name, held in found.pooled(view).data_vars.items():
            picked = stored[name].sel(statistic=held["statistic"].to_numpy())
            np.testing.assert_array_equal(held.to_numpy(), picked.to_numpy())
            assert held["id"].to_numpy().tolist() == stored["id"].to_numpy().tolist()
            assert held["arousal"].to_numpy().tolist() == stored["arousal"].to_numpy().tolist()
    # Of the own set, the first capture besides that of the study; each with what was read of it.
    main = found.study.analysis.view
    assert list(found.pooled(main).data_vars) == ["gate", "skip"]
    assert found.folds.groupby("fold")["id"].count().to_dict() == dict.fromkeys(
        ("s0", "s1", "s2", "s3", "s4"), 6
    )
    with pytest.raises(AnalysisError, match="no view 'egemaps'"):
        found.features("egemaps")


def test_notes_of_the_run_are_in_it(made: tuple[Study, Report], tmp_path: Path) -> None:
    study = dataclasses.replace(made[0], output=str(tmp_path / "out"))
    view = made[1].contents.lineage["view"]
    plan = dataclasses.replace(study, analysis=dataclasses.replace(study.analysis, view=view))
    first = report(plan, bundle=tmp_path / "a.zip", notes=["one was set aside"], progress=False)
    assert "one was set aside" in first.contents.notes
    found = read_bundle(tmp_path / "a.zip")
    assert found.notes == first.contents.notes
    again, _ = reproduce(found, tmp_path / "again", progress=False)
    assert again.contents.notes == first.contents.notes
    assert "one was set aside" in again.page.read_text(encoding="utf-8")


def test_a_view_of_two_names_is_in_it_once(made: tuple[Study, Report], tmp_path: Path) -> None:
    store = fs.open_store(made[0].store)
    name = read_bundle(Path(made[0].output).parent / "study.zip").study.analysis.view
    (mfcc,) = (one for one in store.views if one.startswith("mfcc"))  # others say just mfcc
    said = f"{mfcc}.max + {name}.mean"
    study = dataclasses.replace(
        made[0], manifest="", output=str(tmp_path / "out"), sets=(SetPlan("own", said),),
        comparisons=(),
        analysis=dataclasses.replace(made[0].analysis, view=name),
    )  # fmt: skip
    run_study(study, bundle=tmp_path / "other.zip", progress=False)
    found = read_bundle(tmp_path / "other.zip")
    assert found.views == sorted(store.views)
    _, compared = reproduce(found, tmp_path / "again", progress=False)
    assert compared["same"].all()


# --- what is not in it --------------------------------------------------------------------------


def test_nothing_of_the_machine_the_words_or_the_sound_is_in_it(
    bundle: Path, folder: Path, made: tuple[Study, Report]
) -> None:
    table = fs.read_manifest(folder / "manifest.csv")
    words = [folder.name, str(folder.parent), SENTENCE, *table["path"].head(3), "utterance_000"]
    with zipfile.ZipFile(bundle) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    plain = {name: everything(name, content) for name, content in members.items()}
    for name, text in plain.items():
        for word in words:
            assert word not in text, (name, word)
    assert "s3" in plain["utterances.parquet"]  # the search finds what is there
    columns = pd.read_parquet(io.BytesIO(members["utterances.parquet"])).columns
    assert {"id", "speaker", "valence", "arousal", "emotion", "sex", "audio_sha256"} <= {*columns}
    assert not {"path", "text", "remark", "audio_stamp"} & set(columns)
    traces = json.loads(members["bundle.json"])["traces"]
    assert len(traces) == 4
    assert all(not one["text"] and one["waveform"] is one["log_mel"] is None for one in traces)
    # Frames would be longer than the utterances are many.
    for name in plain:
        if name.endswith(".npy"):
            assert np.load(io.BytesIO(members[name])).shape[1] == 30
    assert made[1].contents.traces[0].text  # the report itself has them


def everything(name: str, content: bytes) -> str:
    """All text of a member, in whatever way it is compressed inside."""
    raw = content.decode("latin-1")
    if name.endswith(".parquet"):
        raw += pd.read_parquet(io.BytesIO(content)).to_csv()
    return raw


def test_weights_in_a_folder_are_told_by_their_name_only(
    made: tuple[Study, Report], folder: Path, tmp_path: Path
) -> None:
    study, report = made
    plan = IngestPlan(f"{folder}/tuned.safetensors", (f"tiny:{folder}/hub",))
    placed = dataclasses.replace(study, ingest=plan)
    again(placed, report, tmp_path / "placed.zip")
    found = read_bundle(tmp_path / "placed.zip").study
    assert found.ingest.weights == "tuned.safetensors"
    assert found.ingest.controls == ("hub",)
    assert (found.store, found.output, found.manifest) == ("small.store", "", "")


def again(study: Study, report: Report, path: Path) -> None:
    """Write a bundle of a study that has been run."""
    from featurestore.study.analyses import analyse
    from featurestore.study.cache import Cache
    from featurestore.study.views import Studied

    store = Studied(fs.open_store(study.store))
    view = report.contents.lineage["view"]
    plan = dataclasses.replace(study, analysis=dataclasses.replace(study.analysis, view=view))
    cache = Cache(Path(study.output) / "cache")
    write_bundle(
        path,
        store=store,
        study=plan,
        findings=analyse(store, plan, cache=cache, progress=False),
        traces=report.contents.traces,
        lineage={"made": "then"},
    )


def test_the_same_study_is_the_same_bytes(made: tuple[Study, Report], tmp_path: Path) -> None:
    again(*made, tmp_path / "one.zip")
    again(*made, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


# --- damage -------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(AnalysisError) as caught:
        read_bundle(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_no_bundle_is_refused(tmp_path: Path, copy: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"not a zip")
    assert "is no bundle" in refused(tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(b"")
    assert "is no bundle" in refused(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("holiday.txt", "sun")
    assert "bundle.json" in refused(tmp_path / "c.zip")
    for content in (
        "[]",
        "null",
        "{",
        '{"format": "holiday"}',
        '{"format": "featurestore bundle"}',
    ):
        with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
            archive.writestr("bundle.json", content)
        assert "is no bundle, or a damaged one" in refused(tmp_path / "d.zip")
    with pytest.raises(FileNotFoundError):
        read_bundle(tmp_path / "nowhere.zip")
    about(copy, version=99)
    said = refused(copy)
    assert "version 99" in said
    assert "install the newest" in said


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_half_an_archive_is_refused(copy: Path, share: float) -> None:
    content = copy.read_bytes()
    copy.write_bytes(content[: int(len(content) * share)])
    refused(copy)


@pytest.mark.parametrize("suffix", [".npy", "utterances.parquet", "maps.parquet", "bundle.json"])
def test_a_flipped_byte_of_a_member_is_refused(copy: Path, suffix: str) -> None:
    with zipfile.ZipFile(copy) as archive:
        member = next(one for one in archive.infolist() if one.filename.endswith(suffix))
    content = bytearray(copy.read_bytes())
    content[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 0xFF
    copy.write_bytes(content)
    refused(copy)


@pytest.mark.parametrize("suffix", [".npy", "utterances.parquet", "maps.parquet"])
@pytest.mark.parametrize("half", [0.0, 0.5])
def test_a_truncated_member_is_refused(copy: Path, suffix: str, half: float) -> None:
    def cut(name: str, content: bytes) -> bytes:
        return content[: int(len(content) * half)] if name.endswith(suffix) else content

    rewrite(copy, cut)
    refused(copy)


def test_a_missing_member_is_refused_or_told(copy: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(copy, tmp_path / "other.zip"))
    rewrite(copy, lambda name, content: None if "mfcc" in name else content)
    assert "of view 'mfcc-" in refused(copy)
    rewrite(other, lambda name, content: None if name == "tables/trends.parquet" else content)
    _, compared = reproduce(read_bundle(other), tmp_path / "out", progress=False)
    assert compared.set_index("table")["same"].to_dict()["trends"] is False
    assert compared["same"].sum() == len(compared) - 1
    for changes in ({"facts": {"a": {}}}, {"study": {"stores": 1}}, {"traces": [{}]}, {"views": 1}):
        about(other, **changes)
        with pytest.raises(FeatureStoreError):
            read_bundle(other)


# --- differences --------------------------------------------------------------------------------


def one_number(column: str, table: str, by: float) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if name != f"tables/{table}.parquet":
            return content
        rows = pd.read_parquet(io.BytesIO(content))
        rows.loc[rows.index[1], column] *= by
        return rows.to_parquet()

    return change


def test_another_number_is_found(copy: Path, tmp_path: Path) -> None:
    rewrite(copy, one_number("mse", "results", 1.00001))
    done = command("study", "reproduce", copy, "-o", tmp_path / "out", "--quiet")
    assert done.exit_code == 1, done.output
    lines = done.stdout.splitlines()
    (different,) = (line for line in lines if "DIFFERENT" in line)
    assert different.startswith("results ")
    assert "to 1.0e-05" in different
    assert sum("the same" in line for line in lines) == len(lines) - 2
    again = command("study", "reproduce", copy, "-o", tmp_path / "again", "-q", "--json")
    assert again.exit_code == 1
    said = json.loads(again.stdout)
    assert said["same"] is False
    assert {one["table"] for one in said["tables"] if not one["same"]} == {"results"}


def test_a_bundle_is_reproduced_on_the_command_line(copy: Path, tmp_path: Path) -> None:
    done = command("study", "reproduce", copy, "-o", tmp_path / "out", "--quiet")
    assert done.exit_code == 0, done.output
    assert "DIFFERENT" not in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("change", "same", "largest"),
    [
        (lambda t: t, True, 0.0),
        (lambda t: t.assign(a=t["a"] * (1 + 1e-8)), True, 1e-8),
        (lambda t: t.assign(a=t["a"] * (1 + 1e-4)), False, 1e-4),
        (lambda t: t.assign(a=[1.0, np.nan, np.nan]), False, 0.0),
        (lambda t: t.assign(a=[1.0, np.inf, np.nan]), False, np.inf),
        (lambda t: t.assign(none=[0.0, np.nan, np.nan]), False, 0.0),
        (lambda t: t.assign(name=["x", "y", "x"]), False, 0.0),
        (lambda t: t.assign(flag=[True, True, True]), False, 0.0),
        (lambda t: t.iloc[:2], False, None),
        (lambda t: t[["name", "a", "flag", "none"]], False, None),
    ],
)
def test_tables_are_compared_number_by_number(
    change: Callable[[pd.DataFrame], pd.DataFrame], same: bool, largest: float | None
) -> None:
    table = pd.DataFrame(
        {"a": [1.0, -2.0, np.nan], "name": ["x", "y", "z"], "flag": [True, False, True],
         "none": [np.nan] * 3}
    )  # fmt: skip
    (row,) = compare_tables({"t": table}, {"t": change(table)}).to_dict("records")
    assert row["same"] is same
    if largest is not None:
        assert row["largest"] == pytest.approx(largest, rel=1e-3)
    missing = compare_tables({"t": table}, {"u": table})
    assert missing["same"].tolist() == [False, False]
