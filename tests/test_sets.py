from __future__ import annotations

import numpy as np
import pytest
from fake_store import FakeStore, coords_of, corpus, gcu_view
from hypothesis import given
from hypothesis import strategies as st

from featurestore.analysis.sets import Block, Term, join, parse
from featurestore.errors import AnalysisError


def test_an_expression_says_view_capture_statistic_and_layers() -> None:
    assert parse("gcu.gate.mean[0:3]") == (Term(Block("gcu", "gate", "mean"), slice(0, 3)),)
    assert parse("gcu-1a2b.max") == (Term(Block("gcu-1a2b", None, "max")),)
    assert parse("network.skip[-3:] + egemaps") == (
        Term(Block("network", "skip", "mean"), slice(-3, None)),
        Term(Block("egemaps")),
    )
    assert parse("mfcc") == (Term(Block("mfcc", None, "mean")), Term(Block("mfcc", None, "std")))
    assert parse("mfcc.max") == (Term(Block("mfcc", None, "max")),)
    assert parse("first3+last3") == parse("network.mean[:3] + network.mean[-3:]")
    assert parse("network[4]") == parse("network[4:5]")
    assert parse("network[-1]")[0].layers == slice(-1, None)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "is no term"),
        ("gcu..mean", "is no term"),
        ("gcu +", "'' is no term"),
        ("gcu.gate.mean.std", "'std' in"),
        ("gcu.gate.skip", "'skip' in"),
        ("gcu[]", "no range of layers"),
        ("gcu[a:b]", "no range of layers"),
        ("gcu[1:2:3]", "no range of layers"),
        ("gcu[1 2]", "no range of layers"),
        ("egemaps.mean", "neither captures nor layers"),
        ("mfcc[0:3]", "MFCC has no layers"),
        ("gcu.mean + gcu.mean", "same term twice"),
    ],
)
def test_what_is_no_expression_is_refused_with_what_is_one(expression: str, said: str) -> None:
    with pytest.raises(AnalysisError) as error:
        parse(expression)
    assert said in str(error.value)
    assert repr(expression) in str(error.value)


@given(st.text(alphabet="gcu.mean[0:3]+- mfcegps", max_size=20))
def test_any_text_is_an_expression_or_a_clear_error(text: str) -> None:
    try:
        said = repr(parse(text))
    except AnalysisError as error:
        said = str(error)
    assert said.startswith("(Term(") or repr(text) in said


def test_sums_are_joined_by_id_and_each_array_is_read_once() -> None:
    store = corpus()
    joined = join(store, ["gcu.mean[1] + egemaps", "gcu.max + gcu.mean", "mfcc", None])
    assert joined.ids.tolist() == sorted(joined.ids) == [f"u{i:04d}" for i in range(2, 80)]
    assert joined.notes == ("2 of 80 utterances are not in every view and are left out.",)
    gate = store.pooled("gcu")["gate"].to_numpy()[:, 2:]
    functionals = store.features("egemaps").to_numpy()[::-1]
    both = joined.matrix("gcu.mean[1] + egemaps")
    np.testing.assert_array_equal(both, np.concatenate([gate[0, :, 1], functionals], axis=1))
    union = joined.matrix("gcu.max + gcu.mean")
    np.testing.assert_array_equal(union[:, :48], gate[3].reshape(78, -1))
    np.testing.assert_array_equal(union[:, 48:], gate[0].reshape(78, -1))
    assert joined.matrix("mfcc").shape == (78, 40)
    assert joined.matrix(None).shape == (78, 0)
    assert len(joined.blocks) == 5


def test_views_that_overlap_leave_out_what_either_lacks() -> None:
    store = corpus()
    some = FakeStore(
        pooled={"gcu-1": store.pooled("gcu").isel(utterance=slice(0, 50))},
        features={"egemaps-v02": store.features("egemaps").isel(utterance=slice(0, 60))},
    )
    joined = join(some, ["gcu.mean + egemaps"])
    held = {*some.pooled("gcu")["id"].values.tolist()}
    heard = {*some.features("egemaps")["id"].values.tolist()}
    left, both = len(held ^ heard), len(held | heard)
    assert left > max(len(held), len(heard)) - len(held & heard)
    assert joined.notes == (f"{left} of {both} utterances are not in every view and are left out.",)


def test_names_that_are_not_in_the_store_are_errors() -> None:
    store = corpus()
    for expression, said in (
        ("gcu.skip", "holds no capture 'skip'"),
        ("gcu.gate[6:9]", "holds none of the 6 layers"),
    ):
        with pytest.raises(AnalysisError, match=said):
            join(store, [expression]).matrix(expression)
    with pytest.raises(AnalysisError, match="nothing to read"):
        join(store, [None])
    narrow = store.pooled("mfcc").isel(statistic=[0])
    with pytest.raises(AnalysisError, match=r"no statistic 'std', only: mean"):
        join(FakeStore(pooled={"mfcc-1": narrow}), ["mfcc"])
    flat = FakeStore(pooled={"other-1": store.pooled("mfcc")})
    with pytest.raises(AnalysisError, match="this view has no layers"):
        join(flat, ["other[0:2]"]).matrix("other[0:2]")


def test_two_networks_of_one_store() -> None:
    rng = np.random.default_rng(0)
    coords = coords_of(9, speakers=["a", "b", "c"] * 3, labels={})
    means = [rng.normal(size=(9, 2, 3)) for _ in range(2)]
    views = {f"gcu-{i}": gcu_view(mean, coords) for i, mean in enumerate(means)}
    joined = join(FakeStore(pooled=views), ["gcu-0 + gcu-1[1]"])
    expected = np.concatenate([means[0].reshape(9, -1), means[1][:, 1]], axis=1)
    np.testing.assert_allclose(joined.matrix("gcu-0 + gcu-1[1]"), expected, rtol=1e-6)
