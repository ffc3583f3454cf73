from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from fake_store import FakeStore, coords_of, corpus, gcu_view, isel, with_coords, without
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from featurestore.analysis.correlation import chance_abs_r, correlate, correlate_all, two_sided_p
from featurestore.errors import AnalysisError


def small(
    x: np.ndarray, y: np.ndarray, *, chunk: int = 7, speakers: list[str] | None = None
) -> FakeStore:
    """A store of (utterance, layer, unit) means with one label."""
    coords = coords_of(len(x), speakers=speakers or ["a"] * len(x), labels={"arousal": y})
    return FakeStore(pooled={"gcu-0": gcu_view(x, coords, chunk=chunk)})


def scipy_pearson(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = stats.pearsonr(x.astype(np.float64), y)
    return found.statistic, found.pvalue


def test_by_speaker_equals_scipy() -> None:
    store = corpus()
    found = correlate(store, target="arousal", by="speaker")
    assert found["r"].dims == found["p"].dims == found["n"].dims == ("speaker", "layer", "unit")
    assert found["speaker"].values.tolist() == ["s0", "s1", "s2", "s3", "s4"]
    data = store.pooled("gcu")
    for speaker in ("s0", "s3"):
        mine = (data["speaker"] == speaker) & np.isfinite(data["arousal"])
        one = data.isel(utterance=np.flatnonzero(mine))
        x, y = one["gate"].sel(statistic="mean").values, one["arousal"].values
        for layer, unit in np.ndindex(*x.shape[1:]):
            r, p = scipy_pearson(x[:, layer, unit], y)
            here = found.sel(speaker=speaker).isel(layer=layer, unit=unit)
            assert here["n"].item() == len(y)
            np.testing.assert_allclose(here["r"].item(), r, rtol=1e-10, atol=1e-14)
            np.testing.assert_allclose(here["p"].item(), p, rtol=1e-9)
    assert found["n"].dtype == np.int64
    assert np.isnan(found["r"].isel(layer=4, unit=5)).all()
    assert np.isnan(found["p"].isel(layer=4, unit=5)).all()
    assert found.attrs["target"] == "arousal"
    assert found["layer_name"].values[0] == "block_0_1"


def test_pooled_equals_corrcoef_and_finds_the_driven_unit() -> None:
    store = corpus()
    found = correlate(store, target="arousal")
    assert found["r"].dims == ("layer", "unit")
    data = store.pooled("gcu").isel(
        utterance=np.flatnonzero(np.isfinite(store.pooled("gcu")["arousal"]))
    )
    x = data["gate"].sel(statistic="mean").values.reshape(data.sizes["utterance"], -1)
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(x.T.astype(np.float64), data["arousal"].values)[-1, :-1]
    expected[4 * 8 + 5] = np.nan
    np.testing.assert_allclose(found["r"].values.reshape(-1), expected, rtol=1e-10)
    assert abs(found["r"]).argmax(...)["unit"].item() == 2
    assert abs(found["r"]).argmax(...)["layer"].item() == 1


def test_several_targets_are_as_one_by_one() -> None:
    store = corpus()
    together = correlate_all(store, targets=("valence", "arousal"), by="speaker")
    for target, found in together.items():
        assert found.identical(correlate(store, target=target, by="speaker"))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 99))
def test_chunks_and_order_do_not_matter(chunk: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 2, 3)), rng.normal(size=40)
    who = [f"s{i}" for i in rng.integers(0, 4, 40)]
    once = correlate(small(x, y, speakers=who, chunk=40), by="speaker")
    mixed = isel(small(x, y, speakers=who, chunk=chunk), rng.permutation(40))
    again = correlate(mixed, by="speaker")
    for name in ("r", "p", "n"):
        np.testing.assert_allclose(again[name], once[name], rtol=1e-9, atol=1e-12)


def test_nearly_constant_units_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=500)
    x = (0.9 + 1e-6 * rng.normal(size=(500, 1, 4))).astype(np.float32)
    found = correlate(small(x, y, chunk=13))["r"].values[0]
    # As in exact arithmetic: the units' steps of 2**-24 counted in whole numbers.
    steps = (x[:, 0].astype(np.float64) * 2**24).astype(np.int64)
    steps -= steps[0]
    expected = [np.corrcoef(steps[:, unit].astype(np.float64), y)[0, 1] for unit in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 10, 1000])
def test_small_groups_are_as_scipy_has_them(count: int) -> None:
    rng = np.random.default_rng(count)
    x, y = rng.normal(size=(count, 1, 1)), rng.normal(size=count)
    found = correlate(small(x, y)).isel(layer=0, unit=0)
    assert found["n"].item() == count
    if count < 2:
        assert np.isnan(found["r"].item())
        assert np.isnan(found["p"].item())
    else:
        r, p = scipy_pearson(x[:, 0, 0].astype(np.float32), y)
        np.testing.assert_allclose([found["r"].item(), found["p"].item()], [r, p], rtol=1e-9)


def test_undefined_is_nan_and_never_zero() -> None:
    x = np.stack([np.full(9, 0.1), np.arange(9.0)], axis=1)[:, None]
    constant = correlate(small(x, np.full(9, 7 / 3), chunk=2))
    assert np.isnan(constant["r"]).all()
    assert np.isnan(constant["p"]).all()
    varied = correlate(small(x, np.arange(9.0), chunk=2))["r"].values[0]
    assert np.isnan(varied[0])
    assert varied[1] == pytest.approx(1.0, abs=1e-15)


def test_missing_labels_do_not_count_and_unlabelled_speakers_make_no_row() -> None:
    y = np.array([1.0, 2, 4, np.nan, np.nan, np.nan])
    x = np.arange(6.0).reshape(6, 1, 1)
    found = correlate(small(x, y, speakers=["a", "a", "a", "a", "b", ""]), by="speaker")
    assert found["speaker"].values.tolist() == ["a"]
    assert found["n"].item() == 3


def test_any_text_or_whole_number_column_makes_groups() -> None:
    store = corpus()
    by_emotion = correlate(store, by="emotion")
    assert by_emotion["r"].dims == ("emotion", "layer", "unit")
    assert by_emotion["emotion"].values.tolist() == ["ang", "neu", "sad", "xxx"]
    sessions = np.arange(80) % 3 + 1.0
    sessions[0] = np.nan
    found = correlate(with_coords(store, session=sessions), by="session")
    assert found["session"].values.tolist() == [1, 2, 3]
    assert found["n"].isel(layer=0, unit=0).sum() == 78
    with pytest.raises(AnalysisError, match="whole numbers"):
        correlate(store, by="valence")
    with pytest.raises(AnalysisError, match=r"'sex'.*speaker"):
        correlate(store, by="sex")


def test_other_views_captures_and_statistics() -> None:
    store = corpus()
    found = correlate(store, view="mfcc", capture="mfcc")
    assert found["r"].dims == ("coefficient",)
    assert np.argmax(np.abs(found["r"].values)) == 0
    assert not np.allclose(
        correlate(store, statistic="std")["r"], correlate(store)["r"], equal_nan=True
    )
    with pytest.raises(AnalysisError, match=r"'skip'.*gate"):
        correlate(store, capture="skip")
    with pytest.raises(AnalysisError, match="median"):
        correlate(store, statistic="median")  # type: ignore[arg-type]


def test_errors_say_what_there_is() -> None:
    store = corpus()
    with pytest.raises(AnalysisError, match=r"'dominance'.*arousal, valence"):
        correlate(store, target="dominance")
    with pytest.raises(AnalysisError, match=r"'emotion' is text \(for example '(ang|xxx|neu|sad)'"):
        correlate(store, target="emotion")
    unknown = with_coords(store, speaker=np.array(["a"] * 79 + [""], dtype=object))
    with pytest.raises(AnalysisError, match=r"1 of 80 .*'u0079'.*'speaker' column"):
        correlate(unknown, by="speaker")
    with pytest.raises(AnalysisError, match="at least one"):
        correlate_all(store, targets=())
    assert correlate(unknown)["n"].values[0, 0] == 79
    assert correlate(without(store, "mfcc"))["r"].notnull().any()


def test_p_keeps_digits_in_the_far_tail() -> None:
    r = np.array([0.0, 0.5, 0.99, 1.0, -1.0, np.nan])
    found = two_sided_p(r, n=np.full(6, 200))
    expected = [1.0, 2 * stats.beta(99, 99, loc=-1, scale=2).sf(0.5)]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-10)
    assert 0 < found[2] < 1e-100
    assert found[3] == found[4] == 0
    assert np.isnan(found[5])


def test_chance_is_the_mean_of_unrelated_values() -> None:
    rng = np.random.default_rng(0)
    drawn = [abs(np.corrcoef(*rng.normal(size=(2, 12)))[0, 1]) for _ in range(4000)]
    assert abs(np.mean(drawn) - chance_abs_r(12)) < 0.01
    assert chance_abs_r(2) == pytest.approx(1)
    assert math.isnan(chance_abs_r(1))
