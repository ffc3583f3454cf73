"""Weights from and to files: TensorFlow checkpoints, safetensors, and names registered for a user.

Nothing here runs code that a file holds: pickles (`.pt`, `.npy` of objects) are refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featurestore.errors import CheckpointError
from featurestore.files import replacing
from featurestore.random_weights import MAX_SEED, random_weights
from featurestore.tfbundle import (
    BundleEntry,
    bundle_prefix,
    is_bundle,
    read_index,
    read_tensors,
)
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
    "describe",
    "fingerprint",
    "import_tensorflow",
    "is_published",
    "load_safetensors",
    "load_weights",
    "random_weights",
    "registered_names",
    "save_safetensors",
    "weights_home",
]

# SHA-256 of `canonical_listing` of the checkpoint model.ckpt-205919 that the authors of
# speech-to-text-wavenet published: names, dtypes, shapes and CRCs of its 237 model tensors.
PUBLISHED_DIGEST = "c1a133776d847c6f7f5ff5104aa5d2f43a4d31d428ac5a38e67e4e27ebb393d1"

FORMAT = "featurestore-weights-1"
STORED_DTYPES = ("F32", "F16", "BF16")


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


def save_safetensors(weights: Weights, path: str | Path) -> None:
    """Writes weights in float32; the file appears complete or not at all.

    Args:
        weights: What to write.
        path: A file name that ends in `.safetensors`; its folder is created.

    Raises:
        CheckpointError: The name ends otherwise, or the file cannot be written.
    """
    from safetensors.numpy import save

    target = Path(path)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target}: weights are written to a file that ends in .safetensors")
    metadata = {
        "format": FORMAT,
        "source": weights.source,
        "fingerprint": weights.fingerprint,
        "published": "true" if weights.published else "false",
        "front_end": weights.front_end,
    }
    tensors = {name: np.ascontiguousarray(values) for name, values in weights.tensors.items()}
    data = save(tensors, metadata=metadata)
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror}") from error


def load_safetensors(path: str | Path) -> Weights:
    """Reads weights from a safetensors file; float16 and bfloat16 are widened to float32.

    A file in float32 that records a fingerprint must have it. `published` is believed only then:
    that shows the tensors are those that were saved with that claim, so an accident is noticed. It
    cannot show that nobody rewrote tensors, fingerprint and claim together; for that, import the
    TensorFlow checkpoint again. A narrowed file is other weights: it gets a fingerprint of its own
    and is never `published`.

    Raises:
        CheckpointError: The file is missing, damaged, no safetensors, changed since it was written,
            or holds another network.
    """
    target = Path(path)
    tensors, metadata, exact = _read_safetensors(target)
    recorded = metadata.get("fingerprint", "") if exact else ""
    try:
        return Weights(
            tensors,
            # Foreign files may say anything here, and errors that quote it are one line.
            source=" ".join(metadata.get("source", target.name).split())[:200],
            fingerprint=recorded,
            published=bool(recorded) and metadata.get("published") == "true",
            front_end=metadata.get("front_end", "librosa-0.5"),  # type: ignore[arg-type]  # checked
        )
    except CheckpointError as error:
        raise CheckpointError(f"{target}: {error}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
    """Tensors in float32, metadata, and whether all of them were stored in float32."""
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):  # Path.is_file raises on a name that is too long
        raise CheckpointError(f"{path}: no such file of weights")
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            check_layout(shapes, where=str(path))
            kinds = {name: piece.get_dtype() for name, piece in slices.items()}
            for name, kind in kinds.items():
                if kind not in STORED_DTYPES:
                    raise CheckpointError(
                        f"{path}: tensor {name!r} is {kind}; accepted: {', '.join(STORED_DTYPES)}"
                    )
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in slices}
            return tensors, file.metadata() or {}, set(kinds.values()) == {"F32"}
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: not a whole safetensors file{_hint(path)}: {reason}"
        ) from error


def _hint(path: Path) -> str:
    """What a file that is no safetensors seems to be, by its first bytes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError:
        return ""
    if head.startswith((b"PK", b"\x80")):
        return " but a pickle or PyTorch file, which could run code; save it as safetensors"
    if head.startswith(b"\x93NUMPY"):
        return " but a NumPy file; save all tensors as one safetensors file"
    return ""


def weights_home() -> Path:
    """Folder of registered weights: a file NAME.safetensors in it can be loaded as NAME.

    `$FEATURESTORE_HOME/weights`, else `$XDG_DATA_HOME/featurestore/weights`, else
    `~/.local/share/featurestore/weights`.
    """
    if home := os.environ.get("FEATURESTORE_HOME"):
        return Path(home).expanduser() / "weights"
    data = os.environ.get("XDG_DATA_HOME")
    # The XDG specification has relative values ignored.
    base = Path(data) if data and os.path.isabs(data) else Path.home() / ".local" / "share"
    return base / "featurestore" / "weights"


def registered_names() -> list[str]:
    """Names that `load_weights` accepts from `weights_home()`, sorted."""
    home = weights_home()
    return sorted(path.stem for path in home.glob("*.safetensors") if path.is_file())


def load_weights(spec: str | Path) -> Weights:
    """Weights by any of their names.

    Args:
        spec: `random:SEED`, a file that ends in `.safetensors`, a registered name (see
            `weights_home`), or the prefix of a TensorFlow checkpoint. A registered name wins over a
            checkpoint of the same name in the working folder; write `./NAME` for that one.

    Raises:
        CheckpointError: The spec is none of these, or what it names cannot be used.
    """
    text = os.fspath(spec)
    if text.startswith("random:"):
        return random_weights(_seed(text))
    if text.endswith(".safetensors"):
        return load_safetensors(text)
    if text in registered_names():
        return load_safetensors(weights_home() / f"{text}.safetensors")
    if is_bundle(text):
        return import_tensorflow(text)
    names = ", ".join(registered_names()) or "none"
    raise CheckpointError(
        f"weights {text!r:.200}: accepted are random:SEED, FILE.safetensors, a registered name"
        f" (in {weights_home()}: {names}), or the prefix of a TensorFlow checkpoint"
        " (PREFIX.index must exist)"
    )


def _seed(text: str) -> int:
    digits = text.removeprefix("random:")
    if not re.fullmatch(r"[0-9]{1,10}", digits):
        raise CheckpointError(f"weights {text!r:.80}: SEED is an integer from 0 to {MAX_SEED}")
    return int(digits)
