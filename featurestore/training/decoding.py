"""From logits to labels: the most probable path, and beam search over labellings.

Beam search sums over the paths of a labelling, as CTC does (Graves et al. 2006), where the most
probable path stands for itself alone. No language model takes part in either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from featurestore.errors import FeatureStoreError
from featurestore.training.alphabet import ALPHABET, BLANK, written

SPACE = ALPHABET.index(" ")
BEAM_WIDTH = 16
# Classes less probable than this in a frame are not followed there. Of 28 classes one always has
# more than 1/28, so a path is always left.
MIN_PROBABILITY = 1e-4


def begins(path: Int[np.ndarray, "... frame"]) -> np.ndarray:
    """Where a path of classes begins a symbol: boolean, of the path's shape."""
    first = path != BLANK
    first[..., 1:] &= path[..., 1:] != path[..., :-1]
    return first


def collapse(path: Int[np.ndarray, " frame"]) -> list[int]:
    """Labels of a path: of equal neighbours one is left, and then no blank."""
    labels: list[int] = path[begins(path)].tolist()
    return labels


def greedy(logits: Float[np.ndarray, "frame class"]) -> list[int]:
    """Labels of the most probable path.

    Args:
        logits: of one utterance, without padding.

    Returns:
        Labels from 0 to 26; `featurestore.training.alphabet.written` makes them text.
    """
    return collapse(np.argmax(logits, axis=-1))


def greedy_batch(
    best: Int[np.ndarray, "utterance frame"],
    n_frames: Int[np.ndarray, " utterance"] | Sequence[int],
) -> list[str]:
    """Texts of the most probable paths of a padded batch, words with single spaces between them.

    Args:
        best: the most probable class of each frame, the `argmax` of the logits. Taken on the
            device, it spares the copy of the logits.
        n_frames: frames of each utterance; what follows is padding.
    """
    best = np.asarray(best)
    kept = begins(best) & (np.arange(best.shape[1]) < np.asarray(n_frames)[:, None])
    texts = (written(row[keep].tolist()) for row, keep in zip(best, kept, strict=True))
    return [" ".join(text.split()) for text in texts]


def surplus_spaces(labels: Sequence[int] | Int[np.ndarray, " symbol"]) -> np.ndarray:
    """Where labels hold spaces that separate no words: boolean, (symbol,).

    Those are spaces at the begin and at the end, and all but the first of several in a row, which
    are not one already because there were blanks between them.
    """
    space = np.asarray(labels) == SPACE
    after_word = np.zeros(len(space), bool)
    after_word[1:] = ~space[:-1]
    words = np.flatnonzero(~space)
    before_word = np.arange(len(space)) < (words[-1] if len(words) else 0)
    return space & ~(after_word & before_word)


def beam_search(
    logits: Float[np.ndarray, "frame class"],
    *,
    width: int = BEAM_WIDTH,
    min_probability: float = MIN_PROBABILITY,
) -> list[int]:
    """Labels of the most probable labelling that a beam finds.

    The search is fast-ctc-decode's: prefixes grow a frame at a time, paths to the same prefix are
    added up, and the `width` most probable prefixes are kept. A wider beam costs proportionally
    more and is not certain to find a more probable labelling, but with every prefix kept the
    result is the most probable labelling of all.

    Args:
        logits: of one utterance, without padding; finite.
        width: prefixes kept at each frame, from 1.
        min_probability: classes less probable than this in a frame are not followed there; from 0
            to less than 1/28.

    Returns:
        Labels from 0 to 26.

    Raises:
        FeatureStoreError: fast-ctc-decode is not installed, or a width below 1.
    """
    if width < 1:
        raise FeatureStoreError(f"beam width {width}: expected at least 1; 16 is usual")
    search = beam_library()
    probabilities = np.exp(log_softmax(logits)).astype(np.float32)
    # The library wants the blank first.
    rolled = np.ascontiguousarray(np.roll(probabilities, 1, axis=-1))
    text, _ = search(rolled, _BLANK_FIRST, width, min_probability)
    return [ALPHABET.index(symbol) for symbol in text]


_BLANK_FIRST = "_" + ALPHABET


def beam_library() -> Callable[..., tuple[str, Any]]:
    """fast-ctc-decode's beam search.

    Raises:
        FeatureStoreError: it is not installed.
    """
    try:
        from fast_ctc_decode import beam_search as search
    except ImportError:
        raise FeatureStoreError(
            "beam search needs fast-ctc-decode: pip install 'featurestore[train]' (there is none "
            "for Windows), or take the most probable path, which needs nothing (leave --beam out)"
        ) from None
    found: Callable[..., tuple[str, Any]] = search
    return found


def log_softmax(logits: Float[np.ndarray, "frame class"]) -> Float[np.ndarray, "frame class"]:
    """Log-probabilities of each frame, float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
