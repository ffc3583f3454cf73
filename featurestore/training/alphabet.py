"""The 28 symbols of the recogniser: space, a to z, and the CTC blank."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from featurestore.types import CLASSES

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
"""Symbols of the labels 0 to 26."""
BLANK = CLASSES - 1
"""The label that stands for no symbol: 27, the last, as in the original program."""

# Letters that Unicode does not decompose into a Latin letter and an accent.
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ł": "l", "ı": "i"}
)
_CLITICS = "'’‘ʼ`´"  # "don't" is one word: dont
_SPOKEN = "&%@#§"  # signs that Unicode counts as punctuation, but that are read out as words
_LABEL = {symbol: label for label, symbol in enumerate(ALPHABET)}


@dataclass(frozen=True, eq=False)
class Transcript:
    """A text as the recogniser spells it.

    Attributes:
        text: what is left: words of a to z with single spaces between them.
        labels: int32 labels of `text`, (symbol,).
        dropped: characters outside the alphabet for which there is no spelling (digits, other
            scripts, signs), with how often each occurred. Punctuation is not among them.
    """

    text: str
    labels: np.ndarray
    dropped: Counter[str]

    @property
    def min_frames(self) -> int:
        """Fewest frames that CTC can align: one a symbol, and a blank between equal ones."""
        return len(self.labels) + int(np.count_nonzero(self.labels[1:] == self.labels[:-1]))


def spell(text: str) -> Transcript:
    """A text in the alphabet, by rule.

    Case is folded, accents are taken off (é becomes e, ß ss), apostrophes vanish inside words
    (don't becomes dont) and other punctuation and white space become one space. What then is no
    letter from a to z, a digit for example, is dropped and counted.
    """
    folded = unicodedata.normalize("NFKD", text.casefold().translate(_LETTERS))
    dropped: Counter[str] = Counter()
    kept: list[str] = []
    for character in folded:
        if character in _LABEL:
            kept.append(character)
            continue
        category = unicodedata.category(character)
        if character in _CLITICS or category == "Mn":  # an apostrophe, or an accent by itself
            continue
        if category[0] in "PZC" and character not in _SPOKEN:
            kept.append(" ")
            continue
        dropped[character] += 1
    clean = " ".join("".join(kept).split())
    return Transcript(clean, np.array([_LABEL[symbol] for symbol in clean], np.int32), dropped)


def written(labels: Iterable[int]) -> str:
    """The text that labels from 0 to 26 spell.

    Raises:
        ValueError: a label outside the alphabet; the blank is no symbol.
    """
    symbols = []
    for label in labels:
        if not 0 <= label < len(ALPHABET):
            raise ValueError(f"label {label} is no symbol; symbols are 0 to {len(ALPHABET) - 1}")
        symbols.append(ALPHABET[label])
    return "".join(symbols)
