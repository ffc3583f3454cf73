"""Two feature sets on the same folds: how far apart, and is it more than chance?

The unit is the speaker: utterances of one speaker are alike, so it is speakers that are resampled
and whose results are swapped, never utterances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from scipy import stats

from featurestore.analysis.pooling import bootstrap_interval
from featurestore.errors import AnalysisError

MEASURES = ("mse", "ccc", "ccc_pooled")

COLUMNS = (
    "target",
    "measure",
    "first",
    "second",
    "speakers",
    "first_value",
    "second_value",
    "difference",
    "low",
    "high",
    "t_low",
    "t_high",
    "confidence",
    "p",
    "exact",
    "wilcoxon_p",
    "effect",
    "effect_low",
    "effect_high",
)

_MOMENTS = (
    "n_test",
    "truth_mean",
    "truth_variance",
    "predicted_mean",
    "predicted_variance",
    "covariance",
)


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame | Sequence[pd.DataFrame],
    *,
    names: tuple[str, str] | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> pd.DataFrame:
    """The paired difference between two feature sets, over held-out speakers.

    Args:
        first: rows of one feature set, as from `evaluate`; any number of targets.
        second: rows of another one on the same utterances; or several such tables (runs with
            several seeds), of which the mean result counts.
        names: what to call the two; by default the names of their feature sets.
        confidence: of the intervals.
        resamples: bootstrap samples; and random swaps, where there are more possible ones.
        seed: of both.

    Returns:
        One row per target and measure: `mse` and `ccc` (means over speakers) and `ccc_pooled` (of
        all speakers' predictions together). first_value, second_value, difference (first - second);
        low and high, its bias-corrected and accelerated bootstrap interval over speakers (Efron
        1987); t_low and t_high, Student's t interval over speakers (NaN for ccc_pooled, which is no
        mean over them); p, two-sided, of swapping the two at random within speakers, which for the
        means is a sign-flip test of the differences: `exact` if all 2**speakers swaps were looked
        at; wilcoxon_p, of the signed-rank test; effect, the mean difference over the standard
        deviation of the differences (Cohen's d of paired samples), with its bootstrap interval
        effect_low to effect_high: these are NaN for ccc_pooled, which has
        no value per speaker. Speakers whose measure is undefined in either (a constant label) do
        not count in it. Of a single speaker, only values and difference are known.

    Raises:
        AnalysisError: the tables hold several feature sets, share no target, or differ in speakers
            or utterances.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise AnalysisError(
            f"confidence={confidence}, resamples={resamples}; accepted: a confidence between 0 and "
            "1, and 1 resample or more"
        )
    runs = [second] if isinstance(second, pd.DataFrame) else list(second)
    if not runs:
        raise AnalysisError("There is nothing to compare with: the second table is missing.")
    for table in (first, *runs):
        _check_one_set(table)
    targets = [t for t in first["target"].unique() if all((r["target"] == t).any() for r in runs)]
    if not targets:
        raise AnalysisError(
            f"The tables share no target: {', '.join(first['target'].unique())} and "
            f"{', '.join(runs[0]['target'].unique())}."
        )
    called = names or (first["feature_set"].iloc[0], runs[0]["feature_set"].iloc[0])
    rows = []
    for target in targets:
        folds = _paired([table[table["target"] == target] for table in (first, *runs)])
        for measure in MEASURES:
            row = _difference(folds, measure, confidence, resamples, seed)
            said = {"target": target, "first": called[0], "second": called[1]}
            rows.append({**said, "confidence": confidence, **row})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def rows_of(results: pd.DataFrame, feature_set: str) -> pd.DataFrame:
    """The rows of one feature set.

    Raises:
        AnalysisError: there is none; names those there are.
    """
    chosen = results[results["feature_set"] == feature_set]
    if chosen.empty:
        held = ", ".join(repr(name) for name in results["feature_set"].unique())
        raise AnalysisError(f"No feature set {feature_set!r} in these results; there are: {held}.")
    return chosen


def _check_one_set(table: pd.DataFrame) -> None:
    if table.empty:
        raise AnalysisError("There is nothing to compare: a table has no rows.")
    found = table["feature_set"].unique()
    if len(found) > 1:
        raise AnalysisError(
            f"A table to compare holds several feature sets ({', '.join(map(repr, found))}); pick "
            "one with rows_of(results, name)."
        )


@dataclass(frozen=True, eq=False)
class _Folds:
    """Per-speaker results of both sides, the second's in as many runs as there are.

    Attributes:
        columns: (side * speaker, run) by name; the first side's are the same in every run.
        speakers: on each side.
    """

    columns: dict[str, Float64[np.ndarray, "result run"]]
    speakers: int

    def defined(self, names: Sequence[str]) -> Int64[np.ndarray, " speaker"]:
        """Speakers for whom all these columns are known on both sides and in all runs."""
        known = np.ones(self.speakers, bool)
        for name in names:
            finite = np.isfinite(self.columns[name]).all(axis=1)
            known &= finite[: self.speakers] & finite[self.speakers :]
        return np.flatnonzero(known)


def _paired(tables: Sequence[pd.DataFrame]) -> _Folds:
    indexed = [table.set_index("speaker").sort_index() for table in tables]
    for table in indexed:
        if table.index.has_duplicates:
            twice = table.index[table.index.duplicated()][0]
            raise AnalysisError(
                f"Speaker {twice!r} is twice in a table to compare; were results concatenated?"
            )
    for other in indexed[1:]:
        apart = indexed[0].index.symmetric_difference(other.index)
        if len(apart):
            raise AnalysisError(
                f"The tables to compare differ in {len(apart)} speakers (the first is "
                f"{apart[0]!r}): evaluate both on the same folds."
            )
        same = (indexed[0]["n_test"] == other["n_test"]) & np.isclose(
            indexed[0]["truth_mean"], other["truth_mean"]
        )
        if not same.all():
            raise AnalysisError(
                f"The tables to compare hold other utterances of speaker {same.idxmin()!r} "
                f"({indexed[0]['n_test'][same.idxmin()]} and {other['n_test'][same.idxmin()]}); "
                "evaluate both on the same utterances."
            )
    columns = {}
    for name in ("mse", "ccc", *_MOMENTS):
        values = [table[name].to_numpy(np.float64) for table in indexed]
        second = np.stack(values[1:], axis=1)
        first = np.broadcast_to(values[0][:, None], second.shape)
        columns[name] = np.concatenate([first, second])
    return _Folds(columns, len(indexed[0]))


def _difference(
    folds: _Folds, measure: str, confidence: float, resamples: int, seed: int
) -> dict[str, Any]:
    speakers = folds.defined(_MOMENTS if measure == "ccc_pooled" else (measure,))
    offset, count = folds.speakers, len(speakers)

    def value(ids: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        """The measure over results `ids`, each a side's of a speaker, along an axis; all runs."""
        ids = np.moveaxis(ids, axis, -1)
        if measure == "ccc_pooled":
            return _pooled_ccc({name: folds.columns[name][ids] for name in _MOMENTS}).mean(axis=-1)
        return folds.columns[measure][ids].mean(axis=-2).mean(axis=-1)

    def apart(ids: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        return value(ids, axis) - value(ids + offset, axis)

    row: dict[str, Any] = {"measure": measure, "speakers": count, "exact": False}
    row |= dict.fromkeys(
        [n for n in COLUMNS[COLUMNS.index("first_value") :] if n not in ("confidence", "exact")],
        math.nan,
    )
    if not count:
        return row
    row["first_value"] = float(value(speakers))
    row["second_value"] = float(value(speakers + offset))
    row["difference"] = row["first_value"] - row["second_value"]
    if count < 2 or not math.isfinite(row["difference"]):
        return row
    # What is equal but for rounding counts as equal, on every processor.
    unit = 1e-11 * max(abs(row["first_value"]), abs(row["second_value"]))
    rng = np.random.default_rng(seed)
    # In order, so that a resample of everybody is the same number and not nearly so.
    drawn = np.sort(rng.integers(0, count, (resamples, count)), axis=1)
    batch = _batch(count, folds)
    with np.errstate(invalid="ignore", divide="ignore"):
        row["low"], row["high"] = _bootstrap(drawn, speakers, apart, confidence, batch)
    if measure != "ccc_pooled":
        alone = apart(speakers[:, None])
        row["t_low"], row["t_high"] = _t_interval(alone, confidence)
        row |= _paired_tests(alone, confidence, drawn, unit)
    tested = stats.permutation_test(
        (speakers, speakers + offset),
        lambda a, b, axis: _rounded(value(a, axis) - value(b, axis), unit),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=batch,
        rng=rng,
    )
    row["p"], row["exact"] = float(tested.pvalue), 2**count <= resamples
    return row


def _paired_tests(
    differences: NDArray[np.float64],
    confidence: float,
    drawn: Int64[np.ndarray, "resample speaker"],
    unit: float,
) -> dict[str, float]:
    """What else is said of differences, one per speaker."""
    count, rounded = len(differences), _rounded(differences, unit)
    if np.ptp(rounded) == 0:
        return {}

    def effect(values: NDArray[np.float64]) -> NDArray[np.float64]:
        # Where all are the same, the standard deviation is rounding.
        spread = np.where(np.ptp(values, axis=-1) > 0, values.std(axis=-1, ddof=1), np.nan)
        return values.mean(axis=-1) / spread

    found = {
        "wilcoxon_p": float(stats.wilcoxon(rounded).pvalue),
        "effect": float(effect(differences)),
    }
    if count > 2:  # without one of two, there is no standard deviation
        low, high = bootstrap_interval(
            effect(differences[drawn]),
            found=np.array(found["effect"]),
            left_out=effect(np.stack([np.delete(differences, i) for i in range(count)])),
            confidence=confidence,
        )
        found |= {"effect_low": float(low), "effect_high": float(high)}
    return found


def _batch(count: int, folds: _Folds) -> int:
    """Resamples at a time: some 50 MB of results."""
    runs = folds.columns["mse"].shape[1]
    return max(1, 1_000_000 // (count * runs))


def _bootstrap(
    drawn: Int64[np.ndarray, "resample speaker"],
    speakers: Int64[np.ndarray, " speaker"],
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    confidence: float,
    batch: int,
) -> tuple[float, float]:
    """Interval of a statistic of speakers (..., speaker)."""
    parts = [statistic(speakers[drawn[at : at + batch]]) for at in range(0, len(drawn), batch)]
    low, high = bootstrap_interval(
        np.concatenate(parts),
        found=statistic(speakers),
        left_out=statistic(np.stack([np.delete(speakers, i) for i in range(len(speakers))])),
        confidence=confidence,
    )
    return float(low), float(high)


def _rounded(values: NDArray[np.float64], unit: float) -> NDArray[np.float64]:
    return np.round(values / unit) * unit if unit else values


def _t_interval(differences: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    half = stats.t.ppf((1 + confidence) / 2, len(differences) - 1) * stats.sem(differences)
    centre = float(differences.mean())
    return centre - float(half), centre + float(half)


def _pooled_ccc(moments: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """`regression.pooled_concordance` for many selections of speakers at once.

    Args:
        moments: (..., speaker, run) by name.

    Returns:
        (..., run), NaN where all labels are the same.
    """
    weight = moments["n_test"] / moments["n_test"].sum(axis=-2, keepdims=True)

    def over_speakers(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return (weight * x).sum(axis=-2, keepdims=True)

    truth, predicted = moments["truth_mean"], moments["predicted_mean"]
    truth_mean, predicted_mean = over_speakers(truth), over_speakers(predicted)
    truth_off, predicted_off = truth - truth_mean, predicted - predicted_mean
    truth_variance = over_speakers(moments["truth_variance"] + truth_off**2)
    predicted_variance = over_speakers(moments["predicted_variance"] + predicted_off**2)
    covariance = over_speakers(moments["covariance"] + truth_off * predicted_off)
    apart = (truth_mean - predicted_mean) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 2 * covariance / (truth_variance + predicted_variance + apart)
    return np.where(truth_variance > 0, found, math.nan)[..., 0, :]
