"""Statistics of a network's activations as such a script is usually written: one file at a time.

    python -m featurestore.benchmarks.plain_script TENSORS.npz

librosa for the file and its MFCC, a PyTorch module as it was trained, mean, standard deviation,
minimum and maximum over frames, `numpy.save`. No threads are set and nothing is batched.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from featurestore.benchmarks.serving import File, Work, serve


def prepare() -> Work:
    """Load the network."""
    import torch

    from featurestore.benchmarks.librosa_reference import librosa_load, librosa_mfcc
    from featurestore.benchmarks.torch_reference import PlainNetwork

    with np.load(sys.argv[1]) as tensors:
        network = PlainNetwork(dict(tensors)).eval()

    def work(files: list[File], folder: Path) -> None:
        for index, (path, start, end) in enumerate(files):
            samples = librosa_load(path, start, end)
            coefficients = torch.from_numpy(librosa_mfcc(samples))
            with torch.no_grad():
                gates = torch.stack(network(coefficients[None]))[:, 0]  # (layer, unit, frame)
                found = [
                    gates.mean(-1),
                    gates.std(-1, unbiased=False),
                    gates.amin(-1),
                    gates.amax(-1),
                ]
            np.save(folder / f"{index}.npy", torch.stack(found).numpy())

    return work


if __name__ == "__main__":
    serve(prepare)
