from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut

from featurestore.analysis.folds import make_folds, one_out
from featurestore.errors import AnalysisError


def table(speakers: list[str], **columns: list[object]) -> xr.Dataset:
    named = {"id": [f"u{i}" for i in range(len(speakers))], "speaker": speakers, **columns}
    return xr.Dataset(
        coords={k: ("utterance", np.array(v, dtype=object)) for k, v in named.items()}
    )


@given(st.lists(st.sampled_from("abcd"), min_size=4, max_size=30).filter(lambda s: len(set(s)) > 1))
def test_leaving_a_speaker_out_is_scikit_learns(speakers: list[str]) -> None:
    folds = make_folds(table(speakers))
    expected = LeaveOneGroupOut().split(speakers, groups=speakers)
    for fold, (train, test) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(fold.train, train)
        np.testing.assert_array_equal(fold.test, test)
        assert {speakers[i] for i in fold.test} == {fold.name}


def test_groups_of_speakers_are_scikit_learns() -> None:
    speakers = [f"s{i % 7}" for i in range(40)]
    folds = make_folds(table(speakers), scheme="speaker:3")
    expected = GroupKFold(3).split(speakers, groups=speakers)
    for fold, (train, test) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(fold.train, train)
        np.testing.assert_array_equal(fold.test, test)
    assert [fold.name for fold in folds] == ["1", "2", "3"]


def test_sessions_and_any_other_column() -> None:
    data = table(
        ["a", "b", "c", "d"] * 2, session=[1, 1, 2, 2] * 2, corpus=["x", "x", "y", "y"] * 2
    )
    for scheme, names in (("session", ["1", "2"]), ("corpus", ["x", "y"])):
        folds = make_folds(data, scheme=scheme)
        assert [fold.name for fold in folds] == names
        assert folds[0].test.tolist() == [0, 1, 4, 5]


def test_only_wanted_utterances_take_part() -> None:
    wanted = np.array([True, True, False, True, True, True])
    folds = make_folds(table(["a", "b", "", "a", "b", "a"]), of=wanted)
    assert [fold.test.tolist() for fold in folds] == [[0, 3, 5], [1, 4]]
    assert folds[0].train.tolist() == [1, 4]


def test_what_would_leak_is_refused_by_name() -> None:
    for data, scheme, said in (
        (table(["a", "", "b"]), "speaker", "'u1'"),
        (
            table(["a", "a", "b"], session=["1", "2", "2"]),
            "session",
            "speaker 'a' is in '1' and '2'",
        ),
        (table(["a", "b"], session=["1", ""]), "session", "1 utterances have no session"),
        (table(["a", "a"]), "speaker", "at least 2 speakers"),
        (table(["a", "b"], session=["1", "1"]), "session", "at least 2 sessions"),
        (table(["a", "b"]), "speaker:3", "give 2 to 2"),
        (table(["a", "b"]), "speaker:1", "give 2 to 2"),
        (table(["a", "b"]), "dialog", "No column 'dialog'"),
    ):
        with pytest.raises(AnalysisError) as error:
            make_folds(data, scheme=scheme)
        assert said in str(error.value)


def test_the_same_recording_on_both_sides_is_refused() -> None:
    data = table(["a", "a", "b", "b"], audio_sha256=["1", "2", "3", "2"])
    with pytest.raises(
        AnalysisError, match="'u1' and 'u3' are the same audio, in folds 'a' and 'b'"
    ):
        make_folds(data)
    within = table(["a", "a", "b", "b"], audio_sha256=["1", "1", "", ""])
    assert len(make_folds(within)) == 2  # twice on one side, and unknown: nothing leaks
    apart = np.array([True, False, True, True])
    assert len(make_folds(data, of=apart)) == 2


def test_one_out_of_an_array() -> None:
    assert [fold.test.tolist() for fold in one_out(np.array(["b", "a", "b"]))] == [[1], [0, 2]]
