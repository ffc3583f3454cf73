"""Correlations of deviations: within speakers, and given covariates, from moments alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from featurestore.analysis.covariates import Covariate
from featurestore.analysis.moments import Moments


@dataclass(frozen=True, eq=False)
class Question:
    """Where a target's statistics are.

    Attributes:
        column: of the target among all columns.
        own: its column where the covariates are known too.
        given: those of the covariates.
        table: (utterance, 1 + covariate) where all are known, else NaN.
    """

    column: int
    own: int
    given: tuple[int, ...]
    table: Float64[np.ndarray, "utterance column"]


def questions_of(
    y: dict[str, NDArray[np.float64]], taken: Sequence[Covariate]
) -> tuple[dict[str, Question], Float64[np.ndarray, "utterance column"]]:
    """Where each target's columns are, and all columns, each once."""
    columns: dict[bytes, int] = {}
    held: list[NDArray[np.float64]] = []

    def place(values: NDArray[np.float64]) -> int:
        key = values.tobytes()
        if key not in columns:
            columns[key] = len(held)
            held.append(values)
        return columns[key]

    found = {}
    for target, values in y.items():
        together = np.stack([values, *(one.numbers for one in taken)], axis=1)
        known = np.isfinite(together).all(axis=1)
        together = np.where(known[:, None], together, np.nan)
        given = tuple(place(together[:, i]) for i in range(1, together.shape[1]))
        found[target] = Question(place(values), place(together[:, 0]), given, together)
    return found, np.stack(held, axis=1)


def partial_r(
    found: Moments, question: Question, codes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each speaker's r given the covariates, and utterances less covariates, (speaker, feature).

    With S the (co)variances of unit x, label y and covariates z, those of the residuals of x and y
    are S_xy - S_xz S_zz^-1 S_zy and so on. A covariate that is constant within a speaker, such as
    sex, takes nothing out there.
    """
    shape = flat(found.c_xy[:, question.own]).shape
    r, freedom = np.full(shape, np.nan), np.zeros((shape[0], 1))
    for speaker in range(shape[0]):
        rows = np.flatnonzero((codes == speaker) & np.isfinite(question.table[:, 0]))
        if len(rows) < 2:
            continue
        off = question.table[rows] - question.table[rows].mean(axis=0)
        scale = np.sqrt((off**2).sum(axis=0))
        vary = np.flatnonzero(scale[1:] > 1e-12 * np.abs(question.table[rows, 1:]).max(axis=0))
        unit = off[:, 1 + vary] / scale[1 + vary]
        values, vectors = np.linalg.eigh(unit.T @ unit)
        kept = values > 1e-10
        basis = vectors[:, kept] / np.sqrt(values[kept])  # of the space that covariates span
        given = [flat(found.c_xy[speaker : speaker + 1, question.given[i]])[0] for i in vary]
        xz = (
            np.stack(given, axis=1) / scale[1 + vary] if given else np.zeros((shape[1], 0))
        ) @ basis
        yz = (off[:, 0] @ unit) @ basis
        x = flat(found.m2_x[speaker : speaker + 1, question.own])[0]
        left_x = x - (xz**2).sum(axis=1)
        left_y = found.m2_y[speaker, question.own] - yz @ yz
        product = flat(found.c_xy[speaker : speaker + 1, question.own])[0] - xz @ yz
        # What is left of a unit, or a label, that the covariates explain is rounding.
        left_x = np.where(left_x > 1e-9 * x, left_x, 0.0)
        left_y = left_y if left_y > 1e-9 * found.m2_y[speaker, question.own] else 0.0
        r[speaker] = ratio(product, left_x, np.asarray(left_y))
        freedom[speaker] = len(rows) - int(kept.sum())
    return r, freedom


def flat(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over (row, feature), from (row, *feature)."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def ratio(
    product: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The product over the root of x y, NaN where that is undefined."""
    scale = np.sqrt(np.maximum(x, 0)) * np.sqrt(np.maximum(y, 0))
    out = np.full(product.shape, np.nan)
    np.divide(product, scale, out=out, where=np.broadcast_to(scale > 0, product.shape))
    return np.clip(out, -1.0, 1.0)


def within(
    found: Moments, column: int, weight: Float64[np.ndarray, "result speaker"]
) -> Float64[np.ndarray, "result feature"]:
    """Pearson's r of deviations from the speakers' means, each speaker counting `weight` times."""
    c, x = flat(found.c_xy[:, column]), flat(found.m2_x[:, column])
    return ratio(weight @ c, weight @ x, (weight @ found.m2_y[:, column])[:, None])


def across(found: Moments, column: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pearson's r of the speakers' means, each counting once, and r over all utterances."""
    used = found.n[:, column] > 0
    n = found.n[used, column].astype(np.float64)
    x, y = flat(found.mean_x[:, column])[used], found.mean_y[used, column]
    if not used.any():
        return np.full(x.shape[1], np.nan), np.full(x.shape[1], np.nan)
    m2_x, m2_y = flat(found.m2_x[:, column])[used].sum(axis=0), found.m2_y[used, column].sum()
    sd_x, sd_y = np.sqrt(m2_x / n.sum()), np.sqrt(m2_y / n.sum())
    dx, dy = _apart(x, x.mean(axis=0), sd_x), _apart(y, y.mean(), sd_y)
    between = ratio(dy @ dx, (dx**2).sum(axis=0), np.asarray((dy**2).sum()))
    share = n / n.sum()
    dx, dy = _apart(x, share @ x, sd_x), _apart(y, share @ y, sd_y)
    product = flat(found.c_xy[:, column])[used].sum(axis=0) + (n * dy) @ dx
    overall = ratio(product, m2_x + n @ dx**2, np.asarray(m2_y + n @ dy**2))
    return between, overall


def _apart(
    means: NDArray[np.float64], centre: NDArray[np.float64], sd: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Speakers' means less their mean; 0 where they differ by rounding, which correlates too."""
    off = means - centre
    size = np.maximum(np.abs(means).max(axis=0), sd)
    return np.where(np.abs(off).max(axis=0) > 1e-12 * size, off, 0.0)
