"""Buckets against brute force, and every utterance in exactly one batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import soundfile
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.batching import (
    Batch,
    BatchPolicy,
    Bucket,
    batches,
    candidate_edges,
    choose_buckets,
    fit_rows,
    padding_waste,
)
from featurestore.frontend import frame_count
from featurestore.store.plan import plan_part

policies = st.builds(
    BatchPolicy,
    frames_per_batch=st.sampled_from([1, 64, 500, 4096]),
    compile_cost=st.sampled_from([0, 1, 40, 300, 5000, 16_384]),
)


def lengths_up_to(longest: int, size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, longest), min_size=1, max_size=size)


def cost(lengths: list[int], edges: tuple[int, ...], policy: BatchPolicy) -> int:
    """Padded frames of every utterance in the smallest bucket that holds it, plus compilations."""
    frames = sum(min(edge for edge in edges if edge >= length) for length in lengths)
    return frames + policy.compile_cost * len(edges)


@settings(max_examples=100, deadline=None)
@given(lengths_up_to(90, 12), policies)
def test_buckets_are_the_cheapest_of_all_subsets_of_the_ladder(lengths, policy):
    ladder = [int(edge) for edge in candidate_edges(max(lengths))]
    subsets = (
        (*inner, ladder[-1])
        for count in range(len(ladder))
        for inner in itertools.combinations(ladder[:-1], count)
    )
    best = min(cost(lengths, edges, policy) for edges in subsets)
    chosen = tuple(bucket.frames for bucket in choose_buckets(lengths, policy))
    assert set(chosen) <= set(ladder)
    assert cost(lengths, chosen, policy) == best


@settings(max_examples=100, deadline=None)
@given(lengths_up_to(3000, 60), policies)
def test_every_utterance_is_in_exactly_one_batch_that_holds_it(lengths, policy):
    buckets = choose_buckets(lengths, policy)
    assert [b.frames for b in buckets] == sorted({b.frames for b in buckets})
    planned = batches(lengths, buckets)
    members = [member for batch in planned for member in batch.members]
    assert sorted(members) == list(range(len(lengths)))
    for batch in planned:
        assert batch.bucket in buckets
        assert 1 <= len(batch.members) <= batch.bucket.rows
        assert max(lengths[member] for member in batch.members) <= batch.bucket.frames
    for batch in planned[1:]:
        assert len(batch.members) == batch.bucket.rows, "rows stay empty in the first batch only"
    assert members == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))


@settings(max_examples=50, deadline=None)
@given(st.lists(lengths_up_to(700, 60), min_size=1, max_size=4), policies)
def test_fitted_rows_never_cost_more_than_full_ones(groups, policy):
    buckets = choose_buckets([n for group in groups for n in group], policy)
    full = [Bucket(b.frames, policy.row_choices(b.frames)[0]) for b in buckets]
    fitted = fit_rows(buckets, groups, policy)
    assert [b.frames for b in fitted] == [b.frames for b in buckets]
    for bucket in fitted:
        assert bucket.rows in policy.row_choices(bucket.frames)

    def cost(shapes):
        planned = [batch.bucket for group in groups for batch in batches(group, shapes)]
        return sum(b.frames * b.rows + policy.batch_cost for b in planned)

    assert cost(fitted) <= cost(full)


@settings(max_examples=100, deadline=None)
@given(lengths_up_to(3000, 60), policies)
def test_batches_respect_the_frames_they_aim_for(lengths, policy):
    for bucket in choose_buckets(lengths, policy):
        assert bucket.rows == 1 or bucket.rows * bucket.frames <= policy.frames_per_batch
        assert bucket.rows <= len(lengths)


@settings(max_examples=100, deadline=None)
@given(lengths_up_to(3000, 60), policies)
def test_padding_waste_is_the_share_of_frames_that_nobody_owns(lengths, policy):
    planned = batches(lengths, choose_buckets(lengths, policy))
    waste = padding_waste(lengths, planned)
    assert 0.0 <= waste < 1.0
    computed = sum(batch.bucket.rows * batch.bucket.frames for batch in planned)
    assert round(computed * (1.0 - waste)) == sum(lengths)


def test_no_waste_when_all_rows_are_full():
    assert padding_waste([8, 8], [Batch(Bucket(8, 2), (0, 1))]) == 0.0


def test_half_is_wasted_when_half_the_rows_are_empty():
    assert padding_waste([8], [Batch(Bucket(8, 2), (0,))]) == 0.5


def test_an_empty_corpus_needs_nothing():
    assert choose_buckets([], BatchPolicy()) == ()
    assert choose_buckets(np.array([], int), BatchPolicy()) == ()
    assert batches([], ()) == []
    assert padding_waste([], []) == 0.0


def test_an_utterance_longer_than_the_last_bucket_is_an_error_that_says_both():
    with pytest.raises(ValueError, match=r"17 frames do not fit the longest bucket, 16"):
        batches([3, 17], [Bucket(16, 4)])


@pytest.mark.parametrize("longest", [1, 8, 9, 16, 700, 40_000])
def test_the_ladder_is_the_same_for_every_corpus(longest):
    edges = candidate_edges(longest)
    assert edges[0] == 8
    assert edges[-1] >= longest
    assert len(edges) == 1 or edges[-2] < longest
    assert (edges % 8 == 0).all()
    assert (np.diff(edges) > 0).all()
    np.testing.assert_array_equal(edges, candidate_edges(100_000)[: len(edges)])


def test_ladder_steps_stay_small_so_that_padding_does():
    edges = candidate_edges(40_000)
    steps = edges[1:] / edges[:-1]
    assert (steps[edges[:-1] >= 200] <= 1.08).all()


def test_a_free_compilation_pads_every_utterance_to_its_own_rung():
    lengths = [3, 40, 41, 300]
    planned = batches(lengths, choose_buckets(lengths, BatchPolicy(compile_cost=0)))
    ladder = candidate_edges(300)
    for batch in planned:
        for member in batch.members:
            rung = ladder[np.searchsorted(ladder, lengths[member])]
            assert batch.bucket.frames == rung


def test_a_dear_compilation_leaves_one_bucket():
    buckets = choose_buckets(list(range(1, 700)), BatchPolicy(compile_cost=10**9))
    assert len(buckets) == 1


def test_ravdess_wastes_little_in_any_bucket() -> None:
    """Lengths from the headers of all files, columns as the ingest packs them."""
    files = sorted(shared("speech", "ravdess").glob("*/*.flac"))
    lengths = np.array([frame_count(soundfile.info(path).frames) for path in files])
    names = [path.stem for path in files]
    columns = plan_part(names, lengths, frames=None, width=15 * 128).columns
    groups = [lengths[column.members] for column in columns]
    policy = BatchPolicy()
    buckets = fit_rows(choose_buckets(lengths, policy), groups, policy)
    assert len(buckets) <= 12
    used: dict[Bucket, int] = {}
    computed: dict[Bucket, int] = {}
    for group in groups:
        for batch in batches(group, buckets):
            used[batch.bucket] = used.get(batch.bucket, 0) + group[list(batch.members)].sum()
            shape = batch.bucket.frames * batch.bucket.rows
            computed[batch.bucket] = computed.get(batch.bucket, 0) + shape
    assert max(1 - used[bucket] / computed[bucket] for bucket in used) <= 0.12
