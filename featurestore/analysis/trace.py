"""Frame-by-frame valence and arousal without a label for any frame.

A linear model of a mean over frames, applied to every frame, gives a curve whose mean is what the
model says of the utterance: exactly, since the mean of a line is the line of the mean. The paper
names such a description as future work.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from featurestore.analysis.features import (
    AnalysisWarning,
    known_speakers,
    label_values,
    text_values,
)
from featurestore.analysis.models import FeatureSet, fitted
from featurestore.analysis.sets import Joined, Term, join, kind_of, parse
from featurestore.errors import AnalysisError, AudioError
from featurestore.types import HOP_LENGTH, SAMPLE_RATE

if TYPE_CHECKING:
    from featurestore.store.reader import Store

MODEL = FeatureSet("all units, ridge", "network.mean", model="ridge")

_POINTS = 800  # of a waveform: twice as many as a figure has pixels for
_BANDS = 64
_FFT = 1024


@dataclass(frozen=True, eq=False)
class Trace:
    """A linear model applied to every frame of an utterance.

    Attributes:
        id: of the utterance.
        speaker: who says it; held out when the model was fitted.
        target: label that is predicted.
        features: name of the feature set.
        time_s: (frame,) centre of each frame in its utterance, seconds.
        values: (frame,) prediction, in the unit of the target; its mean is the utterance's.
        predicted: the utterance's prediction, from the mean over its stored frames.
        truth: its label, NaN if unknown.
        low: smallest and
        high: largest label among the training utterances.
        text: what is said, "" if unknown.
        waveform: (point, 2) smallest and largest sample of equal stretches of the audio, between
            -1 and 1; None where the audio is not at hand.
        log_mel: (mel, frame) in dB below the loudest; None where the audio is not at hand.
        duration_s: of the audio, seconds.
        pooled: the prediction from the stored mean, which was taken before frames were rounded.
    """

    id: str
    speaker: str
    target: str
    features: str
    time_s: Float64[np.ndarray, " frame"]
    values: Float64[np.ndarray, " frame"]
    predicted: float
    truth: float
    low: float
    high: float
    text: str = ""
    waveform: Float32[np.ndarray, "point 2"] | None = None
    log_mel: Float32[np.ndarray, "mel frame"] | None = None
    duration_s: float = float("nan")
    pooled: float = float("nan")


@dataclass(frozen=True, eq=False)
class Line:
    """A model as a linear function of its features.

    Attributes:
        slope: (feature,) in the unit of the target per unit of the feature.
        intercept: at features of 0.
    """

    slope: Float64[np.ndarray, " feature"]
    intercept: float

    def __call__(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Values (row,) of features (row, feature)."""
        return np.asarray(X, np.float64) @ self.slope + self.intercept


def trace(
    store: Store,
    ids: Sequence[str],
    *,
    targets: Sequence[str] = ("valence", "arousal"),
    model: FeatureSet = MODEL,
    audio: bool = True,
) -> list[Trace]:
    """Predictions of labels for every frame of utterances.

    The model is fitted to all other speakers, so that an utterance's prediction is a held-out one;
    a recording of the speaker that is there under another name too is left out, with a warning.

    Args:
        store: an open feature store whose view has frames.
        ids: of the utterances.
        targets: numeric labels.
        model: a feature set of means over frames, of one view or several, without clipping.
        audio: whether to read the audio, where it still is where the manifest says.

    Returns:
        One trace per utterance and target.

    Raises:
        AnalysisError: no such utterance or label, unknown speakers or no other one, or a model that
            is not linear in means over frames.
        StoreError: a view without frames.
    """
    targets = (targets,) if isinstance(targets, str) else targets
    _check_linear(model)
    joined = join(store, [model.features])
    at = {i: row for row, i in enumerate(joined.ids.tolist())}
    lines: dict[tuple[str, str], tuple[Line, float, float]] = {}
    found = []
    for id in ids:
        if id not in at:
            raise AnalysisError(
                f"No utterance {id!r} in the views of {model.features!r}; the first ones are: "
                f"{', '.join(joined.ids[:5].tolist())}."
            )
        frames, time_s = _frames(store, str(model.features), id)
        sound = _sound(joined, at[id]) if audio else {}
        for target in targets:
            speaker = str(known_speakers(joined.table, of=_row(joined, at[id]))[at[id]])
            if (speaker, target) not in lines:
                lines[speaker, target] = _without(joined, model, speaker, target)
            line, low, high = lines[speaker, target]
            values = line(frames)
            found.append(
                Trace(
                    id=id,
                    speaker=speaker,
                    target=target,
                    features=model.name,
                    time_s=time_s,
                    values=values,
                    predicted=float(line(frames.mean(axis=0, dtype=np.float64)[None])[0]),
                    truth=float(label_values(joined.table, target=target)[at[id]]),
                    low=low,
                    high=high,
                    text=_text(joined, at[id]),
                    pooled=float(line(joined.matrix(model.features)[[at[id]]])[0]),
                    **sound,
                )
            )
    return found


def _check_linear(model: FeatureSet) -> None:
    if model.features is None or model.scaling == "robust":
        raise AnalysisError(
            f"Feature set {model.name!r} cannot be applied frame by frame: it "
            + ("has no features." if model.features is None else "clips them, which is not linear.")
        )
    for term in parse(model.features):
        if term.block.statistic != "mean":
            held = term.block.statistic
            said = f"a {held}" if held else "no statistic over frames"
            raise AnalysisError(
                f"Feature set {model.name!r} cannot be applied frame by frame: {term.block.view!r} "
                f"is {said}, and only of a mean is the frames' mean the utterance's value."
            )


def linear(model: Any, width: int) -> Line:
    """A fitted linear model as a slope and an intercept, whatever it does inside.

    Args:
        model: with `predict` on (row, feature).
        width: number of features.
    """
    intercept = float(np.asarray(model.predict(np.zeros((1, width)))).reshape(-1)[0])
    # One row per feature: what it adds by itself. In pieces, since rows are as many as features.
    slope = np.empty(width)
    for first in range(0, width, 512):
        stop = min(first + 512, width)
        rows = np.zeros((stop - first, width))
        rows[np.arange(stop - first), np.arange(first, stop)] = 1.0
        slope[first:stop] = np.asarray(model.predict(rows), np.float64).reshape(-1) - intercept
    return Line(slope, intercept)


def _without(
    joined: Joined, model: FeatureSet, speaker: str, target: str
) -> tuple[Line, float, float]:
    """The model of all other speakers, and the range of their labels."""
    y = label_values(joined.table, target=target)
    speakers = known_speakers(joined.table, of=np.isfinite(y))
    rows = np.flatnonzero(np.isfinite(y) & (speakers != speaker) & ~_heard(joined, speaker))
    if not len(rows):
        raise AnalysisError(
            f"No other speaker than {speaker!r} has a {target!r} label to fit a model to."
        )
    X = joined.matrix(model.features)
    found = fitted(model, X=X[rows], y=y[rows], speakers=speakers[rows])
    return linear(found, X.shape[1]), float(y[rows].min()), float(y[rows].max())


def _heard(joined: Joined, speaker: str) -> NDArray[np.bool_]:
    """(utterance,) which are the same recording as one of the speaker's, under whatever name."""
    if "audio_sha256" not in joined.table.coords:
        return np.zeros(len(joined.ids), bool)
    hashes = text_values(joined.table, "audio_sha256")
    own = text_values(joined.table, "speaker") == speaker
    same = np.isin(hashes, hashes[own]) & (hashes != "") & ~own
    if same.any():
        warnings.warn(
            f"{int(same.sum())} utterances of other speakers (the first is "
            f"{joined.ids[same][0]!r}) are recordings of {speaker!r} too; the model of a trace of "
            f"{speaker!r} is fitted without them. Correct the manifest's speakers.",
            AnalysisWarning,
            stacklevel=4,
        )
    return same


def _row(joined: Joined, row: int) -> NDArray[np.bool_]:
    only = np.zeros(joined.table.sizes["utterance"], bool)
    only[row] = True
    return only


def _frames(
    store: Store, features: str, id: str
) -> tuple[Float32[np.ndarray, "frame feature"], Float64[np.ndarray, " frame"]]:
    """Features of every frame, in the order of the expression, and the frames' times."""
    parts, times = [], np.empty(0)
    for term in parse(features):
        array = store.utterance(term.block.view, _capture(store, term), id)
        values = array.transpose("frame", ...).to_numpy()
        if term.layers is not None:
            values = values[:, term.layers]
        parts.append(values.reshape(len(values), -1).astype(np.float64))
        times = array["time_s"].to_numpy()
    return np.concatenate(parts, axis=1), times


def _capture(store: Store, term: Term) -> str:
    if kind_of(term.block.view) == "mfcc":
        return "mfcc"
    return term.block.capture or store.config(term.block.view).captures[0]


def _text(joined: Joined, row: int) -> str:
    return str(text_values(joined.table, "text")[row]) if "text" in joined.table.coords else ""


def _sound(joined: Joined, row: int) -> dict[str, Any]:
    """Waveform and log-mel spectrogram of an utterance whose audio is at hand."""
    from featurestore.audio import load_audio

    if "path" not in joined.table.coords:
        return {}
    path = str(text_values(joined.table, "path")[row])
    spans = {
        name: float(label_values(joined.table, target=name)[row])
        for name in ("start", "end")
        if name in joined.table.coords
    }
    if spans.get("start", 0.0) != spans.get("start", 0.0):
        del spans["start"]
    try:
        samples = load_audio(path, **spans)
    except (AudioError, OSError):  # moved, or given away without its audio: the curve is enough
        return {}
    return picture(samples)


def picture(samples: Float32[np.ndarray, " sample"]) -> dict[str, Any]:
    """`waveform`, `log_mel` and `duration_s` of a trace, from 16 kHz samples."""
    import librosa

    edges = np.linspace(0, len(samples), min(_POINTS, len(samples)) + 1).astype(np.int64)
    low = np.minimum.reduceat(samples, edges[:-1])
    high = np.maximum.reduceat(samples, edges[:-1])
    loudest = float(np.abs(samples).max()) or 1.0
    mel = librosa.feature.melspectrogram(
        y=samples, sr=SAMPLE_RATE, n_fft=_FFT, hop_length=HOP_LENGTH, n_mels=_BANDS
    )
    decibels = 10 * np.log10(np.maximum(mel, 1e-10) / max(float(mel.max()), 1e-10))
    return {
        "waveform": np.stack([low, high], axis=1).astype(np.float32) / max(1.0, loudest),
        "log_mel": np.maximum(decibels, -80).astype(np.float32),
        "duration_s": len(samples) / SAMPLE_RATE,
    }
