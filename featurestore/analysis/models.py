"""A feature set: which features, and all that a training fold may learn from them.

Scaling, selection and regression are one scikit-learn pipeline, fitted to training utterances. What
a model has to choose (a penalty, a number of components) is chosen inside the training fold,
over held-out groups of its speakers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.dummy import DummyRegressor
from sklearn.feature_selection import SelectKBest, f_classif, r_regression
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, RobustScaler, StandardScaler
from sklearn.svm import SVR

from featurestore.analysis.ridge import INNER_FOLDS, PENALTIES, fit_ridges, inner_groups
from featurestore.analysis.sets import END_LAYERS, NAMED
from featurestore.errors import AnalysisError

Scale = Literal["none", "standard", "robust"]
Select = Literal["none", "f_regression", "f_classif", "abs_r", "pca"]
ModelName = Literal["ols", "ridge", "svr", "pls"]

SCALES: tuple[Scale, ...] = ("none", "standard", "robust")
SELECTIONS: tuple[Select, ...] = ("none", "f_regression", "f_classif", "abs_r", "pca")
MODELS: tuple[ModelName, ...] = ("ols", "ridge", "svr", "pls")

_COSTS = tuple(float(c) for c in np.logspace(-4, 0, 5))
_COMPONENTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class FeatureSet:
    """One row of a table: features, and what a fold does with them.

    Attributes:
        name: as printed.
        features: an expression (`featurestore.analysis.sets`); None predicts the mean of the
            training targets.
        best: how many features (for "pca", components) each training fold keeps; None keeps all.
        select: how those are chosen: "f_regression" by squared correlation with the target, which
            is also the order of "abs_r"; "f_classif" by the F of an analysis of variance between
            labels rounded to whole numbers; "pca" makes principal components instead.
        scale: "standard" by mean and standard deviation, "robust" by median and interquartile range
            with what lies outside the training fold's range clipped to it; by default "standard",
            and "none" for "ols", which does not depend on it.
        model: ordinary least squares; ridge regression; a linear support vector machine; partial
            least squares. What the last three must choose is chosen over held-out speakers of the
            training fold.
        leaky: choose the features on all utterances, the held-out ones too. It shows what that
            mistake would claim, and is said in the name.
    """

    name: str
    features: str | None
    best: int | None = None
    select: Select = "f_regression"
    scale: Scale | None = None
    model: ModelName = "ols"
    leaky: bool = False

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            AnalysisError: a choice that there is not, or a number below 1.
        """
        for field, value, known in (
            ("select", self.select, SELECTIONS),
            ("scale", self.scale, (*SCALES, None)),
            ("model", self.model, MODELS),
        ):
            if value not in known:
                accepted = ", ".join(str(one) for one in known if one)
                raise AnalysisError(
                    f"Feature set {self.name!r}: {field} = {value!r}; accepted: {accepted}."
                )
        if self.best is not None and self.best < 1:
            raise AnalysisError(f"Feature set {self.name!r}: best = {self.best}; give 1 or more.")
        if self.leaky and (self.best is None or self.select in ("none", "pca")):
            raise AnalysisError(
                f"Feature set {self.name!r}: a leaky set needs a selection; give best and select."
            )

    @property
    def scaling(self) -> Scale:
        """The scaling that is used."""
        return self.scale or ("none" if self.model == "ols" else "standard")

    @property
    def selects(self) -> bool:
        """Whether a fold keeps some of the features only."""
        return self.best is not None and self.select != "none"


def table_sets(
    table: int,
    *,
    best: int = 100,
    view: str = "network",
    capture: str | None = None,
    mfcc: str = "mfcc",
    egemaps: str = "egemaps",
) -> tuple[FeatureSet, ...]:
    """Feature sets of the paper's Table 1 or 2, with the controls that it lacks.

    Args:
        table: 1 or 2.
        best: units that are selected in each fold.
        view: of the network.
        capture: its capture point; the first one by default.
        mfcc: view of the control.
        egemaps: view of the baseline.

    Raises:
        AnalysisError: `table` is neither 1 nor 2.
    """
    units = f"{view}{'.' + capture if capture else ''}.mean"
    functionals = (
        FeatureSet("eGeMAPS", egemaps),
        FeatureSet("eGeMAPS, robust", egemaps, scale="robust"),
    )
    baseline = FeatureSet("train mean", None)
    if table == 1:
        neural = FeatureSet(f"{best} best of all units", units, best)
        return (baseline, neural, *functionals, FeatureSet("MFCC mean + std", mfcc))
    if table == 2:
        first, last = f"{units}[:{END_LAYERS}]", f"{units}[-{END_LAYERS}:]"
        return (
            baseline,
            FeatureSet(f"{best} best of first {END_LAYERS} layers", first, best),
            FeatureSet(f"{best} best of last {END_LAYERS} layers", last, best),
            FeatureSet(f"{best} best of all layers", units, best),
            *functionals,
        )
    raise AnalysisError(f"There is no table {table!r}: choose 1 or 2.")


class _Clipper(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Clips features to the range that they have where it is fitted."""

    def fit(self, X: NDArray[Any], y: Any = None) -> _Clipper:
        self.low_, self.high_ = X.min(axis=0), X.max(axis=0)
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X: NDArray[Any]) -> NDArray[Any]:
        return np.clip(X, self.low_, self.high_)


def pipeline(feature_set: FeatureSet, *, width: int) -> Pipeline:
    """The unfitted model of a feature set with `width` features, its choices at their first values.

    Selection comes before scaling: it does not depend on it, and float32 activations are widened
    where they are few.
    """
    if feature_set.features is None:
        return make_pipeline(DummyRegressor(strategy="mean"))
    steps: list[tuple[str, Any]] = []
    keep = min(feature_set.best or width, width)
    if feature_set.selects and feature_set.select != "pca":
        score = rounded_f_classif if feature_set.select == "f_classif" else selection_scores
        steps.append(("select", SelectKBest(score, k=keep)))
    steps.append(("widen", FunctionTransformer(_to_float64)))
    if feature_set.scaling == "standard":
        steps.append(("scale", StandardScaler()))
    elif feature_set.scaling == "robust":
        steps += [("scale", RobustScaler()), ("clip", _Clipper())]
    if feature_set.selects and feature_set.select == "pca":
        steps.append(("pca", _Components(keep)))
    steps.append(("model", _model(feature_set.model)))
    return Pipeline(steps)


class _Components(TransformerMixin, BaseEstimator):
    """As many principal components as asked for, or as a fold's utterances allow."""

    def __init__(self, most: int = 88):
        self.most = most

    def fit(self, X: NDArray[Any], y: Any = None) -> _Components:
        self.pca_ = PCA(min(self.most, *X.shape), svd_solver="auto", random_state=0).fit(X)
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X: NDArray[Any]) -> NDArray[Any]:
        return self.pca_.transform(X)


def _model(name: ModelName) -> BaseEstimator:
    if name == "ridge":
        return Ridge()
    if name == "svr":
        return SVR(kernel="linear")
    if name == "pls":
        return PLSRegression(n_components=1, scale=False)
    return LinearRegression()


def _choices(name: ModelName, *, most: int) -> dict[str, list[Any]]:
    """What a model chooses from; `most` components that data allow."""
    if name == "ridge":
        return {"model__alpha": list(PENALTIES)}
    if name == "svr":
        return {"model__C": list(_COSTS)}
    if name == "pls":
        return {"model__n_components": [c for c in _COMPONENTS if c <= most] or [1]}
    return {}


def fit_predict(
    feature_set: FeatureSet,
    *,
    X: Float[np.ndarray, "training feature"],
    Y: Float64[np.ndarray, "training target"],
    speakers: Shaped[np.ndarray, " training"],
    held_out: Float[np.ndarray, "held_out feature"],
) -> Float64[np.ndarray, "held_out target"]:
    """Fit a feature set's model to training utterances and predict held-out ones.

    Args:
        feature_set: the model.
        X: training features.
        Y: their labels, all known; one model per target.
        speakers: who says the training utterances; choices are made over groups of them.
        held_out: features to predict from.

    Returns:
        Predictions in the unit of the target. NaN where a selection was to be made by a constant
        target, or by labels that round to a single class: no feature can be best for it; and where
        partial least squares have a single utterance.
    """
    if _is_plain_ridge(feature_set):
        models = fit_ridges(X, Y=Y, speakers=speakers, robust=feature_set.scaling == "robust")
        return np.stack([model.predict(held_out) for model in models], axis=1)
    predicted = np.full((len(held_out), Y.shape[1]), np.nan)
    for column, y in enumerate(Y.T):
        if not _impossible(feature_set, y):
            model = fitted(feature_set, X=X, y=y, speakers=speakers)
            predicted[:, column] = np.asarray(model.predict(held_out), np.float64).reshape(-1)
    return predicted


def _impossible(feature_set: FeatureSet, y: NDArray[np.float64]) -> bool:
    """Whether labels allow no selection, or no model."""
    if feature_set.model == "pls" and len(y) < 2:
        return True
    if not feature_set.selects or feature_set.select == "pca":
        return False
    return bool(np.ptp(np.rint(y) if feature_set.select == "f_classif" else y) == 0)


def _is_plain_ridge(feature_set: FeatureSet) -> bool:
    """Whether `fit_ridges` has a faster way than scikit-learn's to the same."""
    return (
        feature_set.model == "ridge" and feature_set.scaling != "none" and not feature_set.selects
    )


def fitted(
    feature_set: FeatureSet,
    *,
    X: Float[np.ndarray, "training feature"],
    y: Float64[np.ndarray, " training"],
    speakers: Shaped[np.ndarray, " training"],
) -> Any:
    """A feature set's model, fitted; it has `predict`. Arguments as those of `fit_predict`."""
    if _is_plain_ridge(feature_set):
        robust = feature_set.scaling == "robust"
        return fit_ridges(X, Y=y[:, None], speakers=speakers, robust=robust)[0]
    if feature_set.features is None:
        X = np.zeros((len(y), 1))  # scikit-learn refuses a matrix without columns
    whole = pipeline(feature_set, width=X.shape[1])
    groups = inner_groups(speakers)
    folds = min(INNER_FOLDS, int(groups.max()) + 1)
    width = min(feature_set.best or X.shape[1], X.shape[1]) if feature_set.selects else X.shape[1]
    smallest = len(y) - int(np.bincount(groups).max()) if folds > 1 else len(y)
    choices = _choices(feature_set.model, most=min(width, smallest - 1))
    if not choices or folds < 2 or (feature_set.model == "pls" and smallest < 2):
        return whole.fit(X, y)
    search = GridSearchCV(
        whole, choices, scoring="neg_mean_squared_error", cv=GroupKFold(folds), refit=True
    )
    return search.fit(X, y, groups=groups)


def _to_float64(X: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(X, np.float64)


def selection_scores(
    X: Float[np.ndarray, " utterance feature"], y: Float64[np.ndarray, " utterance"]
) -> Float64[np.ndarray, " feature"]:
    """Squared correlation of each feature with y; -inf for a constant one, never selected first.

    The F value of scikit-learn's `f_regression` is r**2 / (1 - r**2) * (n - 2) and ranks features
    the same way, but its one-pass variance cancels for features that hardly vary around a large
    mean and makes noise of constant ones. So features are centred here, twice: their shift by the
    first row is exact in float64.
    """
    X = np.asarray(X, np.float64) - np.asarray(X[0], np.float64)
    X -= X.mean(axis=0)
    y = y - y[0]
    r = r_regression(X, y - y.mean(), center=False)
    return np.where(np.ptp(X, axis=0) > 0, r**2, -np.inf)


def rounded_f_classif(
    X: Float[np.ndarray, " utterance feature"], y: Float64[np.ndarray, " utterance"]
) -> Float64[np.ndarray, " feature"]:
    """F between labels rounded to whole numbers, the other reading of the paper's "Fisher score".

    -inf for a constant feature, and for all of them where rounding leaves one label.
    """
    X, classes = np.asarray(X, np.float64), np.rint(y)
    if len(np.unique(classes)) < 2:
        return np.full(X.shape[1], -np.inf)
    varied = np.ptp(X, axis=0) > 0
    scores = np.full(X.shape[1], -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores[varied] = np.nan_to_num(
            f_classif(X[:, varied] - X[0, varied], classes)[0], nan=-np.inf
        )
    return scores


def leak(
    feature_set: FeatureSet,
    X: Float[np.ndarray, "utterance feature"],
    y: Float64[np.ndarray, " utterance"],
    rows: Int64[np.ndarray, " row"],
) -> tuple[FeatureSet, NDArray[Any]]:
    """A set without selection, and the features that one on all `rows` keeps for it."""
    score = rounded_f_classif if feature_set.select == "f_classif" else selection_scores
    chosen = SelectKBest(score, k=min(feature_set.best or 1, X.shape[1])).fit(X[rows], y[rows])
    return replace(feature_set, best=None, leaky=False), X[:, chosen.get_support()]


__all__ = ["MODELS", "NAMED", "SCALES", "SELECTIONS", "FeatureSet", "fit_predict", "pipeline"]
