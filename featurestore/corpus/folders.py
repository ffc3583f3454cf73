"""What the readers of corpus folders share: finding files and reporting that there are none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from featurestore.corpus.manifest import normalise
from featurestore.errors import ManifestError

AUDIO_SUFFIXES = (".wav", ".flac")


def corpus_root(path: str | os.PathLike[str], *, corpus: str) -> Path:
    """The corpus folder as an absolute path.

    Raises:
        ManifestError: if there is no such folder.
    """
    root = Path(os.path.abspath(path))
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ManifestError(f"{root} {what}; give the folder that the {corpus} corpus is in")
    return root


def visible(paths: Iterable[Path]) -> Iterator[Path]:
    """The paths without hidden ones, such as the `._x.wav` that macOS leaves, in sorted order."""
    return iter(sorted(path for path in paths if not path.name.startswith(".")))


def audio_files(folder: Path, *patterns: str) -> list[Path]:
    """Visible audio files under the first of the folder patterns that has any, sorted.

    Args:
        folder: Where to look.
        *patterns: Glob patterns of folders, in order of preference; "." is `folder` itself.
    """
    for pattern in patterns:
        folders = [folder] if pattern == "." else list(visible(folder.glob(pattern)))
        found = [
            file
            for inside in folders
            if inside.is_dir()
            for file in visible(inside.iterdir())
            if file.suffix.lower() in AUDIO_SUFFIXES
        ]
        if found:
            return found
    return []


def nothing_found(root: Path, *, corpus: str, layout: str, example: str) -> ManifestError:
    """The error for a folder without a file of the corpus, with the layout that was looked for."""
    return ManifestError(
        f"{root}: no {corpus} files here; looked for {layout}, such as {root / example}"
    )


def manifest_of(rows: Sequence[Mapping[str, object]], *, source: str, root: Path) -> pd.DataFrame:
    """A manifest from one mapping per utterance, all with the same keys.

    Raises:
        ManifestError: if the corpus contradicts itself, for instance names two files alike.
    """
    return normalise(
        pd.DataFrame(list(rows), dtype=object),
        source=source,
        folder=root,
        allow_unknown_speakers=True,
    )


def read_text(file: Path) -> str:
    """A small text file that is UTF-8 or, as in older corpora, latin-1.

    Raises:
        ManifestError: if it cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ManifestError(f"{file}: cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
