"""What each layer predicts alone, and whether that rises or falls from the audio to the text.

The paper compares the first three layers with the last three; here every layer is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from numpy.typing import NDArray
from scipy import stats

from featurestore.analysis.features import Store
from featurestore.analysis.models import FeatureSet
from featurestore.analysis.pooling import bootstrap_interval
from featurestore.analysis.regression import evaluate_joined
from featurestore.analysis.sets import join, one_block
from featurestore.errors import AnalysisError
from featurestore.progress import progress_bar
from featurestore.types import NETWORK

MEASURES = ("ccc", "mse")


def layer_curves(
    store: Store,
    *,
    targets: Sequence[str] = ("valence", "arousal"),
    features: str = NETWORK,
    folds: str = "speaker",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Held-out ridge regression on one layer at a time.

    Args:
        store: an open feature store.
        targets: numeric labels.
        features: one term of `featurestore.analysis.sets`, without layers.
        folds: as in `evaluate`.
        progress: whether to show a bar; None shows one on a terminal.

    Returns:
        Rows of `evaluate`, without `table` and with `layer`: one per layer, target and held-out
        speaker.

    Raises:
        AnalysisError: as `evaluate`, or features without layers.
    """
    targets = (targets,) if isinstance(targets, str) else targets
    block = one_block(features)
    joined = join(store, [features])
    values = joined.blocks[block]
    if values.ndim < 3:
        raise AnalysisError(f"{features!r} has no layers, and so no curve over them.")
    layers = values.shape[1]
    # Not `features` itself: of a named set, such as "all", layers cannot be taken.
    name = ".".join(part for part in (block.view, block.capture, block.statistic) if part)
    sets = [FeatureSet(str(layer), f"{name}[{layer}]", model="ridge") for layer in range(layers)]
    with progress_bar("Layers", layers, unit="layers", show=progress) as tick:
        tables = []
        for one in sets:
            found = evaluate_joined(joined, sets=[one], targets=targets, folds=folds)
            tables.append(found.assign(layer=int(one.name)))
            tick(1)
    results = pd.concat(tables, ignore_index=True)
    results.attrs["notes"] = [*joined.notes, *tables[0].attrs["notes"]]
    return results


def curve_table(
    results: pd.DataFrame, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """Mean over speakers of each layer's CCC and MSE.

    Args:
        results: from `layer_curves`.
        confidence: of the intervals.
        resamples: of speakers, the same for all layers.
        seed: of these.

    Returns:
        One row per target, measure and layer: `value`, and its bootstrap interval `low` to `high`
        (bias-corrected and accelerated) over speakers whose measure is defined in every layer;
        `speakers`, how many.
    """
    rows: list[dict[str, Any]] = []
    for target in results["target"].unique():
        for measure in MEASURES:
            table = _by_speaker(results, str(target), measure)
            low, high = _interval(table, confidence, resamples, seed)
            rows += [
                {
                    "target": target,
                    "measure": measure,
                    "layer": layer,
                    "value": float(table[:, layer].mean()) if len(table) else np.nan,
                    "low": float(low[layer]),
                    "high": float(high[layer]),
                    "speakers": len(table),
                }
                for layer in range(table.shape[1])
            ]
    return pd.DataFrame(rows)


def layer_trends(
    results: pd.DataFrame, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """Does CCC rise or fall with the layer, and does it for one target more than for another?

    Args:
        results: from `layer_curves`.
        confidence: of the intervals.
        resamples: of speakers.
        seed: of these.

    Returns:
        One row per target, and one per pair of targets ("arousal - valence"): `slope`, the change
        of CCC from the first layer to the last along a straight line fitted to each speaker's
        curve, as the mean over speakers; its bootstrap interval `low` to `high`; `p` of Student's t
        over speakers, and `wilcoxon_p`; `speakers`. Intervals and p are NaN for fewer than two
        speakers, and all values for fewer than two layers.
    """
    slopes = {}
    for target in map(str, results["target"].unique()):
        table = _by_speaker(results, target, "ccc", frame=True)
        layers = np.linspace(0, 1, table.shape[1])
        off = layers - layers.mean()
        fitted = table.to_numpy() @ off / (off @ off) if len(off) > 1 else np.nan
        slopes[target] = pd.Series(fitted, table.index)
    names = list(slopes)
    for a, first in enumerate(names):
        for second in names[a + 1 :]:
            slopes[f"{first} - {second}"] = (slopes[first] - slopes[second]).dropna()
    rows = []
    for name, values in slopes.items():
        column = values.to_numpy()[:, None]
        low, high = _interval(column, confidence, resamples, seed)
        several = len(column) > 1 and np.ptp(column) > 0
        rows.append(
            {
                "target": name,
                "slope": float(column.mean()) if len(column) else np.nan,
                "low": float(low[0]),
                "high": float(high[0]),
                "p": float(stats.ttest_1samp(column[:, 0], 0).pvalue) if several else np.nan,
                "wilcoxon_p": float(stats.wilcoxon(column[:, 0]).pvalue) if several else np.nan,
                "speakers": len(column),
            }
        )
    return pd.DataFrame(rows)


def _by_speaker(results: pd.DataFrame, target: str, measure: str, *, frame: bool = False) -> Any:
    """(speaker, layer) of a measure, for speakers whose is defined in every layer."""
    chosen = results[results["target"] == target]
    table = chosen.pivot_table(index="speaker", columns="layer", values=measure, dropna=False)
    table = table.reindex(columns=sorted(results["layer"].unique())).dropna()
    return table if frame else table.to_numpy(np.float64)


def _interval(
    table: Float64[np.ndarray, "speaker layer"], confidence: float, resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    count = len(table)
    if count < 2:
        empty = np.full(table.shape[1], np.nan)
        return empty, empty
    weight = np.random.default_rng(seed).multinomial(
        count, np.full(count, 1 / count), size=resamples
    )
    return bootstrap_interval(
        weight @ table / count,
        found=table.mean(axis=0),
        left_out=(table.sum(axis=0) - table) / (count - 1),
        confidence=confidence,
    )
