"""The confound map: which units follow duration, loudness, pitch, sex or the corpus instead."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd

from featurestore.analysis.correlation import chance_abs_r, group_codes
from featurestore.analysis.covariates import available, covariates
from featurestore.analysis.features import AnalysisWarning, Store, utterance_table
from featurestore.analysis.moments import lazy_moments
from featurestore.analysis.partial import across, within
from featurestore.analysis.sets import finite_block, unit_index
from featurestore.types import NETWORK

WITHIN, ALL = "within speakers", "all utterances"


def confound_map(
    store: Store,
    *,
    features: str = NETWORK,
    names: Sequence[str] | None = None,
    without: Sequence[str] = (),
) -> pd.DataFrame:
    """Correlation of every unit with covariates, in one pass over the store.

    Args:
        store: an open feature store.
        features: one term of `featurestore.analysis.sets`, without layers.
        names: covariates (`featurestore.analysis.covariates`); by default all that the corpus
            offers.
        without: columns that are none by default, such as the targets.

    Returns:
        One row per covariate and unit: covariate, layer and unit (or what else names a feature),
        `r_within` (deviations from the speakers' means; NaN for what never varies within a
        speaker, such as sex), `r_all` and `n` utterances whose covariate is known.

    Raises:
        AnalysisError: a name that is no covariate, or an unknown speaker.
    """
    array, left_out = finite_block(store, features)
    for note in left_out:
        warnings.warn(note, AnalysisWarning, stacklevel=2)
    table = utterance_table(array)
    names = available(store, table, without=without) if names is None else names
    found = covariates(store, table, names)
    columns = np.stack([one.numbers for one in found], axis=1) if found else np.empty((0, 0))
    if not found:
        return pd.DataFrame()
    known = np.asarray(~np.isnan(columns).all(axis=1))
    codes, speakers = group_codes(array, "speaker", wanted=known)
    moments = lazy_moments(da.asarray(array.data), y=columns, codes=codes).compute()
    moments = moments.over(np.arange(len(speakers)))
    index = unit_index(array)
    tables = []
    for column, one in enumerate(found):
        overall = across(moments, column)[1]
        inside = within(moments, column, np.ones((1, len(speakers))))[0]
        n = int(moments.n[:, column].sum())
        said = {"covariate": one.name, **index, "r_within": inside, "r_all": overall, "n": n}
        tables.append(pd.DataFrame(said))
    return pd.concat(tables, ignore_index=True)


def by_layer(confounds: pd.DataFrame) -> pd.DataFrame:
    """A confound map in short: one row per covariate and layer.

    Returns:
        `covariate`; `kind`: "within speakers", or "all utterances" for what never varies within a
        speaker; `layer`; `mean_abs_r`; `max_abs_r`, and `unit`, whose it is; `chance`: the mean |r|
        of unrelated values.
    """
    rows: list[dict[str, Any]] = []
    for (covariate, layer), units in confounds.groupby(["covariate", "layer"], sort=False):
        inside = _defined_somewhere(confounds, str(covariate))
        size = np.abs(units["r_within" if inside else "r_all"].to_numpy(np.float64))
        known = np.isfinite(size)
        best = int(np.argmax(np.where(known, size, -1.0)))
        rows.append(
            {
                "covariate": covariate,
                "kind": WITHIN if inside else ALL,
                "layer": layer,
                "mean_abs_r": float(size[known].mean()) if known.any() else np.nan,
                "max_abs_r": float(size[best]) if known.any() else np.nan,
                "unit": int(units["unit"].iloc[best]),
                "chance": chance_abs_r(float(units["n"].iloc[0])),
            }
        )
    return pd.DataFrame(rows)


def _defined_somewhere(confounds: pd.DataFrame, covariate: str) -> bool:
    return bool(confounds.loc[confounds["covariate"] == covariate, "r_within"].notna().any())
