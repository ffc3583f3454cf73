"""What was measured, on what, as JSON and as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from featurestore.benchmarks.limits import Limits
from featurestore.benchmarks.timing import Agreement, Timing
from featurestore.hardware import cores, processor

_VERSIONED = (
    "featurestore",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "librosa",
    "soundfile",
    "soxr",
    "zarr",
    "dask",
    "scikit-learn",
    "torch",
    "onnxruntime",
    "opensmile",
)


@dataclass(frozen=True)
class Row:
    """One comparison, measured or not.

    Attributes:
        family: of stages.
        stage: what was done.
        reference: what it is compared with.
        against: `software`, or `self` for a part of this package or the machine itself.
        utterances: files of one run.
        audio_s: seconds of audio of one run.
        ours: our runs; None if not measured.
        theirs: the reference's runs; None if not measured.
        missing: why something is not.
        agreement: how far the two results lie apart, where they are meant to be the same.
        failed: whether nothing was timed because the results are not the same, or a side stopped.
        disturbance: cores that other processes kept busy meanwhile; None if unknown.
        limit: which of the machine's limits bounds it; "" for none.
        by_call: whether the time of a call says more than times real time.
    """

    family: str
    stage: str
    reference: str
    against: str
    utterances: int
    audio_s: float
    ours: Timing | None = None
    theirs: Timing | None = None
    missing: str = ""
    agreement: Agreement | None = None
    failed: bool = False
    disturbance: float | None = None
    limit: str = ""
    by_call: bool = False

    @property
    def speed(self) -> float | None:
        """Seconds of audio per second, ours."""
        return self.audio_s / self.ours.median if self.ours else None

    @property
    def reference_speed(self) -> float | None:
        """Seconds of audio per second, theirs."""
        return self.audio_s / self.theirs.median if self.theirs else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Their time over ours, pair by pair."""
        if self.theirs is None or self.ours is None:
            return ()
        pairs = zip(self.theirs.seconds, self.ours.seconds, strict=True)
        return tuple(theirs / ours for theirs, ours in pairs)

    @property
    def ratio(self) -> float | None:
        """The middle one of `ratios`."""
        return statistics.median(self.ratios) if self.ratios else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self),
            "speed": self.speed,
            "reference_speed": self.reference_speed,
            "ratios": self.ratios,
            "ratio": self.ratio,
        }

    def shown(self, timing: Timing | None) -> str:
        """Times real time, or milliseconds, of one side."""
        if timing is None:
            return ""
        if self.by_call:
            return f"{1e3 * timing.median:,.1f} ms"
        return f"{self.audio_s / timing.median:,.0f}"

    def to_markdown(self) -> str:
        """A line of the table."""
        theirs = f"{self.shown(self.theirs)} ({self.reference})"
        if self.theirs is None:
            theirs = f"{self.missing} ({self.reference})"
        ratio = ""
        if self.ratio is not None:
            low, high = ratio_text(min(self.ratios)), ratio_text(max(self.ratios))
            ratio = f"{ratio_text(self.ratio)} ({low}-{high})"
        return f"| {self.stage} | {self.shown(self.ours)} | {theirs} | {ratio} |"


def ratio_text(ratio: float) -> str:
    """With two digits behind the point, or two that say something."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def machine_facts(*, torch_device: str | None, threads: int) -> dict[str, Any]:
    """Where the numbers come from.

    Args:
        torch_device: what PyTorch runs on; None if it is not installed.
        threads: of PyTorch, and our decoders and processes.
    """
    import jax

    versions = {}
    for name in _VERSIONED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": threads,
        "load_average_before": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax_platform": device.platform,
        "jax_device": device.device_kind,
        "torch_device": torch_device,
        "versions": versions,
    }


@dataclass(frozen=True)
class Report:
    """Everything that a run found.

    Attributes:
        machine: as `machine_facts`.
        corpus: what was listened to: `name`, `utterances`, `audio_s`, `rates`.
        repeats: runs of each side.
        limits: of the machine; None if not measured.
        rows: the comparisons.
        compiled: seconds of compilation, once per process.
    """

    machine: dict[str, Any]
    corpus: dict[str, Any]
    repeats: int
    limits: Limits | None
    rows: list[Row]
    compiled: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "machine": self.machine,
            "corpus": self.corpus,
            "repeats": self.repeats,
            "limits": self.limits.to_dict() if self.limits else None,
            "limit_speeds": self.limits.speeds if self.limits else None,
            "rows": [row.to_dict() for row in self.rows],
            "compiled": self.compiled,
        }

    def to_markdown(self) -> str:
        """Tables, and under them what a reader needs to judge them."""
        lines = []
        if rows := [row for row in self.rows if row.against == "software"]:
            lines += [*_table("beside other software", rows), ""]
        if rows := [row for row in self.rows if row.against == "self"]:
            lines += [*_table("beside its own parts and the machine", rows), ""]
        if self.limits:
            lines += ["| the machine itself | |", "| :-- | --: |"]
            lines += [f"| {name} | {value} |" for name, value in self.limits.lines()] + [""]
        return "\n".join([*lines, *_notes(self)]) + "\n"


def _table(title: str, rows: list[Row]) -> list[str]:
    head = f"| {title} | featurestore | compared with | ratio (median, min-max) |"
    return [head, "| :-- | --: | :-- | --: |", *(row.to_markdown() for row in rows)]


def _notes(report: Report) -> list[str]:
    corpus, facts = report.corpus, report.machine
    device = "the CPU" if facts["jax_platform"] == "cpu" else facts["jax_device"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    notes = [
        f"Seconds of audio per second, or milliseconds per call: {corpus['name']}, "
        f"{corpus['utterances']:,} files, {corpus['audio_s']:,.0f} s at "
        f"{', '.join(map(str, corpus['rates']))} Hz; medians of {report.repeats} "
        f"{'run' if report.repeats == 1 else 'runs'} of each side "
        "in turns after a first one that does not count. Ratio: their time over ours, pair by "
        "pair.",
        f"JAX on {device}, PyTorch on {facts['torch_device'] or 'nothing (not installed)'}; "
        f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}; Python {facts['python']}, "
        f"{versions}.",
    ]
    fewer = [
        f"{row.stage}, beside {row.reference}: {row.utterances} files, "
        f"{len(row.ours.seconds)} runs."
        for row in report.rows
        if row.ours
        and (row.utterances != corpus["utterances"] or len(row.ours.seconds) != report.repeats)
    ]
    busy = [row.disturbance for row in report.rows if row.disturbance is not None]
    if busy:
        notes.append(f"Other processes kept up to {max(busy):.2f} cores busy meanwhile.")
    if report.compiled:
        each = "; ".join(f"{name} {seconds:.1f} s" for name, seconds in report.compiled.items())
        notes.append(f"Compilation, once per process, not in the tables: {each}.")
    agreed = [
        f"{row.stage}, beside {row.reference}: {row.agreement.what} "
        f"{row.agreement.difference:.2g} (tolerance {row.agreement.tolerance:g})"
        for row in report.rows
        if row.agreement
    ]
    if agreed:
        notes.append(f"Largest differences between the two results: {'; '.join(agreed)}.")
    return [line for note in (*fewer, *notes) for line in (note, "")][:-1]
