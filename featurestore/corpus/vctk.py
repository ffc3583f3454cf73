"""VCTK (Yamagishi et al.): English accents, in the layouts of versions 0.80 and 0.92."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from featurestore.corpus.folders import (
    audio_files,
    corpus_root,
    manifest_of,
    nothing_found,
    read_text,
)
from featurestore.errors import ManifestError

Mic = Literal["mic1", "mic2"]

_OLD, _NEW = "wav48", "wav48_silence_trimmed"
_NAME = re.compile(r"(?P<utterance>(?P<speaker>[ps]\d+)_\d+)(?:_(?P<mic>mic[12]))?")


def read_vctk(path: str | os.PathLike[str], *, mic: Mic = "mic1") -> pd.DataFrame:
    """Reads VCTK 0.80 (`wav48`) or 0.92 (`wav48_silence_trimmed`); the latter if both are there.

    Args:
        path: The corpus folder, which holds `txt` and one of the two audio folders, or the one
            above it.
        mic: Which microphone of version 0.92; 0.80 has only one. Ids do not name it.

    Returns:
        A manifest with text ("" for speaker p315, whose transcripts were lost), and, where
        `speaker-info.txt` is present, sex (m, f), age (years) and accent.

    Raises:
        ManifestError: if there is no such file, or no such microphone.
    """
    if mic not in get_args(Mic):
        raise ManifestError(f"vctk: mic {mic!r} is not one of {', '.join(get_args(Mic))}")
    given = corpus_root(path, corpus="VCTK")
    files = audio_files(given, f"{_NEW}/*", f"{_OLD}/*", f"*/{_NEW}/*", f"*/{_OLD}/*")
    root = files[0].parents[2] if files else given
    speakers = _speaker_info(root / "speaker-info.txt")
    rows: list[dict[str, object]] = []
    for file in files:
        name = _NAME.fullmatch(file.stem)
        if name is None or name["mic"] not in (None, mic):
            continue
        utterance, speaker = name["utterance"], name["speaker"]
        transcript = root / "txt" / speaker / f"{utterance}.txt"
        text = read_text(transcript).strip() if transcript.is_file() else ""
        row: dict[str, object] = {
            "id": utterance,
            "path": str(file),
            "speaker": speaker,
            "text": text,
        }
        if speakers:
            row.update(speakers.get(speaker, {"sex": "", "age": "", "accent": ""}))
        rows.append(row)
    if not rows:
        raise nothing_found(
            given,
            corpus=f"VCTK {mic}",
            layout=f"{_OLD}/SPEAKER/SPEAKER_NNN.wav or {_NEW}/SPEAKER/SPEAKER_NNN_{mic}.flac",
            example=f"{_NEW}/p225/p225_001_{mic}.flac",
        )
    return manifest_of(rows, source=f"VCTK in {root}", root=root)


def _speaker_info(file: Path) -> dict[str, dict[str, object]]:
    """Speaker to sex, age and accent; version 0.80 leaves the p out of the speaker's name."""
    if not file.is_file():
        return {}
    speakers: dict[str, dict[str, object]] = {}
    for line in read_text(file).splitlines()[1:]:
        words = line.split()
        if len(words) < 3:
            continue
        speaker = f"p{words[0]}" if words[0].isdigit() else words[0]
        speakers[speaker] = {
            "sex": words[2].lower(),
            "age": int(words[1]) if words[1].isdigit() else "",
            "accent": words[3] if len(words) > 3 else "",
        }
    return speakers
