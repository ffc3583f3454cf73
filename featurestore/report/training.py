"""The curves of a training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from featurestore.files import replacing

_DPI = 150


def draw_training(epochs: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw training loss and held-out error rates by epoch.

    Args:
        epochs: rows of `epochs.csv`: epoch, loss (nats per symbol), cer, wer.
        path: PNG to write.
    """
    number = [row["epoch"] for row in epochs]
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    losses, rates = figure.subplots(1, 2)
    losses.plot(number, [row["loss"] for row in epochs], color="C0", marker="o", markersize=3)
    losses.set(xlabel="epoch", ylabel="training loss (nats per symbol)", ylim=(0, None))
    cer = [row["cer"] for row in epochs]
    rates.plot(number, [row["wer"] for row in epochs], color="C1", linestyle="--", label="words")
    rates.plot(number, cer, color="C0", marker="o", markersize=3, label="characters")
    best = min(range(len(cer)), key=lambda index: cer[index])
    rates.annotate(
        f"{cer[best]:.1%}",
        (number[best], cer[best]),
        xytext=(0, -13),
        textcoords="offset points",
        ha="center",
    )
    rates.set(xlabel="epoch", ylabel="held-out error rate", ylim=(0, None))
    rates.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    rates.legend(frameon=False)
    for axes in (losses, rates):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")
