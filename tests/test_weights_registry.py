"""Named weights: records and checksums, the shipped default, and the commands around them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bundle_writer import write_bundle

from featurestore import registry
from featurestore.checkpoint import (
    Weights,
    checkpoint_name,
    load_weights,
    random_weights,
    read_checkpoint,
    save_safetensors,
    weights_home,
)
from featurestore.cli import main
from featurestore.cli.analysis import caveats
from featurestore.errors import CheckpointError
from featurestore.registry import list_named, load_named, model_card, register

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return replace(random_weights(0), source="a run")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry."""
    monkeypatch.setenv("FEATURESTORE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "weights"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships nothing yet."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(registry, "shipped_folder", lambda: folder)
    return folder


def refusal(call, *arguments, **options) -> str:
    """The message of the CheckpointError that the call must raise; always one line."""
    with pytest.raises(CheckpointError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip(path: Path) -> None:
    """Flips the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# --- records


def test_registered_weights_load_by_name_and_have_a_record(weights: Weights, home: Path) -> None:
    named = register(weights, "net-1.0_b", licence="CC BY 4.0", note="übt noch")
    path = home / "net-1.0_b.safetensors"
    assert named.path == path
    assert load_weights("net-1.0_b").fingerprint == weights.fingerprint
    assert sorted(p.name for p in home.iterdir()) == ["net-1.0_b.json", "net-1.0_b.safetensors"]
    record = json.loads((home / "net-1.0_b.json").read_text("utf-8"))
    assert record.pop("imported").count("-") == 2
    assert record == {
        "name": "net-1.0_b",
        "file": path.name,
        "sha256": digest(path),
        "bytes": path.stat().st_size,
        "fingerprint": weights.fingerprint,
        "source": "a run",
        "front_end": "librosa-0.5",
        "published": False,
        "dtype": "float32",
        "licence": "CC BY 4.0",
        "note": "übt noch",
    }
    assert list_named()[-1] == named


def test_a_name_is_taken_until_it_is_replaced(weights: Weights) -> None:
    register(weights, "net")
    assert "--replace" in refusal(register, random_weights(1), "net")
    assert load_weights("net").fingerprint == weights.fingerprint
    register(random_weights(1), "net", dtype="float16", replace=True)
    found = list_named()[-1].record
    assert found is not None
    assert (found.source, found.dtype) == ("random:1", "float16")
    assert load_weights("net").fingerprint == found.fingerprint


@pytest.mark.parametrize(
    "name",
    ["", ".net", "-net", "a/b", "../x", "a b", "a\n", "ä", "n" * 101, "random:1", "a:b", "a\0"],
)
def test_names_that_cannot_be_told_apart_are_refused(
    weights: Weights, name: str, home: Path
) -> None:
    assert "letters, digits" in refusal(register, weights, name)
    assert not home.exists()


@pytest.mark.parametrize("name", ["default", "Default", "random", "x.safetensors"])
def test_reserved_names_are_refused(weights: Weights, name: str, home: Path) -> None:
    assert "means something else" in refusal(register, weights, name, replace=True)
    assert not home.exists()


def test_a_file_that_is_not_the_recorded_one_is_refused(weights: Weights, home: Path) -> None:
    register(weights, "net")
    flip(home / "net.safetensors")
    message = refusal(load_weights, "net")
    assert "is not the recorded" in message
    assert "weights import --replace" in message
    (broken,) = (named for named in list_named() if named.name == "net")
    assert broken.record is None
    assert broken.problem == message
    # Another whole file is as wrong as a damaged one.
    save_safetensors(random_weights(1), home / "net.safetensors")
    assert "is not the recorded" in refusal(load_weights, "net")
    # The two ways out that the message names.
    (home / "net.json").unlink()
    assert load_weights("net").source == "random:1"
    register(weights, "net", replace=True)
    assert load_weights("net").fingerprint == weights.fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": None}, "sha256 is None, expected str"),
        ({"bytes": "7"}, "bytes is '7', expected int"),
        ({"published": 1}, "published is 1, expected bool"),
        ({"fingerprint": "0" * 64}, "records fingerprint 000000000000"),
        ({"unknown to this version": 1}, None),
    ],
)
def test_a_record_with_other_content(
    weights: Weights, home: Path, change: dict[str, object], words: str | None
) -> None:
    register(weights, "net")
    record = home / "net.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    if words is None:
        assert load_weights("net").fingerprint == weights.fingerprint
    else:
        assert words in refusal(load_weights, "net")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"{}", b"\xff\xfe", b'"sha256"'])
def test_a_damaged_record_is_refused(weights: Weights, home: Path, content: bytes) -> None:
    register(weights, "net")
    (home / "net.json").write_bytes(content)
    message = refusal(load_weights, "net")
    assert "net.json is not a record of weights" in message
    assert "--replace" in message
    assert list_named()[-1].problem == message


def test_a_file_without_a_record_loads_and_is_listed_so(weights: Weights, home: Path) -> None:
    path = home / "older.safetensors"
    save_safetensors(weights, path)
    assert load_weights("older").fingerprint == weights.fingerprint
    named = list_named()[-1]
    assert (named.name, named.problem) == ("older", "not recorded")
    assert named.record is not None
    assert named.record.sha256 == digest(path)
    register(read_checkpoint(path), "older", replace=True)
    assert list_named()[-1].problem == ""


def test_a_failed_write_leaves_no_record_of_another_file(
    weights: Weights, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(weights, "net")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "replacing", full)
        assert "No space left" in refusal(register, random_weights(1), "net", replace=True)
    assert [path.name for path in home.iterdir()] == ["net.safetensors"]
    assert load_weights("net").source == "random:1"


def test_half_written_files_and_reserved_names_are_not_names(weights: Weights, home: Path) -> None:
    save_safetensors(weights, home / ".0123.safetensors")
    save_safetensors(weights, home / "Default.safetensors")
    (named,) = (one for one in list_named() if not one.shipped)
    assert named.name == "Default"
    assert "rename the file" in named.problem
    assert registry.registered_names() == []


# --- checkpoints and their own names


def test_what_a_checkpoint_is_called(weights: Weights, tmp_path: Path) -> None:
    prefix = write_bundle(tmp_path / "model.ckpt-205919", weights.tensors)
    run = tmp_path / "run 5"
    save_safetensors(weights, run / "weights.safetensors")
    save_safetensors(weights, tmp_path / "net.v2.safetensors")
    for path, name in {
        str(prefix): "model.ckpt-205919",
        f"{prefix}.index": "model.ckpt-205919",
        f"{prefix}.data-00000-of-00001": "model.ckpt-205919",
        str(run): "run 5",
        f"{run}/": "run 5",
        f"{run}/weights.safetensors": "run 5",
        str(tmp_path / "net.v2.safetensors"): "net.v2",
    }.items():
        assert checkpoint_name(path) == name
        assert read_checkpoint(path).fingerprint == weights.fingerprint
        assert load_weights(path).fingerprint == weights.fingerprint


@pytest.mark.parametrize("path", ["", "nope", "a\0b", "x" * 5000, "default", "random:0", "net"])
def test_a_checkpoint_is_a_path_and_not_a_name(weights: Weights, path: str) -> None:
    register(weights, "net")
    assert "leads to no weights; accepted: FILE" in refusal(read_checkpoint, path)


# --- the shipped default


def release(folder: Path, weights: Weights, card: str = "# Card\n", *options: object) -> str:
    """Runs the release script on weights into another folder; its output."""
    run = folder.parent / "run"
    save_safetensors(weights, run / "weights.safetensors")
    (folder.parent / "CARD.md").write_text(card)
    code = (
        "import sys; from pathlib import Path; from featurestore import registry\n"
        f"registry.shipped_folder = lambda: Path({str(folder)!r})\n"
        "sys.path.insert(0, 'recipes/default_model'); import release; release.main()\n"
    )
    arguments = [str(run), "--card", str(folder.parent / "CARD.md"), *map(str, options)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_without_a_shipped_file_default_says_what_else_there_is(shipped: Path) -> None:
    message = refusal(load_weights, "default")
    assert "comes without trained weights" in message
    for way in ("FILE.safetensors", "weights list", "TensorFlow checkpoint", "random:SEED"):
        assert way in message
    assert list_named() == []
    assert "no model card" in refusal(model_card, "default")


def test_a_release_is_what_default_loads(weights: Weights, shipped: Path) -> None:
    printed = release(shipped, weights, "# Card\n\nCER 12 %", "--licence", "CC BY 4.0")
    names = ["default.json", "default.md", "default.safetensors"]
    assert sorted(path.name for path in shipped.iterdir()) == names
    found = load_weights("default")
    assert found.source.startswith("default:")
    assert found.source in printed
    named = list_named()[0]
    assert named.shipped
    assert named.record is not None
    assert named.record.sha256 == digest(shipped / "default.safetensors")
    assert named.record.fingerprint == found.fingerprint != weights.fingerprint
    assert (named.record.dtype, named.record.licence) == ("float16", "CC BY 4.0")
    assert named.record.bytes < 7.6e6
    assert model_card("default") == "# Card\n\nCER 12 %\n"
    before = digest(shipped / "default.safetensors")
    release(shipped, weights)
    assert digest(shipped / "default.safetensors") == before


def test_a_release_refuses_what_is_no_trained_network_or_has_no_card(
    weights: Weights, shipped: Path
) -> None:
    assert "error: random:3 is an untrained network" in release(shipped, random_weights(3))
    assert "error: the model card is empty" in release(shipped, weights, " \n")
    assert list(shipped.iterdir()) == []


def test_a_damaged_installation_says_so(weights: Weights, shipped: Path) -> None:
    path = shipped / "default.safetensors"
    registry.write_named(weights, path, dtype="float16")
    record = (shipped / "default.json").read_text()
    (shipped / "default.json").unlink()
    assert "install featurestore again" in refusal(load_weights, "default")
    (shipped / "default.json").write_text(record)
    load_weights("default")
    flip(path)
    assert "install featurestore again" in refusal(load_weights, "default")
    assert "install featurestore again" in list_named()[0].problem


def test_nothing_else_is_called_default(
    weights: Weights, shipped: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.write_named(weights, shipped / "default.safetensors", dtype="float32")
    save_safetensors(random_weights(1), home / "default.safetensors")
    save_safetensors(random_weights(2), tmp_path / "cwd" / "default" / "weights.safetensors")
    monkeypatch.chdir(tmp_path / "cwd")
    assert load_weights("default").source == "a run"
    assert load_weights("./default").source == "random:2"
    assert [(one.name, bool(one.problem)) for one in list_named()] == [
        ("default", False),
        ("default", True),
    ]


def test_trained_weights_carry_no_caveat(weights: Weights) -> None:
    from types import SimpleNamespace

    import pandas as pd

    for source, expected in (("default:1.0", 0), ("random:0", 1)):
        store = SimpleNamespace(
            config=lambda view, source=source: SimpleNamespace(weights_source=source),
            utterances=lambda view: pd.DataFrame({"id": ["a"]}),
        )
        assert len(caveats(store, "gcu", None)) == expected


def test_default_needs_nothing_that_training_needs(weights: Weights, shipped: Path) -> None:
    """In a process in which the training extra's packages cannot be imported."""
    registry.write_named(weights, shipped / "default.safetensors", dtype="float16")
    code = (
        "import sys, numpy as np\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        absent = ('optax', 'orbax', 'jiwer', 'torch', 'tensorboard', 'tensorboardX')\n"
        "        if name.split('.')[0] in absent: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pathlib import Path; from featurestore import registry\n"
        f"registry.shipped_folder = lambda: Path({str(shipped)!r})\n"
        "import featurestore as fs\n"
        "encoder = fs.load_encoder('default')\n"
        "gate = fs.encode(encoder, [np.zeros((5, 20), np.float32)])[0]['gate']\n"
        "print(gate.shape, encoder.fingerprint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    fingerprint = load_named("default").fingerprint
    assert done.stdout.strip() == f"(15, 5, 128) {fingerprint}"


def test_the_shipped_weights_are_whole() -> None:
    if not (registry.shipped_folder() / "default.safetensors").exists():
        pytest.skip("this source tree ships no weights yet")
    named = list_named()[0]
    assert named.problem == ""
    assert named.record is not None
    assert named.record.bytes < 8e6
    assert named.record.licence
    found = load_weights("default")
    assert not found.published
    assert not found.source.startswith("random:")
    assert "CER" in model_card("default")


# --- the commands


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["featurestore", "weights", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert left.value.code == code, err
        return out, err

    return call


@pytest.mark.parametrize("command", ["list", "import", "show", "card"])
def test_help_has_an_example(run, command: str) -> None:
    assert "Example:" in run(command, "--help")[0]


def test_import_registers_a_checkpoint_under_its_own_name(
    run, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "model.ckpt-205919", weights.tensors)
    monkeypatch.chdir(tmp_path)
    out, _ = run("import", "./model.ckpt-205919", "--licence", "Apache-2.0", "--json")
    record = json.loads(out)
    assert record["name"] == "model.ckpt-205919"
    assert record["sha256"] == digest(weights_home() / "model.ckpt-205919.safetensors")
    assert load_weights("model.ckpt-205919").fingerprint == weights.fingerprint
    # The path is read again, not the registered name, so that --replace takes a new download.
    write_bundle(tmp_path / "model.ckpt-205919", random_weights(1).tensors)
    assert "--replace" in run("import", "model.ckpt-205919", code=1)[1]
    run("import", "model.ckpt-205919", "--replace")
    assert load_weights("model.ckpt-205919").fingerprint == random_weights(1).fingerprint


def test_import_of_a_run_and_into_a_file(run, weights: Weights, tmp_path: Path) -> None:
    folder = tmp_path / "run 5"
    save_safetensors(weights, folder / "weights.safetensors")
    assert "name 'run 5'" in run("import", folder, code=1)[1]
    out, _ = run("import", folder, "--name", "fifth", "--dtype", "float16", "--note", "no. 5")
    assert "no, not the published checkpoint" in out
    assert "no. 5" in out
    assert (weights_home() / "fifth.safetensors").stat().st_size < 7.6e6
    run("import", folder, "-o", tmp_path / "w.safetensors")
    assert load_weights(tmp_path / "w.safetensors").fingerprint == weights.fingerprint
    assert "registers nothing" in run("import", folder, "-o", "w.safetensors", "-n", "x", code=2)[1]
    assert (
        "accepted: float32, float16" in run("import", folder, "-n", "x", "--dtype", "f8", code=1)[1]
    )
    assert "leads to no weights" in run("import", "random:0", code=1)[1]


def test_list_shows_every_name_and_what_is_wrong(
    run, weights: Weights, shipped: Path, home: Path
) -> None:
    out, err = run("list")
    assert "without the weights named 'default'" in out
    assert "random:SEED" in out
    assert err == ""
    registry.write_named(weights, shipped / "default.safetensors", dtype="float16")
    register(random_weights(1), "good")
    register(random_weights(2), "bad")
    flip(home / "bad.safetensors")
    save_safetensors(weights, home / "old.safetensors")
    out, err = run("list")
    head, *rows, last = out.splitlines()
    assert head.split() == [
        "name",
        "sha256",
        "front",
        "end",
        "published",
        "size",
        "source",
        "where",
    ]
    assert [row.split()[0] for row in rows] == ["default", "bad", "good", "old"]
    assert rows[0].endswith("shipped")
    assert digest(home / "good.safetensors")[:12] in rows[2]
    assert "cannot be used" in rows[1]
    assert "random:SEED" in last
    assert [line.split(":")[1].strip() for line in err.splitlines()] == ["bad", "old"]
    listed = json.loads(run("list", "--json")[0])["weights"]
    assert [one["name"] for one in listed] == ["default", "bad", "good", "old"]
    assert listed[2]["sha256"] == digest(home / "good.safetensors")
    assert "is not the recorded" in listed[1]["problem"]


def test_show_and_card(run, weights: Weights, shipped: Path) -> None:
    named = registry.write_named(weights, shipped / "default.safetensors", dtype="float16")
    assert named.record is not None
    facts = json.loads(run("show", "default", "--json")[0])
    assert facts.items() >= {**asdict(named.record), "parameters": 3_733_020}.items()
    assert named.record.sha256 in run("show", "default")[0]
    assert "no model card" in run("card", code=1)[1]
    (shipped / "default.md").write_text("# A card")
    assert run("card")[0] == "# A card\n"
    assert "sha256" not in run("show", "random:0")[0]
    assert "no model card" in run("card", "../x", code=1)[1]
