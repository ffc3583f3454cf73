"""Files that appear under their names whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success and vanishes on failure.

    What was written is on the disk itself before the name shows it, so a power cut leaves the old
    file or the new one.

    Args:
        path: file to be written; its folder is made where it is missing.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # A name of fixed length: the final one may be as long as the file system allows.
    temporary = final.parent / f".{secrets.token_hex(8)}{final.suffix}"
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(final)
        sync(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when a file's bytes, or a folder's names, are on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
