"""Fine-tuning on every fold of leave-one-speaker-out, beside the linear models on the same folds.

The network begins with its weights as they are used everywhere else: batch normalisation is folded
into them, so its running statistics stay frozen. A linear head on the units pooled over frames
begins at the ridge solution on the fold's training speakers; it is trained alone first, then
everything is, and held-out training speakers say which pass is kept.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64

from featurestore.analysis.caveats import label_caveats, weights_caveats
from featurestore.analysis.models import FeatureSet, pipeline
from featurestore.analysis.ridge import fit_ridge
from featurestore.analysis.scores import COLUMNS, fold_row
from featurestore.encoder import Encoder, load_encoder
from featurestore.errors import AnalysisError, FeatureStoreError
from featurestore.frontend import FrontEnd
from featurestore.progress import progress_bar
from featurestore.training.extra import require_training
from featurestore.training.fold_records import Record, Records
from featurestore.training.tuning_config import FinetuneConfig, Pass
from featurestore.training.utterances import (
    LabelledUtterances,
    Source,
    labelled,
    read_utterances,
)
from featurestore.types import NETWORK

if TYPE_CHECKING:
    from featurestore.training.tuning import Tuner


class SetNames(NamedTuple):
    """Names of the feature sets in the tables.

    Attributes:
        baseline: the mean of the training labels.
        best: linear regression on selected units, as in `evaluate`.
        ridge: ridge regression on all units.
        head: the head alone, trained on frozen weights and on fewer speakers than `ridge`, since
            some are held out.
        tuned: the fine-tuned network.
    """

    baseline: str
    best: str
    ridge: str
    head: str
    tuned: str


def set_names(config: FinetuneConfig) -> SetNames:
    """What a configuration's feature sets are called."""
    pooled = ", max" if config.pool == "max" else ""
    trained = f"{config.pool}{', CCC loss' if config.loss == 'ccc' else ''}"
    return SetNames(
        baseline="train mean",
        best=f"{config.best} best of all units{pooled}",
        ridge=f"all units{pooled}, ridge",
        head=f"frozen {trained}, head only",
        tuned=f"fine-tuned {trained}",
    )


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What fine-tuning made of a corpus.

    Attributes:
        results: one row per feature set, target and fold, as from `evaluate`, with its "notes".
        passes: one row per fold and pass: fold, stage, epoch, train, held_out, seconds, kept.
        seconds: by fold, the linear models included.
        names: of the feature sets.
    """

    results: pd.DataFrame
    passes: pd.DataFrame
    seconds: dict[str, float]
    names: SetNames


def finetune(
    source: Source,
    *,
    encoder: Encoder | str = "default",
    config: FinetuneConfig | None = None,
    run: str | os.PathLike[str] | None = None,
    speakers: Sequence[str] | None = None,
    folds: int | None = None,
    view: str | None = None,
    progress: bool | None = None,
    report: Callable[[Record], None] | None = None,
) -> Finetuned:
    """Fine-tune a network to predict labels, leaving one speaker out at a time.

    Args:
        source: a store with MFCC frames, or a manifest whose audio is read; see `read_utterances`.
        encoder: a network that hears MFCC, or what `load_encoder` takes.
        config: targets, pooling, loss and schedule.
        run: folder for one record per fold, written when the fold is done. Folds that are there
            already are not run again.
        speakers: held-out speakers to run; all by default.
        folds: run only this many of them, in ascending order.
        view: name of the store's MFCC view, where it has several that fit.
        progress: whether to show bars; None shows them on a terminal.
        report: called with the record of each fold, those found in `run` included.

    Raises:
        TrainingError: the extra `train` is not installed; a loss that is not a number; a folder of
            another configuration, corpus or network.
        AnalysisError: an unknown label or speaker, or fewer than three speakers.
        FeatureStoreError: an encoder that does not hear MFCC.
        StoreError, ManifestError, AudioError, CheckpointError: a source or weights that cannot be
            used.
    """
    require_training()
    from featurestore.training.tuning import Tuner

    config = config or FinetuneConfig()
    network = load_encoder(encoder)
    if not isinstance(network.front_end, FrontEnd):
        raise FeatureStoreError(
            f"encoder '{network.name}' ({network.kind}) hears '{network.front_end.name}'; "
            "fine-tuning is for networks that hear MFCC, such as the GCU network"
        )
    utterances = read_utterances(source, front_end=network.front_end, view=view, progress=progress)
    data = labelled(utterances, targets=config.targets)
    chosen = _chosen(data, speakers, folds)
    records = Records(run, data, network, config)
    tuner = Tuner(data, network, config, progress=progress)
    for speaker in chosen:
        record = records.read(speaker)
        if record is None:
            record = _fold(tuner, speaker, progress)
            records.write(record)
        records.kept.append(record)
        if report is not None:
            report(record)
    caveats = [
        *weights_caveats(network.name, untrained=network.untrained),
        *label_caveats(utterances.table, targets=config.targets),
        *data.notes,
    ]
    return _collected(records.kept, data, config, caveats)


def _chosen(
    data: LabelledUtterances, speakers: Sequence[str] | None, folds: int | None
) -> list[str]:
    held = [str(speaker) for speaker in np.unique(data.speakers)]
    if len(held) < 3:
        raise AnalysisError(
            f"Fine-tuning takes at least 3 speakers with a label: one to test, one to stop by and "
            f"one to train on; here are {len(held)} ({', '.join(held)})."
        )
    unknown = [speaker for speaker in speakers or () if speaker not in held]
    if unknown or (speakers is not None and not speakers):
        raise AnalysisError(
            f"No speaker {', '.join(map(repr, unknown)) or 'given'} with a label; "
            f"there are: {', '.join(held)}."
        )
    if folds is not None and folds < 1:
        raise AnalysisError(f"folds={folds} runs nothing; give 1 or more.")
    chosen = held if speakers is None else sorted(set(speakers))
    return chosen if folds is None else chosen[:folds]


def _fold(tuner: Tuner, speaker: str, progress: bool | None) -> Record:
    """Linear models and the network without a speaker, and their predictions of that speaker."""
    began = time.perf_counter()
    names, data = set_names(tuner.config), tuner.data
    test = np.flatnonzero(data.speakers == speaker)
    predicted, counts = _linear(tuner, speaker, names)
    said = [""]
    left = total = tuner.seconds(speaker)
    with progress_bar(
        speaker[:16],
        total,
        unit="h",
        scale=3600,
        rate=lambda speed: f"{speed:,.0f}x real time  {said[0]}",
        show=progress,
    ) as tick:

        def done(seconds: float) -> None:
            nonlocal left
            left -= seconds
            tick(seconds)

        tuned = tuner.tune(speaker, tick=done, say=lambda text: said.__setitem__(0, text))
        tick(max(0.0, left))  # of passes that were not needed
    predicted |= {names.head: tuned.head_only, names.tuned: tuned.tuned}
    counts |= {names.head: tuner.pooled.shape[1], names.tuned: tuner.pooled.shape[1]}
    return {
        "speaker": speaker,
        "ids": data.ids[test].tolist(),
        "truth": _plain(data.truth[test]),
        "predicted": {name: _plain(values) for name, values in predicted.items()},
        "n_features": counts,
        "n_train": np.isfinite(data.truth[data.speakers != speaker]).sum(axis=0).tolist(),
        "passes": [_plain_pass(one) for one in tuned.passes],
        "kept": _plain_pass(tuned.best),
        "held_out_speakers": list(tuned.held_out_speakers),
        "seconds": time.perf_counter() - began,
    }


def _plain(values: Float64[np.ndarray, "utterance target"]) -> list[list[float | None]]:
    """Lists that JSON can hold, null for NaN."""
    return [[None if math.isnan(v) else float(v) for v in row] for row in values]


def _plain_pass(one: Pass) -> dict[str, Any]:
    return {k: None if v != v else v for k, v in dataclasses.asdict(one).items()}


def _linear(
    tuner: Tuner, speaker: str, names: SetNames
) -> tuple[dict[str, Float64[np.ndarray, "test target"]], dict[str, int]]:
    """Predictions of the linear models on pooled units, and how many of those each is given."""
    data, X = tuner.data, tuner.pooled
    test, train = data.speakers == speaker, data.speakers != speaker
    width = X.shape[1]
    best = min(tuner.config.best, width)
    counts = {names.baseline: 0, names.best: best, names.ridge: width}
    found = {name: np.full((int(test.sum()), len(data.targets)), np.nan) for name in counts}
    for column in range(len(data.targets)):
        y = data.truth[:, column]
        rows = np.flatnonzero(train & np.isfinite(y))
        if not len(rows):
            continue
        found[names.baseline][:, column] = y[rows].mean()
        ridge = fit_ridge(X[rows], y=y[rows], speakers=data.speakers[rows])
        found[names.ridge][:, column] = ridge.predict(X[test])
        if np.ptp(y[rows]) > 0:
            model = pipeline(FeatureSet(names.best, NETWORK, best=best), width=width)
            found[names.best][:, column] = model.fit(X[rows], y[rows]).predict(X[test])
    return found, counts


def _collected(
    records: Sequence[Record],
    data: LabelledUtterances,
    config: FinetuneConfig,
    caveats: Sequence[str],
) -> Finetuned:
    names = set_names(config)
    rows = [
        row
        for column, target in enumerate(config.targets)
        for name in names
        for record in records
        if (row := _row(record, name, target, column)) is not None
    ]
    results = pd.DataFrame(rows, columns=list(COLUMNS[1:]))
    results.insert(0, "table", 1)
    results.attrs["notes"] = [*caveats, *_explanations(records, data, config, names)]
    passes = [
        {"fold": record["speaker"], **one, "kept": one == record["kept"]}
        for record in records
        for one in record["passes"]
    ]
    seconds = {record["speaker"]: float(record["seconds"]) for record in records}
    return Finetuned(results, pd.DataFrame(passes), seconds, names)


def _row(record: Record, name: str, target: str, column: int) -> dict[str, Any] | None:
    """One row of the table; None where the speaker has no such label."""
    truth = np.array(record["truth"], np.float64)[:, column]
    known = np.isfinite(truth)
    if not known.any():
        return None
    return fold_row(
        feature_set=name,
        target=target,
        speaker=record["speaker"],
        truth=truth[known],
        predicted=np.array(record["predicted"][name], np.float64)[:, column][known],
        n_train=record["n_train"][column],
        n_features=record["n_features"][name],
    )


def _explanations(
    records: Sequence[Record],
    data: LabelledUtterances,
    config: FinetuneConfig,
    names: SetNames,
) -> list[str]:
    pooled = {"mean": "means", "max": "maxima", "attention": "attention-weighted means"}
    notes = [
        f"{names.ridge}: penalty chosen over held-out training speakers in each fold.",
        f"{names.tuned}: network and linear head on {pooled[config.pool]} over frames trained on "
        f"{'1 - CCC' if config.loss == 'ccc' else 'squared error'}, begun at the ridge solution; "
        f"{len(records[0]['held_out_speakers'])} of the training speakers are held out to choose "
        f"the pass that is kept, also for {names.head}.",
    ]
    total = len(np.unique(data.speakers))
    if len(records) < total:
        notes.append(f"{len(records)} of {total} speakers were held out; the others were not run.")
    return notes


__all__ = ["FinetuneConfig", "Finetuned", "SetNames", "finetune", "set_names"]
