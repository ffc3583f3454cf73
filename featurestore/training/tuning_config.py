"""How a fold is fine-tuned, and what its passes are. Importing this needs no extra."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from featurestore.errors import TrainingError

Pool = Literal["mean", "max", "attention"]
POOLS: tuple[Pool, ...] = ("mean", "max", "attention")

Loss = Literal["mse", "ccc"]
LOSSES: tuple[Loss, ...] = ("mse", "ccc")


@dataclass(frozen=True)
class FinetuneConfig:
    """How the network of a fold is trained.

    Attributes:
        targets: labels to predict, all by one network.
        pool: how frames become one value per unit.
        loss: what is minimised: the mean over targets of the mean squared error of standardised
            labels, or of one minus their concordance correlation coefficient.
        frozen_epochs: passes in which only the head is trained; 0 leaves it at the ridge solution.
        epochs: passes in which everything is trained.
        head_rate: peak learning rate of the head.
        encoder_rate: peak learning rate of the network.
        warmup: share of a stage's steps over which its learning rates rise; then they fall as a
            cosine to a hundredth.
        weight_decay: AdamW's, of the network's matrices. The head has the penalty that ridge
            regression chose instead, so that with `mse` it begins at its own optimum.
        clip: largest norm of a step's gradient.
        held_out: share of the training speakers that decide when to stop, at least one of them.
        patience: passes without a lower held-out loss after which a stage ends.
        frames_per_batch: frames, padding included, that a step aims for.
        seed: of the held-out speakers and the order of utterances.
        best: units that the linear model beside it selects, as in `evaluate`.

    Raises:
        TrainingError: a value out of range.
    """

    targets: tuple[str, ...] = ("valence", "arousal")
    pool: Pool = "mean"
    loss: Loss = "mse"
    frozen_epochs: int = 5
    epochs: int = 3
    head_rate: float = 1e-5
    encoder_rate: float = 3e-6
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    held_out: float = 0.15
    patience: int = 3
    frames_per_batch: int = 2048
    seed: int = 0
    best: int = 100

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name, accepted in (("pool", POOLS), ("loss", LOSSES)):
            if getattr(self, name) not in accepted:
                raise TrainingError(
                    f"{name} {getattr(self, name)!r}; accepted: {', '.join(accepted)}"
                )
        lowest = {"frozen_epochs": 0, "epochs": 0, "patience": 1, "seed": 0, "best": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise TrainingError(f"{name} {getattr(self, name)}; accepted: {low} or more")
        for name in ("head_rate", "encoder_rate", "clip", "frames_per_batch"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingError(f"{name} {getattr(self, name)}; accepted: above 0")
        for name, high in (("held_out", 1.0), ("warmup", 1.0), ("weight_decay", math.inf)):
            if not 0 <= getattr(self, name) < high:
                raise TrainingError(
                    f"{name} {getattr(self, name)}; accepted: 0 or more"
                    + (f" and below {high:g}" if high < math.inf else "")
                )


@dataclass(frozen=True)
class Pass:
    """One pass over the training utterances: losses of standardised labels.

    Attributes:
        stage: `ridge` (before any step), `frozen` (head only) or `all`.
        epoch: from 1 in each stage; 0 for `ridge`.
        train: mean loss while it was trained, without the head's penalty; NaN for `ridge`.
        held_out: loss on the training speakers that were held out.
        seconds: it took.
    """

    stage: str
    epoch: int
    train: float
    held_out: float
    seconds: float
