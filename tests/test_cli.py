"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import shared
from synthetic import write_corpus

import featurestore as fs

COMMANDS = (
    (),
    ("corpus",),
    ("ingest",),
    ("info",),
    ("verify",),
    ("compact",),
    ("forget",),
    ("upgrade",),
    ("export",),
    ("correlate",),
    ("map",),
    ("evaluate",),
    ("trace",),
    ("report",),
    ("study",),
    ("study", "init"),
    ("study", "run"),
    ("study", "reproduce"),
    ("audit-precision",),
    ("results",),
    ("finetune",),
    ("train",),
    ("transcribe",),
    ("weights",),
    ("weights", "list"),
    ("weights", "import"),
    ("weights", "card"),
    ("weights", "show"),
    ("bench",),
    ("demo",),
)


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from featurestore.cli import main; main()"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    table = write_corpus(folder, durations=[0.4 + 0.05 * k for k in range(24)], speakers=4)
    fs.write_manifest(table, folder / "manifest.csv")
    return folder


@pytest.fixture(scope="module")
def store(corpus: Path) -> Path:
    done = run(
        "ingest", corpus / "manifest.csv", corpus / "store", "--weights", "random:0",
        "--views", "gcu,mfcc",
    )  # fmt: skip
    for words in ("Plan for", "24 to do of 24", "padding waste", "compilations", "Done: 24"):
        assert words in done.stdout
    assert "control" in done.stderr
    return corpus / "store"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert "Example:" in done.stdout or command in ((), ("weights",), ("study",))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['featurestore', '--help']\n"
        "from featurestore.cli import main\n"
        "try: main()\n"
        "except SystemExit: print('MODULES', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.partition("MODULES")[2].split())
    heavy = {
        "dask", "fast_ctc_decode", "flax", "jax", "jinja2", "jiwer", "joblib", "librosa",
        "matplotlib", "numpy", "onnx", "onnxruntime", "opensmile", "optax", "orbax", "pandas",
        "plotly", "pyarrow", "scipy", "sklearn", "soundfile", "torch", "xarray", "zarr",
    }  # fmt: skip
    assert "featurestore.cli.app" in modules
    assert not heavy & modules


def test_the_whole_way_through(store: Path, corpus: Path) -> None:
    assert "sound" in run("verify", store).stdout
    info = run("info", store).stdout
    assert "random:0" in info
    assert "24, " in info
    out = corpus / "figures"
    run("correlate", store, "--target", "arousal", "-t", "valence", "--by", "speaker", "-o", out)
    assert len(list(out.glob("heatmap-*.png"))) == 4
    table = pd.read_csv(out / "correlation-arousal.csv")
    assert len(table) == 4 * 15 * 128
    done = run("evaluate", store, "--table", 1, "--features", 5, "-o", corpus / "tables")
    assert "100 best" not in done.stdout
    assert "5 best of all units" in done.stdout
    assert "untrained" in done.stdout
    assert "egemaps" in done.stderr  # its rows are absent, and why
    assert (corpus / "tables" / "table1.csv").exists()


def test_json_is_all_there_is_on_standard_output(store: Path, corpus: Path) -> None:
    facts = json.loads(run("info", store, "--json").stdout)
    assert {view["kind"] for view in facts["views"]} == {"gcu", "mfcc"}
    assert json.loads(run("verify", store, "--json").stdout)["sound"] is True
    plan = json.loads(
        run(
            "ingest", corpus / "manifest.csv", corpus / "other", "-w", "random:0", "--dry-run",
            "--json", "--views", "gcu",
        ).stdout
    )  # fmt: skip
    assert plan["utterances"] == 24
    assert not (corpus / "other").exists()
    again = json.loads(
        run(
            "ingest", corpus / "manifest.csv", store, "-w", "random:0", "--views", "gcu,mfcc",
            "--json",
        ).stdout
    )  # fmt: skip
    assert again["utterances"] == 0
    rows = json.loads(
        run("evaluate", store, "--table", 2, "--features", 5, "-o", corpus / "t2", "--json").stdout
    )["rows"]
    assert {row["target"] for row in rows} == {"valence", "arousal"}
    assert json.loads(run("weights", "show", "random:3", "--json").stdout)["parameters"] == 3733020


def test_corpus_writes_a_manifest_that_ingest_takes(tmp_path: Path, corpus: Path) -> None:
    done = run("corpus", "table", corpus / "manifest.csv", "-o", tmp_path / "copy.parquet")
    assert "24 utterances, 4 speakers" in done.stdout
    assert len(fs.read_manifest(tmp_path / "copy.parquet")) == 24


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("corpus", "timit", ".", "-o", "x.csv"), 1, "ravdess"),
        (("corpus", "ravdess", "nowhere", "-o", "x.csv"), 1, "nowhere"),
        (("ingest", "nowhere.csv", "store", "-w", "random:0"), 1, "nowhere.csv"),
        (("info", "nowhere"), 1, "not a feature store"),
        (("verify", "nowhere"), 1, "not a feature store"),
        (("weights", "show", "nowhere"), 1, "random:SEED"),
        (("weights", "show", "random:x"), 1, "random:x"),
        (("evaluate", "nowhere", "--table", "3", "-o", "x"), 2, "--table"),
        (("correlate", "nowhere", "-o", "x"), 2, "--target"),
        (("nonsense",), 2, "nonsense"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_errors_are_one_line_and_say_what_to_do(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run(*arguments, code=code)
    assert words in done.stderr
    assert done.stdout == ""
    if code == 1:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_wrong_targets_and_folds_are_explained(store: Path, corpus: Path, tmp_path: Path) -> None:
    done = run("correlate", store, "-t", "dominance", "-o", tmp_path, code=1)
    assert "arousal" in done.stderr  # what there is instead
    done = run("correlate", store, "-t", "emotion", "-o", tmp_path, code=1)
    assert "emotion" in done.stderr
    table = fs.read_manifest(corpus / "manifest.csv").iloc[:3]
    table.drop(columns="speaker").to_csv(tmp_path / "anonymous.csv", index=False)
    anonymous = tmp_path / "store"
    run("ingest", tmp_path / "anonymous.csv", anonymous, "-w", "random:0", "--views", "gcu")
    done = run("evaluate", anonymous, "-o", tmp_path / "tables", code=1)
    assert "speaker" in done.stderr


def test_importing_the_golden_checkpoint(tmp_path: Path) -> None:
    prefix = shared("golden") / "model.ckpt-205919"
    done = run("weights", "import", prefix, "-o", tmp_path / "golden.safetensors")
    assert "not the published checkpoint" in done.stdout
    assert "not the published" in run("weights", "show", tmp_path / "golden.safetensors").stdout


def test_the_example_runs_on_a_store(store: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "explore_store.py"
    done = subprocess.run(
        [sys.executable, str(script), str(store)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("r = ") == 10
