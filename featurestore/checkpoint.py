"""Weights by any of their names: a TensorFlow checkpoint, a file, a registered name, or a seed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from featurestore.errors import CheckpointError
from featurestore.random_weights import MAX_SEED, random_weights
from featurestore.registry import DEFAULT, load_named, register, registered_names, weights_home
from featurestore.tfbundle import (
    BundleEntry,
    bundle_prefix,
    is_bundle,
    read_index,
    read_tensors,
)
from featurestore.weight_files import load_safetensors, save_safetensors
from featurestore.weights import (
    EXPECTED_TENSORS,
    Weights,
    check_layout,
    describe,
    fingerprint,
)

__all__ = [
    "EXPECTED_TENSORS",
    "PUBLISHED_DIGEST",
    "Weights",
    "checkpoint_name",
    "describe",
    "fingerprint",
    "import_tensorflow",
    "is_published",
    "load_safetensors",
    "load_weights",
    "random_weights",
    "read_checkpoint",
    "register",
    "registered_names",
    "save_safetensors",
    "weights_home",
]

# SHA-256 of `canonical_listing` of the checkpoint model.ckpt-205919 that the authors of
# speech-to-text-wavenet published: names, dtypes, shapes and CRCs of its 237 model tensors.
PUBLISHED_DIGEST = "c1a133776d847c6f7f5ff5104aa5d2f43a4d31d428ac5a38e67e4e27ebb393d1"

RUN_WEIGHTS = "weights.safetensors"  # the network that a training run ends with, in its folder


def canonical_listing(entries: Mapping[str, BundleEntry]) -> str:
    """One line `name dtype shape crc` for each model tensor among the entries, sorted by name.

    The dtype is TensorFlow's number, the shape joined by `x`, the masked CRC32C in 8 hex digits.
    """
    lines = []
    for name in sorted(EXPECTED_TENSORS.keys() & entries.keys()):
        entry = entries[name]
        shape = "x".join(map(str, entry.shape))
        lines.append(f"{name} {entry.dtype} {shape} {entry.masked_crc32c:08x}\n")
    return "".join(lines)


def is_published(entries: Mapping[str, BundleEntry]) -> bool:
    """Whether an index is that of the published checkpoint.

    It compares what the index states; `read_tensors` proves that the data agree with the index.
    Optimiser slots and offsets do not matter.
    """
    return hashlib.sha256(canonical_listing(entries).encode()).hexdigest() == PUBLISHED_DIGEST


def import_tensorflow(prefix: str | Path) -> Weights:
    """Reads a checkpoint of the original program and verifies every CRC in it.

    The optimiser's slots (`<tensor>/<anything>`) and `global_step` are verified and left out.

    Args:
        prefix: Path without `.index` and `.data-...`.

    Raises:
        CheckpointError: A file is missing or damaged, or it is a checkpoint of another network.
    """
    root = bundle_prefix(prefix)
    entries = read_index(root)
    model = {name: entry for name, entry in entries.items() if not _is_slot(name)}
    check_layout({name: entry.shape for name, entry in model.items()}, where=str(root))
    tensors = read_tensors(root)
    return Weights(
        {name: tensors[name] for name in model},
        source=f"tensorflow:{root.name}",
        published=is_published(entries),
    )


def _is_slot(name: str) -> bool:
    """Whether an entry is the training's and not the model's."""
    if name in EXPECTED_TENSORS:
        return False
    parts = name.split("/")
    owners = ("/".join(parts[:n]) for n in range(1, len(parts)))
    return name == "global_step" or any(owner in EXPECTED_TENSORS for owner in owners)


def load_weights(spec: str | Path) -> Weights:
    """Weights by any of their names.

    Args:
        spec: `default` for those shipped with the package, `random:SEED`, a file that ends in
            `.safetensors`, a registered name (see `weights_home`), the folder of a training run, or
            the prefix of a TensorFlow checkpoint. A name wins over a folder or checkpoint of that
            name in the working folder; write `./NAME` for that one.

    Raises:
        CheckpointError: The spec is none of these, or what it names cannot be used.
    """
    text = os.fspath(spec)
    if text.startswith("random:"):
        return random_weights(_seed(text))
    named = text == DEFAULT or (not text.endswith(".safetensors") and text in registered_names())
    if named:
        return load_named(text)
    if _is_checkpoint(text):
        return read_checkpoint(text)
    names = ", ".join(registered_names()) or "none"
    raise CheckpointError(
        f"weights {text!r:.200}: accepted are {DEFAULT}, random:SEED, FILE.safetensors, a"
        f" registered name (in {weights_home()}: {names}), the folder of a training run (with a"
        f" {RUN_WEIGHTS}), or the prefix of a TensorFlow checkpoint (PREFIX.index must exist)"
    )


def _is_checkpoint(path: str | Path) -> bool:
    """Whether a path leads to weights: `FILE.safetensors`, a run's folder, or a TensorFlow prefix.

    What ends in `.safetensors` is taken for one even where there is no such file.
    """
    text = os.fspath(path)
    return text.endswith(".safetensors") or _is_run(text) or is_bundle(text)


def _is_run(path: str) -> bool:
    return os.path.isdir(path) and os.path.isfile(os.path.join(path, RUN_WEIGHTS))


def read_checkpoint(path: str | Path) -> Weights:
    """Weights from a path, never from a registered name.

    Args:
        path: `FILE.safetensors`, the folder of a training run, or the prefix of a TensorFlow
            checkpoint.

    Raises:
        CheckpointError: The path leads to none of these, or to what cannot be used.
    """
    text = os.fspath(path)
    if _is_run(text):
        return load_safetensors(Path(text) / RUN_WEIGHTS)
    if text.endswith(".safetensors"):
        return load_safetensors(text)
    if is_bundle(text):
        return import_tensorflow(text)
    raise CheckpointError(
        f"{text!r:.200} leads to no weights; accepted: FILE.safetensors, the folder of a training"
        f" run (with a {RUN_WEIGHTS}), or the prefix of a TensorFlow checkpoint (PREFIX.index must"
        " exist)"
    )


def checkpoint_name(path: str | Path) -> str:
    """What a checkpoint is called: the file without its ending, or the folder of a training run."""
    text = os.fspath(path)
    if _is_run(text):
        return Path(text).resolve().name
    if os.path.basename(text) == RUN_WEIGHTS:
        return Path(text).resolve().parent.name
    if text.endswith(".safetensors"):
        return Path(text).stem
    return bundle_prefix(text).name


def _seed(text: str) -> int:
    digits = text.removeprefix("random:")
    if not re.fullmatch(r"[0-9]{1,10}", digits):
        raise CheckpointError(f"weights {text!r:.80}: SEED is an integer from 0 to {MAX_SEED}")
    return int(digits)
