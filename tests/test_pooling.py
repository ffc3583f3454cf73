"""Random effects, false discovery and bootstrap intervals against statsmodels and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests

from featurestore.analysis.pooling import bootstrap_interval, false_discovery, pool_speakers


def speakers(spread: float, seed: int = 0, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = rng.integers(10, 80, count).astype(float)
    z = (
        0.4
        + spread * rng.normal(size=(count, 5))
        + rng.normal(size=(count, 5)) / np.sqrt(n - 3)[:, None]
    )
    return np.tanh(z), n[:, None]


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_random_effects_are_those_of_statsmodels(spread: float) -> None:
    r, n = speakers(spread)
    found = pool_speakers(r, n=n)
    for feature in range(5):
        z, variance = np.arctanh(r[:, feature]), 1 / (n[:, 0] - 3)
        with np.errstate(invalid="ignore"):
            oracle = combine_effects(z, variance, method_re="dl")
        assert found.tau2[feature] == pytest.approx(max(0.0, oracle.tau2), abs=1e-12)
        assert found.i2[feature] == pytest.approx(max(0.0, oracle.i2), abs=1e-12)
        # Where speakers differ less than their errors, statsmodels keeps a negative variance; the
        # usual estimate is 0, which is its fixed effect.
        model = "random effect" if oracle.tau2 > 0 else "fixed effect"
        with np.errstate(invalid="ignore"):
            frame = oracle.summary_frame()
        mean = frame.loc[model, "eff"]
        assert np.arctanh(found.r[feature]) == pytest.approx(mean, rel=1e-10)
        # The wider of the plain standard error and that of Knapp and Hartung, and Student's t.
        error = max(frame.loc[model, "sd_eff"], frame.loc[f"{model} wls", "sd_eff"])
        half = stats.t.ppf(0.975, 7) * error
        assert np.arctanh(found.low[feature]) == pytest.approx(mean - half, rel=1e-9)
        assert np.arctanh(found.high[feature]) == pytest.approx(mean + half, rel=1e-9)
        assert found.p[feature] == pytest.approx(2 * stats.t.sf(abs(mean / error), 7), rel=1e-9)
        assert found.heterogeneity_p[feature] == pytest.approx(
            oracle.test_homogeneity().pvalue, rel=1e-9
        )


def test_speakers_that_say_nothing_do_not_count() -> None:
    r = np.array([[0.5, np.nan, np.nan], [0.4, 0.3, np.nan], [0.9, 0.9, np.nan]])
    found = pool_speakers(r, n=np.array([[40.0], [30.0], [3.0]]))
    assert found.speakers.tolist() == [2, 1, 0]
    # One speaker: the interval of its own r, and no heterogeneity.
    half = stats.norm.ppf(0.975) / np.sqrt(27)
    assert found.low[1] == pytest.approx(np.tanh(np.arctanh(0.3) - half))
    assert np.isnan(found.i2[1])
    assert np.isnan([found.r[2], found.p[2], found.low[2], found.agreement[2]]).all()
    assert found.agreement[0] == 1


def test_an_r_of_one_is_finite_and_beyond_doubt() -> None:
    found = pool_speakers(np.ones((3, 1)), n=np.full((3, 1), 20.0))
    assert found.r[0] == pytest.approx(1, abs=1e-6)
    assert found.p[0] < 1e-2


def test_opposite_speakers_are_heterogeneous_not_correlated() -> None:
    signs = np.array([1, -1, 1, -1, 1, -1])[:, None]
    found = pool_speakers(0.6 * signs, n=np.full((6, 1), 50.0))
    assert found.r[0] == pytest.approx(0, abs=1e-12)
    assert found.p[0] > 0.9
    assert found.i2[0] > 0.9
    assert found.heterogeneity_p[0] < 1e-10
    assert found.low[0] < -0.5 < 0.5 < found.high[0]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1, max_size=60))
def test_false_discovery_is_that_of_statsmodels(p: list[float]) -> None:
    values = np.array(p)
    q = false_discovery(values)
    known = ~np.isnan(values)
    assert np.isnan(q[~known]).all()
    if known.any():
        oracle = multipletests(values[known], method="fdr_bh")[1]
        np.testing.assert_allclose(q[known], oracle, rtol=1e-12, atol=1e-300)


def test_a_resample_that_is_the_statistic_up_to_rounding_is_neither_above_nor_below() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(6, 40))
    rows = rng.integers(0, 6, (200, 6))
    rows[:20] = [rng.permutation(6) for _ in range(20)]  # everybody, added up in another order
    found, left_out = data.mean(axis=0), np.stack([np.delete(data, i, 0).mean(0) for i in range(6)])
    drawn = data[rows].mean(axis=1)
    expected = bootstrap_interval(drawn, found=found, left_out=left_out)
    for shift in (-1e-15, 1e-15):
        near = drawn.copy()
        near[:20] = found * (1 + shift)
        for a, b in zip(bootstrap_interval(near, found=found, left_out=left_out), expected,
                        strict=True):  # fmt: skip
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_bootstrap_intervals_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    data = rng.exponential(size=(12, 3))
    drawn = data[rng.integers(0, 12, (100_000, 12))].mean(axis=1)
    left_out = (data.sum(axis=0) - data) / 11
    low, high = bootstrap_interval(drawn, found=data.mean(axis=0), left_out=left_out)
    for feature in range(3):
        oracle = stats.bootstrap(
            (data[:, feature],),
            np.mean,
            n_resamples=100_000,
            method="BCa",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert low[feature] == pytest.approx(oracle.low, abs=0.04)
        assert high[feature] == pytest.approx(oracle.high, abs=0.04)


def test_an_interval_is_nan_where_there_is_none_and_a_point_where_nothing_varies() -> None:
    drawn = np.array([[1.0, np.nan, 2.0]] * 9)
    left_out = np.array([[1.0, np.nan, 2.0]] * 4)
    low, high = bootstrap_interval(drawn, found=np.array([1.0, np.nan, 2.0]), left_out=left_out)
    np.testing.assert_array_equal(low, [1.0, np.nan, 2.0])
    np.testing.assert_array_equal(high, low)
    one = bootstrap_interval(drawn, found=np.ones(3), left_out=left_out[:1])
    assert np.isnan(one).all()
