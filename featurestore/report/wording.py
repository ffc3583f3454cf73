"""How names and numbers are put, wherever they are: in sentences, tables, figures and the page."""

from __future__ import annotations

LEAST_PERMUTATIONS = 20  # with fewer, no p_max can be below 0.05


def raised(name: object) -> str:
    """A name at the start of a sentence; of EmoAct nothing but the first letter may change."""
    text = str(name)
    return text[:1].upper() + text[1:]
