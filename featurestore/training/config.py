"""The choices of a training; frozen, and kept with what they produced."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from featurestore.errors import TrainingError
from featurestore.training.augment import Augmentation
from featurestore.training.optimisers import OptimiserName
from featurestore.types import FrontEndVariant

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what comes out of a training, besides the manifest and the machine.

    Attributes:
        epochs: passes over the training utterances; the learning rate falls over all of them.
        seed: of the initial weights, the order, the augmentation and the held-out speakers.
        optimiser: `adamw`, `muon`, or the original's `maxprop`.
        learning_rate: its peak.
        warmup: steps until the peak.
        weight_decay: of the kernels; MaxProp knows none.
        clip: largest global norm of a gradient.
        dropout: share of gated units silenced, each for a whole utterance.
        frames_per_batch: frames of 32 ms in a batch, padding included.
        longest_s: utterances longer than this many seconds are left out.
        held_out: share of the speakers held out, where the manifest has no column `split`.
        settle: share of the epochs, the last ones, in which frames are normalised by the running
            statistics, as they are ever after. Before, they are normalised by those of their batch,
            and a batch holds utterances of about one length, hence often of one corpus: what the
            network learns to expect there, the running statistics do not give it.
        patience: epochs without a better held-out CER after which training stops, once it settles;
            0 for never.
        precision: of the convolutions; `auto` is bfloat16 on a GPU and float32 elsewhere.
        front_end: the MFCC.
        weights: where to start: `random:SEED` (by default with this seed), or any other weights.
        augmentation: how utterances are varied.
    """

    epochs: int = 30
    seed: int = 0
    optimiser: OptimiserName = "adamw"
    learning_rate: float = 2e-3
    warmup: int = 500
    weight_decay: float = 0.05
    clip: float = 1.0
    dropout: float = 0.1
    frames_per_batch: int = 2560
    longest_s: float = 20.0
    held_out: float = 0.1
    settle: float = 0.3
    patience: int = 10
    precision: Precision = "auto"
    front_end: FrontEndVariant = "librosa-0.5"
    weights: str = ""
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "epochs": (1, 1_000_000),
            "seed": (0, 2**32 - 1),
            "warmup": (0, 1_000_000_000),
            "dropout": (0, 0.9),
            "held_out": (0, 0.9),
            "settle": (0, 1),
            "frames_per_batch": (8, 10_000_000),
            "patience": (0, 1_000_000),
            "weight_decay": (0, 10),
        }
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise TrainingError(
                    f"{name}={getattr(self, name)}; accepted: {least:g} to {most:g}"
                )
        for name in ("learning_rate", "clip", "longest_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name}={getattr(self, name)}; accepted: more than 0")

    def settled(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, is one of the last."""
        return epoch >= self.epochs - round(self.settle * self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
