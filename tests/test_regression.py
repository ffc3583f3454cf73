from __future__ import annotations

import logging
import math

import numpy as np
import pandas as pd
import pytest
from fake_store import FakeStore, coords_of, corpus, gcu_view, isel, with_coords, without
from sklearn.feature_selection import f_regression
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from featurestore.analysis.features import AnalysisWarning
from featurestore.analysis.folds import one_out
from featurestore.analysis.models import FeatureSet, selection_scores
from featurestore.analysis.regression import Fold, evaluate, leave_out
from featurestore.analysis.scores import (
    COLUMNS,
    concordance,
    joint_moments,
    pooled_concordance,
    r2,
    summarise,
)
from featurestore.analysis.sets import join
from featurestore.errors import AnalysisError


def folds(results: pd.DataFrame, feature_set: str, target: str = "arousal") -> pd.DataFrame:
    chosen = (results["feature_set"] == feature_set) & (results["target"] == target)
    return results[chosen].set_index("fold")


def only_gcu(store: FakeStore) -> FakeStore:
    return without(without(store, "mfcc"), "egemaps")


def test_table_1_equals_a_loop_written_by_hand() -> None:
    store = corpus()
    results = evaluate(store, targets=("arousal",), features=10)
    assert tuple(results.columns) == COLUMNS
    data = store.pooled("gcu").isel(utterance=slice(2, None))  # what eGeMAPS holds as well
    data = data.isel(utterance=np.flatnonzero(np.isfinite(data["arousal"])))
    mean = data["gate"].sel(statistic="mean").to_numpy().reshape(data.sizes["utterance"], -1)
    X, y, who = mean.astype(np.float64), data["arousal"].to_numpy(), data["speaker"].to_numpy()
    functionals = store.features("egemaps")
    rows = [functionals["id"].to_numpy().tolist().index(i) for i in data["id"].to_numpy()]
    E = functionals.to_numpy()[rows].astype(np.float64)
    for speaker in np.unique(who.astype(str)):
        train, test = who != speaker, who == speaker
        varied = np.ptp(X[train], axis=0) > 0
        scores = np.where(varied, f_regression(X[train], y[train])[0], -1)
        best = np.argsort(scores)[-10:]
        low, high = E[train].min(axis=0), E[train].max(axis=0)
        expected = {
            "train mean": np.full(test.sum(), y[train].mean()),
            "10 best of all units": LinearRegression()
            .fit(X[train][:, best], y[train])
            .predict(X[test][:, best]),
            "eGeMAPS": LinearRegression().fit(E[train], y[train]).predict(E[test]),
            "eGeMAPS, robust": LinearRegression()
            .fit(E[train], y[train])
            .predict(np.clip(E[test], low, high)),
        }
        for name, predicted in expected.items():
            row = folds(results, name).loc[speaker]
            np.testing.assert_allclose(row["mse"], np.mean((predicted - y[test]) ** 2), rtol=1e-9)
            np.testing.assert_allclose(row["r2"], r2_score(y[test], predicted), rtol=1e-8)
            assert (row["n_train"], row["n_test"]) == (train.sum(), test.sum())
    widths = results.drop_duplicates("feature_set").set_index("feature_set")["n_features"]
    assert widths.to_dict() == {
        "train mean": 0,
        "10 best of all units": 10,
        "eGeMAPS": 10,
        "eGeMAPS, robust": 10,
        "MFCC mean + std": 40,
    }


def test_all_sets_are_compared_on_the_same_utterances() -> None:
    results = evaluate(corpus(), features=5)
    for target, count in {"arousal": 77, "valence": 78}.items():
        chosen = results[results["target"] == target]
        assert (chosen.groupby("feature_set")["n_test"].sum() == count).all()
        assert (chosen["n_train"] + chosen["n_test"] == count).all()


def test_table_2_uses_first_and_last_layers_of_agreed_utterances() -> None:
    store = corpus()
    results = evaluate(store, table=2, targets=("arousal",), features=8)
    emotion = store.pooled("gcu")["emotion"].to_numpy()[2:]
    known = np.isfinite(store.pooled("gcu")["arousal"].to_numpy()[2:])
    agreed = int(((emotion != "xxx") & (emotion != "") & known).sum())
    assert (results.groupby("feature_set")["n_test"].sum() == agreed).all()
    sets = results["feature_set"].unique().tolist()
    assert sets == [
        "train mean",
        "8 best of first 3 layers",
        "8 best of last 3 layers",
        "8 best of all layers",
        "eGeMAPS",
        "eGeMAPS, robust",
    ]
    mse = summarise(results).set_index("feature_set")["mse_mean"]
    # Arousal drives a unit of layer 1 of 6: the last three layers know nothing.
    assert mse["8 best of first 3 layers"] < 0.5 < mse["8 best of last 3 layers"]
    assert any("agreed category" in note for note in results.attrs["notes"])
    everyone = evaluate(store, table=2, targets=("arousal",), features=8, agreed_only=False)
    assert everyone["n_test"].sum() > results["n_test"].sum()


def test_without_categories_all_utterances_are_used_and_it_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = corpus()
    with caplog.at_level(logging.WARNING):
        results = evaluate(store, table=2, targets=("valence",), emotion_column="category")
    assert "no 'category' label" in caplog.text
    assert "no 'category' label" in " ".join(results.attrs["notes"])
    assert (results.groupby("feature_set")["n_test"].sum() == 78).all()
    with pytest.raises(AnalysisError, match="agreed_only=False"):
        evaluate(store, emotion_column="category", agreed_only=True)
    with pytest.raises(AnalysisError, match="always empty or 'xxx'"):
        evaluate(with_coords(store, emotion=np.full(80, "xxx", dtype=object)), table=2)


def test_absent_views_are_absent_rows() -> None:
    store = corpus()
    with pytest.warns(AnalysisWarning, match="--views network,mfcc,egemaps"):
        results = evaluate(only_gcu(store), targets=("valence",), features=5)
    assert results["feature_set"].unique().tolist() == ["train mean", "5 best of all units"]
    assert (results.groupby("feature_set")["n_test"].sum() == 80).all()


def test_order_of_utterances_does_not_matter() -> None:
    store = corpus()
    mixed = isel(store, np.random.default_rng(1).permutation(80))
    pd.testing.assert_frame_equal(evaluate(store, features=7), evaluate(mixed, features=7))


def noise(count: int = 120, features: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(count, features)).astype(np.float32)
    return X, rng.normal(size=count), np.array([f"s{i % 6}" for i in range(count)])


def held_out(feature_set: FeatureSet, X: np.ndarray, y: np.ndarray, who: np.ndarray) -> list[Fold]:
    return list(leave_out(feature_set, X=X, Y=y[:, None], speakers=who, splits=one_out(who)))


def test_selection_among_noise_predicts_nothing() -> None:
    X, y, who = noise()

    def success(feature_set: FeatureSet) -> float:
        return np.mean(
            [
                concordance(y[fold.split.test], predicted=fold.predicted[:, 0])
                for fold in held_out(feature_set, X, y, who)
            ]
        )

    assert abs(success(FeatureSet("", "network", 20))) < 0.15
    # The same selection made once on everybody "predicts" noise: the leak that folds prevent.
    assert success(FeatureSet("", "network", 20, leaky=True)) > 0.4


@pytest.mark.parametrize(
    "feature_set",
    [
        FeatureSet("mean", None),
        FeatureSet("best", "network", 20),
        FeatureSet("classes", "network", 20, "f_classif"),
        FeatureSet("components", "network", 8, "pca", "standard"),
        FeatureSet("plain", "egemaps"),
        FeatureSet("robust", "egemaps", scale="robust"),
        FeatureSet("ridge", "network", model="ridge"),
        FeatureSet("robust ridge", "network", 20, scale="robust", model="ridge"),
        FeatureSet("svr", "network", 20, model="svr"),
        FeatureSet("pls", "network", model="pls"),
    ],
    ids=lambda one: one.name,
)
def test_a_held_out_speaker_never_influences_the_own_predictions(feature_set: FeatureSet) -> None:
    X, y, who = noise(features=60)
    other_y = np.where(who == "s2", 100 - 3 * y, y)
    # Features of the other held-out utterances must not matter either (scaling, selection).
    other_X = X.copy()
    other_X[np.flatnonzero(who == "s2")[1:]] *= 1000
    before, after = (
        next(fold for fold in held_out(feature_set, *one, who) if fold.split.name == "s2")
        for one in ((X, y), (other_X, other_y))
    )
    assert before.predicted[0] == after.predicted[0]


def test_constant_features_are_never_selected_before_others() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    X = np.full((50, 6), 0.1, np.float32)
    X[:, 2] = rng.normal(size=50)
    X[:, 4] = (0.9 + 1e-6 * (y + 0.1 * rng.normal(size=50))).astype(np.float32)
    scores = selection_scores(X, y)
    assert np.argsort(scores)[-2:].tolist() == [2, 4]
    assert np.isneginf(scores[[0, 1, 3, 5]]).all()
    expected = np.corrcoef(X[:, 4].astype(np.float64) - 0.9, y)[0, 1] ** 2
    np.testing.assert_allclose(scores[4], expected, rtol=1e-8)
    np.testing.assert_array_equal(selection_scores(np.ones((5, 2)), np.arange(5.0)), -np.inf)


def test_scores_rank_as_f_regression() -> None:
    X, y, _ = noise(features=80)
    f = f_regression(X.astype(np.float64), y)[0]
    r_squared = selection_scores(X, y)
    np.testing.assert_allclose(r_squared / (1 - r_squared) * (len(y) - 2), f, rtol=1e-8)


def test_constant_target_and_single_utterances_are_nan_not_zero() -> None:
    store = corpus(count=21, speakers=5)
    constant = with_coords(store, arousal=np.full(21, 7 / 3))
    results = evaluate(constant, targets=("arousal",), features=5)
    baseline = folds(results, "train mean")
    assert (baseline["mse"] < 1e-30).all()
    assert baseline[["ccc", "r2"]].isna().all(axis=None)
    assert folds(results, "5 best of all units")[["mse", "ccc", "r2"]].isna().all(axis=None)
    assert summarise(results).set_index("feature_set")["mse_mean"].isna().sum() == 1

    lonely = np.array(["a", "b"] * 10 + ["z"], dtype=object)
    results = evaluate(with_coords(store, speaker=lonely), targets=("valence",), features=3)
    rows = results[results["fold"] == "z"]
    assert (rows["n_test"] == 1).all()
    assert rows["mse"].notna().all()
    assert rows[["ccc", "r2"]].isna().all(axis=None)
    summary = summarise(results)
    assert (summary["folds"] == 3).all()
    assert (summary["ccc_folds"] == 2).all()


def test_two_speakers_of_one_utterance_each() -> None:
    store = isel(only_gcu(corpus()), [0, 1])
    with pytest.warns(AnalysisWarning):
        results = evaluate(store, targets=("valence",))
    assert folds(results, "train mean", "valence")["mse"].notna().all()
    assert folds(results, "100 best of all units", "valence")["mse"].isna().all()
    assert (folds(results, "100 best of all units", "valence")["n_features"] == 48).all()


def test_features_that_are_not_finite_are_left_out_with_a_warning() -> None:
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(20, 3, 4))
    mean[7, 1, 1] = np.nan
    coords = coords_of(20, speakers=["a", "b"] * 10, labels={"arousal": rng.normal(size=20)})
    store = FakeStore(pooled={"gcu-0": gcu_view(mean, coords)})
    with pytest.warns(AnalysisWarning, match=r"1 utterances of view 'gcu'.*'u0007'"):
        found = join(store, ["gcu.gate"])
    assert len(found.ids) == 19
    assert "u0007" not in found.ids


def test_errors_name_the_way_out() -> None:
    store = corpus()
    with pytest.raises(AnalysisError, match="choose 1 or 2"):
        evaluate(store, table=3)  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="features=0"):
        evaluate(store, features=0)
    with pytest.raises(AnalysisError, match=r"'dominance'.*arousal, valence"):
        evaluate(store, targets=("dominance",))
    with pytest.raises(AnalysisError, match=r"at least 2 speakers.*'s0'"):
        evaluate(corpus(speakers=1))
    with pytest.raises(AnalysisError, match=r"no speaker.*'speaker' column"):
        evaluate(with_coords(store, speaker=np.full(80, "", dtype=object)))
    with pytest.raises(AnalysisError, match="missing for every utterance"):
        evaluate(with_coords(store, arousal=np.full(80, np.nan)), targets=("arousal",))
    renamed = np.array([f"x{i}" for i in range(80)], dtype=object)
    with pytest.raises(AnalysisError, match="No utterance id is in every view"):
        evaluate(with_coords(store, id=renamed))
    with pytest.raises(AnalysisError, match="'u' is twice"):
        evaluate(with_coords(store, id=np.full(80, "u", dtype=object)))


def test_concordance_as_lin_defines_it() -> None:
    truth = np.array([1.0, 2, 3, 4])
    assert concordance(truth, predicted=truth) == pytest.approx(1)
    assert concordance(truth, predicted=truth[::-1]) == pytest.approx(-1)
    # Perfect correlation, shifted by 1: 2 * 1.25 / (1.25 + 1.25 + 1).
    assert concordance(truth, predicted=truth + 1) == pytest.approx(2.5 / 3.5)
    assert concordance(truth, predicted=np.full(4, 2.5)) == 0
    for undefined in (truth[:1], np.full(4, 0.1)):
        assert math.isnan(concordance(undefined, predicted=undefined))
        assert math.isnan(r2(undefined, predicted=undefined))
    assert math.isnan(concordance(truth, predicted=truth * np.nan))


def test_summary_over_folds() -> None:
    results = evaluate(corpus(), targets=("arousal",), features=5)
    row = summarise(results).set_index("feature_set").loc["eGeMAPS"]
    mse = folds(results, "eGeMAPS")["mse"]
    assert row["folds"] == 5
    assert row["utterances"] == 77
    assert row["mse_mean"] == pytest.approx(mse.mean())
    assert row["mse_variance"] == pytest.approx(mse.var(ddof=1))
    assert row["mse_std"] == pytest.approx(mse.std(ddof=1))


def test_pooled_concordance_is_that_of_all_predictions_together() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.normal(3, 1, 60), random.normal(3, 1, 60)
    speakers = random.integers(0, 4, 60)
    rows = [
        {
            "n_test": int((speakers == s).sum()),
            **joint_moments(truth[speakers == s], predicted=predicted[speakers == s]),
        }
        for s in range(4)
    ]
    together = concordance(truth, predicted=predicted)
    assert pooled_concordance(pd.DataFrame(rows)) == pytest.approx(together, rel=1e-12)
    rows[0]["predicted_mean"] = math.nan
    assert math.isnan(pooled_concordance(pd.DataFrame(rows)))
