"""What a storage type of frames costs, in bytes and in what an analysis finds.

A mean squared error of activations says little about science. So the means over each utterance's
frames are made as every type would give them, and taken through the two analyses: correlations of
units with labels, and regressions that leave one speaker out. The reference is the means that every
store keeps in float32 from activations that were never rounded.

Frames are read lazily, once, a block of whole utterances and one layer at a time; the means alone
are held for the whole corpus, once per type, as the regression needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float32, Float64, Int64, Shaped
from numpy.typing import NDArray

from featurestore.analysis.correlation import pearson, pick_statistic
from featurestore.analysis.features import (
    captured,
    known_speakers,
    label_values,
    utterance_table,
)
from featurestore.analysis.folds import one_out
from featurestore.analysis.models import FeatureSet
from featurestore.analysis.moments import lazy_moments
from featurestore.analysis.regression import fold_rows, leave_out
from featurestore.analysis.scores import summarise
from featurestore.errors import AnalysisError
from featurestore.progress import Tick, progress_bar
from featurestore.types import NETWORK, FrameDtype

if TYPE_CHECKING:
    from featurestore.store.reader import Store
    from featurestore.store.schema import ViewConfig

REFERENCE = "reference"
_TYPES: tuple[FrameDtype, ...] = ("float32", "float16", "int8")  # from fine to coarse
_RANK = {str(name): place for place, name in enumerate(_TYPES)}
_BLOCK_VALUES = 2**22  # of one layer that are in memory: 16 MB, and twice that in float64

COLUMNS = (
    "frames",
    "target",
    "bytes_per_hour",
    "scale",
    "activation_mse",
    "activation_max_error",
    "mean_max_error",
    "r_change_max",
    "r_change_mean",
    "units_lost",
    "ccc",
    "ccc_change",
    "ccc_pooled",
    "ccc_pooled_change",
    "mse",
    "mse_change",
    "utterances",
    "speakers",
)


@dataclass
class Errors:
    """Differences between frames as a type gives them and as they are stored.

    Attributes:
        count: values seen.
        squared: sum of squared differences.
        largest: absolute difference.
    """

    count: int = 0
    squared: float = 0.0
    largest: float = 0.0

    def add(self, difference: Float64[np.ndarray, "frame unit"]) -> None:
        """Count a block of differences."""
        self.count += difference.size
        self.squared += float(np.einsum("fu,fu->", difference, difference))
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    @property
    def mse(self) -> float:
        """Mean squared difference."""
        return self.squared / self.count if self.count else math.nan


@dataclass(frozen=True, eq=False)
class FrameMeans:
    """Means over the frames of each utterance, as a type of frames gives them.

    Attributes:
        means: (utterance, *feature), in float64 and then rounded to float32.
        errors: of the frames themselves.
    """

    means: Float32[np.ndarray, " utterance *feature"]
    errors: Errors = field(default_factory=Errors)


Rounding = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # frames as a type gives them back


def audit_precision(
    store: Store,
    *,
    targets: Sequence[str] = ("valence", "arousal"),
    view: str = NETWORK,
    capture: str | None = None,
    features: int = 100,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Bytes, errors, correlations and held-out predictions under every type of frames.

    What a type finer than the store's own would give is not known: such rows have a size, and NaN.

    Args:
        store: an open feature store.
        targets: numeric labels.
        view: name or kind of a view that has frames.
        capture: capture point; the view's first one by default.
        features: how many units the regression is given in each fold, by their correlation with
            the target.
        progress: whether to show a bar; None shows one on a terminal.

    Returns:
        One row per target for the reference and for every type of frames:

        - `bytes_per_hour` of this capture's frames (for the reference: of the means) in an hour of
          this store's speech; `scale`, the step between two values of int8.
        - `activation_mse` and `activation_max_error` of frames against those stored; NaN for the
          stored type itself unless it is float32, since what it lost is not known.
        - `mean_max_error`: the largest difference of a mean from the reference.
        - `r_change_max`, `r_change_mean`: absolute change of Pearson's r with the target, over all
          units whose r is defined in both; `units_lost`: those whose r no longer is.
        - `ccc`, `mse` (means over held-out speakers) and `ccc_pooled` of a linear regression that
          leaves one speaker out, and their changes.

        `attrs` has "notes": which bound int8 has and why, and what is not known. Also "view",
        "capture" and "stored", the type in the store.

    Raises:
        StoreError: no such view or capture, or a view without frames.
        AnalysisError: no target or an unknown one; unknown speakers, or fewer than two.
    """
    targets = (targets,) if isinstance(targets, str) else tuple(dict.fromkeys(targets))
    if features < 1 or not targets:
        raise AnalysisError(
            f"features={features}, targets={targets}: nothing to do; give 1 or more of both."
        )
    frames, config = store.frames(view, capture), store.config(view)
    pooled = captured(store.pooled(view), str(frames.name), view=view)
    means = pick_statistic(pooled, "mean", view=view).transpose("utterance", ...).to_numpy()
    question, notes = _question(pooled, targets, means, features)
    reference = question.ask(means)  # first: what is wrong with a label is known at once
    scale, why = int8_scale(config, pooled)
    counts = store.utterances(view)["frame_count"].to_numpy(np.int64)
    with progress_bar("Reading", len(counts), unit="utterances", show=progress) as tick:
        known = _roundings(config.dtype, scale)
        found = frame_means(frames, counts=counts, roundings=known, tick=tick)
    hours = float(pooled["duration_s"].sum()) / 3600
    rows = [{**row, "bytes_per_hour": means.nbytes / hours} for row in _rows(reference, reference)]
    for name in _TYPES:
        values = int(counts.sum()) * means[0].size
        facts: dict[str, Any] = {
            "frames": name,
            "bytes_per_hour": values * np.dtype(name).itemsize / hours,
            "scale": scale if name == "int8" else math.nan,
        }
        if name in found:
            facts |= _errors(found[name], means, unknown=name == config.dtype != "float32")
        answers = question.ask(found[name].means) if name in found else {}
        rows += [{**row, **facts} for row in _rows(answers, reference)]
    audit = pd.DataFrame(rows, columns=list(COLUMNS))
    audit.attrs = {
        "view": config.name,
        "capture": str(frames.name),
        "stored": config.dtype,
        "notes": [*_unknown(config.dtype), why, *notes],
    }
    return audit


def int8_scale(config: ViewConfig, pooled: xr.DataArray) -> tuple[float, str]:
    """Step between two values of int8 frames of a capture, and how its bound was found.

    Args:
        config: of the view.
        pooled: (statistic, utterance, *feature), whose min and max are of unrounded activations.
    """
    capture = str(pooled.name)
    stored = config.scale(capture)
    if stored is not None:
        return stored, f"int8: the bound of {capture} is {127 * stored:g}, that of the store."
    # As `GCUEncoder.bounds`; the encoder itself is not at hand.
    bounds = {"gate": 1.0, "skip": 1.0, "residual": 1.0 + len(config.layer_names)}
    if config.kind == "gcu" and capture in bounds:
        bound = bounds[capture]
        return bound / 127, f"int8: the bound of {capture} is {bound:g}, as the network has it."
    extremes = abs(pooled.sel(statistic=["min", "max"])).max()
    bound = float(extremes.compute()) or 1.0
    return bound / 127, (
        f"int8: the bound of {capture} is {bound:.4g}, the largest absolute value in this "
        "store; other speech may exceed it."
    )


def rounding(dtype: FrameDtype, *, scale: float) -> Rounding:
    """What storing frames in a type does to them; `scale` is the step of int8."""
    if dtype == "float16":
        return _through_float16
    if dtype == "int8":
        step = np.float32(scale)
        return lambda values: np.clip(np.round(values / step), -127, 127) * step
    return lambda values: values


def _through_float16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what is too large is infinite, and is said to be
        return values.astype(np.float16).astype(np.float32)


def _roundings(stored: str, scale: float) -> dict[FrameDtype, Rounding]:
    """The types that a store can tell of: its own, which rounds nothing again, and coarser ones."""
    first, *coarser = _TYPES[_RANK[stored] :]
    found = {first: rounding("float32", scale=scale)}
    return found | {name: rounding(name, scale=scale) for name in coarser}


def frame_means(
    frames: xr.DataArray,
    *,
    counts: Int64[np.ndarray, " utterance"],
    roundings: Mapping[FrameDtype, Rounding],
    tick: Tick = lambda amount: None,
) -> dict[FrameDtype, FrameMeans]:
    """Means over each utterance's frames under several roundings, in one read.

    Args:
        frames: lazy (layer, frame, unit) or (frame, coefficient), one utterance after another.
        counts: frames of each utterance.
        roundings: what becomes of frames, by name.
        tick: is told how many utterances were done.
    """
    layered = "layer" in frames.dims
    layers = frames.sizes["layer"] if layered else 1
    frames = frames.transpose("layer", ...) if layered else frames
    width = frames.sizes[frames.dims[-1]]
    shape = (len(counts), layers, width) if layered else (len(counts), width)
    found = {name: FrameMeans(np.empty(shape, np.float32)) for name in roundings}
    edges = np.cumsum(frames.chunksizes["frame"])
    for block in _blocks(counts, edges, max(1, _BLOCK_VALUES // width)):
        first = int(counts[: block.start].sum())
        here = counts[block]
        starts = np.cumsum(here) - here
        inside = slice(first, first + int(here.sum()))
        for layer in range(layers):
            lazy = frames[layer, inside] if layered else frames[inside]
            values = np.asarray(lazy.data.compute(), np.float32)
            at = (block, layer) if layered else (block,)
            for name, rounded in roundings.items():
                kept = rounded(values)
                with np.errstate(invalid="ignore"):  # infinite float16
                    found[name].errors.add(np.subtract(kept, values, dtype=np.float64))
                    sums = np.add.reduceat(kept, starts, axis=0, dtype=np.float64)
                    found[name].means[at] = sums / here[:, None]
        tick(len(here))
    return found


def _blocks(
    counts: Int64[np.ndarray, " utterance"], edges: Int64[np.ndarray, " chunk"], limit: int
) -> Iterator[slice]:
    """Slices of utterances of up to `limit` frames, or one; a stored chunk starts a new one."""
    starts = np.cumsum(counts) - counts
    chunk = np.searchsorted(edges, starts, side="right")
    first = 0
    for one in range(1, len(counts) + 1):
        if (
            one == len(counts)
            or chunk[one] != chunk[first]
            or starts[one] + counts[one] - starts[first] > limit
        ):
            yield slice(first, one)
            first = one


@dataclass(frozen=True, eq=False)
class _Answer:
    """What means say about a target: `r` (*feature) of every unit, and a regression's success."""

    r: Float64[np.ndarray, " *feature"]
    scores: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Question:
    """What the analyses are asked about any means.

    Attributes:
        labels: (utterance,) by target; NaN where unknown.
        speakers: (utterance,).
        best: units that the regression is given.
    """

    labels: dict[str, Float64[np.ndarray, " utterance"]]
    speakers: Shaped[np.ndarray, " utterance"]
    best: int

    def ask(self, means: Float32[np.ndarray, " utterance *feature"]) -> dict[str, _Answer]:
        """Answers by target; none at all from means that are not finite."""
        y = np.stack(list(self.labels.values()), axis=1)
        used = ~np.isnan(y).all(axis=1)
        if not np.isfinite(means[used]).all():
            return {}
        lazy = da.from_array(means, chunks=(1024, *means.shape[1:]))
        moments = lazy_moments(lazy, y=y, codes=np.where(used, 0, -1)).compute()
        return {
            target: _Answer(pearson(moments, column)[0], self._scores(means, target))
            for column, target in enumerate(self.labels)
        }

    def _scores(self, means: NDArray[np.float32], target: str) -> dict[str, float]:
        y = self.labels[target]
        rows = np.flatnonzero(~np.isnan(y))
        X, Y = means[rows].reshape(len(rows), -1), y[rows, None]
        speakers = self.speakers[rows]
        best = FeatureSet(f"{self.best} best of all units", NETWORK, best=self.best)
        folds = [
            row
            for fold in leave_out(best, X=X, Y=Y, speakers=speakers, splits=one_out(speakers))
            for row in fold_rows(fold, best.name, [target], Y, speakers)
        ]
        (row,) = summarise(pd.DataFrame(folds).assign(table=1)).to_dict("records")
        return {
            "ccc": row["ccc_mean"],
            "ccc_pooled": row["ccc_pooled"],
            "mse": row["mse_mean"],
            "utterances": row["utterances"],
            "speakers": row["folds"],
        }


def _question(
    pooled: xr.DataArray, targets: Sequence[str], means: NDArray[np.float32], best: int
) -> tuple[_Question, list[str]]:
    """The question, and notes on what it leaves out."""
    table = utterance_table(pooled)
    finite = np.isfinite(means).reshape(len(means), -1).all(axis=1)
    labels = {}
    for target in targets:
        labels[target] = np.where(finite, label_values(table, target=target), np.nan)
        known = ~np.isnan(labels[target])
        speakers = known_speakers(table, of=known)
        if len(np.unique(speakers[known])) < 2:
            raise AnalysisError(
                f"Leaving one speaker out takes at least 2 speakers with a {target!r} label; check "
                "the manifest's 'speaker' column and that label."
            )
    left = int((~finite).sum())
    notes = [f"{left} utterances have means that are not finite and are left out."] if left else []
    return _Question(labels, speakers, best), notes


def _rows(
    answers: Mapping[str, _Answer], reference: Mapping[str, _Answer]
) -> Iterator[dict[str, Any]]:
    """One row per target: answers, and how far they are from those of the reference."""
    for target, before in reference.items():
        row: dict[str, Any] = {"frames": REFERENCE, "target": target}
        if target in answers:
            after = answers[target]
            change = np.abs(after.r - before.r)
            defined = change[~np.isnan(change)]
            row |= {
                "r_change_max": float(defined.max()) if defined.size else math.nan,
                "r_change_mean": float(defined.mean()) if defined.size else math.nan,
                "units_lost": int((np.isnan(after.r) & ~np.isnan(before.r)).sum()),
                **after.scores,
                **{
                    f"{name}_change": after.scores[name] - before.scores[name]
                    for name in ("ccc", "ccc_pooled", "mse")
                },
            }
        yield row


def _errors(found: FrameMeans, means: NDArray[np.float32], *, unknown: bool) -> dict[str, float]:
    """Errors of frames, unless they are unknown, and of means."""
    facts = {"mean_max_error": float(np.nanmax(np.abs(found.means - means.astype(np.float64))))}
    if not unknown:
        facts |= {
            "activation_mse": found.errors.mse,
            "activation_max_error": found.errors.largest,
        }
    return facts


def _unknown(stored: str) -> list[str]:
    """What a store of this type of frames cannot tell."""
    if stored == "float32":
        return ["Frames are stored in float32: errors are those of every type."]
    notes = [
        f"Frames are stored in {stored}. What that type itself loses shows in the means, whose "
        "reference was never rounded; errors of activations are against the stored ones."
    ]
    finer = _TYPES[: _RANK[stored]]
    return [*notes, f"Not known for {' and '.join(finer)}: frames that were never stored."]
