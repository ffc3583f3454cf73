"""Writing report files: whole or not at all, under names that every file system takes."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

NAME_LENGTH = 80  # characters; leaves room for prefix and suffix within the usual 255 bytes


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success and vanishes on failure.

    Args:
        path: file to be written; its folder is made where it is missing.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".writing-", suffix=final.suffix, dir=final.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; a report is as readable as any other new file.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A distinct file-name-safe stem for each of `names`, also where upper and lower case are one.

    Args:
        names: group names, such as speakers; duplicates share a stem.
    """
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        if name in stems:
            continue
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:NAME_LENGTH].strip("._-") or "group"
        stem, count = safe, 1
        while stem.lower() in taken:
            count += 1
            stem = f"{safe}-{count}"
        taken.add(stem.lower())
        stems[name] = stem
    return stems
