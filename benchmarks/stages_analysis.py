"""Correlations and held-out predictions beside NumPy and scikit-learn doing the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from sklearn.dummy import DummyRegressor
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.pipeline import make_pipeline

from featurestore.analysis.correlation import correlate
from featurestore.analysis.features import AnalysisWarning
from featurestore.analysis.regression import evaluate
from featurestore.benchmarks.inputs import TARGET, Inputs
from featurestore.benchmarks.stages import stage
from featurestore.benchmarks.timing import Agreement, Contest
from featurestore.store.reader import Store, open_store

BEST = 100


def _matrices(inputs: Inputs) -> tuple[Path, Path]:
    """Means over frames as people keep them: (utterance, 1920) and MFCC statistics (.., 40)."""
    network, mfcc = inputs.folder / "network.npy", inputs.folder / "mfcc.npy"
    if not network.exists():
        means = inputs.opened.pooled("network")["gate"].sel(statistic="mean")
        np.save(network, means.transpose("utterance", ...).values.reshape(len(means), -1))
        pooled = inputs.opened.pooled("mfcc")["mfcc"].sel(statistic=["mean", "std"])
        pooled = pooled.transpose("utterance", "statistic", "coefficient")
        rows = pooled["id"].to_index().get_indexer(means["id"].values)
        np.save(mfcc, pooled.values[rows].reshape(len(means), -1))
    return network, mfcc


@stage(
    "analysis",
    "correlate: r, p and n of every unit",
    reference="numpy.corrcoef, unit by unit",
    speeds=(10_000, 10_000),
    by_call=True,
)
def correlation(inputs: Inputs) -> Contest:
    """From a store that is opened anew, beside an .npy file of the means."""
    path, _ = _matrices(inputs)
    y = inputs.opened.pooled("network")[TARGET].values

    def by_numpy() -> np.ndarray:
        X = np.load(path)
        with np.errstate(invalid="ignore", divide="ignore"):  # a constant unit
            return np.array([np.corrcoef(column, y)[0, 1] for column in X.T])

    def theirs(_: Path) -> None:
        by_numpy()

    def ours(_: Path) -> None:
        correlate(open_store(inputs.store), target=TARGET)

    found = correlate(inputs.opened, target=TARGET)["r"].values.ravel()
    apart = np.abs(found - by_numpy())
    # Where a unit hardly varies, float32 means decide, and NumPy centres them once.
    agreement = Agreement("correlations", float(np.nanmax(apart, initial=0.0)), 1e-4)
    return Contest(inputs.audio_s, ours, theirs, agreement)


def _errors_by_ours(store: Store) -> np.ndarray:
    """The same, in the same order: mean of the labels, best units, MFCC."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnalysisWarning)  # that there are no eGeMAPS
        folds = evaluate(store, targets=(TARGET,), features=BEST)
    return np.array(folds.groupby("feature_set", sort=False)["mse"].mean())


def _errors_by_sklearn(network: Path, mfcc: Path, y: np.ndarray, who: np.ndarray) -> list[float]:
    """Mean squared error of each feature set, mean over held-out speakers."""
    X, Z = np.load(network).astype(np.float64), np.load(mfcc).astype(np.float64)
    best = make_pipeline(SelectKBest(f_regression, k=BEST), LinearRegression())
    found = []
    for model, features in ((DummyRegressor(), Z), (best, X), (LinearRegression(), Z)):
        errors = []
        for train, test in LeaveOneGroupOut().split(features, y, who):
            predicted = model.fit(features[train], y[train]).predict(features[test])
            errors.append(np.mean((predicted - y[test]) ** 2))
        found.append(float(np.mean(errors)))
    return found


@stage(
    "analysis",
    "evaluate: three feature sets, one speaker out at a time",
    reference="scikit-learn's LeaveOneGroupOut loop",
    speeds=(800, 800),
    by_call=True,
    most=(400, 3),
)
def held_out(inputs: Inputs) -> Contest:
    """Mean of the labels, best units, and MFCC, from a store that is opened anew."""
    network, mfcc = _matrices(inputs)
    data = inputs.opened.pooled("network")
    y, who = data[TARGET].values, data["speaker"].values.astype(str)

    def theirs(_: Path) -> None:
        _errors_by_sklearn(network, mfcc, y, who)

    def ours(_: Path) -> None:
        _errors_by_ours(open_store(inputs.store))

    found = _errors_by_ours(inputs.opened)
    expected = np.array(_errors_by_sklearn(network, mfcc, y, who))
    difference = float(np.abs(found / expected - 1).max())
    agreement = Agreement("mean squared errors, relative", difference, 1e-2)
    return Contest(inputs.audio_s, ours, theirs, agreement)
