"""Weights in safetensors files, in float32 or with the kernels in float16.

Nothing here runs code that a file holds: pickles (`.pt`, `.npy` of objects) are refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from featurestore.errors import CheckpointError
from featurestore.files import replacing
from featurestore.weights import EXPECTED_TENSORS, Weights, check_layout

FORMAT = "featurestore-weights-1"
STORED_DTYPES = ("F32", "F16", "BF16")

WeightsDtype = Literal["float32", "float16"]

# Rounding to float16 moves a value by at most 2^-11 of itself, unless it is a subnormal one there.
_FLOAT16_PRECISION = 2.0**-11


def save_safetensors(
    weights: Weights, path: str | Path, *, dtype: WeightsDtype = "float32"
) -> Weights:
    """Writes weights; the file appears complete or not at all, and has the same bytes every time.

    `float16` narrows the kernels, which are 99 % of the values. Biases and batch normalisation stay
    in float32: the variance behind `front/conv_in`, whose input is never normalised, can exceed
    what float16 holds, and others can fall below it.

    Args:
        weights: What to write.
        path: A file name that ends in `.safetensors`; its folder is created.
        dtype: Of the kernels.

    Returns:
        The weights as they will be read. In `float16` they are other weights than those given,
        unless rounding changed nothing: with a fingerprint of their own, and not `published`.

    Raises:
        CheckpointError: The name ends otherwise, float16 cannot hold a kernel, or the file cannot
            be written.
    """
    from safetensors.numpy import save

    target = Path(path)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target}: weights are written to a file that ends in .safetensors")
    if dtype not in get_args(WeightsDtype):
        raise CheckpointError(
            f"weights as {dtype!r}; accepted: {', '.join(get_args(WeightsDtype))}"
        )
    stored = _rounded(weights) if dtype == "float16" else weights
    metadata = {
        "format": FORMAT,
        "source": stored.source,
        "fingerprint": stored.fingerprint,
        "published": "true" if stored.published else "false",
        "front_end": stored.front_end,
        "dtype": dtype,
    }
    tensors = {
        name: np.ascontiguousarray(values, np.float16 if _narrowed(name, dtype) else np.float32)
        for name, values in stored.tensors.items()
    }
    data = _with_sorted_metadata(save(tensors, metadata=metadata))
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror}") from error
    return stored


def _narrowed(name: str, dtype: str) -> bool:
    """Whether a tensor of a file of this dtype is in float16."""
    return dtype == "float16" and len(EXPECTED_TENSORS[name]) > 1


def _rounded(weights: Weights) -> Weights:
    """The weights whose kernels are what float16 makes of these."""
    tensors = dict(weights.tensors)
    for name, values in weights.tensors.items():
        if not _narrowed(name, "float16"):
            continue
        with np.errstate(over="ignore", under="ignore"):  # refused below
            tensors[name] = values.astype(np.float16).astype(np.float32)
        largest = float(np.abs(values).max())
        error = float(np.abs(tensors[name] - values).max())
        if not error <= _FLOAT16_PRECISION * largest:
            raise CheckpointError(
                f"{weights.source}: float16 cannot hold tensor {name!r}, whose largest value is"
                f" {largest:.3g}; write it as float32"
            )
    stored = Weights(tensors, source=weights.source, front_end=weights.front_end)
    same = stored.fingerprint == weights.fingerprint
    return dataclasses.replace(stored, published=weights.published and same)


def _with_sorted_metadata(data: bytes) -> bytes:
    """A safetensors file whose metadata are sorted; the library writes them in random order.

    So equal weights make equal files, and their SHA-256 can be compared between machines.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def load_safetensors(path: str | Path) -> Weights:
    """Reads weights from a safetensors file; float16 and bfloat16 are widened to float32.

    A file in the dtypes in which `save_safetensors` wrote it must have the fingerprint that it
    records. `published` is believed only then: that shows the tensors are those that were saved
    with that claim, so an accident is noticed. It cannot show that nobody rewrote tensors,
    fingerprint and claim together; for that, import the TensorFlow checkpoint again. A file that
    was narrowed since is other weights: it gets a fingerprint of its own and is never `published`.

    Raises:
        CheckpointError: The file is missing, damaged, no safetensors, changed since it was written,
            or holds another network.
    """
    target = Path(path)
    tensors, metadata, as_written = _read_safetensors(target)
    recorded = metadata.get("fingerprint", "") if as_written else ""
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
    """Tensors in float32, metadata, and whether they were stored as their writer stored them."""
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
            metadata = file.metadata() or {}
            return tensors, metadata, _as_written(kinds, metadata.get("dtype", "float32"))
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: not a whole safetensors file{_hint(path)}: {reason}"
        ) from error


def _as_written(kinds: Mapping[str, str], dtype: str) -> bool:
    """Whether these are the dtypes that a file with this dtype in its metadata was written in.

    All in float32 counts too, since widening changes no value.
    """
    if set(kinds.values()) == {"F32"}:
        return True
    return all(kind == ("F16" if _narrowed(name, dtype) else "F32") for name, kind in kinds.items())


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
