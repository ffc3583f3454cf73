"""LibriSpeech (Panayotov et al. 2015): speaker/chapter folders with a transcript per chapter."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pandas as pd

from featurestore.corpus.folders import (
    audio_files,
    corpus_root,
    manifest_of,
    nothing_found,
    read_text,
    visible,
)

_NAME = re.compile(r"(\d+)-(\d+)-(\d+)")
_SPLIT = re.compile(r"(train|dev|test)-.+")
_CHAPTERS = "[0-9]*/[0-9]*"


def read_librispeech(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads LibriSpeech, or one of its splits.

    Args:
        path: The folder of the splits, the one above it, or one split such as `dev-clean`.

    Returns:
        A manifest with text (upper case, as published; "" where a transcript is missing), chapter
        (its number), split where the folder tells it, and sex (m, f) where `SPEAKERS.TXT` does.

    Raises:
        ManifestError: if there is no such file.
    """
    root = corpus_root(path, corpus="LibriSpeech")
    files = [
        file
        for file in audio_files(root, _CHAPTERS, f"*/{_CHAPTERS}", f"LibriSpeech/*/{_CHAPTERS}")
        if _NAME.fullmatch(file.stem)
    ]
    if not files:
        raise nothing_found(
            root,
            corpus="LibriSpeech",
            layout="[SPLIT/]SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac",
            example="dev-clean/84/121123/84-121123-0000.flac",
        )
    transcripts = cache(_transcripts)
    sexes = _sexes([root, root.parent, root / "LibriSpeech"])
    splits = [_SPLIT.fullmatch(file.parents[2].name) for file in files]
    rows = []
    for file, split in zip(files, splits, strict=True):
        speaker, chapter, _ = file.stem.split("-")
        row: dict[str, object] = {
            "id": file.stem,
            "path": str(file),
            "speaker": speaker,
            "text": transcripts(file.parent).get(file.stem, ""),
            "chapter": int(chapter),
        }
        if any(splits):
            row["split"] = split[0] if split else ""
        if sexes:
            row["sex"] = sexes.get(speaker, "")
        rows.append(row)
    return manifest_of(rows, source=f"LibriSpeech in {root}", root=root)


def _transcripts(folder: Path) -> dict[str, str]:
    """Utterance to text, from the chapter's own `.trans.txt`."""
    texts = {}
    for file in visible(folder.glob("*.trans.txt")):
        for line in read_text(file).splitlines():
            utterance, _, text = line.partition(" ")
            texts[utterance] = text.strip()
    return texts


def _sexes(folders: list[Path]) -> dict[str, str]:
    """Speaker to sex, from lines such as `84 | F | dev-clean | 8.02 | Christie Nowak`."""
    for folder in folders:
        file = folder / "SPEAKERS.TXT"
        if file.is_file():
            rows = [
                [cell.strip() for cell in line.split("|")]
                for line in read_text(file).splitlines()
                if not line.startswith(";")
            ]
            return {row[0]: row[1].lower() for row in rows if len(row) > 1}
    return {}
