"""Maps with inference against scipy, numpy and statsmodels, and planted truths that they find."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from fake_store import FakeStore, coords_of, egemaps_view, gcu_view
from scipy import stats

from featurestore.analysis.confounds import by_layer, confound_map
from featurestore.analysis.covariates import available, covariates
from featurestore.analysis.features import AnalysisWarning, utterance_table
from featurestore.analysis.maps import correlation_maps
from featurestore.analysis.pooling import false_discovery, pool_speakers
from featurestore.errors import AnalysisError

LAYERS, UNITS = 5, 6
CAUSE, CONFOUNDED, FLIPPED, DEAD = (1, 2), (3, 4), (2, 5), (0, 0)


def planted(*, speakers: int = 10, each: int = 40, seed: int = 0, signal: float = 1.0) -> FakeStore:
    """A unit that follows arousal, one that follows loudness, one with a sign for each speaker."""
    rng = np.random.default_rng(seed)
    count = speakers * each
    who = np.repeat(np.arange(speakers), each)
    loudness = rng.normal(size=count) + who / 3
    own = rng.normal(size=count)
    arousal = signal * 0.8 * loudness + own + 0.3 * who  # loud voices are rated as aroused
    mean = (
        rng.normal(size=(count, LAYERS, UNITS))
        + 0.5 * rng.normal(size=(speakers, LAYERS, UNITS))[who]
    )
    mean[:, *CAUSE] += signal * 0.7 * own
    mean[:, *CONFOUNDED] += signal * 1.5 * loudness
    mean[:, *FLIPPED] += signal * np.where(who % 2, 1.0, -1.0) * arousal
    mean[:, *DEAD] = 0.25
    valence = rng.normal(size=count)
    valence[5] = np.nan
    labels = {
        "arousal": arousal,
        "valence": valence,
        "sex": np.where(who % 2, "f", "m").astype(object),
    }
    coords = coords_of(count, speakers=[f"s{i}" for i in who], labels=labels)
    functionals = np.stack([rng.normal(size=count), loudness], axis=1)
    view = egemaps_view(functionals, coords).assign_coords(
        feature=["F0semitoneFrom27.5Hz_sma3nz_amean", "loudness_sma3_amean"]
    )
    return FakeStore(
        pooled={"gcu-1": gcu_view(mean, coords, chunk=37)},
        features={"egemaps-v02": view.isel(utterance=slice(None, None, -1))},
    )


def at(maps: pd.DataFrame, unit: tuple[int, int], target: str = "arousal") -> pd.Series:
    rows = maps[(maps["target"] == target) & (maps["layer"] == unit[0]) & (maps["unit"] == unit[1])]
    assert len(rows) == 1
    return rows.iloc[0]


def arrays(store: FakeStore) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    data = store.pooled("gcu")
    X = data["gate"].sel(statistic="mean").to_numpy().astype(np.float64)
    loudness = store.features("egemaps").to_numpy()[::-1, 1].astype(np.float64)
    return X, data["arousal"].to_numpy(), data["speaker"].to_numpy().astype(str), loudness


def test_planted_truths_are_found_and_a_confound_is_rejected() -> None:
    found = correlation_maps(planted(), targets=("arousal", "valence"), partial=("loudness",))
    cause, confounded, flipped = (at(found.maps, u) for u in (CAUSE, CONFOUNDED, FLIPPED))
    for row in (cause, confounded):
        assert row["q"] < 1e-3
        assert row["p_max"] < 0.05
        assert row["low"] > 0
        assert row["within_low"] > 0
    # Given loudness, only the unit that follows arousal itself is left.
    assert cause["partial_q"] < 1e-3
    assert confounded["partial_q"] > 0.05
    assert confounded["partial_low"] < 0 < confounded["partial_high"]
    # The sign is each speaker's own: no common r, and speakers that differ beyond doubt.
    assert flipped["q"] > 0.05
    assert flipped["heterogeneity_q"] < 1e-6
    assert flipped["i2"] > 0.9
    assert flipped["agreement"] == 0.5
    others = found.maps[found.maps["target"] == "valence"]
    assert (others["q"].dropna() > 0.01).all()
    assert "valence: 1 of 400 utterances have no label." in found.notes
    for target in ("arousal", "valence"):
        said = f"{target}: 1 units are constant within every speaker and have no correlation."
        assert said in found.notes


def test_a_map_is_what_scipy_numpy_and_statsmodels_say() -> None:
    store = planted(speakers=4, each=15)
    found = correlation_maps(
        store, targets=("arousal",), partial=("loudness", "duration"), permutations=0
    )
    X, y, who, loudness = arrays(store)
    duration = store.pooled("gcu")["duration_s"].to_numpy()
    names = np.unique(who)
    for unit in itertools.product(range(LAYERS), range(UNITS)):
        if unit == DEAD:
            continue
        row, x = at(found.maps, unit), X[:, *unit]
        r = [stats.pearsonr(x[who == s], y[who == s]).statistic for s in names]
        pooled = pool_speakers(np.array(r)[:, None], n=np.full((4, 1), 15.0))
        for column in ("r", "low", "high", "p", "tau2", "i2", "agreement"):
            assert row[column] == pytest.approx(getattr(pooled, column)[0], rel=1e-8)
        centred = [
            np.concatenate([v[who == s] - v[who == s].mean() for s in names]) for v in (x, y)
        ]
        assert row["r_within"] == pytest.approx(np.corrcoef(*centred)[0, 1], rel=1e-8)
        means = [[v[who == s].mean() for s in names] for v in (x, y)]
        assert row["r_between"] == pytest.approx(np.corrcoef(*means)[0, 1], rel=1e-8)
        assert row["r_all"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-8)
        partial = []
        for s in names:
            Z = sm.add_constant(np.stack([loudness, duration], axis=1)[who == s])
            left = [sm.OLS(v[who == s], Z).fit().resid for v in (x, y)]
            partial.append(np.corrcoef(*left)[0, 1])
        given = pool_speakers(np.array(partial)[:, None], n=np.full((4, 1), 13.0))
        for column in ("r", "low", "high", "p"):
            assert row[f"partial_{column}"] == pytest.approx(getattr(given, column)[0], rel=1e-7)
    np.testing.assert_allclose(found.maps["q"], false_discovery(found.maps["p"].to_numpy()))
    np.testing.assert_allclose(
        found.maps["partial_q"], false_discovery(found.maps["partial_p"].to_numpy())
    )


def test_a_partial_p_is_that_of_a_regression() -> None:
    """With one speaker, the partial r has the t of statsmodels' coefficient."""
    store = planted(speakers=1, each=60)
    found = correlation_maps(store, targets=("arousal",), partial=("loudness",), permutations=0)
    X, y, _, loudness = arrays(store)
    for unit in (CAUSE, CONFOUNDED, (4, 1)):
        fit = sm.OLS(y, sm.add_constant(np.stack([X[:, *unit], loudness], axis=1))).fit()
        t = fit.tvalues[1]
        r = t / np.sqrt(t**2 + fit.df_resid)
        assert at(found.maps, unit)["partial_r"] == pytest.approx(r, rel=1e-8)


def test_permutations_are_within_speakers_and_p_counts_them() -> None:
    store = planted(speakers=3, each=12, signal=0.4)
    found = correlation_maps(store, targets=("arousal",), permutations=400, seed=3)
    X, y, who, _ = arrays(store)
    flat = X.reshape(36, -1)
    rng = np.random.default_rng(0)

    def within(values: np.ndarray) -> np.ndarray:
        off = values.astype(np.float64)
        for s in np.unique(who):
            off[who == s] -= off[who == s].mean(axis=0)
        return off

    x = within(flat)
    norm = np.sqrt((x**2).sum(axis=0))
    largest = []
    for _ in range(2000):
        mixed = y.copy()
        for s in np.unique(who):
            mixed[who == s] = rng.permutation(mixed[who == s])
        off = within(mixed)
        r = np.abs(off @ x) / np.where(norm > 0, norm, np.inf) / np.sqrt(off @ off)
        largest.append(r.max())
    threshold = found.thresholds["threshold"].iloc[0]
    assert threshold == pytest.approx(np.quantile(largest, 0.95), abs=0.03)
    for row in found.maps.dropna(subset="r_within").itertuples():
        expected = np.mean(np.array(largest) >= abs(row.r_within))
        assert row.p_max == pytest.approx(expected, abs=0.1)
    assert found.maps["p_max"].min() >= 1 / 401


@pytest.mark.long
def test_without_a_signal_maps_are_empty_as_often_as_promised() -> None:
    """500 maps of noise: any q below 0.05 in at most 5 %, and 3 standard errors of that."""
    rng = np.random.default_rng(0)
    speakers, each, maps = 10, 24, 500
    false, false_partial = 0, 0
    who = np.repeat(np.arange(speakers), each)
    for trial in range(maps):
        mean = rng.normal(size=(speakers * each, 4, 48))
        # Units of a network are correlated, and each speaker has a level of its own.
        mean += rng.normal(size=(speakers * each, 4, 1)) + rng.normal(size=(speakers, 4, 48))[who]
        y = rng.normal(size=speakers * each) + rng.normal(size=speakers)[who]
        coords = coords_of(speakers * each, speakers=[f"s{i}" for i in who], labels={"arousal": y})
        store = FakeStore(pooled={"gcu-1": gcu_view(mean, coords, chunk=240)})
        found = correlation_maps(
            store,
            targets=("arousal",),
            partial=("duration",),
            permutations=0,
            resamples=2,
            seed=trial,
        ).maps
        false += bool((found["q"] < 0.05).any())
        false_partial += bool((found["partial_q"] < 0.05).any())
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / maps)
    assert false / maps <= limit
    assert false_partial / maps <= limit


def test_what_is_undefined_is_nan_and_counted() -> None:
    store = planted(speakers=3, each=10)
    data = store.pooled("gcu")
    arousal = data["arousal"].to_numpy().copy()
    arousal[10:20] = np.nan  # no label for s1 at all
    arousal[20:28] = np.nan  # two utterances of s2
    constant = np.full(30, 7 / 3)
    pooled = data.assign_coords(arousal=("utterance", arousal), constant=("utterance", constant))
    store = FakeStore(pooled={"gcu-1": pooled})
    found = correlation_maps(store, targets=("arousal", "constant"), partial=("duration",))
    row = at(found.maps, CAUSE)
    assert row["speakers"] == 1
    assert row["n"] == 10  # of the one speaker whose r counts
    assert np.isfinite([row["r"], row["low"], row["p"], row["r_within"], row["r_all"]]).all()
    assert np.isnan(row["i2"])
    assert any("fewer than 4 utterances" in note and "s2" in note for note in found.notes)
    assert "arousal: no label for 1 speakers: s1." in found.notes
    assert "arousal: 18 of 30 utterances have no label." in found.notes
    flat = found.maps[found.maps["target"] == "constant"]
    assert flat[["r", "p", "q", "r_within", "r_all", "partial_r", "p_max"]].isna().all(axis=None)
    assert any("never changes" in note for note in found.notes)
    dead = at(found.maps, DEAD)
    assert dead[["r", "r_within", "r_between", "r_all", "q", "p_max"]].isna().all()
    threshold = found.thresholds.set_index("target").loc["constant"]
    assert (threshold["defined"], threshold["significant"]) == (0, 0)
    assert np.isnan(threshold["threshold"])


def test_stability_tells_shared_own_and_noisy_speakers_apart() -> None:
    rng = np.random.default_rng(0)
    speakers, each = 8, 60
    who = np.repeat(np.arange(speakers), each)
    y = rng.normal(size=speakers * each)
    pattern = rng.normal(size=(speakers, LAYERS, UNITS))
    pattern[:6] = pattern[0]  # six speakers share a pattern, one has its own, one has none
    pattern[7] = 0
    mean = rng.normal(size=(speakers * each, LAYERS, UNITS)) + y[:, None, None] * pattern[who]
    coords = coords_of(len(y), speakers=[f"s{i}" for i in who], labels={"arousal": y})
    store = FakeStore(pooled={"gcu-1": gcu_view(mean, coords)})
    found = correlation_maps(store, targets=("arousal",), partial=(), permutations=0).stability
    found = found.set_index("speaker")
    assert (found.loc[[f"s{i}" for i in range(6)], "verdict"] == "shared").all()
    assert found.loc["s6", "verdict"] == "own"
    assert found.loc["s7", "verdict"] == "noisy"
    assert (found.loc[[f"s{i}" for i in range(6)], "similarity"] > 0.9).all()
    assert found.loc["s6", "n"] == each
    assert found.loc["s0", "label_sd"] == pytest.approx(y[:each].std(ddof=1))
    r = [
        [stats.pearsonr(mean[who == 0, i, j], y[who == 0])[0] for j in range(UNITS)]
        for i in range(LAYERS)
    ]
    assert found.loc["s0", "mean_abs_r"] == pytest.approx(np.abs(r).mean(), rel=1e-5)
    assert found.loc["s0", "first_abs_r"] == pytest.approx(np.abs(r[:3]).mean(), rel=1e-5)


def test_speakers_of_few_utterances_decide_nothing_about_the_others() -> None:
    rng = np.random.default_rng(1)
    sizes = np.array([40] * 5 + [2, 5, 0])
    who = np.repeat(np.arange(8), sizes)
    y = rng.normal(size=len(who))
    mean = rng.normal(size=(len(who), LAYERS, 24)) + y[:, None, None] * rng.normal(
        size=(LAYERS, 24)
    )

    def verdicts(rows: np.ndarray, unlabelled: int | None = None) -> pd.DataFrame:
        labels = {"arousal": np.where(who[rows] == unlabelled, np.nan, y[rows])}
        coords = coords_of(len(rows), speakers=[f"s{i}" for i in who[rows]], labels=labels)
        one = FakeStore(pooled={"gcu-1": gcu_view(mean[rows], coords)})
        found = correlation_maps(one, targets=("arousal",), partial=(), permutations=0)
        return found.stability.set_index("speaker")

    alone, all_of_them = verdicts(np.flatnonzero(who < 5)), verdicts(np.arange(len(who)))
    many = [f"s{i}" for i in range(5)]
    assert (all_of_them.loc[many, "verdict"] == "shared").all()
    np.testing.assert_allclose(
        all_of_them.loc[many, "similarity"], alone.loc[many, "similarity"], atol=0.03
    )
    assert (all_of_them.loc[["s5", "s6"], "verdict"] == "undefined").all()
    assert np.isnan(all_of_them.loc["s5", "similarity"])  # every r of two utterances is 1
    # Nobody to compare with, and nobody reliable.
    assert verdicts(np.flatnonzero(who == 0))["verdict"].tolist() == ["undefined"]
    mean[who == 1] = rng.normal(size=(40, LAYERS, 24))
    two = verdicts(np.flatnonzero(who < 2))
    assert two.loc["s1", "verdict"] == "noisy"
    assert two.loc["s0", "verdict"] == ("undefined" if two.loc["s1", "reliability"] == 0 else "own")


def test_features_that_are_not_finite_leave_their_utterance_out_and_say_so() -> None:
    store = planted(speakers=6, each=20, signal=0.0)
    data = store.pooled("gcu").load()
    broken = data.copy(deep=True)
    broken["gate"][:, 7] = np.inf
    broken["gate"][:, 50, 2, 3] = np.nan
    whole = FakeStore(pooled={"gcu-1": broken.chunk(utterance=13)}, features=store._features)
    kept = np.setdiff1d(np.arange(120), [7, 50])
    without = data.isel(utterance=kept).chunk(utterance=11)
    less = FakeStore(pooled={"gcu-1": without}, features=store._features)
    options = {"targets": ("arousal",), "partial": ("loudness",), "permutations": 19}
    a, b = correlation_maps(whole, **options), correlation_maps(less, **options)
    pd.testing.assert_frame_equal(a.maps, b.maps, rtol=1e-6)
    pd.testing.assert_frame_equal(a.thresholds, b.thresholds, rtol=1e-9)
    assert a.thresholds["threshold"].iloc[0] > 0
    said = "2 utterances of view 'network' have features that are not finite"
    assert a.notes[0].startswith(f"{said} (the first is 'u0007')")
    with pytest.warns(AnalysisWarning, match="the first is 'u0007'"):
        c = confound_map(whole, names=("loudness",))
    pd.testing.assert_frame_equal(c, confound_map(less, names=("loudness",)), rtol=1e-6)


def test_means_that_differ_by_rounding_have_no_correlation() -> None:
    rng = np.random.default_rng(3)
    who = np.repeat(np.arange(8), 12)
    ratings = rng.normal(3, 1, 12)
    same = np.concatenate([rng.permutation(ratings) for _ in range(8)])
    centred = rng.normal(size=96)
    for speaker in range(8):
        centred[who == speaker] -= centred[who == speaker].mean()
    labels = {"same": same, "centred": centred, "constant": np.full(96, 0.1)}
    mean = rng.normal(size=(96, LAYERS, UNITS))
    coords = coords_of(96, speakers=[f"s{i}" for i in who], labels=labels)
    store = FakeStore(pooled={"gcu-1": gcu_view(mean, coords)})
    maps = correlation_maps(store, targets=tuple(labels), partial=(), permutations=0).maps
    assert maps["r_between"].isna().all()
    constant = maps[maps["target"] == "constant"]
    assert constant["r_all"].isna().all()
    assert maps.loc[maps["target"] == "same", "r_all"].notna().all()


def test_a_speaker_whom_covariates_leave_too_few_utterances_is_named() -> None:
    store = planted(speakers=4, each=20)
    data = store.pooled("gcu").isel(utterance=np.r_[:65])  # five of the last speaker
    found = correlation_maps(
        FakeStore(pooled={"gcu-1": data}, features=store._features),
        targets=("arousal",), partial=("loudness", "duration", "f0"), permutations=0,
    )  # fmt: skip
    assert (
        "arousal: 1 speakers with fewer than 4 utterances more than covariates do not count in the "
        "partial map: s3."
    ) in found.notes


def test_units_that_hold_given_covariates_are_counted_among_those_that_held_before() -> None:
    store = planted()
    data, (_, y, _, loudness) = store.pooled("gcu").load(), arrays(store)
    hidden = y - 0.8 * loudness - 1.25 * loudness  # follows arousal only given loudness
    data["gate"][0, :, 4, 4] = hidden
    one = FakeStore(pooled={"gcu-1": data.chunk(utterance=40)}, features=store._features)
    found = correlation_maps(one, targets=("arousal",), partial=("loudness",), permutations=0)
    maps, row = found.maps, found.thresholds.iloc[0]
    both = (maps["q"] < 0.05) & (maps["partial_q"] < 0.05)
    assert row["partial_significant"] == both.sum()
    assert row["partial_significant"] == (maps["partial_q"] < 0.05).sum() - 1


def test_a_covariate_that_nobody_has_explains_nothing() -> None:
    store = planted(speakers=3, each=8)
    data = store.pooled("gcu").assign_coords(age=("utterance", np.full(24, np.nan)))
    one = FakeStore(pooled={"gcu-1": data}, features=store._features)
    for names in (("age",), ("age", "duration")):
        found = confound_map(one, names=names).set_index("covariate")
        assert found.loc["age", ["r_within", "r_all"]].isna().all(axis=None)
        assert (found.loc["age", "n"] == 0).all()
    assert found.loc["duration", "r_all"].notna().sum() == LAYERS * UNITS - 1


def test_the_confound_map() -> None:
    store = planted()
    found = confound_map(store, without=("arousal", "valence"))
    assert found["covariate"].unique().tolist() == ["duration", "loudness", "f0", "sex=m"]
    X, _, who, loudness = arrays(store)
    unit = (found["covariate"] == "loudness") & (found["layer"] == 3) & (found["unit"] == 4)
    overall = found[unit]["r_all"].iloc[0]
    assert overall == pytest.approx(np.corrcoef(X[:, 3, 4], loudness)[0, 1], rel=1e-6)
    sex = found[found["covariate"] == "sex=m"]
    assert sex["r_within"].isna().all()
    male = np.array([name[-1] in "02468" for name in who])
    assert sex["r_all"].iloc[9] == pytest.approx(np.corrcoef(X[:, 1, 3], male)[0, 1], rel=1e-6)
    short = by_layer(found).set_index(["covariate", "layer"])
    assert short.loc[("loudness", 3), "unit"] == 4
    assert short.loc[("loudness", 3), "kind"] == "within speakers"
    assert short.loc[("sex=m", 0), "kind"] == "all utterances"
    assert (short["mean_abs_r"] <= short["max_abs_r"]).all()


def test_covariates_by_name() -> None:
    store = planted()
    table = utterance_table(store.pooled("gcu")["gate"])
    assert available(store, table, without=("arousal",)) == [
        "duration", "loudness", "f0", "valence", "sex",
    ]  # fmt: skip
    named = covariates(store, table, ["sex=m", "egemaps:loudness_sma3_amean", "valence"])
    assert named[0].numbers.mean() == 0.5
    np.testing.assert_array_equal(
        named[1].numbers, covariates(store, table, ["loudness"])[0].numbers
    )
    assert np.isnan(named[2].numbers).sum() == 1
    for name, said in (
        ("age", "No covariate 'age'; there are: duration"),
        ("sex=x", "never is 'x'; it is: f, m"),
        ("age=1", "No column 'age'"),
        ("egemaps:jitter", "No eGeMAPS functional 'jitter'; there are: F0semitone"),
        ("id", "400 values"),
    ):
        with pytest.raises(AnalysisError, match=said):
            covariates(store, table, [name])
    with pytest.raises(AnalysisError, match="twice"):
        covariates(store, table, ["sex=m", "sex"])
    bare = FakeStore(pooled={"gcu-1": store.pooled("gcu")})
    for name in ("loudness", "f0", "egemaps:x"):
        with pytest.raises(AnalysisError, match="network,mfcc,egemaps"):
            covariates(bare, table, [name])


def test_errors_name_the_way_out() -> None:
    store = planted(speakers=2, each=5)
    for options, said in (
        ({"targets": ()}, "No target"),
        ({"targets": ("mood",)}, "No label 'mood'"),
        ({"features": "gcu.gate[0:2]"}, "more or less"),
        ({"features": "gcu.mean + gcu.max"}, "more or less"),
        ({"resamples": 0}, "resamples=0, permutations=1000; accepted"),
    ):
        with pytest.raises(AnalysisError, match=said):
            correlation_maps(store, **options)


def test_order_and_chunks_do_not_matter() -> None:
    store = planted(speakers=3, each=9)
    data = store.pooled("gcu")
    order = np.random.default_rng(0).permutation(27)
    mixed = FakeStore(
        pooled={"gcu-1": data.isel(utterance=order).chunk(utterance=4)}, features=store._features
    )
    options = {"targets": ("arousal",), "permutations": 0}
    a, b = (correlation_maps(one, **options).maps for one in (store, mixed))
    pd.testing.assert_frame_equal(a, b, rtol=1e-9)
