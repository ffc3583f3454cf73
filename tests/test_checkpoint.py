"""Weights: what is accepted, what is refused and how, and what survives a round trip."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
from bundle_writer import write_bundle
from conftest import shared
from safetensors.numpy import save_file

from featurestore.checkpoint import (
    EXPECTED_TENSORS,
    PUBLISHED_DIGEST,
    Weights,
    describe,
    fingerprint,
    import_tensorflow,
    is_published,
    load_safetensors,
    load_weights,
    random_weights,
    registered_names,
    save_safetensors,
    weights_home,
)
from featurestore.errors import CheckpointError
from featurestore.tfbundle import BundleEntry, read_index

GOLDEN = "model.ckpt-205919"
KERNEL = "block_0_1/conv_filter/W"


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(0)


@pytest.fixture(autouse=True)
def _no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered weights of whoever runs the tests are not seen."""
    monkeypatch.setenv("FEATURESTORE_HOME", str(tmp_path / "home"))


def refusal(call, *arguments, **options) -> str:
    """The message of the CheckpointError that the call must raise; always one line."""
    with pytest.raises(CheckpointError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed(weights: Weights, **tensors: np.ndarray | None) -> dict[str, np.ndarray]:
    """The tensors with some replaced, added, or (None) removed; `__` stands for `/`."""
    merged = dict(weights.tensors) | {name.replace("__", "/"): v for name, v in tensors.items()}
    return {name: values for name, values in merged.items() if values is not None}


def one_bad_value(weights: Weights, name: str, value: float) -> dict[str, np.ndarray]:
    values = weights.tensors[name].copy()
    values.flat[3] = value
    return {**weights.tensors, name: values}


# --- the layout


def test_layout_is_that_of_the_original():
    assert len(EXPECTED_TENSORS) == 237
    assert sum(math.prod(shape) for shape in EXPECTED_TENSORS.values()) == 3_733_020
    assert list(EXPECTED_TENSORS) == sorted(EXPECTED_TENSORS)


def test_layout_is_that_of_the_golden_checkpoint(golden):
    entries = read_index(golden / GOLDEN)
    model = {n: e.shape for n, e in entries.items() if "MaxProp" not in n and n != "global_step"}
    assert model == EXPECTED_TENSORS


# --- validation


def test_tensors_are_sorted_and_read_only(weights):
    shuffled = dict(reversed(weights.tensors.items()))
    again = Weights(shuffled, source="here")
    assert list(again.tensors) == list(EXPECTED_TENSORS)
    assert again.fingerprint == weights.fingerprint
    with pytest.raises(ValueError, match="read-only"):
        again.tensors[KERNEL][...] = 0


def test_caller_keeps_its_own_arrays_writeable(weights):
    own = {name: values.copy() for name, values in weights.tensors.items()}
    Weights(own, source="here")
    assert own[KERNEL].flags.writeable


def test_fingerprint_sees_every_bit(weights):
    other = weights.tensors["logit/conv_2/b"].copy()
    other[5] = np.nextafter(other[5], np.float32(1))
    assert fingerprint(changed(weights, logit__conv_2__b=other)) != weights.fingerprint


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({KERNEL: None}, f"1 of the network's 237 tensors missing: '{KERNEL}'"),
        ({"extra": np.zeros(1, np.float32)}, "does not have: 'extra'"),
        ({KERNEL: np.zeros((7, 128, 128), np.float32)}, "expected (1, 7, 128, 128)"),
        ({KERNEL: np.zeros((1, 7, 128, 128))}, f"'{KERNEL}' is float64, expected float32"),
    ],
)
def test_wrong_tensors_are_named(weights, change, reason):
    assert reason in refusal(Weights, changed(weights, **change), source="here")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(weights, value):
    tensors = one_bad_value(weights, "front/conv_in/beta", value)
    message = refusal(Weights, tensors, source="here")
    assert "'front/conv_in/beta' has 1 of 128 values NaN or infinite" in message


def test_negative_variance(weights):
    tensors = one_bad_value(weights, "block_2_16/conv_out/variance", -0.5)
    message = refusal(Weights, tensors, source="here")
    assert "'block_2_16/conv_out/variance' has a negative variance, -0.5" in message


def test_unknown_front_end(weights):
    assert "accepted: librosa-0.5" in refusal(replace, weights, front_end="librosa-9")


def test_false_fingerprint(weights):
    assert "they were changed" in refusal(replace, weights, fingerprint="0" * 64)


def test_describe_can_be_written_as_json(weights):
    facts = json.loads(json.dumps(describe(weights)))
    assert facts == {
        "source": "random:0",
        "fingerprint": weights.fingerprint,
        "published": False,
        "front_end": "librosa-0.5",
        "tensors": 237,
        "parameters": 3_733_020,
        "layers": 15,
        "units": 128,
    }


# --- TensorFlow


def test_import_leaves_out_what_belongs_to_the_training(weights, tmp_path):
    slots = {f"{name}/MaxProp": np.zeros(2, np.float32) for name in list(EXPECTED_TENSORS)[:9]}
    step = {"global_step": np.array(3, np.int32), "logit/conv_2/b/a/b": np.zeros(1, np.float32)}
    prefix = write_bundle(tmp_path / "model.ckpt-3", {**weights.tensors, **slots, **step})
    found = import_tensorflow(prefix)
    assert found.fingerprint == weights.fingerprint
    assert found.source == "tensorflow:model.ckpt-3"
    assert not found.published


def test_import_verifies_the_slots_too(weights, tmp_path):
    slot = {f"{KERNEL}/MaxProp": np.zeros(2, np.float32)}
    prefix = write_bundle(tmp_path / "model", {**weights.tensors, **slot})
    offset = read_index(prefix)[f"{KERNEL}/MaxProp"].offset
    with Path(f"{prefix}.data-00000-of-00001").open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\1")
    assert f"'{KERNEL}/MaxProp' is damaged" in refusal(import_tensorflow, prefix)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({KERNEL: None}, f"1 of the network's 237 tensors missing: '{KERNEL}'"),
        ({KERNEL: np.zeros((1, 5, 8, 8), np.float32)}, "(1, 5, 8, 8), expected (1, 7, 128, 128)"),
        ({"logit/conv_2/b": np.zeros(28, np.int32)}, "'logit/conv_2/b' is int32"),
        ({"dense/kernel": np.zeros(2, np.float32)}, "does not have: 'dense/kernel'"),
    ],
)
def test_import_of_other_tensors_names_them(weights, tmp_path, change, reason):
    prefix = write_bundle(tmp_path / "model", changed(weights, **change))
    assert reason in refusal(import_tensorflow, prefix)


def test_import_of_another_network_says_so(tmp_path):
    other = {f"resnet/layer_{i}": np.zeros(1, np.float32) for i in range(9)}
    message = refusal(import_tensorflow, write_bundle(tmp_path / "model", other))
    assert "weights of another network: 237 of its 237 tensors are missing" in message
    assert "'resnet/layer_0', 'resnet/layer_1', 'resnet/layer_2', and 6 more" in message


def test_golden_is_imported_and_not_taken_for_the_published(golden):
    found = import_tensorflow(golden / GOLDEN)
    assert not found.published
    assert not is_published(read_index(golden / GOLDEN))
    assert describe(found)["parameters"] == 3_733_020


def published_table() -> dict[str, BundleEntry]:
    with shared("wavenet_205919_index.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {
        row["name"]: BundleEntry(
            name=row["name"],
            dtype=int(row["dtype"]),
            shape=tuple(int(n) for n in row["shape"].split("x") if n),
            shard=0,
            offset=int(row["offset"]),
            size=int(row["bytes"]),
            masked_crc32c=int.from_bytes(bytes.fromhex(row["masked_crc32c_le_hex"]), "little"),
        )
        for row in rows
    }


def test_published_index_is_known_by_its_model_tensors_alone():
    entries = published_table()
    assert len(entries) == 381
    assert is_published(entries)
    assert is_published({name: entries[name] for name in EXPECTED_TENSORS})
    slot = entries[f"{KERNEL}/MaxProp"]
    assert is_published({**entries, slot.name: replace(slot, masked_crc32c=1)})


@pytest.mark.parametrize("name", [KERNEL, "logit/conv_2/b"])
@pytest.mark.parametrize("change", [{"masked_crc32c": 1}, {"dtype": 2}, {"shape": (1,)}, None])
def test_one_difference_and_it_is_not_published(name, change):
    entries = published_table()
    entry = entries.pop(name)
    if change is not None:
        entries[name] = replace(entry, **change)
    assert not is_published(entries)


def test_nothing_is_not_published():
    assert not is_published({})
    assert len(PUBLISHED_DIGEST) == 64


# --- safetensors


def test_round_trip_keeps_everything(weights, tmp_path):
    path = tmp_path / "new folder" / "w.safetensors"
    save_safetensors(replace(weights, published=True, front_end="librosa"), path)
    found = load_safetensors(path)
    assert describe(found) == {**describe(weights), "published": True, "front_end": "librosa"}
    for name, values in weights.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], values)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_longest_file_name(weights, tmp_path):
    path = tmp_path / ("w" * 243 + ".safetensors")
    save_safetensors(weights, path)
    assert load_safetensors(path).fingerprint == weights.fingerprint


def test_a_failed_write_leaves_the_old_file(weights, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in refusal(save_safetensors, weights, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_safetensors_are_written(weights, tmp_path):
    assert "ends in .safetensors" in refusal(save_safetensors, weights, tmp_path / "w.pt")


def metadata_of(weights: Weights, **changes: str) -> dict[str, str]:
    facts = {"source": weights.source, "fingerprint": weights.fingerprint, "published": "true"}
    return facts | changes


def test_changed_tensor_is_noticed(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(one_bad_value(weights, KERNEL, 0.01), path, metadata=metadata_of(weights))
    message = refusal(load_safetensors, path)
    assert str(path) in message
    assert "they were changed" in message


def test_published_is_not_believed_without_a_fingerprint(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(dict(weights.tensors), path, metadata={"published": "true", "source": "a\nb"})
    found = load_safetensors(path)
    assert not found.published
    assert found.source == "a b"


def test_file_without_metadata_is_named_as_its_source(weights, tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file(dict(weights.tensors), path)
    assert load_safetensors(path).source == "foreign.safetensors"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_files_are_widened_and_are_other_weights(weights, tmp_path, dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    narrow = {name: values.astype(kind) for name, values in weights.tensors.items()}
    path = tmp_path / "w.safetensors"
    save_file(narrow, path, metadata=metadata_of(weights))
    found = load_safetensors(path)
    np.testing.assert_array_equal(found.tensors[KERNEL], narrow[KERNEL].astype(np.float32))
    assert found.fingerprint != weights.fingerprint
    assert not found.published


def test_other_dtypes_are_refused(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(changed(weights, logit__conv_2__b=np.zeros(28)), path)
    message = refusal(load_safetensors, path)
    assert "'logit/conv_2/b' is F64; accepted: F32, F16, BF16" in message


def test_another_network_in_a_safetensors_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"dense": np.zeros(3, np.float32)}, path)
    assert "weights of another network" in refusal(load_safetensors, path)


def test_not_finite_values_in_a_file_name_the_file_and_the_tensor(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(one_bad_value(weights, KERNEL, np.nan), path)
    message = refusal(load_safetensors, path)
    assert str(path) in message
    assert KERNEL in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a whole safetensors file"),
        (b"just a text file\n" * 9, "not a whole safetensors file"),
        (b"\0" * 64, "not a whole safetensors file"),
        (b"\x80\x02}q\x00." * 9, "a pickle or PyTorch file"),
        (b"PK\x03\x04" * 9, "a pickle or PyTorch file"),
        (b"\x93NUMPY\x01\x00" * 9, "a NumPy file"),
        (b"\2\0\0\0\0\0\0\0[]", "not a whole safetensors file"),
        (b"\2\0\0\0\0\0\0\0{}", "237 of the network's 237 tensors missing"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path, content, reason):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    message = refusal(load_safetensors, path)
    assert str(path) in message
    assert reason in message


def test_truncated_safetensors(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_safetensors(weights, path)
    whole = path.read_bytes()
    for length in (7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "not a whole safetensors file" in refusal(load_safetensors, path)


@pytest.mark.parametrize("name", ["none", "", "a\0b", "x" * 5000])
def test_no_such_file(tmp_path, name):
    assert "no such file" in refusal(load_safetensors, f"{tmp_path}/{name}.safetensors")
    assert "no such file" in refusal(load_safetensors, tmp_path)


# --- by name


def test_random_by_name():
    assert load_weights("random:7").source == "random:7"


@pytest.mark.parametrize("seed", ["", "-1", "x", "1.5", "4294967296", "9" * 5000, "٣", " 1", "1\n"])
def test_bad_seed_by_name(seed):
    assert "from 0 to 4294967295" in refusal(load_weights, f"random:{seed}")


def test_every_form_of_a_name(weights, tmp_path):
    assert registered_names() == []
    save_safetensors(weights, weights_home() / "control.safetensors")
    prefix = write_bundle(tmp_path / "model.ckpt-1", weights.tensors)
    assert registered_names() == ["control"]
    for spec in ("control", weights_home() / "control.safetensors", prefix, f"{prefix}.index"):
        assert load_weights(spec).fingerprint == weights.fingerprint
        assert load_weights(str(spec)).fingerprint == weights.fingerprint


def test_registered_name_wins_over_a_checkpoint_in_the_working_folder(
    weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_safetensors(weights, weights_home() / "model.safetensors")
    write_bundle(Path("model"), weights.tensors)
    assert load_weights("model").source == "random:0"
    assert load_weights("./model").source == "tensorflow:model"


@pytest.mark.parametrize("spec", ["", "nope", "a\0b", "x" * 5000, "../x", "w.pt", "random", "a/b"])
def test_unknown_weights_list_what_is_accepted(weights, spec):
    save_safetensors(weights, weights_home() / "control.safetensors")
    message = refusal(load_weights, spec)
    for form in ("random:SEED", "FILE.safetensors", "control", "PREFIX.index"):
        assert form in message


def test_home_of_weights(monkeypatch, tmp_path):
    assert weights_home() == tmp_path / "home" / "weights"
    monkeypatch.delenv("FEATURESTORE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert weights_home() == tmp_path / "data" / "featurestore" / "weights"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_home() == tmp_path / ".local" / "share" / "featurestore" / "weights"


def test_reading_weights_imports_nothing_heavy():
    code = (
        "import sys; import featurestore.checkpoint;"
        "print([m for m in ('jax', 'pyarrow', 'pandas', 'torch', 'librosa') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
