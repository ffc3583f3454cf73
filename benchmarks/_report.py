"""What was measured, on what, as JSON and as a Markdown table."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from _timing import Timing

from featurestore.hardware import processor

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
    "torch",
    "opensmile",
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage: what was done.
        reference: what it is compared with.
        utterances: files of one run.
        audio_s: seconds of audio of one run.
        ours: our runs.
        theirs: the reference's runs; None if not measured.
        missing: why not.
        difference: largest absolute difference of the results, where it was looked at.
        compiles: whether our first run compiled something.
        disturbance: cores that other processes kept busy meanwhile; None if unknown.
    """

    stage: str
    reference: str
    utterances: int
    audio_s: float
    ours: Timing
    theirs: Timing | None
    missing: str
    difference: float | None
    compiles: bool
    disturbance: float | None

    @property
    def speed(self) -> float:
        """Seconds of audio per second, ours."""
        return self.audio_s / self.ours.median

    @property
    def reference_speed(self) -> float | None:
        """Seconds of audio per second, theirs."""
        return self.audio_s / self.theirs.median if self.theirs else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Their time over ours, pair by pair."""
        if self.theirs is None:
            return ()
        pairs = zip(self.theirs.seconds, self.ours.seconds, strict=True)
        return tuple(theirs / ours for theirs, ours in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self),
            "speed": self.speed,
            "reference_speed": self.reference_speed,
            "ratios": self.ratios,
            "ratio": statistics.median(self.ratios) if self.ratios else None,
            "compile_s": self.ours.compilation if self.compiles else None,
        }

    def to_markdown(self) -> str:
        """A line of the table."""
        theirs = self.missing
        if self.reference_speed is not None:
            theirs = f"{self.reference_speed:,.0f} ({self.reference})"
        ratio = ""
        if self.ratios:
            median, low, high = statistics.median(self.ratios), min(self.ratios), max(self.ratios)
            ratio = f"{median:.2f} ({low:.2f}-{high:.2f})"
        return f"| {self.stage} | {self.speed:,.0f} | {theirs} | {ratio} |"


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
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average_before": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax_platform": device.platform,
        "jax_device": device.device_kind,
        "torch_device": torch_device,
        "versions": versions,
    }


def to_markdown(report: dict[str, Any], rows: list[Row]) -> str:
    """The table, and under it what a reader needs to judge it."""
    facts, corpus = report["machine"], report["corpus"]
    device = facts["jax_device"] if facts["jax_platform"] != "cpu" else "the CPU"
    lines = [
        "| stage | featurestore | librosa + PyTorch | ratio (median, min-max) |",
        "|---|--:|:--|--:|",
        *(row.to_markdown() for row in rows),
        "",
        f"Seconds of audio per second: {corpus['utterances']} files, {corpus['audio_s']:,.0f} s at "
        f"{', '.join(str(rate) for rate in corpus['rates'])} Hz, medians of {report['repeats']} "
        "runs of each side in turns after a first one that is not counted. Ratio: their time over "
        "ours, pair by pair.",
        "",
        f"JAX on {device}, PyTorch on {facts['torch_device'] or 'nothing (not installed)'}; "
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads for either side "
        f"where nothing else is said, 1 for NumPy's BLAS; "
        f"load {facts['load_average_before']:.1f} before the start; "
        f"{facts['platform']}; Python {facts['python']}, "
        + ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        + ".",
    ]
    for row in rows:
        if row.utterances != corpus["utterances"]:
            lines += ["", f"{row.stage}: {row.utterances} files, {len(row.ours.seconds)} runs."]
    disturbances = [row.disturbance for row in rows if row.disturbance is not None]
    if disturbances:
        lines += ["", f"Other processes kept up to {max(disturbances):.2f} cores busy meanwhile."]
    compiled = [f"{row.stage} {row.ours.compilation:.1f} s" for row in rows if row.compiles]
    if compiled:
        lines += ["", f"Compilation, once per process, not in the table: {'; '.join(compiled)}."]
    agreed = [
        f"{row.stage}, against {row.reference}, {row.difference:.2g}"
        for row in rows
        if row.difference is not None
    ]
    if agreed:
        lines += ["", f"Largest difference between the two results: {'; '.join(agreed)}."]
    lines += [f"\nLeft out: {reason}." for reason in report["left_out"]]
    return "\n".join(lines) + "\n"
