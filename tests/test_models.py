"""Models of feature sets against scikit-learn, and what leaks against what does not."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, f_classif, f_regression
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, RobustScaler, StandardScaler
from sklearn.svm import SVR

from featurestore.analysis.folds import one_out
from featurestore.analysis.models import FeatureSet, fit_predict, pipeline
from featurestore.analysis.regression import leave_out
from featurestore.analysis.ridge import PENALTIES, Spectrum, fit_ridges
from featurestore.analysis.scores import concordance, r2
from featurestore.errors import AnalysisError


def data(
    count: int = 90, width: int = 60, *, noise: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    speakers = np.array([f"s{i % 6}" for i in range(count)])
    y = rng.integers(1, 6, count) + rng.normal(0, 0.3, count)
    own = rng.normal(size=(6, width))[np.arange(count) % 6]
    X = rng.normal(size=(count, width)) + own
    if not noise:
        X += 0.8 * y[:, None] * (np.arange(width) % 9 == 0)
    return X.astype(np.float32), y, speakers


def grid(steps: list, choices: dict) -> GridSearchCV:
    return GridSearchCV(
        Pipeline(steps), choices, scoring="neg_mean_squared_error", cv=GroupKFold(5)
    )


KBEST = ("select", SelectKBest(f_regression, k=9))
STANDARD, MODEL = ("scale", StandardScaler()), "model"
CASES = {
    "ols": (FeatureSet("", "x"), Pipeline([(MODEL, LinearRegression())])),
    "ols, best": (FeatureSet("", "x", 9), Pipeline([KBEST, (MODEL, LinearRegression())])),
    "abs_r": (
        FeatureSet("", "x", 9, "abs_r"),
        Pipeline([KBEST, (MODEL, LinearRegression())]),
    ),
    "ols, standard": (
        FeatureSet("", "x", 9, scale="standard"),
        Pipeline([KBEST, STANDARD, (MODEL, LinearRegression())]),
    ),
    "pca": (
        FeatureSet("", "x", 9, "pca", "standard"),
        Pipeline([STANDARD, ("pca", PCA(9)), (MODEL, LinearRegression())]),
    ),
    "ridge, best": (
        FeatureSet("", "x", 9, model="ridge"),
        grid([KBEST, STANDARD, (MODEL, Ridge())], {"model__alpha": PENALTIES}),
    ),
    "svr": (
        FeatureSet("", "x", model="svr"),
        grid([STANDARD, (MODEL, SVR(kernel="linear"))], {"model__C": np.logspace(-4, 0, 5)}),
    ),
    "pls": (
        FeatureSet("", "x", model="pls"),
        grid(
            [STANDARD, (MODEL, PLSRegression(scale=False))],
            {"model__n_components": [1, 2, 4, 8, 16]},
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_folds_selection_and_predictions_are_scikit_learns(case: str) -> None:
    feature_set, oracle = CASES[case]
    X, y, speakers = data()
    folds = leave_out(feature_set, X=X, Y=y[:, None], speakers=speakers, splits=one_out(speakers))
    wide = X.astype(np.float64)
    for fold, (train, test) in zip(folds, LeaveOneGroupOut().split(X, y, speakers), strict=True):
        np.testing.assert_array_equal(fold.split.test, test)
        options = {"groups": speakers[train]} if isinstance(oracle, GridSearchCV) else {}
        model = oracle.fit(wide[train], y[train], **options)
        np.testing.assert_allclose(fold.predicted[:, 0], model.predict(wide[test]), rtol=1e-8)
        if feature_set.selects and feature_set.select in ("f_regression", "abs_r"):
            ours = pipeline(feature_set, width=X.shape[1]).fit(X[train], y[train])
            fitted = model.best_estimator_ if options else model
            np.testing.assert_array_equal(
                ours["select"].get_support(), fitted["select"].get_support()
            )


class Clip(FunctionTransformer):
    """Clips to the training range, by scikit-learn's own means."""

    def fit(self, X: np.ndarray, y: object = None) -> Clip:
        self.func = functools.partial(np.clip, a_min=X.min(axis=0), a_max=X.max(axis=0))
        return super().fit(X, y)


@pytest.mark.parametrize("scale", ["standard", "robust"])
@pytest.mark.parametrize("width", [150, 30], ids=["more features", "more utterances"])
def test_ridge_on_all_features_is_scikit_learns_with_the_penalty_chosen_over_speakers(
    width: int, scale: str
) -> None:
    X, y, speakers = data(width=width)
    Y = np.stack([y, -2 * y[::-1] + 1], axis=1)
    ridge = FeatureSet("", "x", model="ridge", scale=scale)
    before = [STANDARD] if scale == "standard" else [("clip", Clip()), ("scale", RobustScaler())]
    folds = leave_out(ridge, X=X, Y=Y, speakers=speakers, splits=one_out(speakers))
    wide = X.astype(np.float64)
    chosen = []
    for fold, (train, test) in zip(folds, LeaveOneGroupOut().split(X, y, speakers), strict=True):
        for column in range(2):
            errors = np.zeros(len(PENALTIES))
            for a, b in GroupKFold(5).split(train, groups=speakers[train]):
                for i, penalty in enumerate(PENALTIES):
                    inner = Pipeline([*before, (MODEL, Ridge(penalty))])
                    inner.fit(wide[train[a]], Y[train[a], column])
                    errors[i] += ((inner.predict(wide[train[b]]) - Y[train[b], column]) ** 2).sum()
            chosen.append(PENALTIES[np.argmin(errors)])
            model = Pipeline([*before, (MODEL, Ridge(chosen[-1]))])
            model.fit(wide[train], Y[train, column])
            np.testing.assert_allclose(
                fold.predicted[:, column], model.predict(wide[test]), rtol=1e-8
            )
    assert len(set(chosen)) > 1 or width == 30


def test_f_classif_selects_by_rounded_labels() -> None:
    X, y, _ = data()
    classes = FeatureSet("", "x", 9, "f_classif")
    ours = pipeline(classes, width=60).fit(X, y)["select"]
    oracle = SelectKBest(f_classif, k=9).fit(X.astype(np.float64), np.rint(y).astype(int))
    np.testing.assert_array_equal(ours.get_support(), oracle.get_support())
    np.testing.assert_allclose(ours.scores_, oracle.scores_, rtol=1e-8)
    X[:, 3] = 0.25
    assert np.isneginf(pipeline(classes, width=60).fit(X, y)["select"].scores_[3])
    assert np.isneginf(pipeline(classes, width=60).fit(X, y * 0 + 1)["select"].scores_).all()


def test_labels_of_one_class_select_nothing() -> None:
    X, y, who = data()
    held_out, small = X[:5], 0.4 * (y - y.min()) / np.ptp(y)  # all round to 0
    for select, predicts in (("f_classif", False), ("f_regression", True), ("pca", True)):
        one = FeatureSet("", "x", 9, select)
        found = fit_predict(one, X=X, Y=small[:, None], speakers=who, held_out=held_out)
        assert np.isfinite(found).all() == predicts


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (1, 1, 1), (1, 2)])
@pytest.mark.parametrize("model", ["ols", "ridge", "svr", "pls"])
@pytest.mark.parametrize("select", ["none", "f_regression", "f_classif", "pca"])
@pytest.mark.filterwarnings("ignore:y residual is constant", "ignore:invalid value")
def test_folds_of_one_or_two_utterances_are_no_error(
    sizes: tuple[int, ...], model: str, select: str
) -> None:
    rng = np.random.default_rng(0)
    who = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    X, Y = rng.normal(size=(len(who), 6)).astype(np.float32), rng.normal(3, 2, (len(who), 1))
    one = FeatureSet("", "x", None if select == "none" else 2, select, "standard", model)
    for fold in leave_out(one, X=X, Y=Y, speakers=who, splits=one_out(who)):
        assert fold.predicted.shape == (len(fold.split.test), 1)
        if model == "pls" and len(fold.split.train) == 1:
            assert np.isnan(fold.predicted).all()


def test_robust_scaling_clips_to_the_training_range() -> None:
    X, y, _ = data(width=5)
    fitted = pipeline(FeatureSet("", "x", scale="robust"), width=5).fit(X, y)
    oracle = LinearRegression().fit(RobustScaler().fit_transform(X.astype(np.float64)), y)
    far = X[:4] + np.array([1e6, -1e6, 0, 0, 0], np.float32)
    clipped = np.clip(far, X.min(axis=0), X.max(axis=0))
    scaled = RobustScaler().fit(X.astype(np.float64)).transform(clipped.astype(np.float64))
    np.testing.assert_allclose(fitted.predict(far), oracle.predict(scaled), rtol=1e-8)


def test_an_ill_conditioned_ridge_falls_back_to_singular_values() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 3))
    X = np.concatenate([base, base + 1e-7 * rng.normal(size=(40, 3))], axis=1)
    y, speakers = base @ [1.0, 2, 3], np.repeat(["a", "b"], 20)
    penalty = np.array([1e-10])
    Z = StandardScaler().fit_transform(X)
    assert not Spectrum(Z.T @ Z).holds(1e-10)
    (model,) = fit_ridges(X, Y=y[:, None], speakers=speakers, penalties=penalty)
    oracle = Ridge(1e-10, solver="svd").fit(Z, y)
    np.testing.assert_allclose(model.predict(X), oracle.predict(Z), rtol=1e-6)


CONFIGURATIONS = [
    FeatureSet("20 best, OLS", "x", 20),
    FeatureSet("20 best by class, OLS", "x", 20, "f_classif"),
    FeatureSet("20 components, OLS", "x", 20, "pca", "standard"),
    FeatureSet("ridge", "x", model="ridge"),
    FeatureSet("robust ridge on 20 best", "x", 20, scale="robust", model="ridge"),
    FeatureSet("svr on 20 best", "x", 20, model="svr"),
    FeatureSet("pls", "x", model="pls"),
]


def success(feature_set: FeatureSet, X: np.ndarray, Y: np.ndarray, who: np.ndarray) -> np.ndarray:
    """R2 and CCC of all held-out predictions together, for each target."""
    predicted = np.full(Y.shape, np.nan)
    for fold in leave_out(feature_set, X=X, Y=Y, speakers=who, splits=one_out(who)):
        predicted[fold.split.test] = fold.predicted
    pairs = list(zip(Y.T, predicted.T, strict=True))
    return np.array(
        [[r2(y, predicted=p) for y, p in pairs], [concordance(y, predicted=p) for y, p in pairs]]
    )


@pytest.mark.long
@pytest.mark.parametrize("feature_set", CONFIGURATIONS, ids=lambda one: one.name)
def test_noise_predicts_nothing_in_any_configuration(feature_set: FeatureSet) -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200, 1920)).astype(np.float32)
    Y, who = rng.normal(3, 1, (200, 4)), np.array([f"s{i % 10}" for i in range(200)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y residual is constant")
        found_r2, found_ccc = success(feature_set, X, Y, who)
    # One target of noise may be followed by luck, by a hair; on average over four, none is.
    assert found_r2.mean() <= 0
    assert (found_r2 < 0.02).all()
    # CCC of 200 unrelated values has a standard deviation of at most 1 / sqrt(200).
    assert abs(found_ccc.mean()) < 3 / np.sqrt(200 * 4)


def test_what_leakage_would_have_claimed() -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200, 1920)).astype(np.float32)
    Y, who = rng.normal(3, 1, (200, 2)), np.array([f"s{i % 10}" for i in range(200)])
    found_r2, found_ccc = success(FeatureSet("LEAKY", "x", 20, leaky=True), X, Y, who)
    assert (found_r2 > 0.3).all()
    assert (found_ccc > 0.5).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"select": "fisher"}, "select = 'fisher'; accepted: none, f_regression"),
        ({"scale": "minmax"}, "scale = 'minmax'; accepted: none, standard, robust"),
        ({"model": "lasso"}, "model = 'lasso'"),
        ({"best": 0}, "best = 0"),
        ({"leaky": True}, "a leaky set needs a selection"),
    ],
)
def test_choices_that_there_are_not(options: dict, said: str) -> None:
    with pytest.raises(AnalysisError, match=said):
        FeatureSet("name", "x", **options)
