"""The figures that the paper printed, to be shown beside those of another corpus.

They are of IEMOCAP (10 speakers) and weights trained on VCTK that were never published, so they can
be compared in kind but not in value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SOURCE = "The paper: IEMOCAP, other weights"


@dataclass(frozen=True)
class Printed:
    """Error of a feature set over the 10 folds of the paper.

    Attributes:
        features: name of the feature set in the paper.
        mse_mean: squared units of a label between 1 and 5.
        mse_variance: of the MSE over folds.
    """

    features: str
    mse_mean: float
    mse_variance: float


_SETS = {  # table: {feature set of the paper: pattern of its name here}
    "1": {"Neural features": r"\d+ best of all units", "eGeMAPS set": "eGeMAPS"},
    "2": {
        "First layers": r"\d+ best of first \d+ layers",
        "Last layers": r"\d+ best of last \d+ layers",
        "All": r"\d+ best of all layers",
        "eGeMAPS set": "eGeMAPS",
    },
}

PRINTED: dict[tuple[str, str], tuple[Printed, ...]] = {  # by table and target
    ("1", "valence"): (
        Printed("Neural features", 0.660, 0.118),
        Printed("eGeMAPS set", 0.697, 0.135),
    ),
    ("1", "arousal"): (
        Printed("Neural features", 0.259, 0.020),
        Printed("eGeMAPS set", 0.267, 0.034),
    ),
    ("2", "valence"): (
        Printed("First layers", 0.714, 0.114),
        Printed("Last layers", 0.661, 0.089),
        Printed("All", 0.621, 0.099),
        Printed("eGeMAPS set", 0.683, 0.124),
    ),
    ("2", "arousal"): (
        Printed("First layers", 0.325, 0.069),
        Printed("Last layers", 0.357, 0.038),
        Printed("All", 0.296, 0.044),
        Printed("eGeMAPS set", 0.328, 0.064),
    ),
}


def printed(table: str, *, target: str, feature_set: str) -> Printed | None:
    """What the paper printed for a feature set, None where it printed nothing.

    Args:
        table: "1" or "2"; others are not the paper's.
        target: "valence" or "arousal".
        feature_set: name as in `featurestore.analysis.features.table_sets`.
    """
    for row in PRINTED.get((table, target), ()):
        if re.fullmatch(_SETS[table][row.features], feature_set):
            return row
    return None
