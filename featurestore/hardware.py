"""What this process may use of the machine, and what that is called."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WITH_LIBRARIES = 250_000_000  # bytes of a process that has imported what an analysis needs
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Memory of this process now; the most it ever took where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        pass
    try:
        import resource
    except ImportError:  # Windows
        return _WITH_LIBRARIES
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def freeing_at_once() -> Iterator[None]:
    """Give arrays back to the system when they are freed, which glibc else does not do.

    It keeps up to 64 MB for each thread that has freed arrays of less than 32 MB; afterwards, it
    may again. Other C libraries do what they do.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        yield
        return
    set_option(_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, 32 << 20)  # where glibc's own choice ends
        set_option(_TRIM_THRESHOLD, 64 << 20)


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
