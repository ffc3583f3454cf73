"""The register of stages: what is measured, beside what, and about how long that takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from featurestore.benchmarks.inputs import Inputs
from featurestore.benchmarks.timing import Contest
from featurestore.errors import FeatureStoreError

Against = Literal["software", "self"]
Make = Callable[[Inputs], Contest]

FAMILIES = {
    "limits": "what the machine can do",
    "decode": "audio files to samples",
    "mfcc": "samples to MFCC",
    "network": "MFCC to statistics of activations",
    "ingest": "audio files to results on disk",
    "egemaps": "the hand-made features",
    "reading": "from the store",
    "analysis": "correlations and held-out predictions",
}


class NotMeasuredError(FeatureStoreError):
    """Our own side cannot run here; the message says what to install."""


@dataclass(frozen=True)
class Stage:
    """One comparison.

    Attributes:
        family: one of `FAMILIES`.
        title: what is done, as in the table.
        reference: what it is compared with.
        make: makes the two contestants.
        against: other software, or what this machine or a part of this package does alone.
        speeds: about how many times real time both sides are on two cores, for the plan.
        limit: which of the machine's limits bounds it, as in `Limits.speeds`.
        by_call: whether the time of one call says more than times real time.
        most: utterances and runs at most, for what is slow.
    """

    family: str
    title: str
    reference: str
    make: Make
    against: Against
    speeds: tuple[float, float]
    limit: str = ""
    by_call: bool = False
    most: tuple[int, int] | None = None

    def seconds(self, audio_s: float, *, utterances: int, repeats: int) -> float:
        """About how long it takes, for so much audio."""
        if self.most is not None:
            audio_s *= min(1.0, self.most[0] / utterances)
            repeats = min(repeats, self.most[1])
        return 1.0 + (repeats + 1.5) * audio_s * sum(1 / speed for speed in self.speeds)


STAGES: list[Stage] = []


def stage(
    family: str,
    title: str,
    *,
    reference: str,
    speeds: tuple[float, float],
    against: Against = "software",
    limit: str = "",
    by_call: bool = False,
    most: tuple[int, int] | None = None,
) -> Callable[[Make], Make]:
    """Register a comparison; see `Stage`."""

    def register(make: Make) -> Make:
        STAGES.append(Stage(family, title, reference, make, against, speeds, limit, by_call, most))
        return make

    return register


def stages_of(families: tuple[str, ...]) -> list[Stage]:
    """The stages of these families, in the order in which audio goes through them.

    Raises:
        FeatureStoreError: an unknown family.
    """
    from featurestore.benchmarks import (  # noqa: F401  # they register themselves
        stages_analysis,
        stages_audio,
        stages_ingest,
        stages_network,
        stages_reading,
    )

    for name in families:
        if name not in FAMILIES:
            raise FeatureStoreError(f"unknown stage '{name}'; accepted: {', '.join(FAMILIES)}")
    order = list(FAMILIES)
    chosen = [one for one in STAGES if one.family in families]
    return sorted(chosen, key=lambda one: order.index(one.family))
