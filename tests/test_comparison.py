from __future__ import annotations

import importlib
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synthetic import write_corpus

import featurestore as fs
from featurestore.analysis.comparison import COLUMNS, compare, rows_of
from featurestore.analysis.folds import one_out
from featurestore.analysis.models import FeatureSet
from featurestore.analysis.regression import leave_out
from featurestore.analysis.ridge import PENALTIES, fit_ridge
from featurestore.analysis.scores import concordance, joint_moments, pooled_concordance, r2
from featurestore.encoder import load_encoder
from featurestore.errors import AnalysisError
from featurestore.report import latex
from featurestore.report.comparisons import (
    markdown_comparison,
    paper_table,
    write_comparison,
)


def results(
    name: str,
    *,
    noise: float,
    seed: int,
    speakers: int = 7,
    targets: tuple[str, ...] = ("arousal",),
) -> pd.DataFrame:
    """Rows as `evaluate` makes them, of predictions that are the truth and noise."""
    rows = []
    for target in targets:
        truths = np.random.default_rng(len(target))
        random = np.random.default_rng([seed, len(target)])
        for speaker in range(speakers):
            truth = truths.normal(3, 1, 10 + speaker)
            predicted = 3 + 0.6 * (truth - 3) + random.normal(0, noise, len(truth))
            rows.append(
                {
                    "table": 1,
                    "feature_set": name,
                    "target": target,
                    "fold": f"s{speaker}",
                    "speaker": f"s{speaker}",
                    "n_train": 100,
                    "n_test": len(truth),
                    "n_features": 3,
                    "mse": float(np.mean((truth - predicted) ** 2)),
                    "ccc": concordance(truth, predicted=predicted),
                    "r2": r2(truth, predicted=predicted),
                    **joint_moments(truth, predicted=predicted),
                }
            )
    return pd.DataFrame(rows)


def one(rows: pd.DataFrame, measure: str, target: str = "arousal") -> pd.Series:
    (row,) = (
        rows.iloc[i]
        for i in range(len(rows))
        if (rows["measure"].iloc[i], rows["target"].iloc[i]) == (measure, target)
    )
    return row


RIDGE = FeatureSet("", "network", model="ridge")
A, B = results("a", noise=0.4, seed=1), results("b", noise=0.6, seed=2)


def test_means_intervals_and_t_equal_scipy_on_the_differences() -> None:
    rows = compare(A, B)
    assert tuple(rows.columns) == COLUMNS
    for measure in ("mse", "ccc"):
        row = one(rows, measure)
        a, b = A[measure].to_numpy(), B[measure].to_numpy()
        assert row["first_value"] == pytest.approx(a.mean(), rel=1e-12)
        assert row["second_value"] == pytest.approx(b.mean(), rel=1e-12)
        assert row["difference"] == pytest.approx((a - b).mean(), rel=1e-12)
        paired = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (row["t_low"], row["t_high"]) == pytest.approx((paired.low, paired.high))
        drawn = stats.bootstrap((a - b,), np.mean, rng=np.random.default_rng(0), method="BCa")
        interval = drawn.confidence_interval
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), abs=2e-3)
        assert row["low"] < row["difference"] < row["high"]
        assert row["speakers"] == 7


def test_p_is_exact_over_all_swaps() -> None:
    rows = compare(A, B)
    for measure in ("mse", "ccc"):
        apart = A[measure].to_numpy() - B[measure].to_numpy()
        swaps = np.array(list(itertools.product((1, -1), repeat=len(apart)))) @ apart
        expected = np.mean(np.abs(swaps) >= abs(apart.sum()) - 1e-12)
        assert one(rows, measure)["p"] == pytest.approx(expected)
        assert one(rows, measure)["exact"]


def test_pooled_ccc_is_that_of_all_predictions_and_its_p_swaps_speakers() -> None:
    row = one(compare(A, B), "ccc_pooled")
    assert row["first_value"] == pytest.approx(pooled_concordance(A), rel=1e-12)
    assert row["second_value"] == pytest.approx(pooled_concordance(B), rel=1e-12)
    swapped = []
    for flips in itertools.product((False, True), repeat=len(A)):
        mask = np.array(flips)
        first = pd.concat([A[~mask], B[mask]])
        second = pd.concat([B[~mask], A[mask]])
        swapped.append(pooled_concordance(first) - pooled_concordance(second))
    reached = np.abs(swapped) >= abs(row["difference"]) - 1e-12
    assert row["p"] == pytest.approx(reached.mean())
    assert math.isnan(row["t_low"])
    assert row["low"] < row["difference"] < row["high"]


def test_several_runs_of_the_second_count_as_their_mean() -> None:
    runs = [results("b", noise=0.6, seed=seed) for seed in (2, 3, 4)]
    rows = compare(A, runs, names=("a", "mean over seeds"))
    assert set(rows["second"]) == {"mean over seeds"}
    for measure in ("mse", "ccc"):
        mean = np.mean([run[measure] for run in runs], axis=0)
        row = one(rows, measure)
        assert row["second_value"] == pytest.approx(mean.mean())
        paired = stats.ttest_rel(A[measure], mean)
        interval = paired.confidence_interval(0.95)
        assert (row["t_low"], row["t_high"]) == pytest.approx((interval.low, interval.high))
    pooled = np.mean([pooled_concordance(run) for run in runs])
    assert one(rows, "ccc_pooled")["second_value"] == pytest.approx(pooled)


def test_many_speakers_are_swapped_at_random_and_the_same_way_each_time() -> None:
    a = results("a", noise=0.5, seed=1, speakers=24)
    b = results("b", noise=0.5, seed=2, speakers=24)
    rows = compare(a, b, resamples=2000)
    assert not rows["exact"].any()
    pd.testing.assert_frame_equal(rows, compare(a, b, resamples=2000))
    sign = stats.permutation_test(
        (a["mse"] - b["mse"],), np.mean, permutation_type="samples", n_resamples=2000, rng=1
    )
    assert one(rows, "mse")["p"] == pytest.approx(sign.pvalue, abs=0.05)


def dz(differences: np.ndarray, axis: int = -1) -> np.ndarray:
    """Cohen's d of paired samples."""
    return differences.mean(axis=axis) / differences.std(axis=axis, ddof=1)


def test_signed_ranks_and_effect_are_those_of_the_speakers_differences() -> None:
    a = results("a", noise=0.4, seed=1, speakers=14)
    b = results("b", noise=0.6, seed=2, speakers=14)
    rows = compare(a, b)
    for measure in ("mse", "ccc"):
        row, apart = one(rows, measure), (a[measure] - b[measure]).to_numpy()
        assert row["wilcoxon_p"] == pytest.approx(stats.wilcoxon(a[measure], b[measure]).pvalue)
        assert row["effect"] == pytest.approx(dz(apart), rel=1e-12)
        # t is the effect times the root of the number of speakers
        paired = stats.ttest_rel(a[measure], b[measure])
        assert row["effect"] * np.sqrt(14) == pytest.approx(paired.statistic)
        drawn = stats.bootstrap((apart,), dz, rng=np.random.default_rng(5), method="BCa")
        interval = drawn.confidence_interval
        near = 0.06 * (interval.high - interval.low)
        found = (row["effect_low"], row["effect_high"])
        assert found == pytest.approx((interval.low, interval.high), abs=near)
        assert row["effect_low"] < row["effect"] < row["effect_high"]
    of_all = one(rows, "ccc_pooled")  # no value per speaker
    assert of_all[["wilcoxon_p", "effect", "effect_low", "effect_high"]].isna().all()
    wide = one(compare(a, b, confidence=0.99), "mse")
    assert wide["effect_low"] < one(rows, "mse")["effect_low"]


def test_the_effect_mirrors_and_does_not_depend_on_the_unit() -> None:
    there, back = one(compare(A, B), "mse"), one(compare(B, A), "mse")
    assert there["effect"] == -back["effect"]
    assert there["wilcoxon_p"] == back["wilcoxon_p"]
    assert there["effect_low"] == pytest.approx(-back["effect_high"], rel=0.1)
    percent = one(compare(A.assign(mse=100 * A["mse"]), B.assign(mse=100 * B["mse"])), "mse")
    names = ["wilcoxon_p", "effect", "effect_low", "effect_high"]
    assert percent[names].tolist() == pytest.approx(there[names].tolist())


def test_two_speakers_have_an_effect_without_an_interval() -> None:
    a, b = A.iloc[:2], B.iloc[:2]
    row = one(compare(a, b), "mse")
    apart = (a["mse"] - b["mse"]).to_numpy()
    assert row["effect"] == pytest.approx(dz(apart))
    assert row["wilcoxon_p"] == pytest.approx(stats.wilcoxon(apart).pvalue)
    assert math.isnan(row["effect_low"])
    assert math.isnan(row["effect_high"])
    alone = one(compare(a.iloc[:1], b.iloc[:1]), "mse")
    assert math.isnan(alone["effect"])
    assert math.isnan(alone["wilcoxon_p"])


def test_equal_differences_have_no_effect_size() -> None:
    a = A.assign(mse=0.5 + np.arange(7) / 8)
    row = one(compare(a, a.assign(mse=a["mse"] - 0.25)), "mse")
    assert row["difference"] == 0.25
    assert (row["low"], row["high"]) == pytest.approx((0.25, 0.25))
    assert row[["wilcoxon_p", "effect", "effect_low", "effect_high"]].isna().all()
    assert row["p"] == pytest.approx(2 / 2**7)
    # Two values among three speakers: some speakers' differences have no spread without another.
    few = A.iloc[:3].assign(mse=[1.0, 1.0, 2.0])
    row = one(compare(few, few.assign(mse=0.5)), "mse")
    assert row["effect"] == pytest.approx(dz(np.array([0.5, 0.5, 1.5])))
    assert row["effect_low"] <= row["effect"] <= row["effect_high"]


def test_three_speakers_two_of_a_kind_have_no_effect_of_a_trillion() -> None:
    for value in np.random.default_rng(0).normal(size=60):
        few = A.iloc[:3].assign(mse=[value, value, 2 * value])
        row = one(compare(few, few.assign(mse=0.5 * value)), "mse")
        assert max(abs(row["effect_low"]), abs(row["effect_high"])) < 1e6


def test_rounding_decides_neither_interval_nor_p() -> None:
    rng = np.random.default_rng(0)
    a = A.assign(ccc=rng.normal(size=7).round(2), mse=rng.uniform(1, 2, 7).round(2))
    b = A.assign(ccc=rng.normal(size=7).round(2), mse=rng.uniform(1, 2, 7).round(2))
    b.loc[[1, 4], "ccc"] = a.loc[[1, 4], "ccc"]  # swapping these makes no difference
    expected = compare(a, b)
    for _ in range(8):
        near = [
            t.assign(**{m: t[m] * (1 + 4e-16 * rng.integers(-2, 3, 7)) for m in ("mse", "ccc")})
            for t in (a, b)
        ]
        pd.testing.assert_frame_equal(compare(*near), expected, rtol=1e-9)


def test_order_of_folds_does_not_matter_and_sides_mirror() -> None:
    mixed = B.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(compare(A, B), compare(A, mixed))
    there, back = one(compare(A, B), "mse"), one(compare(B, A), "mse")
    assert there["difference"] == -back["difference"]
    assert (there["t_low"], there["p"]) == pytest.approx((-back["t_high"], back["p"]))


def test_equal_results_do_not_differ() -> None:
    rows = compare(A, A, names=("a", "again"))
    assert (rows["difference"] == 0).all()
    assert (rows["p"] == 1).all()
    assert (rows[["low", "high"]] == 0).all(axis=None)


def test_undefined_speakers_do_not_count_and_one_speaker_has_no_interval() -> None:
    holes = A.copy()
    holes.loc[2, "ccc"] = math.nan
    rows = compare(holes, B)
    assert one(rows, "ccc")["speakers"] == 6
    assert one(rows, "mse")["speakers"] == 7
    row = one(compare(A.iloc[:1], B.iloc[:1]), "mse")
    assert row["difference"] == pytest.approx(A["mse"][0] - B["mse"][0])
    assert math.isnan(row["low"])
    assert math.isnan(row["p"])
    lost = A.assign(mse=math.nan)
    assert one(compare(lost, B), "mse")["speakers"] == 0


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (A, B.iloc[:5], "differ in 2 speakers"),
        (pd.concat([A, B]), B, "several feature sets"),
        (pd.concat([A, A]), B, "twice"),
        (A, B.assign(n_test=B["n_test"] + 1), "other utterances"),
        (A, B.assign(truth_mean=B["truth_mean"] + 1), "other utterances"),
        (A, B.assign(target="valence"), "share no target"),
        (A, B.iloc[:0], "no rows"),
        (A, [], "nothing to compare with"),
    ],
)
def test_what_cannot_be_paired_is_refused(
    first: pd.DataFrame, second: pd.DataFrame | list[pd.DataFrame], words: str
) -> None:
    with pytest.raises(AnalysisError, match=words):
        compare(first, second)


def test_rows_of_names_what_there_is() -> None:
    both = pd.concat([A, B])
    pd.testing.assert_frame_equal(rows_of(both, "b"), B)
    with pytest.raises(AnalysisError, match="'a', 'b'"):
        rows_of(both, "c")


def test_tables_and_figure_are_written(tmp_path: Path) -> None:
    targets = ("arousal", "valence")
    rows = compare(
        results("a|b", noise=0.4, seed=1, targets=targets),
        results("b", noise=0.9, seed=2, targets=targets),
    )
    files = write_comparison(rows, tmp_path / "new", notes=["a caveat", "a caveat"])
    assert [file.suffix for file in files] == [".md", ".csv", ".png"]
    text = files[0].read_text()
    assert text == markdown_comparison(rows, notes=["a caveat"])
    assert text.count("\n| arousal |") == 3
    assert r"a\|b" in text
    assert "95 %" in text
    assert text.count("a caveat") == 1
    pd.testing.assert_frame_equal(pd.read_csv(files[1]), rows, check_dtype=False)
    assert files[2].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(AnalysisError, match="no row"):
        write_comparison(rows.iloc[:0], tmp_path)


def test_ends_beside_zero_and_undefined_values_are_told_as_such() -> None:
    rows = compare(A, B).iloc[:2].assign(difference=[-0.05, math.nan], low=[-0.1, math.nan])
    rows = rows.assign(high=[-0.0004, math.nan], first_value=[0.5, math.nan])
    table = paper_table(rows)
    assert list(table["Interval"]) == ["-0.100 to -0.0004", "NaN"]
    assert list(table["Difference"]) == ["-0.050", "NaN"]
    assert list(table["First value"]) == ["0.500", "NaN"]
    text = markdown_comparison(rows) + latex.table(table, caption="", label="x")
    assert "nan" not in text
    assert "$-$0.100 to $-$0.0004" in text


# --- ridge ------------------------------------------------------------------------------------


def features(count: int = 60, width: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    speakers = np.array([f"s{i % 6}" for i in range(count)])
    y = random.normal(3, 1, count)
    own = random.normal(size=(6, width))[np.arange(count) % 6]
    X = random.normal(size=(count, width)) + own + 0.7 * y[:, None] * (np.arange(width) < 5)
    X[:, 7] = 1.5  # a dead unit
    return X.astype(np.float32), y, speakers


@pytest.mark.parametrize("width", [90, 20], ids=["more features", "more utterances"])
def test_ridge_equals_a_grid_search_over_speakers(width: int) -> None:
    X, y, speakers = features(width=width)
    model = fit_ridge(X, y=y, speakers=speakers)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": PENALTIES},
        scoring="neg_mean_squared_error",
        cv=list(GroupKFold(5).split(X, y, speakers)),
    ).fit(X.astype(np.float64), y)
    # The search averages errors over folds, and these count utterances: ten or twenty in each.
    assert model.penalty == pytest.approx(search.best_params_["ridge__alpha"], rel=10**0.51)
    best = make_pipeline(StandardScaler(), Ridge(alpha=model.penalty)).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(model.predict(X), best.predict(X.astype(np.float64)), rtol=1e-8)
    assert model.coefficients[7] == pytest.approx(0, abs=1e-12)


def test_ridge_folds_learn_nothing_from_the_speaker_held_out() -> None:
    X, y, speakers = features()
    folds = list(leave_out(RIDGE, X=X, Y=y[:, None], speakers=speakers, splits=one_out(speakers)))
    assert [fold.split.name for fold in folds] == sorted(set(speakers))
    damaged, wrong = X.copy(), y.copy()
    damaged[speakers == "s2"] *= 1e3
    wrong[speakers == "s2"] = 1e6
    third = one_out(speakers)[2:3]
    (again,) = leave_out(RIDGE, X=X, Y=wrong[:, None], speakers=speakers, splits=third)
    np.testing.assert_array_equal(again.predicted, folds[2].predicted)
    mask = speakers != "s2"
    model = fit_ridge(damaged[mask], y=wrong[mask], speakers=speakers[mask])
    np.testing.assert_array_equal(model.predict(X[~mask]), folds[2].predicted[:, 0])


def test_ridge_of_one_speaker_or_one_utterance() -> None:
    X, y, _ = features(count=12)
    assert np.isfinite(fit_ridge(X, y=y, speakers=np.array(["s"] * 12)).predict(X)).all()
    model = fit_ridge(X[:1], y=y[:1], speakers=np.array(["s"]))
    np.testing.assert_allclose(model.predict(X), y[0])


# --- the benchmark ----------------------------------------------------------------------------


def test_trained_against_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    benchmark = importlib.import_module("trained_vs_random")
    table = write_corpus(tmp_path, durations=[0.4] * 12, speakers=3)
    table["arousal"] = np.where(table["emotion"] == "ang", 4.0, 2.0)
    fs.write_manifest(table, tmp_path / "manifest.csv")
    options = [
        str(tmp_path / "manifest.csv"), "--weights", "random:7", "--seeds", "0,1", "--features",
        "4", "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    benchmark.main(options)
    shown = capsys.readouterr().out
    for words in ("random:1", "mean of the random ones", "Labels are proxies", "random:7"):
        assert words in shown
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"comparison.csv", "comparison.md", "comparison.png", "table1.md"} <= written

    store = fs.open_store(tmp_path / "out" / "store")
    assert len(store.views) == 3
    rows = pd.read_csv(tmp_path / "out" / "table1-folds.csv")
    assert len(rows) == 3 * 2 * 2 * 3
    name = benchmark.stored_view(store, load_encoder("random:1"))
    pooled = store.pooled(name).sortby("id")
    X = pooled["gate"].sel(statistic="mean").to_numpy().reshape(12, -1)
    y, speakers = pooled["valence"].to_numpy(), pooled["speaker"].to_numpy().astype(str)
    expected = [
        float(np.mean((fold.predicted[:, 0] - y[fold.split.test]) ** 2))
        for fold in leave_out(RIDGE, X=X, Y=y[:, None], speakers=speakers, splits=one_out(speakers))
    ]
    ridge = rows[rows["feature_set"] == "all units, ridge (random:1)"]
    found = ridge[ridge["target"] == "valence"].sort_values("fold")["mse"]
    np.testing.assert_allclose(found, expected)
    compared = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert len(compared) == 2 * 3 * 2 * 3  # models, controls and their mean, targets, measures

    with pytest.raises(SystemExit):
        benchmark.main([*options, "--seeds", "one"])
