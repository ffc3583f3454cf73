"""What was recognised: transcripts, their scores, and the files they are written to."""

from __future__ import annotations

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from featurestore.errors import FeatureStoreError
from featurestore.files import replacing
from featurestore.training.error_rates import Errors, total


@dataclass(frozen=True, eq=False)
class Reference:
    """What was said in an utterance, in the recogniser's spelling.

    Attributes:
        text: as `featurestore.training.alphabet.spell` has it; never empty.
        dropped: characters of the manifest's text that have no spelling, with their counts.
        characters: errors of the transcript in characters.
        words: errors of the transcript in words.
    """

    text: str
    dropped: Counter[str]
    characters: Errors
    words: Errors


@dataclass(frozen=True, eq=False)
class Transcription:
    """An utterance as the recogniser heard it.

    Attributes:
        id: of the utterance.
        path: of its file.
        speaker: "" if unknown.
        start: seconds in the file where the utterance begins; NaN for the file's begin.
        end: seconds in the file where it ends; NaN for the file's end.
        duration_s: seconds of audio.
        text: a to z and spaces, as decoded: nothing is corrected.
        start_s: begin of each character of `text`, seconds from the utterance's begin.
        end_s: end of each character; see `featurestore.training.alignment` for what times mean.
        reference: what was said, if the manifest says so and scores are wanted.
    """

    id: str
    path: str
    speaker: str
    start: float
    end: float
    duration_s: float
    text: str
    start_s: Float[np.ndarray, " character"] = field(repr=False)
    end_s: Float[np.ndarray, " character"] = field(repr=False)
    reference: Reference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what is unknown is left out."""
        values: dict[str, Any] = {"id": self.id, "path": self.path}
        if self.speaker:
            values["speaker"] = self.speaker
        for name in ("start", "end"):
            if not math.isnan(value := getattr(self, name)):
                values[name] = value
        values |= {
            "duration_s": round(self.duration_s, 3),
            "text": self.text,
            "character_start_s": _milliseconds(self.start_s),
            "character_end_s": _milliseconds(self.end_s),
        }
        if self.reference is not None:
            values |= {"reference": self.reference.text, **_scores(self.reference)}
            if self.reference.dropped:
                values["dropped"] = dict(self.reference.dropped)
        return values


@dataclass(frozen=True)
class Unread:
    """An utterance that could not be transcribed, and why."""

    id: str
    path: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return vars(self)


def _milliseconds(times: np.ndarray) -> list[float]:
    rounded: list[float] = np.round(times, 3).tolist()
    return rounded


def _scores(reference: Reference) -> dict[str, Any]:
    return {
        "cer": reference.characters.rate,
        "wer": reference.words.rate,
        "character_edits": reference.characters.edits,
        "characters": reference.characters.length,
        "word_edits": reference.words.edits,
        "words": reference.words.length,
    }


@dataclass
class Tally:
    """Totals over transcripts as they come.

    Attributes:
        utterances: transcribed.
        seconds_of_audio: in those.
        unread: what could not be transcribed.
        characters: errors in characters by speaker.
        words: errors in words by speaker.
        scored: utterances by speaker that had a reference.
        dropped: characters of the references that have no spelling, with their counts.
        incomplete: utterances whose reference lost such a character.
    """

    utterances: int = 0
    seconds_of_audio: float = 0.0
    unread: list[Unread] = field(default_factory=list)
    characters: dict[str, Errors] = field(default_factory=dict)
    words: dict[str, Errors] = field(default_factory=dict)
    scored: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    incomplete: int = 0

    def add(self, result: Transcription | Unread) -> None:
        """Count one result."""
        if isinstance(result, Unread):
            self.unread.append(result)
            return
        self.utterances += 1
        self.seconds_of_audio += result.duration_s
        if (said := result.reference) is None:
            return
        self.scored[result.speaker] += 1
        self.dropped += said.dropped
        self.incomplete += bool(said.dropped)
        for sums, errors in ((self.characters, said.characters), (self.words, said.words)):
            sums[result.speaker] = total([sums.get(result.speaker, Errors(0, 0)), errors])

    def by_speaker(self) -> list[dict[str, Any]]:
        """Speaker, scored utterances, CER and WER; sorted by speaker."""
        return [
            {
                "speaker": speaker,
                "utterances": self.scored[speaker],
                "cer": self.characters[speaker].rate,
                "wer": self.words[speaker].rate,
            }
            for speaker in sorted(self.scored)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values: dict[str, Any] = {
            "utterances": self.utterances,
            "hours": self.seconds_of_audio / 3600,
            "unread": [one.to_dict() for one in self.unread],
        }
        if self.scored:
            values |= {
                "scored": self.scored.total(),
                "cer": total(self.characters.values()).rate,
                "wer": total(self.words.values()).rate,
                "speakers": self.by_speaker() if any(self.scored) else [],
                "dropped": dict(self.dropped),
                "incomplete": self.incomplete,
            }
        return values


Write = Callable[[Transcription | Unread], None]
Facts = Callable[[], dict[str, Any]]


@contextmanager
def transcript_file(path: str | os.PathLike[str], *, scored: bool, facts: Facts) -> Iterator[Write]:
    """A file of transcripts that appears under its name when it is complete.

    `.csv` has a row per utterance that could be read, and is a manifest again: its `text` is what
    was recognised, `reference` what was said. `.jsonl` has an object per line, with `reason` for
    what could not be read. `.json` is one object of the `facts` and all `transcripts`.

    Args:
        path: where to; the suffix decides the format. An existing file is replaced.
        scored: whether there are references, which then have columns in `.csv`.
        facts: called at the end, for `.json`.

    Yields:
        A function that writes one result.

    Raises:
        FeatureStoreError: another suffix.
    """
    suffix = check_suffix(path)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        if suffix == ".csv":
            yield _csv_writer(stream, scored=scored)
        elif suffix == ".jsonl":
            yield lambda result: print(_line(result.to_dict()), file=stream)
        else:
            with json_document(stream, facts=facts) as write:
                yield write


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix that decides a transcript file's format.

    Raises:
        FeatureStoreError: another one than .csv, .json or .jsonl.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in (".csv", ".json", ".jsonl"):
        raise FeatureStoreError(
            f"{path}: the suffix {suffix!r} is not that of a transcript; "
            "accepted: .csv, .json, .jsonl"
        )
    return suffix.lower()


@contextmanager
def json_document(stream: IO[str], *, facts: Facts) -> Iterator[Write]:
    """One JSON object of all `transcripts`, a line each, and the facts, written as they come."""
    begin = '{"transcripts": [\n'

    def write(result: Transcription | Unread) -> None:
        nonlocal begin
        stream.write(begin + _line(result.to_dict()))
        begin = ",\n"

    yield write
    if begin != ",\n":
        stream.write(begin)
    stream.write("\n],\n" + _line(facts())[1:] + "\n")


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


_SCORES = ("reference", "cer", "wer", "character_edits", "characters", "word_edits", "words")


def _csv_writer(stream: IO[str], *, scored: bool) -> Write:
    rows: csv.DictWriter[str] | None = None

    def write(result: Transcription | Unread) -> None:
        nonlocal rows
        if isinstance(result, Unread):
            return
        values = result.to_dict()
        for name in ("character_start_s", "character_end_s"):
            values[name] = " ".join(f"{time:g}" for time in values[name])
        if rows is None:
            # In a manifest either every speaker is known or there is no such column.
            names = ["id", "path", *(["speaker"] if result.speaker else []), "start", "end"]
            names += ["text", *(_SCORES if scored else ()), "character_start_s", "character_end_s"]
            rows = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
            rows.writeheader()
        rows.writerow(values)

    return write
