"""RAVDESS (Livingstone and Russo 2018): acted emotions, coded in seven numbers per file name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from featurestore.corpus.folders import audio_files, corpus_root, manifest_of, nothing_found
from featurestore.errors import ManifestError

Channel = Literal["speech", "song", "all"]

_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_AUDIO_ONLY = "03"
_CHANNELS = {"01": "speech", "02": "song"}
_EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
_INTENSITIES = {"01": "normal", "02": "strong"}
_STATEMENTS = {"01": "kids are talking by the door", "02": "dogs are sitting by the door"}

# (valence, arousal) of each acted emotion on IEMOCAP's scale of 1 to 5; a fixed table, not ratings.
_PROXIES = {
    "neutral": (3.0, 2.5),
    "calm": (3.5, 2.0),
    "happy": (4.5, 4.0),
    "sad": (1.75, 2.0),
    "angry": (1.5, 4.5),
    "fearful": (1.75, 4.0),
    "disgust": (1.75, 3.0),
    "surprised": (3.5, 4.25),
}
_MIDDLE = 3.0
_STRONG = 1.3  # strong intensity is this much farther from the middle


def proxy_dimensions(emotion: str, intensity: str) -> tuple[float, float]:
    """Stand-ins for valence and arousal, on a scale of 1 to 5, from emotion and intensity alone.

    RAVDESS has no dimensional ratings. Each acted emotion gets a fixed point; for strong intensity
    its distance from 3 is multiplied by 1.3 and clipped to 1..5.
    """
    valence, arousal = _PROXIES[emotion]
    if intensity == "strong":
        valence, arousal = (
            min(5.0, max(1.0, _MIDDLE + _STRONG * (value - _MIDDLE)))
            for value in (valence, arousal)
        )
    return valence, arousal


def read_ravdess(path: str | os.PathLike[str], *, channel: Channel = "speech") -> pd.DataFrame:
    """Reads RAVDESS's audio-only files.

    `valence` and `arousal` are **proxies**, not ratings: a fixed function of the acted emotion and
    its intensity, so they say nothing that `emotion` and `intensity` do not. Say "proxy" wherever a
    result computed from them is shown.

    Args:
        path: The folder of `Actor_NN`, or the one above it.
        channel: Spoken statements, sung ones, or both; with "all" a column `channel` tells which.

    Returns:
        A manifest with text, sex (m, f), emotion, intensity (normal, strong), repetition (1, 2),
        the proxies valence and arousal (1 to 5), and ratings, which is "proxy" everywhere: figures
        and tables made from a store say so.

    Raises:
        ManifestError: if there is no such file, or a file's code has no meaning.
    """
    if channel not in get_args(Channel):
        raise ManifestError(
            f"ravdess: channel {channel!r} is not one of {', '.join(get_args(Channel))}"
        )
    root = corpus_root(path, corpus="RAVDESS")
    rows = []
    for file in audio_files(root, "Actor_*", "*/Actor_*", "."):
        code = _NAME.fullmatch(file.stem)
        if code is None or code[1] != _AUDIO_ONLY:
            continue
        if channel == "all" or _CHANNELS.get(code[2]) == channel:
            rows.append(_row(file, code, with_channel=channel == "all"))
    if not rows:
        raise nothing_found(
            root,
            corpus=f"RAVDESS {channel}".replace(" all", ""),
            layout="Actor_NN/03-CC-EM-IN-ST-RE-AC.wav or .flac (CC: 01 speech, 02 song)",
            example="Actor_01/03-01-05-02-01-01-01.wav",
        )
    return manifest_of(rows, source=f"RAVDESS in {root}", root=root)


def _row(file: Path, code: re.Match[str], *, with_channel: bool) -> dict[str, object]:
    _, channel, emotion_code, intensity_code, statement, repetition, actor = code.groups()
    try:
        emotion, intensity = _EMOTIONS[emotion_code], _INTENSITIES[intensity_code]
        text, kind = _STATEMENTS[statement], _CHANNELS[channel]
    except KeyError as error:
        raise ManifestError(
            f"{file}: {error.args[0]!r} in the file name has no meaning in RAVDESS; names are "
            "03-channel-emotion-intensity-statement-repetition-actor: rename or remove the file"
        ) from None
    valence, arousal = proxy_dimensions(emotion, intensity)
    row: dict[str, object] = {
        "id": file.stem,
        "path": str(file),
        "speaker": f"actor_{actor}",
        "text": text,
        "sex": "m" if int(actor) % 2 else "f",
        "emotion": emotion,
        "intensity": intensity,
        "repetition": int(repetition),
        "valence": valence,
        "arousal": arousal,
        "ratings": "proxy",
    }
    if with_channel:
        row["channel"] = kind
    return row
