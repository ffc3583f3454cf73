"""Sentences about what was found: none says more than its numbers do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from featurestore.report.wording import raised
from featurestore.study.config import Pair
from featurestore.study.statements import (
    INTERVALS,
    compared,
    number,
    probability,
    span,
    statements,
)

MINUS = "\N{MINUS SIGN}"


def row(**changes: Any) -> dict[str, Any]:
    plain = {
        "target": "arousal", "measure": "ccc", "first": "A", "second": "B", "speakers": 9,
        "first_value": 0.5, "second_value": 0.4, "difference": 0.1, "low": 0.05, "high": 0.2,
        "p": 0.004,
    }  # fmt: skip
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "differences over 9 speakers: better (CCC +0.100 (+0.050 to +0.200), p = 0.004)."),
        ({"difference": -0.1, "low": -0.2, "high": -0.05}, ": worse (CCC"),
        ({"measure": "mse"}, ": worse (MSE +0.100"),
        (
            {"measure": "mse", "difference": -0.1, "low": -0.2, "high": -0.05},
            f": better (MSE {MINUS}0.100",
        ),
        ({"low": -0.01}, ": not to be told apart (CCC"),
        ({"low": 0.0}, ": not to be told apart (CCC"),
        ({"p": 0.2}, "better by the interval, not by the swap test (CCC"),
        ({"p": 0.0004}, "p < 0.001)."),
        ({"p": np.nan}, "(+0.050 to +0.200), p undefined)."),
    ],
)
def test_a_comparison_says_what_its_interval_does(changes: dict[str, Any], words: str) -> None:
    said = compared("A", "B", "arousal", [row(**changes)])
    assert said.startswith("Arousal: A against B, ")
    assert words in said
    assert ("not by the swap" in said) == (changes.get("p") == 0.2)
    assert "nan" not in said.lower()


def test_measures_that_agree_are_told_together_and_others_apart() -> None:
    mse = row(measure="mse", difference=-0.2, low=-0.3, high=-0.1)
    both = compared("A", "B", "arousal", [mse, row()])
    assert both.count("better") == 1
    assert "MSE" in both
    assert "; CCC" in both
    apart = compared("A", "B", "arousal", [{**mse, "high": 0.1}, row()])
    assert "not to be told apart (MSE" in apart
    assert "), but better (CCC" in apart
    assert "is undefined" in compared("A", "B", "arousal", [])


def test_sentences_of_permutations_comparisons_and_trends() -> None:
    trend = {"features": "gate", "p": 0.01, "wilcoxon_p": 0.01, "speakers": 9}
    tables = {
        "comparisons": pd.DataFrame([row(), row(difference=np.nan), row(measure="ccc_pooled")]),
        "trends": pd.DataFrame(
            [
                {"target": "valence", "slope": 0.2, "low": 0.1, "high": 0.3, **trend},
                {"target": "arousal", "slope": -0.2, "low": -0.3, "high": -0.1, **trend},
                {"target": "power", "slope": -0.2, "low": -0.3, "high": 0.1, **trend},
                {"target": "none", "slope": np.nan, "low": np.nan, "high": np.nan, **trend},
                {"target": "valence - arousal", "slope": 0.4, "low": 0.2, "high": 0.5, **trend},
                {"target": "valence - power", "slope": 0.4, "low": -0.2, "high": 0.5, **trend},
            ]
        ),
        "permutations": pd.DataFrame(
            [
                {"target": "arousal", "feature_set": "A", "measure": measure, "observed": 0.5,
                 "null_low": -0.1, "null_high": 0.1, "p": p, "permutations": 1000}
                for measure, p in (("ccc", 0.000999), ("ccc", np.nan), ("mse", 0.1))
            ]
        ),
    }  # fmt: skip
    assert statements(tables)[1].startswith("From the first layer")  # A and B are no headline
    *said, last = statements(tables, headlines=[Pair("A", "B")])
    assert len(said) == 7
    assert last == INTERVALS
    assert sum("A reaches a CCC of 0.500" in one for one in said) == 1
    assert said[0].endswith(f"reach {MINUS}0.100 to +0.100 the same way (p < 0.001).")
    assert "better (CCC" in said[1]
    assert "it rises towards the text (gate)." in said[2]
    assert "it falls towards the text (gate)." in said[3]
    assert "neither end is clearly better (gate)." in said[4]
    assert said[5].endswith("against that of arousal (gate).")
    assert said[6].endswith("against that of power, not to be told from none (gate).")
    assert statements({}) == []


def test_a_trend_that_its_test_does_not_see_is_hedged() -> None:
    trend = {"features": "gate", "slope": -0.2, "low": -0.3, "high": -0.1}
    for target, end in (
        ("arousal", ": it falls towards the text{} (gate)."),
        ("valence - arousal", ", against that of arousal{} (gate)."),
    ):
        for p, doubt in ((0.43, " by the interval, not by the t test"), (0.01, "")):
            (said, _) = statements({"trends": pd.DataFrame([{**trend, "target": target, "p": p}])})
            comma = "," if doubt and " - " in target else ""
            assert said.endswith(end.format(comma + doubt))
            assert f"({MINUS}0.300 to {MINUS}0.100), p = {p:.3f}" in said


def test_sentences_of_maps() -> None:
    thresholds = {
        "target": "arousal", "defined": 1920, "significant": 1500, "speakers": 10,
        "covariates": "", "partial_significant": 3, "permutations": 0, "exceeding": 0,
        "threshold": np.nan,
    }  # fmt: skip
    maps = pd.DataFrame(
        {"target": "arousal", "layer": [0, 1, 2], "unit": [5, 6, 7], "r": [0.1, -0.8, np.nan],
         "low": [0.0, -0.9, np.nan], "high": [0.2, -0.7, np.nan]}
    )  # fmt: skip
    one = {"thresholds": pd.DataFrame([thresholds]), "maps": maps}
    (said, _) = statements(one)
    assert "1,500 of 1,920 units follow arousal (q < 0.05, random effects over 10 speakers)" in said
    assert f"the strongest r is {MINUS}0.800 ({MINUS}0.900 to {MINUS}0.700)" in said
    assert ", unit 6 of layer 1." in said
    assert "Given" not in said
    assert "shuffled" not in said
    more = {**thresholds, "covariates": "duration", "permutations": 99, "threshold": 0.3}
    (said, _) = statements({**one, "thresholds": pd.DataFrame([more])})
    assert "Given duration, 3 still do." in said
    assert "0 units exceed the largest |r within speakers| that shuffled labels reach" in said
    assert "99 permutations (0.300)" in said
    for changes in ({"permutations": 19}, {"permutations": 0}, {"threshold": np.nan}):
        (said, _) = statements({**one, "thresholds": pd.DataFrame([{**more, **changes}])})
        assert "shuffled" not in said  # of fewer than 20, none can be below 5 %
    alone = maps.assign(low=np.nan, high=np.nan)
    (said, _) = statements({"thresholds": one["thresholds"], "maps": alone})
    assert "(too few speakers for an interval)" in said
    plain = maps.drop(columns=["layer", "unit"])
    (said, _) = statements({"thresholds": one["thresholds"], "maps": plain})
    assert said.endswith(f"to {MINUS}0.700).")


def test_sentences_of_speakers() -> None:
    verdicts = ["shared", "own", "noisy", "shared"]
    table = pd.DataFrame({"target": "arousal", "verdict": verdicts})
    (said, _) = statements({"stability": table})
    assert said.startswith("Arousal: 2 of 4 speakers show the pattern of the others, 1 a reliable")
    assert "of 1 the correlations are too noisy" in said
    assert "judged" not in said
    more = pd.DataFrame({"target": "arousal", "verdict": [*verdicts, "undefined", "undefined"]})
    (said, _) = statements({"stability": more})
    assert said.startswith("Arousal: 2 of 4 speakers show the pattern of the others, 1 a reliable")
    assert "tell. 2 more cannot be judged, " in said
    (said, _) = statements({"stability": more.assign(verdict="undefined")})
    assert said.startswith("Arousal: no speaker can be judged, ")


def test_of_a_name_only_the_first_letter_is_raised() -> None:
    assert [raised(name) for name in ("emoAct", "VAD", "", "a b")] == ["EmoAct", "VAD", "", "A b"]
    assert compared("A", "B", "emoAct", [row()]).startswith("EmoAct: ")
    assert compared("A", "B", "emoAct", []).startswith("EmoAct: ")
    stability = pd.DataFrame({"target": ["EmoAct"], "verdict": "own"})
    assert statements({"stability": stability})[0].startswith("EmoAct: ")


def test_numbers_are_written_for_people() -> None:
    assert number(-0.5) == f"{MINUS}0.500"
    assert number(-0.0) == number(-0.0001) == "+0.000"
    assert number(0.12345, 2, signed=False) == "0.12"
    assert number(np.nan) == number(np.inf) == "undefined"
    assert (probability(0.0009), probability(0.001)) == ("p < 0.001", "p = 0.001")
    assert "nan" not in span(np.nan, 0.1)


def test_an_end_beside_zero_is_not_printed_as_zero() -> None:
    assert span(-0.166, -0.0004) == f"({MINUS}0.166 to {MINUS}0.0004)"
    assert span(0.000012, 0.1) == "(+0.00001 to +0.100)"
    assert span(-0.2, 0.0) == f"({MINUS}0.200 to +0.000)"
    assert span(-1e-9, -0.0006) == f"(+0.000 to {MINUS}0.001)"
    text = compared("A", "B", "arousal", [row(difference=-0.05, low=-0.1, high=-0.0004)])
    assert f": worse (CCC {MINUS}0.050 ({MINUS}0.100 to {MINUS}0.0004), p = 0.004)." in text
