"""When each character was said: the frames of an alignment, and their seconds.

The recogniser was trained to write characters in the right order, not at the right time (CTC), and
sees 18 s at once. Its characters come where it is surest of them, usually for a frame or two, with
blanks between: a time tells about where a character is, not where its sound begins and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from featurestore.training.alphabet import BLANK
from featurestore.training.decoding import begins, log_softmax
from featurestore.types import FRAME_PERIOD_S

_BLOCK = 512  # frames whose back pointers are in memory at the same time


@dataclass(frozen=True, eq=False)
class Spans:
    """The frames of each symbol of a labelling.

    Attributes:
        first: first frame, (symbol,).
        last: last frame, (symbol,); at least `first`, and before the next symbol's first.
    """

    first: Int[np.ndarray, " symbol"]
    last: Int[np.ndarray, " symbol"]

    def seconds(
        self,
        *,
        duration_s: float,
        frame_period_s: float = FRAME_PERIOD_S,
        frame_offset_s: float = 0.0,
    ) -> tuple[Float[np.ndarray, " symbol"], Float[np.ndarray, " symbol"]]:
        """Begin and end of each symbol in seconds from the utterance's begin.

        Frame t is centred at `frame_offset_s + t * frame_period_s` and reaches half a period to
        both sides.

        Args:
            duration_s: seconds of the utterance, which no symbol leaves.
            frame_period_s: seconds between frames.
            frame_offset_s: centre of the first frame.
        """
        begin = frame_offset_s + (self.first - 0.5) * frame_period_s
        end = frame_offset_s + (self.last + 0.5) * frame_period_s
        return np.clip(begin, 0.0, duration_s), np.clip(end, 0.0, duration_s)


def path_spans(path: Int[np.ndarray, " frame"]) -> Spans:
    """Frames of the symbols of a path, which holds a class for each frame."""
    ends = path != BLANK
    ends[:-1] &= path[1:] != path[:-1]
    return Spans(np.flatnonzero(begins(path)), np.flatnonzero(ends))


def align(
    logits: Float[np.ndarray, "frame class"], labels: Sequence[int] | Int[np.ndarray, " symbol"]
) -> Spans:
    """Frames of given labels on the most probable path that writes them (Viterbi).

    For the labels of the most probable path of all, that is this path. Memory is 1 kB and a 32nd
    of a byte a frame for each symbol: about 40 MB for 20 minutes of speech.

    Args:
        logits: of one utterance, without padding.
        labels: from 0 to 26.

    Raises:
        ValueError: more labels than the frames can hold: one a symbol, and a blank between equal
            neighbours.
    """
    labels = np.asarray(labels, np.int64)
    if not len(labels):
        return Spans(np.zeros(0, int), np.zeros(0, int))
    needed = len(labels) + int(np.count_nonzero(labels[1:] == labels[:-1]))
    if needed > len(logits):
        raise ValueError(f"{len(labels)} labels need {needed} frames, there are {len(logits)}")
    states = np.full(2 * len(labels) + 1, BLANK)  # a blank around every symbol
    states[1::2] = labels
    skippable = np.zeros(len(states), bool)  # whether the blank before a state may be left out
    skippable[3::2] = labels[1:] != labels[:-1]
    visited = _best_states(log_softmax(logits), states, skippable)
    symbols = np.arange(1, len(states), 2)
    first = np.searchsorted(visited, symbols, side="left")
    return Spans(first, np.searchsorted(visited, symbols, side="right") - 1)


def _best_states(
    log_probabilities: np.ndarray, states: np.ndarray, skippable: np.ndarray
) -> Int[np.ndarray, " frame"]:
    """The state of each frame on the most probable path from the first blank to the end.

    Back pointers of all frames at once would take a gigabyte for 20 minutes of speech. Scores are
    kept at the begin of each block instead, and from there a block is run once more, for its
    pointers, when the way back comes to it.
    """
    blocks = [
        log_probabilities[start : start + _BLOCK]
        for start in range(0, len(log_probabilities), _BLOCK)
    ]
    scores = np.full(len(states), -np.inf)
    scores[0] = 0.0
    at_start = [scores]
    for block in blocks[:-1]:
        for row in block:
            scores, _ = _advance(scores, row[states], skippable)
        at_start.append(scores)
    backwards: list[int] = []
    state = -1
    for block, scores in zip(reversed(blocks), reversed(at_start), strict=True):
        moves = []
        for row in block:
            scores, move = _advance(scores, row[states], skippable)
            moves.append(move)
        if state < 0:  # a path ends in the last symbol or in the blank behind it
            state = len(states) - (1 if scores[-1] >= scores[-2] else 2)
        for move in reversed(moves):
            backwards.append(state)
            state -= int(move[state])
    return np.array(backwards[::-1])


def _advance(
    scores: np.ndarray, emissions: np.ndarray, skippable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best scores one frame on, and how many states back each one came from: 0, 1 or 2."""
    ways = np.full((3, len(scores)), -np.inf)
    ways[0] = scores
    ways[1, 1:] = scores[:-1]
    ways[2, 2:] = np.where(skippable[2:], scores[:-2], -np.inf)
    move = np.argmax(ways, axis=0)
    return ways.max(axis=0) + emissions, move.astype(np.uint8)
