"""Trains in a process of its own, which a test may kill. Arguments: manifest, run, step to die at.

`XLA_FLAGS` from outside decides on the number of devices.
"""

from __future__ import annotations

import os
import signal
import sys

from featurestore.training.config import TrainConfig
from featurestore.training.train import read_training_set, train

SHORT = TrainConfig(epochs=3, frames_per_batch=64, warmup=2, held_out=0.3, patience=0)


def main(manifest: str, run: str, die_at: int) -> None:
    def on_step(step: int) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    # A checkpoint after every second or so, so that there is one in the middle of an epoch.
    data = read_training_set(manifest, SHORT)
    train(data, run, SHORT, checkpoint_s=0.0, on_step=on_step)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
