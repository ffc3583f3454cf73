"""Character and word error rates, counted by jiwer.

A rate is the number of edits (substitutions, deletions and insertions of the cheapest alignment)
over the length of the reference. The rate of several utterances is that of their sums: all edits
over the length of all references, not the mean of their rates.

An empty reference has no rate: it is NaN. What was recognised there is insertions all the same, and
counts in the rate of a group; a group whose references are all empty has none.

Texts are compared as they stand, apart from white space at their ends (and, between words, of any
width); `featurestore.training.alphabet.spell` brings a reference into the recogniser's spelling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from featurestore.errors import FeatureStoreError

Unit = Literal["character", "word"]


@dataclass(frozen=True)
class Errors:
    """Edits against references.

    Attributes:
        edits: substitutions, deletions and insertions.
        length: characters or words of the references.
    """

    edits: int
    length: int

    @property
    def rate(self) -> float:
        """Edits over length; above 1 where much was inserted, NaN without a reference."""
        return self.edits / self.length if self.length else math.nan


def total(errors: Iterable[Errors]) -> Errors:
    """The errors of several utterances as one."""
    listed = list(errors)
    return Errors(sum(one.edits for one in listed), sum(one.length for one in listed))


def totals_by(errors: Sequence[Errors], groups: Sequence[str]) -> dict[str, Errors]:
    """The errors of each group, such as a speaker, sorted by group.

    Args:
        errors: of each utterance.
        groups: the group of each utterance.

    Raises:
        ValueError: the two differ in length.
    """
    members: dict[str, list[Errors]] = {}
    for one, group in zip(errors, groups, strict=True):
        members.setdefault(group, []).append(one)
    return {group: total(members[group]) for group in sorted(members)}


def count_errors(
    references: Sequence[str], hypotheses: Sequence[str], *, unit: Unit = "character"
) -> list[Errors]:
    """Errors of each utterance.

    Args:
        references: what was said; may be empty.
        hypotheses: what was recognised, in the same order.
        unit: what is compared.

    Raises:
        FeatureStoreError: jiwer is not installed.
        ValueError: as many references as hypotheses are needed.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references for {len(hypotheses)} hypotheses")
    if not references:
        return []
    jiwer = error_library()
    count = jiwer.process_characters if unit == "character" else jiwer.process_words
    found = count(list(references), list(hypotheses))
    return [
        Errors(sum(_edits(chunk) for chunk in chunks), len(reference))
        for reference, chunks in zip(found.references, found.alignments, strict=True)
    ]


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """CER of all utterances together; NaN where all references are empty.

    Raises:
        FeatureStoreError: jiwer is not installed.
    """
    return total(count_errors(references, hypotheses)).rate


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """WER of all utterances together; NaN where all references are empty.

    Raises:
        FeatureStoreError: jiwer is not installed.
    """
    return total(count_errors(references, hypotheses, unit="word")).rate


def _edits(chunk: Any) -> int:
    if chunk.type == "equal":
        return 0
    return int(
        max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    )


def error_library() -> Any:
    """The module jiwer.

    Raises:
        FeatureStoreError: it is not installed.
    """
    try:
        import jiwer
    except ImportError:
        raise FeatureStoreError(
            "error rates need jiwer: pip install 'featurestore[train]', or do without them "
            "(--no-score, in Python score=False)"
        ) from None
    return jiwer
