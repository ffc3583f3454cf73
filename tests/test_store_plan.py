"""The plan: every utterance in one column, none across two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.store.plan import (
    CHUNK_FRAMES,
    CHUNK_UTTERANCES,
    MAX_UTTERANCES,
    column_frames,
    plan_part,
)

lengths_lists = st.lists(st.integers(1, 9000), min_size=1, max_size=400)


@given(lengths_lists, st.one_of(st.none(), st.integers(1, 40_000)))
def test_every_utterance_has_one_place(lengths: list[int], frames: int | None) -> None:
    ids = [f"u{i}" for i in range(len(lengths))]
    plan = plan_part(ids, lengths, frames=frames)
    placed = [i for column in plan.columns for i in column.members]
    assert sorted(placed) == list(range(len(lengths)))
    assert plan.column_frames % CHUNK_FRAMES == 0
    next_slot = 0
    for column in plan.columns:
        assert sum(lengths[i] for i in column.members) <= plan.column_frames
        assert 0 < len(column.members) <= MAX_UTTERANCES
        assert column.slot_start >= next_slot
        assert column.slot_start % CHUNK_UTTERANCES == 0
        next_slot = column.slot_start + len(column.members)
    assert next_slot <= plan.layout.slots


@given(lengths_lists, st.randoms(use_true_random=False))
def test_the_order_of_the_manifest_does_not_matter(lengths: list[int], random: object) -> None:
    ids = [f"u{i}" for i in range(len(lengths))]
    order = list(range(len(ids)))
    random.shuffle(order)  # type: ignore[attr-defined]
    plan = plan_part(ids, lengths)
    shuffled = plan_part([ids[i] for i in order], [lengths[i] for i in order])
    assert shuffled.name == plan.name
    assert [[order[i] for i in c.members] for c in shuffled.columns] == [
        list(c.members) for c in plan.columns
    ]


def test_other_work_has_another_name() -> None:
    plan = plan_part(["a", "b"], [10, 20])
    assert plan_part(["a", "b"], [10, 21]).name != plan.name
    assert plan_part(["a", "c"], [10, 20]).name != plan.name


def test_a_column_holds_the_longest_utterance_and_grows_with_the_corpus() -> None:
    assert column_frames([10]) == CHUNK_FRAMES
    assert column_frames([1_000] * 100) == 32_768
    assert column_frames([37_500]) == 40_960  # 20 minutes
    hours = np.full(1_000, 112_500 // 2)
    assert column_frames(hours) == 131_072


def test_nothing_to_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="no utterances"):
        plan_part([], [])
