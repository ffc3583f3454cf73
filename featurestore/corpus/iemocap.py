"""IEMOCAP (Busso et al. 2008): dyadic sessions, rated by utterance for category and dimensions.

What its layout hides:

- `Ses01F_impro01_M003` was spoken by the man of session 1. The F after the session is who wore the
  motion-capture markers in that dialog; the speaker is the letter before the turn's number.
- The dimensions on an utterance's first line are the mean of the raters without the actors' own
  reports, in the order valence, activation (here `arousal`), dominance.
- The category `xxx` means that the raters did not agree on one; such utterances still have
  dimensions.
- Hidden files duplicate evaluation files; transcripts contain turns named FXX0 or MXX0 that are no
  utterances; some text is latin-1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from featurestore.corpus.folders import (
    corpus_root,
    manifest_of,
    nothing_found,
    read_text,
    visible,
)
from featurestore.errors import ManifestError

_NUMBER = r"\s*(-?\d+(?:\.\d*)?)\s*"
_TURN = re.compile(r"\[\s*\d")
_EVALUATION = re.compile(
    rf"\[{_NUMBER}-{_NUMBER}\]\s+(\S+)\s+(\S+)\s+\[{_NUMBER},{_NUMBER},{_NUMBER}\]\s*"
)
# No fixed form for the middle: there is a dialog Ses05M_script01_1b, for instance.
_UTTERANCE = re.compile(
    r"(?P<dialog>(?P<session>Ses\d+)[FM]_(?P<kind>impro|script)\w*)_(?P<sex>[FM])\d\w*"
)
_TRANSCRIPT = re.compile(r"(\S+)\s+\[[\d.]+\s*-\s*[\d.]+\]:\s*(.*)")


class _Evaluation(NamedTuple):
    """The first line of an utterance's block, and where it stands."""

    utterance: re.Match[str]
    start: float
    end: float
    emotion: str
    dimensions: tuple[float, float, float]
    file: Path
    line: int


def read_iemocap(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads IEMOCAP's utterances with their evaluations and transcripts.

    Args:
        path: The folder of `Session1` ... `Session5`, the one above it, or one session.

    Returns:
        A manifest with speaker (session and sex of whoever speaks, such as Ses01M), text, session,
        dialog, kind (impro, script), sex (m, f), emotion (xxx: no majority), valence, arousal and
        dominance (1 to 5, the raters' mean), dialog_start_s and dialog_end_s (seconds within the
        dialog's own recording; the utterances' files are already cut).

    Raises:
        ManifestError: if there is no such corpus, an evaluation does not parse (names file and
            line), or an utterance is evaluated twice.
    """
    given = corpus_root(path, corpus="IEMOCAP")
    sessions = _sessions(given)
    if not sessions:
        raise nothing_found(
            given,
            corpus="IEMOCAP",
            layout="SessionN/dialog/EmoEvaluation/DIALOG.txt",
            example="Session1/dialog/EmoEvaluation/Ses01F_impro01.txt",
        )
    rows: list[dict[str, object]] = []
    seen: dict[str, _Evaluation] = {}
    for session in sessions:
        texts = _transcripts(session)
        for evaluation in _evaluations(session):
            name = evaluation.utterance[0]
            if name in seen:
                first = seen[name]
                raise ManifestError(
                    f"{evaluation.file}, line {evaluation.line}: {name} is already evaluated in "
                    f"{first.file}, line {first.line}; remove one of the two"
                )
            seen[name] = evaluation
            rows.append(_row(evaluation, session=session, text=texts.get(name, "")))
    return manifest_of(rows, source=f"IEMOCAP in {given}", root=given)


def _sessions(given: Path) -> list[Path]:
    if (given / "dialog" / "EmoEvaluation").is_dir():
        return [given]
    for pattern in ("Session[0-9]*", "*/Session[0-9]*"):
        sessions = [folder for folder in visible(given.glob(pattern)) if folder.is_dir()]
        if sessions:
            return sessions
    return []


def _evaluations(session: Path) -> Iterator[_Evaluation]:
    # Not recursive: the folders below hold each rater's own files and the actors' self-reports.
    folder = session / "dialog" / "EmoEvaluation"
    found = False
    for file in visible(folder.glob("*.txt")):
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if _TURN.match(line):
                found = True
                yield _parse(line, file=file, number=number)
    if not found:
        raise ManifestError(
            f"{folder}: no evaluated utterance in any .txt file here; unpack the session again, or "
            f"move {session.name} away to read the others"
        )


def _parse(line: str, *, file: Path, number: int) -> _Evaluation:
    fields = _EVALUATION.fullmatch(line)
    utterance = _UTTERANCE.fullmatch(fields[3]) if fields else None
    if fields is None or utterance is None:
        raise ManifestError(
            f"{file}, line {number}: {line.strip()!r} is not an evaluation; expected "
            "'[START - END] UTTERANCE EMOTION [VALENCE, ACTIVATION, DOMINANCE]' such as "
            "'[6.2901 - 8.2357] Ses01F_impro01_F000 neu [2.5000, 2.5000, 2.5000]': correct the line"
        )
    start, end = float(fields[1]), float(fields[2])
    dimensions = (float(fields[5]), float(fields[6]), float(fields[7]))
    return _Evaluation(utterance, start, end, fields[4], dimensions, file, number)


def _row(evaluation: _Evaluation, *, session: Path, text: str) -> dict[str, object]:
    utterance = evaluation.utterance
    valence, arousal, dominance = evaluation.dimensions
    recordings = session / "sentences" / "wav"
    return {
        "id": utterance[0],
        "path": str(recordings / utterance["dialog"] / f"{utterance[0]}.wav"),
        "speaker": utterance["session"] + utterance["sex"],
        "text": text,
        "session": utterance["session"],
        "dialog": utterance["dialog"],
        "kind": utterance["kind"],
        "sex": utterance["sex"].lower(),
        "emotion": evaluation.emotion,
        "valence": valence,
        "arousal": arousal,
        "dominance": dominance,
        "dialog_start_s": evaluation.start,
        "dialog_end_s": evaluation.end,
    }


def _transcripts(session: Path) -> dict[str, str]:
    """Turn to text; also of turns that are no utterances, which nobody asks for."""
    texts = {}
    for file in visible((session / "dialog" / "transcriptions").glob("*.txt")):
        for line in read_text(file).splitlines():
            turn = _TRANSCRIPT.match(line)
            if turn:
                texts[turn[1]] = turn[2].strip()
    return texts
