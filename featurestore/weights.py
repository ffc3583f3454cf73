"""The weights of the network: which tensors it has, and a validated, immutable set of them.

Names and shapes are those of the original TensorFlow program (speech-to-text-wavenet 0.0.0.2, Kim
and Park 2016), so that a checkpoint of it and a file of ours hold the same tensors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from featurestore.errors import CheckpointError
from featurestore.types import CLASSES, COEFFICIENTS, LAYERS, UNITS, FrontEndVariant

KERNEL = 7  # taps of a dilated convolution
STACKS = 3
DILATIONS = (1, 2, 4, 8, 16)


def _layout() -> dict[str, tuple[int, ...]]:
    dilated, pointwise = (1, KERNEL, UNITS, UNITS), (1, UNITS, UNITS)
    normalised: dict[str, tuple[int, ...]] = {
        "front/conv_in": (1, COEFFICIENTS, UNITS),
        "logit/conv_1": pointwise,
    }
    for stack in range(STACKS):
        for rate in DILATIONS:
            block = f"block_{stack}_{rate}"
            normalised[f"{block}/conv_filter"] = dilated
            normalised[f"{block}/conv_gate"] = dilated
            normalised[f"{block}/conv_out"] = pointwise
    layout: dict[str, tuple[int, ...]] = {
        "logit/conv_2/W": (1, UNITS, CLASSES),
        "logit/conv_2/b": (CLASSES,),
    }
    for name, kernel in normalised.items():
        layout[f"{name}/W"] = kernel
        layout |= {f"{name}/{part}": (UNITS,) for part in ("beta", "gamma", "mean", "variance")}
    return dict(sorted(layout.items()))


EXPECTED_TENSORS: Mapping[str, tuple[int, ...]] = _layout()
"""Shape of each of the 237 tensors by name, sorted: 3,733,020 float32 values in all."""


def check_layout(shapes: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Refuses tensors that are not those of the network, by name and shape alone.

    Args:
        shapes: Shape of each tensor found, by name.
        where: What the tensors come from, for the message.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape.
    """
    missing = sorted(EXPECTED_TENSORS.keys() - shapes.keys())
    unexpected = sorted(shapes.keys() - EXPECTED_TENSORS.keys())
    total = len(EXPECTED_TENSORS)
    if missing and unexpected:
        raise CheckpointError(
            f"{where}: weights of another network: {len(missing)} of its {total} tensors are"
            f" missing ({_few(missing)}), {len(unexpected)} are unexpected ({_few(unexpected)})"
        )
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} of the network's {total} tensors missing: {_few(missing)}"
        )
    if unexpected:
        raise CheckpointError(
            f"{where}: {len(unexpected)} tensors that the network does not have:"
            f" {_few(unexpected)}; leave them out"
        )
    for name, expected in EXPECTED_TENSORS.items():
        if tuple(shapes[name]) != expected:
            raise CheckpointError(
                f"{where}: tensor {name!r} has shape {tuple(shapes[name])}, expected {expected}"
            )


def _few(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    more = f", and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(f"{name!r:.120}" for name in listed[:most]) + more


def fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256, in hex, of the sorted names, the shapes and the little-endian float32 values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        shape = "x".join(map(str, tensors[name].shape))
        digest.update(f"{name} {shape}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name], "<f4").data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Weights:
    """A complete, finite set of weights. Compare two by `fingerprint`.

    Attributes:
        tensors: float32 arrays by name, as in `EXPECTED_TENSORS`; sorted and read-only.
        source: Where they came from, such as `tensorflow:model.ckpt-205919` or `random:0`.
        published: Whether they are the checkpoint that the original authors published.
        front_end: The MFCC variant that the network was trained with.
        fingerprint: SHA-256 (hex) of names, shapes and values; computed when left empty.

    Raises:
        CheckpointError: A tensor is missing, unexpected, of another shape or dtype, not finite, or
            a negative variance; or a fingerprint was given that is not that of the tensors.
    """

    tensors: Mapping[str, np.ndarray] = field(repr=False)
    source: str
    fingerprint: str = ""
    published: bool = False
    front_end: FrontEndVariant = "librosa-0.5"

    def __post_init__(self) -> None:
        check_layout({name: a.shape for name, a in self.tensors.items()}, where=self.source)
        for name in EXPECTED_TENSORS:
            _check_values(name, self.tensors[name], where=self.source)
        if self.front_end not in get_args(FrontEndVariant):
            raise CheckpointError(
                f"{self.source}: front end {self.front_end!r}; accepted:"
                f" {', '.join(get_args(FrontEndVariant))}"
            )
        found = fingerprint(self.tensors)
        if self.fingerprint not in ("", found):
            raise CheckpointError(
                f"{self.source}: fingerprint {found:.12}... of the tensors is not the recorded"
                f" {self.fingerprint:.12}...: they were changed; import the original again"
            )
        object.__setattr__(self, "fingerprint", found)
        frozen = {name: _read_only(self.tensors[name]) for name in EXPECTED_TENSORS}
        object.__setattr__(self, "tensors", frozen)


def _check_values(name: str, values: np.ndarray, *, where: str) -> None:
    if values.dtype != np.float32:
        raise CheckpointError(
            f"{where}: tensor {name!r} is {values.dtype}, expected float32; convert it first"
        )
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise CheckpointError(
            f"{where}: tensor {name!r} has {bad} of {values.size} values NaN or infinite;"
            " the training diverged or the file is damaged"
        )
    if name.endswith("/variance") and values.min() < 0:
        raise CheckpointError(
            f"{where}: tensor {name!r} has a negative variance, {values.min():g}; expected >= 0"
        )


def _read_only(values: np.ndarray) -> np.ndarray:
    view = values.view()
    view.flags.writeable = False
    return view


def describe(weights: Weights) -> dict[str, Any]:
    """Facts about weights, of plain types that JSON can hold."""
    return {
        "source": weights.source,
        "fingerprint": weights.fingerprint,
        "published": weights.published,
        "front_end": weights.front_end,
        "tensors": len(weights.tensors),
        "parameters": sum(math.prod(values.shape) for values in weights.tensors.values()),
        "layers": LAYERS,
        "units": UNITS,
    }
