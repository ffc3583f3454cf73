"""Two ways of doing the same, timed in alternation."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import FeatureStoreError

# A contestant does its work, waits for the device, and may write into the empty folder it is given.
# One that works in another process says how many seconds that took; the clock here counts if None.
Contestant = Callable[[Path], float | None]


class DisagreementError(FeatureStoreError):
    """Two contestants do not compute the same, so that timing them would compare different work."""


@dataclass(frozen=True)
class Agreement:
    """How far two results lie apart.

    Attributes:
        what: was compared.
        difference: largest absolute difference.
        tolerance: up to which the two count as the same.
    """

    what: str
    difference: float
    tolerance: float

    def __post_init__(self) -> None:
        """Refuse results that differ.

        Raises:
            DisagreementError: by more than the tolerance, or not a number.
        """
        if not self.difference <= self.tolerance:
            raise DisagreementError(
                f"{self.what}: the two sides differ by {self.difference:.2g}, more than "
                f"{self.tolerance:g}"
            )


@dataclass(frozen=True)
class Contest:
    """The same work for two contestants.

    Attributes:
        audio_s: seconds of audio that one run processes.
        ours: this package.
        theirs: what it is compared with, or the reason why that cannot be measured here.
        agreement: of the two results, where they are meant to be the same.
        warm: whether both sides have run before, so that their first run counts.
        done: ends what was started for the contest.
    """

    audio_s: float
    ours: Contestant
    theirs: Contestant | str
    agreement: Agreement | None = None
    warm: bool = False
    done: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one contestant.

    Attributes:
        first: of the run before the measurement; None where there was none.
        seconds: of each run measured.
    """

    first: float | None
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Middle of the measured runs, seconds."""
        return statistics.median(self.seconds)


class OtherProcesses:
    """How many cores other processes keep busy from now on."""

    def __init__(self) -> None:
        """Begin to count."""
        self._began = self._counters()

    def cores(self) -> float | None:
        """Mean number of cores; None where the system does not tell."""
        began, now = self._began, self._counters()
        if began is None or now is None or now[0] <= began[0]:
            return None
        return max(0.0, ((now[1] - began[1]) - (now[2] - began[2])) / (now[0] - began[0]))

    @staticmethod
    def _counters() -> tuple[float, float, float] | None:
        """Wall clock, and busy seconds of all cores and of this process."""
        try:
            with open("/proc/stat") as stream:
                user, nice, system, _idle, _wait, *interrupts = stream.readline().split()[1:9]
        except (OSError, ValueError):
            return None
        # The last one is what a virtual machine's host took away.
        ticks = sum(int(value) for value in (user, nice, system, *interrupts))
        busy = ticks / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()


def once(run: Contestant, scratch: Path | None) -> float:
    """Seconds of one run; making and removing its folder are not counted."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        began = time.perf_counter()
        own = run(Path(folder))
        return time.perf_counter() - began if own is None else own


def alternate(
    contest: Contest, *, repeats: int, scratch: Path | None = None
) -> tuple[Timing, Timing | None]:
    """Warm both contestants up, then run them in turns, so that a busy machine slows both alike.

    Args:
        contest: who runs.
        repeats: runs of each that count.
        scratch: where the folders that runs write into are made; the system's choice if None.

    Returns:
        Our timing and theirs, run by run in pairs; None for theirs if it is not measured.
    """
    runs = [contest.ours]
    if not isinstance(contest.theirs, str):
        runs.append(contest.theirs)
    first = [None if contest.warm else once(run, scratch) for run in runs]
    rounds = [[once(run, scratch) for run in runs] for _ in range(repeats)]
    timings = [
        Timing(warm_up, seconds)
        for warm_up, seconds in zip(first, zip(*rounds, strict=True), strict=True)
    ]
    return timings[0], timings[1] if len(timings) > 1 else None
