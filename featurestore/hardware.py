"""What this process may use of the machine, and what that is called."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def processor() -> str:
    """Name of the processor."""
    return _told("model name") or platform.processor() or platform.machine()


@functools.cache
def instructions() -> str:
    """Which instructions the processor has, as far as the system tells; else its name."""
    return _told("flags") or _told("Features") or processor()


def _told(name: str) -> str:
    """A line of what Linux says of the first processor; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(found, "")


def compute_alike() -> None:
    """Have XLA compute on one core as it does on two and more; before JAX first runs in a process.

    With one thread it takes another path, with other last bits. From two on the bits were the same
    with 2, 5 and 16.
    """
    if cores() == 1:
        os.environ.setdefault("PJRT_NPROC", "2")
