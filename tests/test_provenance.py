"""Results that say what they were computed from, and notice that the store has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from fake_store import corpus as fake_corpus
from matplotlib.figure import Figure
from PIL import Image
from synthetic import write_corpus
from typer.testing import CliRunner

import featurestore as fs
from featurestore import provenance
from featurestore.analysis.comparison import compare, rows_of
from featurestore.analysis.correlation import correlate_all
from featurestore.analysis.regression import evaluate
from featurestore.errors import AnalysisError, FeatureStoreError, StoreError
from featurestore.provenance import Provenance, reading
from featurestore.report import figures
from featurestore.report.comparisons import write_comparison
from featurestore.report.correlations import write_correlations
from featurestore.report.tables import write_tables
from featurestore.result_files import check_results, older_results, read_provenance, record_results
from featurestore.setup import IngestConfig
from featurestore.store.summary import store_state

CONFIG = IngestConfig(views=("gcu", "mfcc"), column_frames=4096)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, durations=[0.3 + 0.05 * k for k in range(12)])


@pytest.fixture(scope="module")
def made(manifest: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "iemo.store"
    fs.ingest(manifest, path, encoder="random:0", config=CONFIG)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A store of the test's own, to change."""
    return Path(shutil.copytree(made, tmp_path / "iemo.store"))


def relabel(store: Path, manifest: pd.DataFrame) -> None:
    changed = manifest.assign(arousal=manifest["arousal"].to_numpy()[::-1])
    fs.ingest(changed, store, encoder="random:0", config=CONFIG)


def featurestore(*arguments: object, code: int = 0) -> Result:
    from featurestore.cli import analysis, results  # noqa: F401  # they register themselves
    from featurestore.cli.app import app

    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    said = found.output + repr(found.exception)
    assert found.exit_code == code, said
    assert not found.exception or isinstance(found.exception, SystemExit | FeatureStoreError), said
    return found


def correlated(store: Path, folder: Path, target: str = "arousal") -> Provenance:
    with reading(store) as source:
        found = correlate_all(source.store, targets=(target,))
        origin = source.provenance(targets=[target], statistic="mean", command="correlate it")
    write_correlations(found, folder, provenance=origin)
    return origin


def an_origin(**facts: Any) -> Provenance:
    plain = {
        "store": "/corpora/iemo$cap.store",
        "state": "1a2b3c4d5e6f7a8b",
        "views": ["gcu-6f9f2672e367"],
        "weights": "a" * 64,
        "weights_source": "random:0",
        "capture": "gate",
        "statistic": "mean",
        "targets": ["arousal"],
        "featurestore": "1.0",
    }
    return Provenance({**plain, **facts})


# --- what is said -------------------------------------------------------------------------------


def test_every_result_says_where_it_is_from(store: Path, tmp_path: Path) -> None:
    state, out = store_state(store), tmp_path / "out"
    view = fs.open_store(store).config("network").name
    featurestore("correlate", store, "-t", "arousal", "-t", "valence", "--by", "speaker", "-o", out)
    for name in ("heatmap-s0.png", "overview.png"):
        with Image.open(out / name) as image:
            said = image.text  # type: ignore[attr-defined]
        assert said["featurestore.state"] == state
        assert said["featurestore.view"] == view
        assert said["featurestore.store"] == "iemo.store"
        assert said["featurestore.weights_source"] == "random:0"
        assert said["featurestore.targets"] == "arousal, valence"
        assert not any(str(tmp_path) in text for text in said.values())
    header = (out / "correlation-arousal.csv").read_text().splitlines()[0]
    assert header == "group,layer,unit,r,p,n"
    featurestore("evaluate", store, "--features", 5, "-t", "arousal", "-o", out)
    other = fs.open_store(store).config("mfcc").name
    text = (out / "table1.md").read_text()
    assert text.splitlines()[-1] == f"state {state}, views {view}, {other}"
    assert (out / "table1.csv").read_text().startswith("Target,Features,")

    held = json.loads((out / "provenance.json").read_text())["files"]
    assert set(held) == {path.name for path in out.iterdir()} - {"provenance.json"}
    for name, facts in held.items():
        assert facts["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
        assert (facts["store"], facts["state"]) == (str(store), state)
        assert facts["weights"] == fs.load_encoder("random:0").fingerprint
        assert (facts["weights_source"], facts["capture"]) == ("random:0", "gate")
        assert facts["statistic"] == "mean"
        assert facts["featurestore"] == fs.__version__
        assert facts["versions"]["numpy"] == np.__version__
        assert pd.Timestamp(facts["made"]).tz is not None
    assert held["overview.png"]["targets"] == ["arousal", "valence"]
    assert held["overview.png"]["options"] == {"by": "speaker"}
    assert held["overview.png"]["views"] == [view]
    assert held["table1.csv"]["views"] == [view, other]
    assert held["table1.csv"]["options"] == {"table": 1, "features": 5, "folds": "speaker"}


def test_the_same_results_are_the_same_bytes(store: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        correlated(store, tmp_path / name)
    one, other = (read_provenance(tmp_path / name) for name in ("a", "b"))
    assert {n: f["sha256"] for n, f in one.items()} == {n: f["sha256"] for n, f in other.items()}


def test_without_provenance_nothing_is_added(tmp_path: Path) -> None:
    written = write_correlations(correlate_all(fake_corpus(), targets=("arousal",)), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    with Image.open(tmp_path / "heatmap-all.png") as image:
        assert set(image.text) == {"Software"}  # type: ignore[attr-defined]


def test_comparisons_say_it_too(tmp_path: Path) -> None:
    results = evaluate(fake_corpus(), targets=("arousal",), features=5)
    rows = compare(rows_of(results, "train mean"), rows_of(results, "eGeMAPS"), resamples=99)
    written = write_comparison(rows, tmp_path, provenance=an_origin())
    assert written[0].read_text().splitlines()[-1] == an_origin().footer
    with Image.open(tmp_path / "comparison.png") as image:
        said = image.text  # type: ignore[attr-defined]
    assert said["featurestore.state"] == an_origin().state
    assert set(read_provenance(tmp_path)) == {path.name for path in written}


@pytest.mark.parametrize("targets", [("arousal",), ("valence", "arousal")], ids=len)
@pytest.mark.parametrize("alive", [True, False], ids=["", "undefined"])
def test_footers_overlap_nothing(
    targets: tuple[str, ...], alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, *_: drawn.append(figure))
    found = correlate_all(fake_corpus(), targets=targets, by="speaker")
    if not alive:
        found = {
            name: one.assign(r=one["r"].where(one["layer"] != 1)) for name, one in found.items()
        }
    note = "An untrained network, a control and not a finding. " * 4
    figures.heatmap(found, tmp_path / "h.png", group="s1", note=note, provenance=an_origin())
    figures.overview(found, tmp_path / "o.png", note=note, provenance=an_origin())
    for figure in drawn:
        figure.draw_without_rendering()
        (footer,) = [text for text in figure.texts if text.get_text().startswith("An untr")]
        assert footer.get_text().splitlines()[-1] == an_origin().footer
        mine, page = footer.get_window_extent(), figure.bbox
        assert page.x0 <= mine.x0 < mine.x1 <= page.x1
        assert page.y0 <= mine.y0
        others = [axes.get_tightbbox() for axes in figure.axes]
        others += [legend.get_window_extent() for legend in figure.legends]
        assert not [one for one in others if mine.overlaps(one)]
    assert bool(drawn[1].legends) is not alive


# --- what is noticed ----------------------------------------------------------------------------


def test_results_notice_that_labels_changed(
    store: Path, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = store_state(store)
    featurestore("correlate", store, "-t", "arousal", "-o", out)
    featurestore("evaluate", store, "--features", 5, "-o", out)
    assert "5 of 5 results" in featurestore("results", out).stdout
    relabel(store, manifest)
    now = store_state(store)
    assert now != before
    said = featurestore("results", out, code=1).stdout
    moved = f"the store has moved on: computed from state {before}, it is now {now}"
    assert said.count(moved) == 5
    assert "0 of 5 results" in said
    facts = json.loads(featurestore("results", out, "--json", code=1).stdout)
    assert facts["current"] is False
    assert {one["status"] for one in facts["results"]} == {"moved on"}
    assert {(one["state"], one["now"]) for one in facts["results"]} == {(before, now)}

    again = featurestore("correlate", store, "-t", "arousal", "-o", out)
    assert f"3 files in {out} were computed from an older state of the store" in again.stderr
    assert "table1.md" in again.stderr
    assert "heatmap" not in again.stderr
    held = {one.file: one for one in check_results(out)}
    assert [name for name, one in held.items() if one.current] == [
        "correlation-arousal.csv",
        "heatmap-all.png",
    ]
    again = featurestore("evaluate", store, "--features", 5, "-o", out)
    assert "older state" not in again.stderr
    assert all(one.current for one in check_results(out))
    featurestore("results", out, "--json")


def test_results_notice_what_happened_to_the_files(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    origin = correlated(store, out)
    correlated(store, out, "valence")
    (out / "heatmap-all.png").unlink()
    with (out / "correlation-arousal.csv").open("a") as file:
        file.write("all,0,0,1,0,12\n")
    (out / "my notes.txt").write_text("are no result")
    found = {one.file: one for one in check_results(out)}
    assert {name: one.status for name, one in found.items()} == {
        "correlation-arousal.csv": "changed",
        "correlation-valence.csv": "current",
        "heatmap-all.png": "deleted",
    }
    said = featurestore("results", out, code=1).stdout
    assert "the file changed since" in said
    assert "the file was deleted since" in said
    assert "1 of 3 results" in said
    assert "&& correlate it" in said
    elsewhere = Provenance({**origin.facts, "state": "0" * 16})
    assert older_results(out, elsewhere) == ["correlation-arousal.csv", "correlation-valence.csv"]
    assert older_results(out, Provenance({**elsewhere.facts, "store": "/another"})) == []


def test_results_notice_that_the_store_is_gone_or_moved(
    store: Path, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    correlated(store, out)
    moved = store.rename(tmp_path / "moved.store")
    assert "the store is gone: " in featurestore("results", out, code=1).stdout
    assert {one.status for one in check_results(out)} == {"store gone"}
    assert "2 of 2" in featurestore("results", out, "--store", moved).stdout
    relabel(moved, manifest)
    assert {one.status for one in check_results(out, moved)} == {"moved on"}
    with pytest.raises(StoreError, match="not a feature store"):
        check_results(out, tmp_path / "nowhere")
    (moved / "featurestore.json").write_text("{}")
    moved.rename(store)
    (found, _) = check_results(out)
    assert found.status == "store unreadable"
    assert "the store cannot be read: " in found.said
    # What happened to the file comes first, and the rest is said as well.
    (out / found.file).write_text("x")
    (found, _) = check_results(out)
    assert found.status == "changed"
    assert "the store cannot be read" in found.said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "format"),
        ('{"format": "recipe"}', "format"),
        ('{"format": "featurestore results", "version": 9}', "version 9"),
        ('{"format": "featurestore results", "version": 1}', "no 'files'"),
        ('{"format": "featurestore results", "version": 1, "files": []}', "does not say"),
        ('{"format": "featurestore results", "version": 1, "files": {"a": 1}}', "does not say"),
        (
            '{"format": "featurestore results", "version": 1, "files": {"a.csv": '
            '{"sha256": "0", "state": "0", "store": ""}}}',
            "'a.csv' is incomplete",
        ),
        ("\udcff", "decode"),
    ],
)
def test_a_damaged_record_is_refused(text: str, reason: str, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    path = out / "provenance.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(AnalysisError, match="Delete it and run their commands again") as caught:
        check_results(out)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    found = correlate_all(fake_corpus(), targets=("arousal",))
    with pytest.raises(AnalysisError, match="does not say"):
        write_correlations(found, out, provenance=an_origin())
    results = evaluate(fake_corpus(), targets=("arousal",), features=5)
    with pytest.raises(AnalysisError, match="does not say"):
        write_tables(results, out, provenance=an_origin())
    for command in ("correlate", "evaluate"):
        refused = featurestore(command, store, "-t", "arousal", "-o", out, code=1)
        assert "does not say" in str(refused.exception)
    assert list(out.iterdir()) == [path]


def test_a_folder_without_a_record(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) == {}
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AnalysisError, match=r"provenance\.json does not exist"):
            check_results(folder)


def test_several_commands_at_once_lose_no_entry(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.csv" for k in range(24)]
    for file in files:
        file.write_text(file.name)
    threads = [
        threading.Thread(target=record_results, args=(tmp_path, [file], an_origin()))
        for file in files
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_provenance(tmp_path)) == {file.name for file in files}
    assert len(list(tmp_path.iterdir())) == 24 + 1


# --- a store that changes meanwhile -------------------------------------------------------------


@pytest.mark.parametrize("command", ["correlate", "evaluate"])
def test_a_store_that_changes_meanwhile_makes_no_result(
    command: str,
    store: Path,
    manifest: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def caveats(*_: object) -> list[str]:
        relabel(store, manifest)
        return []

    monkeypatch.setattr("featurestore.cli.analysis.caveats", caveats)
    out = tmp_path / "out"
    found = featurestore(command, store, "-t", "arousal", "-o", out, code=1)
    assert isinstance(found.exception, AnalysisError)
    assert "changed while it was read" in str(found.exception)
    assert "nothing was written" in str(found.exception)
    assert str(store) in str(found.exception)
    assert not out.exists()


def test_what_fails_because_the_store_changed_says_so(store: Path, manifest: pd.DataFrame) -> None:
    def fail() -> None:
        with reading(store):
            relabel(store, manifest)
            raise OSError("chunk 7 is not there")

    with pytest.raises(AnalysisError, match="changed while it was read") as caught:
        fail()
    assert "chunk 7" in str(caught.value.__cause__)


def test_other_failures_stay_what_they_are(store: Path) -> None:
    with pytest.raises(AnalysisError, match="dominance"), reading(store) as source:
        fs.correlate(source.store, target="dominance")


def test_a_store_that_vanishes_meanwhile(store: Path) -> None:
    def vanish() -> None:
        with reading(store) as source:
            shutil.rmtree(store)
            source.provenance()

    with pytest.raises(AnalysisError, match=r"nothing was written: the store is gone"):
        vanish()


def test_no_password_is_written_down() -> None:
    url = "https://me:secret@store.example/a"
    assert provenance._absolute(url) == "https://store.example/a"
    azure = "abfs://container@account.dfs.core.windows.net/a"
    assert provenance._absolute(azure) == azure


def test_the_command_is_recorded_as_it_was_given(store: Path, tmp_path: Path) -> None:
    (tmp_path / "my corpus").symlink_to(store)
    code = "from featurestore.cli import main; main()"
    arguments = ["correlate", "my corpus", "-t", "arousal", "-o", "out"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, check=True)
    for one in check_results(tmp_path / "out"):
        assert one.command == "featurestore correlate 'my corpus' -t arousal -o out"
        assert one.directory == str(tmp_path)
        assert one.store == str(tmp_path / "my corpus")
    with reading(store) as source:
        origin = Provenance({**source.provenance().facts, "state": "0" * 16})
    assert len(older_results(tmp_path / "out", origin)) == 2  # the same store by another name
