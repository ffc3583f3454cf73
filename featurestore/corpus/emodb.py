"""EmoDB, the Berlin database of emotional speech (Burkhardt et al. 2005): coded file names."""

from __future__ import annotations

import os
import re

import pandas as pd

from featurestore.corpus.folders import audio_files, corpus_root, manifest_of, nothing_found

_NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z]?)")

# The letters are the German words: Wut, Langeweile, Ekel, Angst, Freude, Trauer, neutral.
_EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
_SEXES = {
    "03": "m",
    "08": "f",
    "09": "f",
    "10": "m",
    "11": "m",
    "12": "m",
    "13": "f",
    "14": "f",
    "15": "m",
    "16": "f",
}
_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def read_emodb(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads EmoDB.

    Args:
        path: The corpus folder, which holds `wav`, or `wav` itself.

    Returns:
        A manifest with text (German), sex (m, f), sentence (its code, such as a01), emotion (anger,
        boredom, disgust, fear, happiness, sadness, neutral) and version (a letter).

    Raises:
        ManifestError: if there is no such file.
    """
    root = corpus_root(path, corpus="EmoDB")
    rows: list[dict[str, object]] = []
    for file in audio_files(root, "wav", "."):
        code = _NAME.fullmatch(file.stem)
        if code is None:
            continue
        speaker, sentence, emotion, version = code.groups()
        rows.append(
            {
                "id": file.stem,
                "path": str(file),
                "speaker": speaker,
                "text": _SENTENCES.get(sentence, ""),
                "sex": _SEXES.get(speaker, ""),
                "sentence": sentence,
                "emotion": _EMOTIONS[emotion],
                "version": version,
            }
        )
    if not rows:
        raise nothing_found(
            root,
            corpus="EmoDB",
            layout="wav/SSTTTEV.wav (speaker, sentence, emotion letter, version)",
            example="wav/03a01Fa.wav",
        )
    return manifest_of(rows, source=f"EmoDB in {root}", root=root)
