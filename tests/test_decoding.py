"""Decoding, alignment and error rates against enumeration of every path and against jiwer."""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import FeatureStoreError
from featurestore.training import alignment
from featurestore.training.alignment import Spans, align, path_spans
from featurestore.training.alphabet import ALPHABET, BLANK, written
from featurestore.training.decoding import (
    beam_search,
    collapse,
    greedy,
    greedy_batch,
    log_softmax,
    surplus_spaces,
)
from featurestore.training.error_rates import (
    Errors,
    character_error_rate,
    count_errors,
    total,
    totals_by,
    word_error_rate,
)

SYMBOLS = (1, 2, BLANK)  # a, b and the blank: few enough to enumerate every path
texts = st.text(alphabet="ab ", max_size=8)


def tiny(random: np.random.Generator, frames: int) -> np.ndarray:
    """Logits under which only a, b and the blank can occur."""
    logits = np.full((frames, 28), -80.0, np.float32)
    logits[:, SYMBOLS] = random.standard_normal((frames, len(SYMBOLS)))
    return logits


def merged(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


def enumerated(logits: np.ndarray) -> dict[tuple[int, ...], dict[tuple[int, ...], float]]:
    """By labelling, every path that writes it, with its probability."""
    logp = log_softmax(logits)
    paths: dict[tuple[int, ...], dict[tuple[int, ...], float]] = defaultdict(dict)
    for path in itertools.product(SYMBOLS, repeat=len(logits)):
        paths[merged(path)][path] = float(np.exp(sum(logp[t, k] for t, k in enumerate(path))))
    return paths


@given(st.lists(st.sampled_from((0, 1, 2, BLANK)), min_size=1, max_size=12))
def test_collapsing_merges_repeats_and_drops_blanks(path: list[int]) -> None:
    assert tuple(collapse(np.array(path))) == merged(tuple(path))


def test_greedy_is_the_most_probable_path() -> None:
    random = np.random.default_rng(0)
    for frames in (1, 2, 3, 6):
        logits = tiny(random, frames)
        paths = {p: v for found in enumerated(logits).values() for p, v in found.items()}
        best = max(paths, key=lambda path: paths[path])
        assert tuple(np.argmax(logits, axis=-1)) == best
        assert tuple(greedy(logits)) == merged(best)


def test_greedy_batch_ignores_padding_and_superfluous_spaces() -> None:
    random = np.random.default_rng(1)
    best = random.choice([0, 0, 1, 2, BLANK], (40, 30))
    n_frames = random.integers(0, 31, 40)
    expected = [
        " ".join(written(collapse(row[:count])).split())
        for row, count in zip(best, n_frames, strict=True)
    ]
    assert greedy_batch(best, n_frames) == expected
    assert "" in expected
    assert best[0, 0] in (0, 1, 2, BLANK)  # the input is left as it was
    assert any(" " in text for text in expected)


@given(texts)
def test_surplus_spaces_are_those_that_splitting_takes_away(text: str) -> None:
    labels = [ALPHABET.index(symbol) for symbol in text]
    kept = np.array(labels, int)[~surplus_spaces(labels)]
    assert written(kept.tolist()) == " ".join(text.split())


class TestBeamSearch:
    """Of fast-ctc-decode, as it is called here."""

    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("fast_ctc_decode", reason="comes with featurestore[train]")

    def test_a_beam_of_everything_finds_the_most_probable_labelling(self) -> None:
        random = np.random.default_rng(2)
        not_greedy = 0
        for _ in range(40):
            logits = tiny(random, int(random.integers(1, 7)))
            probability = {k: sum(paths.values()) for k, paths in enumerated(logits).items()}
            found = tuple(beam_search(logits, width=10_000, min_probability=1e-30))
            # Labellings may tie to the float32 that the search works in.
            assert probability[found] == pytest.approx(max(probability.values()), rel=1e-4)
            not_greedy += found != tuple(greedy(logits))
        assert not_greedy > 5

    def test_paths_to_the_same_text_are_added_up(self) -> None:
        logits = np.full((2, 28), -80.0, np.float32)
        logits[:, 1], logits[:, BLANK] = np.log(0.4), np.log(0.6)
        assert greedy(logits) == []  # 0.36, the most probable path
        assert beam_search(logits) == [1]  # aa, a- and -a: 0.64

    @pytest.mark.parametrize("width", [1, 16])
    def test_certain_logits_leave_nothing_to_search(self, width: int) -> None:
        random = np.random.default_rng(3)
        path = random.choice([*range(27), *[BLANK] * 10], 200)
        logits = random.standard_normal((200, 28)).astype(np.float32)
        logits[np.arange(200), path] += 20
        assert beam_search(logits, width=width) == greedy(logits)

    def test_repeated_letters_need_a_blank(self) -> None:
        logits = np.full((4, 28), -20.0, np.float32)
        logits[np.arange(4), [1, BLANK, 1, 1]] = 0
        assert beam_search(logits) == [1, 1]
        assert beam_search(logits[[0, 2, 3]]) == [1]

    def test_flat_logits_and_no_frames(self) -> None:
        assert isinstance(beam_search(np.zeros((30, 28), np.float32)), list)
        assert beam_search(np.zeros((0, 28), np.float32)) == []

    def test_a_beam_of_nothing_is_refused(self) -> None:
        with pytest.raises(FeatureStoreError, match="at least 1"):
            beam_search(np.zeros((3, 28)), width=0)


def test_beam_search_without_its_library_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "fast_ctc_decode", None)
    with pytest.raises(FeatureStoreError, match=r"pip install 'featurestore\[train\]'"):
        beam_search(np.zeros((3, 28)))


def test_alignment_is_the_most_probable_path_of_its_labels() -> None:
    random = np.random.default_rng(4)
    seen = 0
    for frames in (1, 2, 3, 5, 6):
        logits = tiny(random, frames)
        for labels, paths in enumerated(logits).items():
            best = max(paths, key=lambda path: paths[path])
            expected = path_spans(np.array(best))
            found = align(logits, labels)
            np.testing.assert_array_equal(found.first, expected.first)
            np.testing.assert_array_equal(found.last, expected.last)
            seen += 1
    assert seen > 50


def test_alignment_of_the_greedy_labels_is_the_greedy_path() -> None:
    random = np.random.default_rng(5)
    logits = np.repeat(random.standard_normal((150, 28)), 2, axis=0)
    expected, found = path_spans(np.argmax(logits, axis=-1)), align(logits, greedy(logits))
    np.testing.assert_array_equal(found.first, expected.first)
    np.testing.assert_array_equal(found.last, expected.last)
    assert (expected.last > expected.first).any()


@pytest.mark.parametrize("block", [1, 7, 99, 100])
def test_alignment_in_blocks_is_the_same(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    logits, labels = random.standard_normal((100, 28)), random.integers(0, 27, 30)
    whole = align(logits, labels)
    monkeypatch.setattr(alignment, "_BLOCK", block)
    np.testing.assert_array_equal(align(logits, labels).first, whole.first)
    np.testing.assert_array_equal(align(logits, labels).last, whole.last)


def test_alignment_refuses_more_labels_than_frames_hold() -> None:
    logits = np.zeros((3, 28))
    assert align(logits, [1, 2, 1]).first.tolist() == [0, 1, 2]
    assert align(logits, [1, 1]).first.tolist() == [0, 2]
    assert len(align(logits, []).first) == 0
    with pytest.raises(ValueError, match="need 4 frames, there are 3"):
        align(logits, [1, 1, 2])


def test_seconds_surround_the_frames_centres_and_stay_inside() -> None:
    spans = Spans(np.array([0, 3, 9]), np.array([1, 3, 10]))
    start, end = spans.seconds(duration_s=0.32)
    np.testing.assert_allclose(start, [0.0, 0.08, 0.272])
    np.testing.assert_allclose(end, [0.048, 0.112, 0.32])
    start, end = spans.seconds(duration_s=9, frame_period_s=0.02, frame_offset_s=0.0125)
    np.testing.assert_allclose(start[1:], [0.0625, 0.1825])
    np.testing.assert_allclose(end, [0.0425, 0.0825, 0.2225])


def distance(one: list[str], other: list[str]) -> int:
    """Levenshtein's, from its definition."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        last, row[0] = row[0], i
        for j, right in enumerate(other, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (left != right))
    return row[-1]


class TestErrorRates:
    """Against the definition."""

    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("jiwer", reason="comes with featurestore[train]")

    @settings(max_examples=60)
    @given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
    def test_edits_are_the_levenshtein_distance(self, pairs: list[tuple[str, str]]) -> None:
        pairs = [(" ".join(a.split()), " ".join(b.split())) for a, b in pairs]
        references, hypotheses = zip(*pairs, strict=True)
        characters = [Errors(distance(list(a), list(b)), len(a)) for a, b in pairs]
        words = [Errors(distance(a.split(), b.split()), len(a.split())) for a, b in pairs]
        assert count_errors(references, hypotheses) == characters
        assert count_errors(references, hypotheses, unit="word") == words
        if total(characters).length:
            found = character_error_rate(references, hypotheses)
            assert found == sum(e.edits for e in characters) / sum(e.length for e in characters)

    def test_rates_are_of_sums_and_not_means_of_rates(self) -> None:
        references, hypotheses = ["abcdefgh", "ab"], ["abcdefgh", "xy"]
        assert character_error_rate(references, hypotheses) == 0.2
        assert word_error_rate(["one two three", "four"], ["one two", "five"]) == 0.5
        assert character_error_rate(["a"], ["abcd"]) == 3.0

    def test_an_empty_reference_has_no_rate_but_its_insertions_count(self) -> None:
        assert count_errors([""], ["ab"]) == [Errors(2, 0)]
        assert np.isnan(character_error_rate([""], [""]))
        assert np.isnan(character_error_rate([], []))
        assert character_error_rate(["abcd", ""], ["abcd", "x"]) == 0.25

    def test_totals_by_speaker(self) -> None:
        errors = [Errors(1, 4), Errors(0, 4), Errors(3, 2)]
        found = totals_by(errors, ["b", "a", "b"])
        assert found == {"a": Errors(0, 4), "b": Errors(4, 6)}
        assert list(found) == ["a", "b"]

    def test_lists_of_different_length_are_refused(self) -> None:
        with pytest.raises(ValueError, match="1 references for 2"):
            count_errors(["a"], ["a", "b"])


def test_error_rates_without_jiwer_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(FeatureStoreError, match=r"pip install 'featurestore\[train\]'"):
        character_error_rate(["a"], ["a"])
