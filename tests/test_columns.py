"""Batches become columns: without padding, without gaps, and never an utterance for another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.columns import _put_frames


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 3),
)
def test_frames_of_a_batch_stand_one_behind_the_other(counts, layers, empty, padding) -> None:
    shape = (len(counts) + empty, max(counts) + padding, 4)
    rng = np.random.default_rng(sum(counts))
    made = [rng.standard_normal(shape).astype(np.float16) for _ in range(layers)]
    goals = [np.full((sum(counts), 4), np.nan, np.float16) for _ in range(layers)]
    _put_frames(goals, made, counts)
    for goal, layer in zip(goals, made, strict=True):
        expected = [layer[row, :count] for row, count in enumerate(counts)]
        np.testing.assert_array_equal(goal, np.concatenate(expected))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 9, 4)])
def test_fewer_frames_or_rows_than_utterances_have(shape: tuple[int, ...]) -> None:
    """An encoder of somebody else's may bring back less than it says."""
    with pytest.raises(ValueError, match="2 utterances of 4 frames in"):
        _put_frames([np.empty((5, 4))], [np.zeros(shape)], [4, 1])
