"""Sentences for synthesis: everyday English of 2 to 12 words, composed by a small grammar.

The transcripts at hand have some 4,600 different words in few sentences. These sentences add common
words and, above all, other neighbours for them, so that the network hears letters and not prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

GRAMMAR = Path(__file__).with_name("grammar.txt")

KINDS = {
    "statement": 0.6,
    "question": 0.12,
    "order": 0.12,
    "short": 0.06,
    "salad": 0.06,
    "digits": 0.04,
}
"""Starting symbols of the grammar with their shares."""

LONGEST = 12  # words


def read_grammar(file: Path = GRAMMAR) -> dict[str, list[str]]:
    """The alternatives of every symbol; the file says how it is written."""
    grammar: dict[str, list[str]] = {}
    for line in file.read_text(encoding="ascii").splitlines():
        if section := re.fullmatch(r"\[(\w+)\]", line):
            alternatives = grammar.setdefault(section[1], [])
        elif line and not line.startswith("#"):
            alternatives += [text.strip() for text in line.split("|")]
    return grammar


def composed(random: np.random.Generator) -> Iterator[str]:
    """Endless different sentences of 2 to 12 words, without punctuation."""
    grammar = read_grammar()
    kinds, shares = list(KINDS), list(KINDS.values())

    def alternative(match: re.Match[str]) -> str:
        alternatives = grammar[match[1]]
        return alternatives[random.integers(len(alternatives))]

    said: set[str] = set()
    while True:
        text = "{" + kinds[random.choice(len(kinds), p=shares)] + "}"
        while "{" in text:
            text = re.sub(r"\{(\w+)\}", alternative, text)
        text = re.sub(r"\ba (?=[aeiou])", "an ", text)
        if 2 <= len(text.split()) <= LONGEST and text not in said:
            said.add(text)
            yield text
