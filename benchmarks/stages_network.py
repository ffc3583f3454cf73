"""The network on padded batches that are in memory, statistics alone, as in the ingest."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from featurestore.arithmetic import fast_precision, in_precision
from featurestore.benchmarks.inputs import THREADS, Inputs, absent
from featurestore.benchmarks.limits import FLOP_PER_FRAME, matrices
from featurestore.benchmarks.stages import NotMeasuredError, stage
from featurestore.benchmarks.timing import Agreement, Contest

TOLERANCE = 1e-4  # of activations, which lie between -1 and 1
TITLE = "network, padded batches"

# MFCC (row, frame, 20) and frames (row,) to statistics (4, row, layer, unit).
Rival = Callable[[np.ndarray, np.ndarray], Any]


def torch_device() -> str | None:
    """What PyTorch runs on: the GPU if JAX is on one too; None if it is not installed."""
    if absent("torch"):
        return None
    import torch

    gpu = jax.devices()[0].platform == "gpu" and torch.cuda.is_available()
    return "cuda" if gpu else "cpu"


def _torch(inputs: Inputs) -> Any:
    from featurestore.benchmarks.torch_reference import Reference

    device = torch_device()
    assert device is not None
    return Reference(inputs.tensors, device=device, threads=THREADS)


def used_rows(inputs: Inputs) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches without the rows that nobody uses, which only our fixed shapes have."""
    for coefficients, n_frames in inputs.padded:
        used = np.count_nonzero(n_frames)
        yield coefficients[:used], n_frames[:used]


def network_agreement(inputs: Inputs, theirs: Rival) -> Agreement:
    """Compare statistics of both networks over all batches.

    Raises:
        DisagreementError: they differ by more than `TOLERANCE`.
    """
    largest = 0.0
    for (inputs_, n_frames), (same, counts) in zip(inputs.padded, used_rows(inputs), strict=True):
        ours = np.asarray(inputs.network(inputs_, n_frames))[: len(same)]
        found = theirs(same, counts)
        found = np.asarray(found.cpu() if hasattr(found, "cpu") else found)
        # A NaN on either side must not be lost in a comparison.
        largest = float(np.max([largest, np.abs(ours - found.swapaxes(0, 1)).max()]))
    return Agreement("statistics of the network", largest, TOLERANCE)


def _ours(inputs: Inputs) -> Callable[[Path], None]:
    def run(_: Path) -> None:
        for coefficients, n_frames in inputs.padded:
            jax.block_until_ready(inputs.network(coefficients, n_frames))

    return run


@stage("network", TITLE, reference="PyTorch, the same batches", speeds=(800, 550), limit="network")
def torch_in_batches(inputs: Inputs) -> Contest:
    """PyTorch with everything folded, on the same batches."""
    if missing := absent("torch"):
        return Contest(inputs.audio_s, _ours(inputs), missing)
    rival = _torch(inputs)

    def theirs(_: Path) -> None:
        for coefficients, n_frames in used_rows(inputs):
            rival(coefficients, n_frames)

    return Contest(inputs.audio_s, _ours(inputs), theirs, network_agreement(inputs, rival))


@stage("network", TITLE, reference="PyTorch, file by file", speeds=(800, 330), limit="network")
def torch_by_file(inputs: Inputs) -> Contest:
    """PyTorch with everything folded, without padding and without batches."""
    if missing := absent("torch"):
        return Contest(inputs.audio_s, _ours(inputs), missing)
    rival = _torch(inputs)

    def theirs(_: Path) -> None:
        for coefficients in inputs.coefficients:
            rival(coefficients[None])

    return Contest(inputs.audio_s, _ours(inputs), theirs, network_agreement(inputs, rival))


@stage(
    "network",
    TITLE,
    reference="ONNX Runtime, the same batches",
    speeds=(800, 100),
    limit="network",
    most=(400, 3),
)
def onnx_in_batches(inputs: Inputs) -> Contest:
    """ONNX Runtime with everything folded, on the same batches."""
    if missing := absent("onnx", "onnxruntime"):
        return Contest(inputs.audio_s, _ours(inputs), missing)
    if jax.devices()[0].platform != "cpu":
        reason = "not measured: ONNX Runtime is on the CPU here, JAX is not"
        return Contest(inputs.audio_s, _ours(inputs), reason)
    from featurestore.benchmarks.onnx_reference import OnnxReference

    rival = OnnxReference(inputs.tensors, threads=THREADS)

    def theirs(_: Path) -> None:
        for coefficients, n_frames in used_rows(inputs):
            rival(coefficients, n_frames)

    return Contest(inputs.audio_s, _ours(inputs), theirs, network_agreement(inputs, rival))


@stage(
    "network",
    TITLE,
    reference="as many operations in large matrix products (JAX)",
    speeds=(800, 800),
    against="self",
)
def beside_products(inputs: Inputs) -> Contest:
    """The network beside products of as many operations as its definition has, padding included.

    A ratio above 1 means that the network takes fewer operations than its definition.
    """
    size = 256 if inputs.quick else 2048
    first, second = map(jnp.asarray, matrices(size))
    product = jax.jit(jnp.matmul)
    frames = sum(coefficients.shape[0] * coefficients.shape[1] for coefficients, _ in inputs.padded)
    count = max(1, round(frames * FLOP_PER_FRAME / (2 * size**3)))

    def theirs(_: Path) -> None:
        functools.reduce(lambda x, _: product(x, second), range(count), first).block_until_ready()

    return Contest(inputs.audio_s, _ours(inputs), theirs)


def _beside_parity(inputs: Inputs, name: str, encoder: Any, *, tolerance: float) -> Contest:
    network = inputs.network_of(name, encoder)
    largest = 0.0
    for batch in inputs.padded:
        used = np.count_nonzero(batch[1])
        exact, other = (np.asarray(run(*batch))[:used] for run in (inputs.network, network))
        largest = float(np.max([largest, np.abs(exact - other).max()]))

    def ours(_: Path) -> None:
        for coefficients, n_frames in inputs.padded:
            jax.block_until_ready(network(coefficients, n_frames))

    agreement = Agreement("statistics of the network", largest, tolerance)
    return Contest(inputs.audio_s, ours, _ours(inputs), agreement)


@stage(
    "network",
    "network, --precision fast",
    reference="the network, --precision parity",
    speeds=(1200, 800),
    against="self",
    limit="network",
)
def fast(inputs: Inputs) -> Contest:
    """What `fast` is on this machine."""
    encoder = in_precision(inputs.encoder, "fast")
    tolerance = 1e-4 if fast_precision() == "winograd" else 1e-2
    return _beside_parity(inputs, "network, fast", encoder, tolerance=tolerance)


@stage(
    "network",
    "network, --precision bfloat16",
    reference="the network, --precision parity",
    speeds=(2000, 800),
    against="self",
    limit="network",
)
def bfloat16(inputs: Inputs) -> Contest:
    """Matrix units of newer CPUs."""
    encoder = in_precision(inputs.encoder, "bfloat16")
    return _beside_parity(inputs, "network, bfloat16", encoder, tolerance=1e-1)


@stage(
    "network",
    "network, fused kernel for Hopper",
    reference="the network, --precision parity",
    speeds=(1200, 800),
    against="self",
    limit="network",
)
def fused(inputs: Inputs) -> Contest:
    """The fused kernel, where it can run."""
    from featurestore.kernels.gated_block_mosaic import unavailable

    if why := unavailable(jax.devices()[0]):
        raise NotMeasuredError(f"not measured: {why}")
    half: Any = in_precision(inputs.encoder, "float16")
    encoder = dataclasses.replace(half, implementation="mosaic")
    return _beside_parity(inputs, "network, fused", encoder, tolerance=1e-2)
