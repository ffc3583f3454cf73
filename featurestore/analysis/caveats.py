"""What has to be said under every result computed from a corpus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from featurestore.analysis.features import is_numeric, text_values

PROXIES = "Labels are proxies derived from the acted emotion, not ratings."
_ACTED = ("emotion", "intensity")


def label_caveats(table: xr.Dataset, *, targets: Sequence[str]) -> list[str]:
    """`PROXIES`, if the corpus says so or its labels show it.

    They do if every utterance of an emotion (and intensity, where there is such a label) has the
    same value: raters who heard the utterances would differ.

    Args:
        table: coordinates along utterance.
        targets: numeric labels that are predicted.
    """
    said = "ratings" in table.coords and "proxy" in text_values(table, "ratings")
    return [PROXIES] if said or any(_derived(table, target) for target in targets) else []


def _derived(table: xr.Dataset, target: str) -> bool:
    acted = [name for name in _ACTED if name in table.coords and not is_numeric(table[name].values)]
    if "emotion" not in acted or target not in table.coords:
        return False
    values = table[target].values
    known = np.isfinite(values) if is_numeric(values) else np.zeros(len(values), bool)
    cells = np.stack([text_values(table, name) for name in acted], axis=1)[known]
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    counts = np.bincount(cell.ravel())
    if len(counts) < 2 or not (counts > 1).all():
        return False
    low, high = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
    np.minimum.at(low, cell.ravel(), values[known])
    np.maximum.at(high, cell.ravel(), values[known])
    return bool((low == high).all() and low.min() < low.max())


def weights_caveats(name: str, *, untrained: bool) -> list[str]:
    """What has to be said of results computed with these weights."""
    if untrained:
        return [f"Weights {name}: an untrained network, a control and not a finding."]
    return []
