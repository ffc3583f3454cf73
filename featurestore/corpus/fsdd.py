"""The Free Spoken Digit Dataset (Jackson et al.): `digit_speaker_index` file names."""

from __future__ import annotations

import os
import re

import pandas as pd

from featurestore.corpus.folders import audio_files, corpus_root, manifest_of, nothing_found

_NAME = re.compile(r"(\d)_(.+)_(\d+)")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEST_REPETITIONS = 5  # recordings 0 to 4 of each speaker and digit, as the dataset's README says


def read_fsdd(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads the Free Spoken Digit Dataset.

    Args:
        path: The folder of the recordings, or the one above, which holds `recordings`.

    Returns:
        A manifest with text (the digit's word), split (test for recordings 0 to 4, else train) and
        repetition (from 0).

    Raises:
        ManifestError: if there is no such file.
    """
    root = corpus_root(path, corpus="FSDD")
    rows: list[dict[str, object]] = []
    for file in audio_files(root, "recordings", "."):
        code = _NAME.fullmatch(file.stem)
        if code is None:
            continue
        digit, speaker, repetition = int(code[1]), code[2], int(code[3])
        rows.append(
            {
                "id": file.stem,
                "path": str(file),
                "speaker": speaker,
                "text": _WORDS[digit],
                "split": "test" if repetition < _TEST_REPETITIONS else "train",
                "repetition": repetition,
            }
        )
    if not rows:
        raise nothing_found(
            root,
            corpus="FSDD",
            layout="[recordings/]DIGIT_SPEAKER_INDEX.wav or .flac",
            example="recordings/7_jackson_32.wav",
        )
    return manifest_of(rows, source=f"FSDD in {root}", root=root)
