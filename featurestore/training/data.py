"""What a manifest offers for training: spelled transcripts, and what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from featurestore.errors import TrainingError
from featurestore.frontend import FrontEnd, front_end
from featurestore.progress import progress_bar
from featurestore.survey import segment, survey
from featurestore.training.alphabet import Transcript, spell
from featurestore.training.config import TrainConfig

TRAIN_SPLITS = ("", "train", "training")
HELD_OUT_SPLITS = ("dev", "development", "val", "valid", "validation", "held-out", "heldout")


@dataclass(frozen=True, eq=False)
class Example:
    """An utterance that can be trained on.

    Attributes:
        id: of the utterance.
        speaker: "" where unknown.
        audio: path, start and end in seconds (NaN where open).
        transcript: its spelling.
        frames: MFCC frames of 32 ms at the speed of the recording.
        duration_s: seconds.
    """

    id: str
    speaker: str
    audio: tuple[str, float, float]
    transcript: Transcript
    frames: int
    duration_s: float


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The utterances of a training.

    Attributes:
        train: what is learnt from, by id.
        held_out: what is only recognised, to see how far training has come, by id.
        skipped: reasons by utterance id for all others.
        unspelled: characters that have no spelling, and how often they occur.
        rule: how the held-out utterances were chosen, for people.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    skipped: dict[str, str]
    unspelled: Counter[str]
    rule: str


def hours(examples: Sequence[Example]) -> float:
    """Hours of speech."""
    return sum(example.duration_s for example in examples) / 3600


def training_set(
    manifest: pd.DataFrame, config: TrainConfig, *, progress: bool | None = None
) -> TrainingSet:
    """Utterances to train on and to hold out, from a validated manifest.

    Rows whose column `split` is `dev`, `valid`, `validation` or `held-out` are held out, `train`
    and empty cells are trained on, and any other split, `test` for one, is left alone. Without that
    column whole speakers are held out, or sentences where there is only one speaker.

    Args:
        manifest: validated rows with a column `text`.
        config: front end, longest utterance, share and seed of the held-out speakers.
        progress: whether to show a bar; None shows it on a terminal.

    Raises:
        TrainingError: no transcripts, or nothing left to train on or to hold out.
    """
    if "text" not in manifest or not manifest["text"].astype(str).str.strip().any():
        raise TrainingError(
            "the manifest has no transcripts; training needs a column 'text' with what is said "
            f"(columns found: {', '.join(map(str, manifest.columns))})"
        )
    wanted = manifest
    if "split" in manifest:
        split = manifest["split"].astype(str).str.lower()
        wanted = manifest[split.isin(TRAIN_SPLITS + HELD_OUT_SPLITS)].reset_index(drop=True)
    examples, skipped, unspelled = _usable(wanted, config, progress=progress)
    held, rule = _held_out(wanted, examples, config)
    train = tuple(example for example in examples if example.id not in held)
    held_out = tuple(example for example in examples if example.id in held)
    for part, name in ((train, "train on"), (held_out, "hold out")):
        if not part:
            reasons = Counter(skipped.values()).most_common(3)
            raise TrainingError(
                f"nothing is left to {name}: of {len(manifest)} utterances {len(wanted)} are of a "
                f"split that is used, {len(skipped)} of them left out"
                + "".join(f"; {count}: {reason}" for reason, count in reasons)
            )
    return TrainingSet(train, held_out, skipped, unspelled, rule)


def _usable(
    wanted: pd.DataFrame, config: TrainConfig, *, progress: bool | None
) -> tuple[list[Example], dict[str, str], Counter[str]]:
    chosen: FrontEnd = front_end(config.front_end)
    with progress_bar("reading headers", len(wanted), unit="files", show=progress) as tick:
        measured, skipped = survey(wanted, chosen, tick)
    unspelled: Counter[str] = Counter()
    examples: list[Example] = []
    rows: list[dict[str, Any]] = wanted.to_dict("records")
    for row in sorted(rows, key=lambda row: str(row["id"])):
        if row["id"] in skipped:
            continue
        found, transcript = measured[row["id"]], spell(str(row["text"]))
        unspelled += transcript.dropped
        reason = found.refusal or _refusal(
            transcript, found.frames, found.duration_s, longest_s=config.longest_s
        )
        if reason:
            skipped[row["id"]] = reason
            continue
        speaker = str(row.get("speaker", ""))
        audio = segment(row)
        examples.append(
            Example(row["id"], speaker, audio, transcript, found.frames, found.duration_s)
        )
    return examples, skipped, unspelled


def _refusal(transcript: Transcript, frames: int, duration_s: float, *, longest_s: float) -> str:
    """Why an utterance cannot be trained on, or nothing."""
    if transcript.dropped:
        # What is left would teach the network to keep silent where somebody reads a number.
        return "characters that have no spelling in a to z (write numbers and signs out as words)"
    if not len(transcript.labels):
        return "no letters in the text"
    if transcript.min_frames > frames:
        return "audio shorter than its transcript allows (one frame of 32 ms a letter)"
    if duration_s > longest_s:
        return f"longer than {longest_s:g} s"
    return ""


def _held_out(
    wanted: pd.DataFrame, examples: list[Example], config: TrainConfig
) -> tuple[set[str], str]:
    """Ids to hold out, and how they were chosen."""
    if "split" in wanted:
        split = wanted["split"].astype(str).str.lower()
        held = set(wanted.loc[split.isin(HELD_OUT_SPLITS), "id"])
        if held:
            return held, "column 'split'"
    generator = np.random.default_rng([config.seed, 1])
    speakers = sorted({example.speaker for example in examples})
    if len(speakers) > 1:
        count = min(len(speakers) - 1, max(1, round(config.held_out * len(speakers))))
        chosen = {speakers[i] for i in generator.permutation(len(speakers))[:count]}
        rule = f"{count} of {len(speakers)} speakers"
        return {example.id for example in examples if example.speaker in chosen}, rule
    texts = sorted({example.transcript.text for example in examples})
    count = min(len(texts) - 1, max(1, round(config.held_out * len(texts))))
    sentences = {texts[i] for i in generator.permutation(len(texts))[:count]}
    rule = f"{count} of {len(texts)} sentences of the one speaker"
    return {e.id for e in examples if e.transcript.text in sentences}, rule
