"""File names that every file system takes."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAME_LENGTH = 80  # characters; leaves room for prefix and suffix within the usual 255 bytes


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
