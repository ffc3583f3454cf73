"""A synthetic corpus in IEMOCAP's own folder layout, spoken by espeak-ng, whose truth is known."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from featurestore.errors import FeatureStoreError
from featurestore.espeak import Espeak
from featurestore.types import SAMPLE_RATE

Progress = Callable[[int, int], None]

# Plain statements; which one is spoken is drawn without looking at the labels.
SENTENCES = (
    "The train to the coast leaves at half past nine.",
    "There are two chairs and a table in the kitchen.",
    "I put the letters on the shelf beside the door.",
    "The shop around the corner sells bread and milk.",
    "We can take the bus or walk along the river.",
    "My brother painted the fence on Saturday morning.",
    "The meeting has been moved to the second floor.",
    "You will find the keys in the drawer on the left.",
    "The café on the corner opens at eight every morning.",
    "They are building a new bridge near the station.",
    "Please bring the blue folder when you come back.",
    "The garden needs water at least twice a week.",
    "She told me that the parcel arrived on Monday.",
    "It takes about an hour to drive to the airport.",
    "The library has moved its maps to another room.",
    "He works in the office at the end of the hall.",
    "There is some soup on the stove if you want it.",
    "The window in the small bedroom faces the street.",
    "We planted three apple trees behind the house.",
    "I read about it in the newspaper this morning.",
    "The lights in the hallway go off after a minute.",
    "You can leave your coat on the chair over there.",
    "The doctor will see you in a quarter of an hour.",
    "They changed the number of the bus last summer.",
    "My neighbour keeps the ladder in her garage.",
    "The children are waiting at the top of the stairs.",
    "We still have to wrap the box and write the card.",
    "The market closes early on the last day of the month.",
    "I asked him to call me after the lecture.",
    "The road goes past the school and over the hill.",
    "There was a phone call for you from the bank.",
    "She keeps the photographs in a wooden box.",
    "The water in the lake is lower than last year.",
    "It will probably rain before the evening.",
    "He turned the page and went on with the story.",
    "Our tickets are for the third row in the middle.",
    "The printer on this floor is out of paper again.",
    "I think that the answer is on the next page.",
    "The boat crosses the river four times a day.",
    "We should be there by the time the doors open.",
)

_MARKER = "Synthetic demo corpus of featurestore"
_README = f"""{_MARKER}

Nothing here was said, felt or rated by anybody. The sentences were spoken by the espeak-ng speech
synthesiser, and the "raters" in the evaluation files are random numbers. The folders and files have
the layout of IEMOCAP, and its quirks, so that a reader of the one reads the other.

The labels drive the voice. Per point of stated arousal (1 to 5, 3 is each speaker's base):
    loudness  +{{level:g}} dB, with a spread of {{level_noise:g}} dB
    rate      +{{rate:g}} words per minute, with a spread of {{rate_noise:g}}
    pitch     +{{pitch:g}} on espeak's scale of 0 to 100, with a spread of {{pitch_noise:g}}
    range     +{{range:g}} of pitch, on the same scale
Valence changes only the range of pitch, by {{valence:g}} per point. Dominance partly follows
arousal. Sentences are drawn without regard to the labels.

So an analysis that works must find arousal here. That it does says that the analysis works; nothing
about emotion in speech can be learned from this corpus.
"""

# Per point of arousal, and the spread of what does not follow it (standard deviations).
_LEVEL_DB, _LEVEL_NOISE_DB = 3.0, 1.0
_RATE_WPM, _RATE_NOISE_WPM = 15.0, 6.0
_PITCH, _PITCH_NOISE = 10.0, 4.0
_RANGE = 8.0
_RANGE_PER_VALENCE = 4.0
_MIDDLE = 3.0
_RATERS = 3
_RATER_NOISE = 0.75

_CATEGORIES = {
    "neu": "Neutral state",
    "ang": "Anger",
    "sad": "Sadness",
    "hap": "Happiness",
    "exc": "Excited",
    "fru": "Frustration",
}


class _Speaker(NamedTuple):
    """A voice: espeak's name of it, and its base rate (words per minute), pitch and level (dB)."""

    session: int
    sex: str
    voice: str
    rate: float
    pitch: float
    level: float


UTTERANCES = 400  # in the corpus that `write_demo_corpus` makes by default

_SPEAKERS = (
    _Speaker(1, "F", "en-us+f1", 145, 50, -26),
    _Speaker(1, "M", "en-us+m1", 140, 48, -25),
    _Speaker(2, "F", "gmw/en+f2", 152, 46, -27),
    _Speaker(2, "M", "en-us+m3", 150, 55, -26),
    _Speaker(3, "F", "en-gb-scotland+f3", 140, 52, -25),
    _Speaker(3, "M", "gmw/en+m2", 155, 45, -28),
    _Speaker(4, "F", "en-us+f4", 148, 55, -27),
    _Speaker(4, "M", "en-gb-x-rp+m4", 143, 50, -26),
    _Speaker(5, "F", "en-gb-x-rp+f5", 155, 48, -26),
    _Speaker(5, "M", "en-us+m7", 146, 53, -27),
)


class _Rating(NamedTuple):
    """What one simulated rater says, on scales of 1 to 5."""

    valence: int
    arousal: int
    dominance: int

    @property
    def emotion(self) -> str:
        """The category of this point: neutral in the middle, else by quadrant."""
        negative, active = _MIDDLE - self.valence, self.arousal - _MIDDLE
        if abs(negative) + abs(active) <= 1 or (negative == 0 and active < 0):
            return "neu"
        if negative > 0:
            return "sad" if active < 0 else "fru" if negative + active <= 2 else "ang"
        return "exc" if active > 0 else "hap"


@dataclass(frozen=True)
class _Utterance:
    """One utterance of the plan: its labels, and how they have it spoken."""

    speaker: _Speaker
    name: str
    sentence: str
    raters: tuple[_Rating, ...]
    own: _Rating
    rate: int
    pitch: int
    range: int
    level_db: float

    @property
    def dimensions(self) -> tuple[float, ...]:
        """Valence, arousal, dominance: the raters' mean, without the speaker's own report."""
        return tuple(np.mean(self.raters, axis=0).round(4).tolist())

    @property
    def emotion(self) -> str:
        """The category of the majority, or xxx."""
        emotion, votes = Counter(rating.emotion for rating in self.raters).most_common(1)[0]
        return emotion if 2 * votes > len(self.raters) else "xxx"


def write_demo_corpus(
    root: str | os.PathLike[str],
    *,
    utterances_per_speaker: int = UTTERANCES // 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Writes a synthetic corpus in IEMOCAP's layout: 5 sessions, 10 speakers, 16 kHz 16-bit WAV.

    English sentences are spoken by espeak-ng, in a voice per speaker. The arousal that the label
    files state drives loudness, rate and pitch (3 dB, 15 words per minute and 10 of espeak's 100
    pitch steps per point, plus noise). Valence is drawn independently of arousal and changes only
    the range of the pitch, a little. Sentences are drawn independently of all labels. So arousal is
    there to be found, valence hardly is, and neither says anything about emotion.

    The quirks of the real corpus are there as well: the marker wearer in a dialog's name is not
    always the speaker, hidden files duplicate evaluations, transcripts hold turns that are no
    utterances and latin-1 bytes, raters disagree (xxx), and speakers report on themselves.

    Args:
        root: The folder to write; new, empty, or an earlier demo corpus, which is replaced.
        utterances_per_speaker: At least 1; utterances last about 1.5 to 5 seconds.
        seed: The same seed gives the same files.
        progress: Called as `progress(done, total)` after each utterance.

    Returns:
        The folder, as an absolute path.

    Raises:
        FeatureStoreError: if espeak-ng is not installed (it is GPL, hence in the extra `demo`), the
            folder holds something else, or a number is out of range.
    """
    if utterances_per_speaker < 1:
        raise FeatureStoreError(
            f"utterances_per_speaker is {utterances_per_speaker}; it is at least 1"
        )
    if seed < 0:
        raise FeatureStoreError(f"seed is {seed}; it is a whole number from 0")
    folder = Path(os.path.abspath(root))
    dialogs = _plan(utterances_per_speaker, seed)
    total = sum(map(len, dialogs.values()))
    with Espeak() as espeak:
        _prepare(folder)
        done = 0
        for position, (dialog, utterances) in enumerate(dialogs.items()):
            session = folder / f"Session{utterances[0].speaker.session}"
            recordings = session / "sentences" / "wav" / dialog
            recordings.mkdir(parents=True)
            durations = []
            for utterance in utterances:
                samples = _speak(espeak, utterance)
                _write_wav(recordings / f"{utterance.name}.wav", samples)
                durations.append(len(samples) / SAMPLE_RATE)
                done += 1
                if progress is not None:
                    progress(done, total)
            _write_labels(session, dialog, utterances, durations, seed=[seed, position])
    return folder


def _prepare(folder: Path) -> None:
    """An empty corpus folder with its README, which also marks the folder as replaceable."""
    readme = folder / "README.txt"
    if folder.exists() and not folder.is_dir():
        raise FeatureStoreError(f"{folder} is a file; give a folder for the demo corpus")
    if folder.is_dir() and any(folder.iterdir()):
        if not (readme.is_file() and readme.read_text("utf-8").startswith(_MARKER)):
            raise FeatureStoreError(
                f"{folder} holds something else than a demo corpus; give a new or empty folder"
            )
        for session in folder.glob("Session[1-5]"):
            shutil.rmtree(session)
    folder.mkdir(parents=True, exist_ok=True)
    text = _README.format(
        level=_LEVEL_DB,
        level_noise=_LEVEL_NOISE_DB,
        rate=_RATE_WPM,
        rate_noise=_RATE_NOISE_WPM,
        pitch=_PITCH,
        pitch_noise=_PITCH_NOISE,
        range=_RANGE,
        valence=_RANGE_PER_VALENCE,
    )
    readme.write_text(text, "utf-8")


def _plan(utterances_per_speaker: int, seed: int) -> dict[str, list[_Utterance]]:
    """Dialog to its utterances; the two speakers of a session take turns."""
    dialogs: dict[str, list[_Utterance]] = {}
    for session in sorted({speaker.session for speaker in _SPEAKERS}):
        names = [
            f"Ses{session:02d}{wearer}_{kind}"
            for wearer, kind in (
                ("F", "impro01"),
                ("M", "impro02"),
                ("F", "script01_1"),
                # The real corpus has one dialog with a letter after its number.
                ("M", "script01_1b" if session == 5 else "script01_1"),
            )
        ]
        turns = np.array_split(np.arange(utterances_per_speaker), len(names))
        spoken = {
            index: _draw_texts(utterances_per_speaker, np.random.default_rng([seed, index]))
            for index, speaker in enumerate(_SPEAKERS)
            if speaker.session == session
        }
        randoms = {index: np.random.default_rng([seed, index, 1]) for index in spoken}
        for dialog, numbers in zip(names, turns, strict=True):
            utterances = [
                _draw(
                    _SPEAKERS[index],
                    name=f"{dialog}_{_SPEAKERS[index].sex}{position:03d}",
                    sentence=spoken[index][number],
                    random=randoms[index],
                )
                for position, number in enumerate(numbers)
                for index in spoken
            ]
            if utterances:
                dialogs[dialog] = utterances
    return dialogs


def _draw_texts(count: int, random: np.random.Generator) -> list[str]:
    """Sentences in random order, each used once before any is repeated."""
    rounds = -(-count // len(SENTENCES))
    order = np.concatenate([random.permutation(len(SENTENCES)) for _ in range(rounds)])
    return [SENTENCES[index] for index in order[:count]]


def _draw(
    speaker: _Speaker, *, name: str, sentence: str, random: np.random.Generator
) -> _Utterance:
    """Labels at random, and the prosody that the stated arousal asks for."""
    valence, arousal = random.uniform(0.6, 5.4, size=2)
    dominance = 0.6 * arousal + 0.4 * random.uniform(1, 5)
    latent = np.array([valence, arousal, dominance])
    heard = latent + random.normal(0, _RATER_NOISE, size=(_RATERS + 1, 3))
    *raters, own = [_Rating(*row) for row in heard.round().clip(1, 5).astype(int).tolist()]
    stated_valence, stated_arousal, _ = np.mean(raters, axis=0) - _MIDDLE
    noise = random.standard_normal(3)
    return _Utterance(
        speaker=speaker,
        name=name,
        sentence=sentence,
        raters=tuple(raters),
        own=own,
        rate=round(speaker.rate + _RATE_WPM * stated_arousal + _RATE_NOISE_WPM * noise[0]),
        pitch=_percent(speaker.pitch + _PITCH * stated_arousal + _PITCH_NOISE * noise[1]),
        range=_percent(50 + _RANGE * stated_arousal + _RANGE_PER_VALENCE * stated_valence),
        level_db=speaker.level + _LEVEL_DB * stated_arousal + _LEVEL_NOISE_DB * noise[2],
    )


def _percent(value: float) -> int:
    return round(min(100.0, max(0.0, value)))


def _write_labels(
    session: Path,
    dialog: str,
    utterances: list[_Utterance],
    durations: list[float],
    *,
    seed: list[int],
) -> None:
    """The evaluation file, a hidden stale copy of its beginning, and the transcript."""
    random = np.random.default_rng([*seed, 2])
    evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    transcript = []
    now = 5.0
    for utterance, duration in zip(utterances, durations, strict=True):
        now += random.uniform(0.3, 1.5)
        start, now = now, now + duration
        evaluation += [*_evaluation_block(utterance, start, now), ""]
        transcript.append(f"{utterance.name} [{start:08.4f}-{now:08.4f}]: {utterance.sentence}")
    wearer = dialog[5]
    aside = f"{dialog}_{wearer}XX0 [{now + 0.2:08.4f}-{now + 0.9:08.4f}]: [LAUGHTER] What a cliché!"
    transcript.append(aside)
    evaluations = session / "dialog" / "EmoEvaluation"
    transcripts = session / "dialog" / "transcriptions"
    evaluations.mkdir(parents=True, exist_ok=True)
    transcripts.mkdir(parents=True, exist_ok=True)
    _write_latin1(evaluations / f"{dialog}.txt", evaluation)
    _write_latin1(evaluations / f"._{dialog}.txt", evaluation[:3])
    _write_latin1(transcripts / f"{dialog}.txt", transcript)


def _write_latin1(file: Path, lines: list[str]) -> None:
    file.write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))


def _evaluation_block(utterance: _Utterance, start: float, end: float) -> list[str]:
    means = ", ".join(f"{value:.4f}" for value in utterance.dimensions)
    names = [f"E{number}" for number in range(1, _RATERS + 1)] + [f"{utterance.speaker.sex}1"]
    ratings = [*utterance.raters, utterance.own]
    lines = [f"[{start:.4f} - {end:.4f}]\t{utterance.name}\t{utterance.emotion}\t[{means}]"]
    for name, rating in zip(names, ratings, strict=True):
        lines.append(f"C-{name}:\t{_CATEGORIES[rating.emotion]};\t()")
    for name, rating in zip(names, ratings, strict=True):
        valence, arousal, dominance = rating
        lines.append(f"A-{name}:\tval {valence}; act {arousal}; dom  {dominance};\t()")
    return lines


def _speak(espeak: Espeak, utterance: _Utterance) -> np.ndarray:
    """The utterance at 16 kHz, float in -1 to 1, at its level (dB of full scale, RMS)."""
    spoken = espeak.say(
        utterance.sentence,
        voice=utterance.speaker.voice,
        rate=utterance.rate,
        pitch=utterance.pitch,
        pitch_range=utterance.range,
    )
    samples = soxr.resample(spoken.astype(np.float64) / 32768, espeak.rate, SAMPLE_RATE)
    gain = 10 ** (utterance.level_db / 20) / np.sqrt(np.mean(samples**2))
    return np.asarray(samples * min(gain, 0.98 / np.abs(samples).max()))


def _write_wav(file: Path, samples: np.ndarray) -> None:
    soundfile.write(file, samples, SAMPLE_RATE, subtype="PCM_16")
