"""The whole way from audio files to statistics on disk, beside scripts that do the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from featurestore.benchmarks.inputs import THREADS, Inputs, absent
from featurestore.benchmarks.rivals import Rival
from featurestore.benchmarks.stages import stage
from featurestore.benchmarks.stages_network import torch_device
from featurestore.benchmarks.timing import Agreement, Contest

TOLERANCE = 1e-3  # of statistics, each side from its own MFCC
CHECKED = 3  # utterances, which also warm the script up
TITLE = "ingest, statistics alone"


def _tensors(inputs: Inputs) -> str:
    """The weights in a file that the scripts read."""
    path = inputs.folder / "tensors.npz"
    if not path.exists():
        tensors: dict[str, Any] = dict(inputs.tensors)
        np.savez(path, **tensors)
    return str(path)


def _ingest(inputs: Inputs, folder: Path) -> None:
    inputs.ingest(folder / "store", frames=False)


def _agreement(inputs: Inputs, rival: Rival) -> Agreement:
    """Compare statistics on disk of some utterances."""
    folder = inputs.folder / "checked"
    folder.mkdir(exist_ok=True)
    some = np.unique(np.linspace(0, len(inputs.table) - 1, CHECKED).round().astype(int))
    rival.run([inputs.segments[index] for index in some], folder)
    ids = inputs.table["id"].tolist()
    apart = [
        np.abs(np.load(folder / f"{number}.npy") - inputs.pooled[ids[index]]).max()
        for number, index in enumerate(some)
    ]
    return Agreement("statistics on disk", float(max(apart)), TOLERANCE)


def _against(
    inputs: Inputs, module: str, *arguments: str, environment: dict[str, str] | None = None
) -> Contest:
    def ours(folder: Path) -> None:
        _ingest(inputs, folder)

    if missing := absent("torch"):
        return Contest(inputs.audio_s, ours, missing)
    rival = Rival(module, [_tensors(inputs), *arguments], environment=environment)
    try:
        agreement = _agreement(inputs, rival)
    except BaseException:
        rival.close()
        raise

    def theirs(folder: Path) -> float:
        return rival.run(inputs.segments, folder)

    return Contest(inputs.audio_s, ours, theirs, agreement, warm=True, done=rival.close)


@stage(
    "ingest",
    TITLE,
    reference="librosa + PyTorch, file by file, .npy files",
    speeds=(500, 45),
    limit="network",
    most=(400, 3),
)
def plain(inputs: Inputs) -> Contest:
    """A script as people write it, in the environment that they have."""
    return _against(inputs, "plain_script")


@stage(
    "ingest",
    TITLE,
    reference="that script with OPENBLAS_NUM_THREADS=1",
    speeds=(500, 210),
    limit="network",
)
def plain_with_one_thread(inputs: Inputs) -> Contest:
    """The same script by somebody who knows that NumPy's threads are in PyTorch's way."""
    return _against(inputs, "plain_script", environment={"OPENBLAS_NUM_THREADS": "1"})


@stage(
    "ingest",
    TITLE,
    reference="librosa in processes + PyTorch in batches, .npy files",
    speeds=(500, 280),
    limit="network",
)
def careful(inputs: Inputs) -> Contest:
    """A script by somebody who thought about speed."""
    threads = {"OPENBLAS_NUM_THREADS": "1"}
    arguments = (torch_device() or "cpu", str(THREADS))
    return _against(inputs, "careful_script", *arguments, environment=threads)


@stage(
    "ingest",
    TITLE,
    reference="its network alone, MFCC in memory",
    speeds=(500, 800),
    against="self",
    limit="network",
)
def beside_network(inputs: Inputs) -> Contest:
    """What everything around the network costs."""

    def theirs(_: Path) -> None:
        for coefficients, n_frames in inputs.padded:
            jax.block_until_ready(inputs.network(coefficients, n_frames))

    return Contest(inputs.audio_s, lambda folder: _ingest(inputs, folder), theirs)


@stage(
    "ingest",
    "ingest, every frame in float16",
    reference="ingest, statistics alone",
    speeds=(350, 500),
    against="self",
    limit="write frames",
)
def with_frames(inputs: Inputs) -> Contest:
    """What it costs to keep every frame."""

    def ours(folder: Path) -> None:
        inputs.ingest(folder / "store", frames=True)

    return Contest(inputs.audio_s, ours, lambda folder: _ingest(inputs, folder))


@stage(
    "ingest",
    "ingest, --precision fast",
    reference="ingest, --precision parity",
    speeds=(600, 500),
    against="self",
    limit="network",
)
def fast(inputs: Inputs) -> Contest:
    """What `fast` gains in the end."""

    def ours(folder: Path) -> None:
        inputs.ingest(folder / "store", frames=False, precision="fast")

    return Contest(inputs.audio_s, ours, lambda folder: _ingest(inputs, folder))
