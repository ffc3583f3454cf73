"""Weights in safetensors files: narrowed kernels, checksums, and the same bytes every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from featurestore.checkpoint import Weights, load_safetensors, random_weights, save_safetensors
from featurestore.errors import CheckpointError

KERNEL = "block_0_1/conv_filter/W"
VARIANCE = "front/conv_in/variance"


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Untrained, with variances that float16 cannot hold, as trained ones have."""
    tensors = dict(random_weights(0).tensors)
    tensors[VARIANCE] = np.full(128, 3e5, np.float32)
    tensors["logit/conv_1/variance"] = np.full(128, 1e-9, np.float32)
    return Weights(tensors, source="a run", front_end="librosa")


@pytest.fixture
def narrow(weights: Weights, tmp_path: Path) -> Path:
    path = tmp_path / "narrow.safetensors"
    save_safetensors(weights, path, dtype="float16")
    return path


def metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def test_float16_narrows_the_kernels_alone(weights: Weights, narrow: Path) -> None:
    assert 7.4e6 < narrow.stat().st_size < 7.6e6
    stored, found = load_file(narrow), load_safetensors(narrow)
    for name, values in weights.tensors.items():
        kind = np.float16 if values.ndim > 1 else np.float32
        assert stored[name].dtype == kind, name
        np.testing.assert_array_equal(stored[name], values.astype(kind))
        np.testing.assert_array_equal(found.tensors[name], values.astype(kind).astype(np.float32))
    assert found.tensors[VARIANCE][0] == np.float32(3e5)
    assert (found.source, found.front_end) == ("a run", "librosa")


def test_float16_weights_are_other_weights_with_a_fingerprint(
    weights: Weights, tmp_path: Path
) -> None:
    published = replace(weights, published=True)
    stored = save_safetensors(published, tmp_path / "w.safetensors", dtype="float16")
    found = load_safetensors(tmp_path / "w.safetensors")
    assert found.fingerprint == stored.fingerprint != weights.fingerprint
    assert not stored.published
    assert not found.published
    # What is narrow already is not changed by narrowing.
    again = save_safetensors(replace(found, published=True), tmp_path / "x.safetensors")
    same = save_safetensors(again, tmp_path / "y.safetensors", dtype="float16")
    assert same.fingerprint == found.fingerprint
    assert load_safetensors(tmp_path / "y.safetensors").published


@pytest.mark.parametrize("name", [KERNEL, VARIANCE])
def test_a_changed_value_is_noticed_in_float16_too(narrow: Path, name: str) -> None:
    tensors = load_file(narrow)
    tensors[name].flat[3] *= 1.5
    save_file(tensors, narrow, metadata=metadata(narrow))
    with pytest.raises(CheckpointError, match="they were changed"):
        load_safetensors(narrow)


def test_widening_a_file_changes_nothing_and_narrowing_it_further_does(narrow: Path) -> None:
    tensors, facts = load_file(narrow), metadata(narrow)
    before = load_safetensors(narrow).fingerprint
    save_file({n: v.astype(np.float32) for n, v in tensors.items()}, narrow, metadata=facts)
    assert load_safetensors(narrow).fingerprint == before
    tensors[VARIANCE][:] = 1.0001
    save_file({n: v.astype(np.float16) for n, v in tensors.items()}, narrow, metadata=facts)
    assert load_safetensors(narrow).fingerprint != before


@pytest.mark.parametrize(("value", "shown"), [(1e5, "1e+05"), (1e-6, "1e-06")])
def test_kernels_that_float16_cannot_hold_are_refused(
    weights: Weights, tmp_path: Path, value: float, shown: str
) -> None:
    kernel = np.full((1, 7, 128, 128), value, np.float32)
    bad = Weights({**weights.tensors, KERNEL: kernel}, source="a run")
    with pytest.raises(CheckpointError, match=r"float16 cannot hold .*; write it as float32") as e:
        save_safetensors(bad, tmp_path / "w.safetensors", dtype="float16")
    assert shown in str(e.value)
    assert KERNEL in str(e.value)
    assert not list(tmp_path.iterdir())
    zero = Weights({**weights.tensors, KERNEL: np.zeros_like(kernel)}, source="a run")
    save_safetensors(zero, tmp_path / "w.safetensors", dtype="float16")


def test_unknown_dtype(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'int8'; accepted: float32, float16"):
        save_safetensors(weights, tmp_path / "w.safetensors", dtype="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_equal_weights_make_equal_files(weights: Weights, tmp_path: Path, dtype: str) -> None:
    odd = replace(weights, source="Läufe/5 · “größer”")
    made = set()
    for copy in range(4):
        path = tmp_path / f"{copy}.safetensors"
        save_safetensors(odd, path, dtype=dtype)  # type: ignore[arg-type]
        made.add(path.read_bytes())
        assert list(load_file(path)) != []
    assert len(made) == 1
    assert load_safetensors(path).source == odd.source
