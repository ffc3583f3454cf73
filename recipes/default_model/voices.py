"""Synthetic training speech: many espeak-ng voices, and one natural voice (hibari-tts).

A chunk of sentences is the unit of work. How it sounds is decided by the seed and its number alone,
so neither the number of processes nor the hours asked for change an utterance.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import soundfile
import soxr
from sentences import composed

from featurestore.errors import FeatureStoreError
from featurestore.espeak import Espeak
from featurestore.training.alphabet import spell

Engine = Literal["espeak", "hibari"]

RATE = 16_000  # Hz
HOP = 512  # samples per frame of the front end
CHUNK = 250  # sentences
FROM_TRANSCRIPTS = 0.35  # share of sentences that are transcripts of the training utterances

ACCENTS = {
    "en-us": 0.4,
    "en": 0.2,
    "en-gb-x-rp": 0.1,
    "en-gb-scotland": 0.08,
    "en-gb-x-gbclan": 0.06,
    "en-gb-x-gbcwmd": 0.06,
    "en-029": 0.05,
    "en-us-nyc": 0.05,
}
"""espeak-ng's kinds of English, with their shares."""

VARIANTS = """
Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael
Mike Nguyen Reed RicishayMax RicishayMax2 RicishayMax3 adam anika announcer antonio aunty belinda
benjamin boris caleb david ed edward edward2 f1 f2 f3 f4 f5 grandma grandpa gustave ian iven iven2
iven3 iven4 john kaukovalta klatt klatt2 klatt3 klatt4 linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max
michel miguel mike2 norbert pablo paul pedro quincy rob robert sandro shelby steph steph2 steph3
travis victor zac
""".split()  # noqa: SIM905
"""espeak-ng's voice variants without robots, whisperers and the like."""

CAST = 400  # espeak speakers
HIBARI_TRACTS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)


@dataclass(frozen=True)
class Speaker:
    """One voice.

    Attributes:
        name: unique.
        voice: espeak-ng's voice with its variant; "" for hibari.
        tract: factor on all frequencies, above 1 for the shorter vocal tract of a child.
        rate: words per minute.
        pitch: espeak-ng's pitch, 0 to 100.
        pitch_range: 0 to 100.
    """

    name: str
    voice: str
    tract: float
    rate: float
    pitch: float
    pitch_range: float


@dataclass(frozen=True)
class Chunk:
    """Some sentences that one process speaks."""

    engine: Engine
    number: int
    texts: tuple[str, ...]
    folder: Path
    seed: int


def synthesised(
    engine: Engine,
    *,
    hours: float,
    transcripts: list[str],
    forbidden: set[str],
    folder: Path,
    seed: int,
    processes: int = 2,
) -> pd.DataFrame:
    """Speaks sentences into FLAC files until there are as many hours.

    Args:
        engine: What speaks.
        hours: How much.
        transcripts: Texts of training utterances, of which a part is spoken too.
        forbidden: Sentences, as the recogniser spells them, that are not to be said.
        folder: Where to; the engine gets a folder in it.
        seed: Decides sentences, voices and prosody.
        processes: How many speak at a time.

    Returns:
        A table with the columns id, path, speaker, text, split, corpus, seconds and sentence.

    Raises:
        FeatureStoreError: if the synthesiser is not installed or says nothing.
    """
    texts = _texts(transcripts, forbidden, random=np.random.default_rng([seed, 2, len(engine)]))
    chunks = (
        Chunk(engine, number, tuple(itertools.islice(texts, CHUNK)), folder / engine, seed)
        for number in itertools.count()
    )
    rows: list[dict[str, object]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        while (left := hours - _hours(rows)) > 0:
            # An utterance lasts about 3 s; two chunks at least, so that no process idles.
            count = max(processes, int(left * 3600 / 3.5 / CHUNK))
            for spoken in pool.map(spoken_chunk, itertools.islice(chunks, count)):
                rows += spoken
    kept = np.cumsum([row["seconds"] for row in rows]) <= hours * 3600
    for row in itertools.compress(rows, ~kept):
        Path(str(row["path"])).unlink()
    return pd.DataFrame(list(itertools.compress(rows, kept)))


def _hours(rows: list[dict[str, object]]) -> float:
    return float(sum(row["seconds"] for row in rows)) / 3600  # type: ignore[misc]


def _texts(
    transcripts: list[str], forbidden: set[str], *, random: np.random.Generator
) -> Iterator[str]:
    """Endless sentences, some of them transcripts, none of them forbidden."""
    unique = sorted(set(transcripts))
    shuffled = (
        unique[index] for _ in itertools.count() for index in random.permutation(len(unique))
    )
    made = composed(random)
    while True:
        text = next(shuffled if unique and random.random() < FROM_TRANSCRIPTS else made)
        sentence = spell(text)
        if sentence.text not in forbidden and sentence.text and not sentence.dropped:
            yield text


def cast(seed: int) -> list[Speaker]:
    """The espeak speakers: every variant in several accents, from deep to childlike."""
    random = np.random.default_rng([seed, 3])
    accents = random.choice(list(ACCENTS), size=CAST, p=list(ACCENTS.values()))
    speakers = []
    for number, accent in enumerate(accents):
        child = random.random() < 0.4
        voice = f"{accent}+{VARIANTS[number % len(VARIANTS)]}"
        speakers.append(
            Speaker(
                name=f"espeak-{number:03d}-{voice}",
                voice=voice,
                tract=random.uniform(1.08, 1.3) if child else random.uniform(0.9, 1.08),
                rate=random.uniform(95, 145) if child else random.uniform(100, 180),
                pitch=random.uniform(40, 90) if child else random.uniform(15, 75),
                pitch_range=random.uniform(20, 90),
            )
        )
    return speakers


def spoken_chunk(chunk: Chunk) -> list[dict[str, object]]:
    """Speaks a chunk; rows of the manifest, in the order of its texts."""
    folder = chunk.folder / f"{chunk.number:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([chunk.seed, 4, len(chunk.engine), chunk.number])
    say = _espeak_chunk if chunk.engine == "espeak" else _hibari_chunk
    rows: list[dict[str, object]] = []
    for position, (speaker, text, speech) in enumerate(say(chunk, random)):
        samples = _recorded(speech, random)
        sentence = spell(text)
        if len(samples) // HOP < 1.1 * sentence.min_frames:  # too fast for the recogniser
            continue
        name = f"{chunk.engine}-{chunk.number * CHUNK + position:06d}"
        path = folder / f"{name}.flac"
        soundfile.write(path, samples, RATE, subtype="PCM_16")
        rows.append(
            {
                "id": name,
                "path": str(path),
                "speaker": speaker,
                "text": text,
                "split": "train",
                "corpus": chunk.engine,
                "seconds": len(samples) / RATE,
                "sentence": sentence.text,
            }
        )
    return rows


def _espeak_chunk(
    chunk: Chunk, random: np.random.Generator
) -> Iterator[tuple[str, str, np.ndarray]]:
    speakers = cast(chunk.seed)
    with Espeak() as espeak:
        for text in chunk.texts:
            speaker = speakers[random.integers(len(speakers))]
            spoken = espeak.say(
                text,
                voice=speaker.voice,
                rate=round(max(80, speaker.rate * random.uniform(0.88, 1.12) / speaker.tract)),
                pitch=round(np.clip(speaker.pitch + random.normal(0, 5), 0, 100)),
                pitch_range=round(np.clip(speaker.pitch_range + random.normal(0, 8), 0, 100)),
            )
            samples = soxr.resample(spoken / 32768, espeak.rate * speaker.tract, RATE)
            yield speaker.name, text, samples


def _hibari_chunk(
    chunk: Chunk, random: np.random.Generator
) -> Iterator[tuple[str, str, np.ndarray]]:
    try:
        from hibari import Hibari
    except ImportError as error:
        raise FeatureStoreError(
            "the natural voice is that of hibari-tts, which is not installed; "
            "run pip install hibari-tts, or leave out --natural"
        ) from error

    hibari = Hibari()
    for position, text in enumerate(chunk.texts):
        tract = HIBARI_TRACTS[random.integers(len(HIBARI_TRACTS))]
        speed = random.uniform(0.7, 1.15) / tract
        spoken = hibari(text, speed=speed, seed=chunk.number * CHUNK + position)
        samples = soxr.resample(spoken.astype(np.float64), hibari.sample_rate * tract, RATE)
        yield f"hibari-{hibari.voice}-{tract:g}", text, samples


def _recorded(speech: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Speech at some level, with pauses around it and the faint noise of a room."""
    before, after = (random.uniform(0.05, 0.45, size=2) * RATE).astype(int)
    samples = np.pad(speech, (before, after))
    level = 10 ** (random.uniform(-34, -18) / 20)  # RMS, full scale is 1
    samples *= level / np.sqrt(np.mean(speech**2))
    samples += level * 10 ** (-random.uniform(25, 60) / 20) * random.standard_normal(len(samples))
    return samples * min(1.0, 0.95 / np.abs(samples).max())
