"""What a report is made of: plain tables and arrays, so that drawing it never touches a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float32

from featurestore.analysis.trace import Trace as Trace


@dataclass(frozen=True, eq=False)
class Scatter:
    """Pooled units and labels of some utterances, for looking at one unit at a time.

    Attributes:
        utterances: id, speaker and one column per target; NaN where a label is unknown.
        values: (utterance, layer, unit).
        total: utterances of the corpus, of which these are a sample.
    """

    utterances: pd.DataFrame
    values: Float32[np.ndarray, "utterance layer unit"]
    total: int


@dataclass(frozen=True, eq=False)
class Contents:
    """Everything that a report shows. Tables that are empty are left out of it.

    Attributes:
        title: of the page.
        targets: labels, in the order in which they are shown.
        layer_names: (layer,), from input to output.
        corpus: facts about the corpus by name, as text.
        speakers: speaker, utterances, hours, one column per text label of the speaker, and per
            target `<target>_mean`, `<target>_sd` and `<target>_missing`.
        maps: one row per target, layer (index) and unit: `r`, `low`, `high`, `p`, `q` (pooled
            over speakers, random effects), `tau2`, `i2`, `agreement`, `speakers`, `n`, `r_within`,
            `within_low`, `within_high`, `p_max`, `r_between`, `r_all`, and `partial_r`,
            `partial_low`, `partial_high`, `partial_p`, `partial_q`; NaN where undefined.
        thresholds: per target: `threshold` of |r_within| that the largest of all units exceeds in
            5 % of permutations, `permutations`, `defined` units, `significant` ones (q < 0.05) and
            `partial_significant`, those of them that are it given the `covariates` (text) too.
        stability: per target and speaker: `n`, `label_sd`, `mean_abs_r`, `chance_abs_r`,
            `reliability`, `similarity`, `ceiling`, `verdict`, `first_abs_r` and `last_abs_r`
            (first and last three layers).
        confounds: per `covariate` and layer: `mean_abs_r`, `max_abs_r` and `unit` where it is,
            `kind` ("within speakers" or "all utterances"), `chance`.
        curves: per target, `features` (what of a layer), layer and `measure` ("mse", "ccc"):
            `value`, `low`, `high` (bootstrap over speakers).
        results: what `evaluate` returns, of all tables and feature sets together; `table` names
            them ("1", "2", "pooling", "controls", ...).
        comparisons: what `compare` returns.
        trends: per target and `features`, and per pair of targets: `slope` of CCC from the first
            layer to the last, `low`, `high`, `p`, `wilcoxon_p`, `speakers`.
        permutations: per target, feature_set and measure: `observed`, `null_mean`, `null_low`,
            `null_high`, `p`, `permutations`.
        traces: of some utterances.
        scatter: values behind the maps; None leaves scatter plots out.
        statements: sentences that say what was found, each with its interval.
        caveats: what has to be said under every result.
        notes: what was left out, and counts.
        lineage: where everything came from: store, state, views, weights, versions, command.
    """

    title: str
    targets: Sequence[str]
    layer_names: Sequence[str]
    corpus: Mapping[str, str]
    speakers: pd.DataFrame
    maps: pd.DataFrame = field(default_factory=pd.DataFrame)
    thresholds: pd.DataFrame = field(default_factory=pd.DataFrame)
    stability: pd.DataFrame = field(default_factory=pd.DataFrame)
    confounds: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    results: pd.DataFrame = field(default_factory=pd.DataFrame)
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)
    permutations: pd.DataFrame = field(default_factory=pd.DataFrame)
    trends: pd.DataFrame = field(default_factory=pd.DataFrame)
    traces: Sequence[Trace] = ()
    scatter: Scatter | None = None
    statements: Sequence[str] = ()
    caveats: Sequence[str] = ()
    notes: Sequence[str] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
