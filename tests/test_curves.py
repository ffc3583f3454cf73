"""What each layer predicts alone, against a loop over layers, SciPy and planted curves."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from fake_store import FakeStore, coords_of, corpus, gcu_view
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.analysis.curves import curve_table, layer_curves, layer_trends
from featurestore.analysis.features import AnalysisWarning
from featurestore.analysis.ridge import PENALTIES
from featurestore.analysis.scores import concordance
from featurestore.errors import AnalysisError


def planted(count: int = 240, speakers: int = 8, layers: int = 5, units: int = 4) -> FakeStore:
    """Arousal in the first layer and less and less so, valence the other way round."""
    rng = np.random.default_rng(3)
    arousal, valence = rng.normal(3, 1, (2, count))
    who = [f"s{i % speakers}" for i in range(count)]
    mean = rng.normal(size=(count, layers, units))
    share = np.linspace(1, 0, layers)
    mean[:, :, 0] += 1.5 * share * arousal[:, None]
    mean[:, :, 1] += 1.5 * share[::-1] * valence[:, None]
    labels = {"arousal": arousal, "valence": valence}
    coords = coords_of(count, speakers=who, labels=labels)
    return FakeStore(pooled={"gcu-1": gcu_view(mean, coords, chunk=50)})


def with_constant_speaker(store: FakeStore, name: str, target: str) -> FakeStore:
    data = store.pooled("gcu")
    values = np.where(data["speaker"].to_numpy() == name, 2.5, data[target].to_numpy())
    return FakeStore(pooled={"gcu-1": data.assign_coords({target: ("utterance", values)})})


@pytest.fixture(scope="module")
def curves() -> pd.DataFrame:
    return layer_curves(planted(), targets=("arousal", "valence"), progress=False)


def by_layer(results: pd.DataFrame, target: str, measure: str = "ccc") -> np.ndarray:
    """(speaker, layer)."""
    chosen = results[results["target"] == target].sort_values(["speaker", "layer"])
    return chosen[measure].to_numpy().reshape(chosen["speaker"].nunique(), -1)


def test_every_layer_is_a_ridge_whose_penalty_is_chosen_over_speakers() -> None:
    store = corpus(count=60, layers=5, units=6)
    found = layer_curves(store, targets="arousal", features="gcu.gate.max", progress=False)
    assert "table" not in found
    data = store.pooled("gcu")
    known = np.isfinite(data["arousal"].to_numpy())
    values = data["gate"].sel(statistic="max").to_numpy()[known].astype(np.float64)
    y, who = data["arousal"].to_numpy()[known], data["speaker"].to_numpy()[known].astype(str)
    assert found.attrs["notes"] == ["arousal: 1 of 60 utterances have no label and are left out."]
    assert len(found) == 5 * 5
    for layer in range(5):
        X = values[:, layer]
        rows = found[found["layer"] == layer].set_index("speaker")
        for train, test in LeaveOneGroupOut().split(X, y, who):
            errors = np.zeros(len(PENALTIES))
            inner = min(5, len(set(who[train])))
            for a, b in GroupKFold(inner).split(train, groups=who[train]):
                for i, penalty in enumerate(PENALTIES):
                    model = make_pipeline(StandardScaler(), Ridge(penalty))
                    model.fit(X[train[a]], y[train[a]])
                    errors[i] += ((model.predict(X[train[b]]) - y[train[b]]) ** 2).sum()
            model = make_pipeline(StandardScaler(), Ridge(PENALTIES[np.argmin(errors)]))
            predicted = model.fit(X[train], y[train]).predict(X[test])
            row = rows.loc[who[test][0]]
            assert row["mse"] == pytest.approx(np.mean((predicted - y[test]) ** 2), rel=1e-9)
            assert row["ccc"] == pytest.approx(concordance(y[test], predicted=predicted), rel=1e-8)
            assert (row["n_test"], row["n_features"]) == (len(test), 6)


def test_the_table_is_the_mean_over_speakers_and_scipys_interval(curves: pd.DataFrame) -> None:
    table = curve_table(curves)
    assert len(table) == 2 * 2 * 5
    assert (table["speakers"] == 8).all()
    for (target, measure), rows in table.groupby(["target", "measure"]):
        each = by_layer(curves, str(target), str(measure))
        assert rows["layer"].tolist() == list(range(5))
        np.testing.assert_allclose(rows["value"], each.mean(axis=0), rtol=1e-12)
        drawn = stats.bootstrap((each,), np.mean, axis=0, rng=np.random.default_rng(1))
        interval = drawn.confidence_interval
        width = interval.high - interval.low
        assert (np.abs(rows["low"].to_numpy() - interval.low) < 0.06 * width).all()
        assert (np.abs(rows["high"].to_numpy() - interval.high) < 0.06 * width).all()
    narrow = curve_table(curves, confidence=0.5)
    assert ((narrow["high"] - narrow["low"]) < (table["high"] - table["low"])).all()
    pd.testing.assert_frame_equal(table, curve_table(curves))


def test_slopes_are_straight_lines_per_speaker(curves: pd.DataFrame) -> None:
    trends = layer_trends(curves).set_index("target")
    assert trends.index.tolist() == ["arousal", "valence", "arousal - valence"]
    x = np.linspace(0, 1, 5)
    slopes = {
        target: np.polyfit(x, by_layer(curves, target).T, 1)[0] for target in ("arousal", "valence")
    }
    slopes["arousal - valence"] = slopes["arousal"] - slopes["valence"]
    for target, expected in slopes.items():
        row = trends.loc[target]
        assert row["slope"] == pytest.approx(expected.mean(), rel=1e-10)
        assert row["p"] == pytest.approx(stats.ttest_1samp(expected, 0).pvalue, rel=1e-8)
        assert row["wilcoxon_p"] == pytest.approx(stats.wilcoxon(expected).pvalue)
        drawn = stats.bootstrap((expected,), np.mean, rng=np.random.default_rng(1))
        interval = drawn.confidence_interval
        near = 0.06 * (interval.high - interval.low)
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), abs=near)
        assert row["speakers"] == 8


def test_what_is_planted_early_falls_and_what_is_planted_late_rises(curves: pd.DataFrame) -> None:
    trends = layer_trends(curves).set_index("target")
    assert trends.loc["arousal", "high"] < 0 < trends.loc["valence", "low"]
    assert trends.loc["arousal - valence", "high"] < 0
    assert (trends[["p", "wilcoxon_p"]] < 0.05).all(axis=None)
    table = curve_table(curves).set_index(["target", "measure", "layer"])["value"]
    assert table["arousal", "ccc", 0] > 0.5 > table["arousal", "ccc", 4] + 0.3
    assert table["valence", "ccc", 4] > 0.5 > table["valence", "ccc", 0] + 0.3


def test_a_speaker_without_a_defined_ccc_is_left_out_and_counted() -> None:
    store = with_constant_speaker(planted(layers=3), "s2", "valence")
    found = layer_curves(store, progress=False)
    table = curve_table(found, resamples=200).set_index(["target", "measure"])
    assert (table.loc[("valence", "ccc"), "speakers"] == 7).all()
    assert (table.loc[("valence", "mse"), "speakers"] == 8).all()
    assert (table.loc[("arousal", "ccc"), "speakers"] == 8).all()
    others = by_layer(found[found["speaker"] != "s2"], "valence")
    np.testing.assert_allclose(table.loc[("valence", "ccc"), "value"], others.mean(axis=0))
    trends = layer_trends(found, resamples=200).set_index("target")
    assert trends["speakers"].to_dict() == {"valence": 7, "arousal": 8, "valence - arousal": 7}
    both = found[found["speaker"] != "s2"]
    x = np.linspace(0, 1, 3)
    apart = np.polyfit(x, by_layer(both, "valence").T, 1) - np.polyfit(
        x, by_layer(both, "arousal").T, 1
    )
    assert trends.loc["valence - arousal", "slope"] == pytest.approx(apart[0].mean())


def test_no_defined_ccc_at_all_leaves_nothing_to_say() -> None:
    store = planted(count=60, layers=2)
    for speaker in [f"s{i}" for i in range(8)]:
        store = with_constant_speaker(store, speaker, "valence")
    found = layer_curves(store, targets="valence", progress=False)
    table = curve_table(found, resamples=50).set_index("measure")
    assert (table.loc["ccc", "speakers"] == 0).all()
    assert table.loc["ccc", ["value", "low", "high"]].isna().all(axis=None)
    assert (table.loc["mse", "speakers"] == 8).all()
    (trend,) = layer_trends(found, resamples=50).to_dict("records")
    assert trend["speakers"] == 0
    assert np.isnan(list(trend.values())[1:-1]).all()


def test_one_layer_has_a_value_and_no_slope() -> None:
    found = layer_curves(planted(count=80, layers=1), progress=False)
    table = curve_table(found, resamples=200)
    assert table["layer"].tolist() == [0] * 4
    assert np.isfinite(table["value"]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trends = layer_trends(found, resamples=200)
    assert trends[["slope", "low", "high", "p", "wilcoxon_p"]].isna().all(axis=None)


def test_one_speaker_has_a_slope_without_a_test(curves: pd.DataFrame) -> None:
    trends = layer_trends(curves[curves["speaker"] == "s1"]).set_index("target")
    own = by_layer(curves, "arousal")[1]
    assert trends.loc["arousal", "slope"] == pytest.approx(
        np.polyfit(np.linspace(0, 1, 5), own, 1)[0]
    )
    assert trends[["low", "high", "p", "wilcoxon_p"]].isna().all(axis=None)


def test_the_named_set_of_all_units_has_a_curve_too() -> None:
    store = planted(count=60, layers=2)
    pd.testing.assert_frame_equal(
        layer_curves(store, targets="arousal", features="all", progress=False),
        layer_curves(store, targets="arousal", features="network.mean", progress=False),
    )


def test_utterances_that_are_left_out_are_noted() -> None:
    data = planted(count=60, layers=2).pooled("gcu").compute()
    data["gate"][:, 7, 1, 0] = np.nan
    with pytest.warns(AnalysisWarning, match="not finite"):
        found = layer_curves(FakeStore(pooled={"gcu-1": data}), targets="arousal", progress=False)
    (note,) = found.attrs["notes"]
    assert "'u0007'" in note
    assert found.groupby("layer")["n_test"].sum().tolist() == [59, 59]


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ("egemaps", "'egemaps' has no layers"),
        ("mfcc.mean", "'mfcc.mean' has no layers"),
        ("network[0:3]", "more or less"),
        ("network + mfcc", "more or less"),
        ("network.loudest", "holds no capture 'loudest'"),
    ],
)
def test_what_has_no_curve_is_refused(features: str, words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        layer_curves(corpus(count=20, layers=5, units=6), features=features, progress=False)


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(AnalysisError, match="No label 'anger'"):
        layer_curves(corpus(count=20, layers=5, units=6), targets="anger", progress=False)
