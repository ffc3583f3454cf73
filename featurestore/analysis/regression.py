"""Held-out prediction of labels from feature sets, leaving speakers out.

Whatever is learned from data (selection, scaling, regression, a penalty) is learned inside the
training fold: each feature set is one model that never sees the held-out speakers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Shaped
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from featurestore.analysis.features import (
    AnalysisWarning,
    Store,
    known_speakers,
    label_values,
    targets_by_missing,
    text_values,
    unlabelled,
)
from featurestore.analysis.folds import Split, make_folds
from featurestore.analysis.models import FeatureSet, fit_predict, leak, table_sets
from featurestore.analysis.scores import COLUMNS, fold_row
from featurestore.analysis.sets import Joined, join, kind_of
from featurestore.analysis.threads import side_by_side
from featurestore.errors import AnalysisError
from featurestore.progress import Tick, progress_bar
from featurestore.types import NETWORK

log = logging.getLogger(__name__)


def evaluate(
    store: Store,
    *,
    targets: Sequence[str] = ("valence", "arousal"),
    table: Literal[1, 2] = 1,
    sets: Sequence[FeatureSet] | None = None,
    folds: str = "speaker",
    view: str = NETWORK,
    capture: str | None = None,
    features: int = 100,
    agreed_only: bool | None = None,
    emotion_column: str = "emotion",
    disagreement: str = "xxx",
    mfcc_view: str = "mfcc",
    egemaps_view: str = "egemaps",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Predict labels of held-out speakers: the paper's Tables 1 and 2, or any feature sets.

    All sets are compared on the same utterances: those that every view holds and whose target is
    known. Two rows of the tables exist for eGeMAPS. The plain one is the paper's; in the other,
    features are clipped to the training fold's range, because a single speaker recorded far
    outside that range makes ordinary least squares extrapolate wildly and would condemn the
    feature set for what is a fault of the regression.

    Args:
        store: an open feature store.
        targets: numeric labels, each evaluated on its own.
        table: 1 compares the best of all units with eGeMAPS and MFCC; 2 the first and last layers.
        sets: feature sets to compare instead of those of a table.
        folds: "speaker" leaves one speaker out, "session" (or another column) one of these,
            "speaker:K" one of K groups of speakers.
        view: name or kind of the network's view; "network" is the only one that there is.
        capture: capture point of the network whose mean over frames is used; the view's first one
            by default.
        features: how many units are selected inside each fold, by their correlation with the target
            (the ranking of scikit-learn's `f_regression`).
        agreed_only: use only utterances whose raters agreed on a category; by default for table 2.
        emotion_column: label that holds the category.
        disagreement: its value where there was no majority ("xxx" in IEMOCAP).
        mfcc_view: name of the MFCC view, where a store has several.
        egemaps_view: name of the eGeMAPS view, where a store has several.
        progress: whether to show a bar; None shows one on a terminal.

    Returns:
        One row per feature set, target and held-out speaker: table ("own" for `sets`),
        feature_set, target, fold (the speaker, unless folds are of several), speaker, n_train,
        n_test, n_features (that the regression was given), mse (squared unit of the target), ccc,
        r2 (against the held-out speaker's own mean), pearson, and the population moments of truth
        and prediction, from which statistics over several speakers together follow. Undefined
        values are NaN: ccc, r2 and pearson of a single utterance or a constant label; everything,
        for a selection by a constant target. `attrs` has "notes", a list of what was left out.

    Raises:
        AnalysisError: an unknown table, set, label, or capture; unknown speakers or fewer than two;
            folds that would share a speaker or a recording; no utterance left; categories asked
            for that the store does not hold.
    """
    if features < 1:
        raise AnalysisError(f"features={features} selects nothing; give 1 or more.")
    targets = (targets,) if isinstance(targets, str) else targets
    notes: list[str] = []
    named = sets
    if sets is None:
        wanted = table_sets(
            table, best=features, view=view, capture=capture, mfcc=mfcc_view, egemaps=egemaps_view
        )
        sets, notes = _available(wanted, store)
    check_sets(sets)
    # The network's view comes first: it carries the labels of a table's sets.
    own = [] if named else [view + (f".{capture}" if capture else "")]
    joined = join(store, [*own, *(s.features for s in sets)])
    notes += joined.notes
    if agreed_only or (agreed_only is None and table == 2 and named is None):
        joined, note = _agreed(joined, emotion_column, disagreement, required=bool(agreed_only))
        notes += [note]
    with progress_bar(
        "Held-out prediction", _work(joined, sets, targets, folds), unit="folds", show=progress
    ) as tick:
        rows = evaluate_joined(joined, sets=sets, targets=targets, folds=folds, tick=tick)
    rows.insert(0, "table", table if named is None else "own")
    rows.attrs["notes"] = notes + rows.attrs.get("notes", [])
    return rows


def check_sets(sets: Sequence[FeatureSet]) -> None:
    """Refuse two sets of one name, of which a table could not tell which is which."""
    names = [one.name for one in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise AnalysisError(
            f"Feature set {twice[0]!r} is there twice; names tell sets apart."
            if twice
            else "No feature set was given."
        )


def _available(sets: Sequence[FeatureSet], store: Store) -> tuple[list[FeatureSet], list[str]]:
    """Feature sets that the store can answer, and notes on the others."""

    def lacks(one: FeatureSet, kind: str) -> bool:
        held = kind not in store.kinds
        return one.features is not None and held and kind_of(one.features) == kind

    notes = []
    if any(lacks(one, "egemaps") for one in sets):
        notes.append("The store has no eGeMAPS view, so its rows are absent.")
        warnings.warn(
            f"{notes[-1]} Ingest the same manifest again with --views network,mfcc,egemaps to add "
            "it.",
            AnalysisWarning,
            stacklevel=3,
        )
    return [s for s in sets if not lacks(s, "egemaps") and not lacks(s, "mfcc")], notes


def _agreed(
    joined: Joined, column: str, disagreement: str, *, required: bool
) -> tuple[Joined, str]:
    """The utterances with a category that raters agreed on, and a note that says so."""
    if column not in joined.table.coords:
        if required:
            raise AnalysisError(
                f"No label {column!r} in this store, so agreement between raters is unknown; name "
                "the column of categories (emotion_column) or use agreed_only=False."
            )
        note = f"The store has no {column!r} label: all utterances are used, agreed on or not."
        log.warning(note)
        return joined, note
    category = text_values(joined.table, column)
    keep = (category != "") & (category != disagreement)
    if not keep.any():
        raise AnalysisError(
            f"No utterance has an agreed category: label {column!r} is always empty or "
            f"{disagreement!r}. Use agreed_only=False for all utterances."
        )
    return joined.take(keep), (
        f"Only utterances with an agreed category: {int(keep.sum())} of {len(keep)}."
    )


def _work(joined: Joined, sets: Sequence[FeatureSet], targets: Sequence[str], folds: str) -> int:
    """Folds to be fitted in all."""
    return sum(
        len(sets) * len(make_folds(joined.table, scheme=folds, of=known)) * len(together)
        for together, known in targets_by_missing(joined.table, targets)
    )


def evaluate_joined(
    joined: Joined,
    *,
    sets: Sequence[FeatureSet],
    targets: Sequence[str],
    folds: str = "speaker",
    tick: Tick = lambda amount: None,
) -> pd.DataFrame:
    """`evaluate` on features that are in memory: its rows without `table`.

    Args:
        joined: of all that the sets name.
        sets: to compare.
        targets: numeric labels.
        folds: as in `evaluate`.
        tick: is told of every fold and target.

    Raises:
        AnalysisError: as `evaluate`.
    """
    rows: list[dict[str, Any]] = []
    notes = []
    for together, known in targets_by_missing(joined.table, targets):
        splits = make_folds(joined.table, scheme=folds, of=known)
        notes += unlabelled(joined.table, together, known=known)
        Y = np.stack([label_values(joined.table, target=t) for t in together], axis=1)
        speakers = known_speakers(joined.table, of=known)
        for one in sets:
            X = joined.matrix(one.features)
            for fold in leave_out(one, X=X, Y=Y, speakers=speakers, splits=splits, tick=tick):
                rows += fold_rows(fold, one.name, together, Y, speakers)
    order = {target: place for place, target in enumerate(targets)}
    rows.sort(key=lambda row: order[row["target"]])
    results = pd.DataFrame(rows, columns=list(COLUMNS[1:]))
    results.attrs["notes"] = notes
    return results


@dataclass(frozen=True, eq=False)
class Fold:
    """Predictions for held-out utterances.

    Attributes:
        split: which they are.
        predicted: (held_out, target), NaN where the training fold allows none.
        n_features: number of features that the regression was given.
    """

    split: Split
    predicted: Float64[np.ndarray, "held_out target"]
    n_features: int


def leave_out(
    feature_set: FeatureSet,
    *,
    X: Float[np.ndarray, "utterance feature"],
    Y: Float64[np.ndarray, "utterance target"],
    speakers: Shaped[np.ndarray, " utterance"],
    splits: Sequence[Split],
    tick: Tick = lambda amount: None,
) -> list[Fold]:
    """Fit on what is not held out and predict what is, for each split.

    Args:
        feature_set: the model.
        X: features.
        Y: labels, known wherever a split has a row.
        speakers: who says the utterances.
        splits: rows to train on and to predict.
        tick: is told of every fold and target.
    """
    if feature_set.leaky:
        return _leaking(feature_set, X, Y, speakers, splits, tick)
    width = X.shape[1]
    kept = min(feature_set.best or width, width) if feature_set.selects else width

    def fold(split: Split) -> Fold:
        predicted = fit_predict(
            feature_set,
            X=X[split.train],
            Y=Y[split.train],
            speakers=speakers[split.train],
            held_out=X[split.test],
        )
        return Fold(split, predicted, kept)

    with warnings.catch_warnings():  # here, since filters are those of all threads
        warnings.simplefilter("ignore", ConvergenceWarning)  # PLS of a target without residual
        return side_by_side(fold, splits, lambda: tick(Y.shape[1]))


def _leaking(
    feature_set: FeatureSet,
    X: NDArray[Any],
    Y: NDArray[np.float64],
    speakers: NDArray[Any],
    splits: Sequence[Split],
    tick: Tick,
) -> list[Fold]:
    rows = np.union1d(splits[0].train, splits[0].test)
    chosen = [leak(feature_set, X, y, rows) for y in Y.T]
    targets = [
        leave_out(honest, X=kept, Y=Y[:, [column]], speakers=speakers, splits=splits, tick=tick)
        for column, (honest, kept) in enumerate(chosen)
    ]
    return [
        Fold(
            split,
            np.concatenate([folds[i].predicted for folds in targets], axis=1),
            targets[0][i].n_features,
        )
        for i, split in enumerate(splits)
    ]


def fold_rows(
    fold: Fold,
    feature_set: str,
    targets: Sequence[str],
    Y: Float64[np.ndarray, "utterance target"],
    speakers: Shaped[np.ndarray, " utterance"],
) -> Iterator[dict[str, Any]]:
    """One row per target and held-out speaker of a fold: `COLUMNS` without the table."""
    test = fold.split.test
    for speaker in np.unique(speakers[test]):
        own = np.flatnonzero(speakers[test] == speaker)
        for column, target in enumerate(targets):
            yield fold_row(
                feature_set=feature_set,
                target=target,
                fold=fold.split.name,
                speaker=str(speaker),
                truth=Y[test[own], column],
                predicted=fold.predicted[own, column],
                n_train=len(fold.split.train),
                n_features=fold.n_features,
            )
