"""Which utterances run together: length buckets with little padding and few compilations. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class BatchPolicy:
    """How batches are shaped.

    Attributes:
        frames_per_batch: frames (padding included) that one batch aims for.
        compile_cost: padded frames that one more compiled shape has to save to be worth it. A
            second of compilation is 25,000 frames on two CPU cores, but it comes once per machine
            (`featurestore.compilation`), and frames come with every ingest.
        batch_cost: frames that one more batch has to save: starting it, and less to do at once.
    """

    frames_per_batch: int = 4096
    compile_cost: int = 1024
    batch_cost: int = 64

    def rows(self, frames: int, utterances: int) -> int:
        """Utterances in a batch of bucket `frames`, of which the corpus has `utterances`."""
        return max(1, min(self.frames_per_batch // frames, utterances))

    def row_choices(self, frames: int) -> list[int]:
        """Rows that a batch of bucket `frames` may have: as many as fit, a half, a quarter, ..."""
        full = max(1, self.frames_per_batch // frames)
        return [full >> halvings for halvings in range(full.bit_length())]


@dataclass(frozen=True)
class Bucket:
    """One static shape: `rows` utterances padded to `frames` frames each."""

    frames: int
    rows: int


@dataclass(frozen=True)
class Batch:
    """Indices of the utterances that run together in a bucket's shape."""

    bucket: Bucket
    members: tuple[int, ...]


def candidate_edges(longest: int) -> np.ndarray:
    """Bucket lengths to choose from: multiples of 8 frames about 6 % apart, up to `longest`.

    A fixed ladder, so that different corpora compile the same shapes.
    """
    edges = [8]
    while edges[-1] < longest:
        edges.append(max(edges[-1] + 8, round(edges[-1] * 1.06 / 8) * 8))
    return np.array(edges)


def choose_buckets(lengths: Sequence[int] | np.ndarray, policy: BatchPolicy) -> tuple[Bucket, ...]:
    """Buckets that minimise padded frames plus `compile_cost` per bucket.

    Exact by dynamic programming over the ladder of `candidate_edges`.

    Args:
        lengths: frames of each utterance; may be empty.
        policy: what a compilation costs.

    Returns:
        Ascending buckets; the last one holds the longest utterance.
    """
    lengths = np.asarray(lengths)
    if not len(lengths):
        return ()
    edges = candidate_edges(int(lengths.max()))
    rung = np.searchsorted(edges, lengths)
    below = np.concatenate([[0], np.cumsum(np.bincount(rung, minlength=len(edges)))])
    # best[j]: cost of serving every utterance up to rung j with rung j as the last bucket.
    best = np.empty(len(edges))
    start = np.zeros(len(edges), int)
    for j, edge in enumerate(edges):
        costs = np.concatenate([[0.0], best[:j]]) + (below[j + 1] - below[: j + 1]) * edge
        start[j] = np.argmin(costs)
        best[j] = costs[start[j]] + policy.compile_cost
    chosen, j = [], len(edges) - 1
    while j >= 0:
        held = int(below[j + 1] - below[start[j]])
        chosen.append(Bucket(int(edges[j]), policy.rows(int(edges[j]), held)))
        j = int(start[j]) - 1
    return tuple(reversed(chosen))


def fit_rows(
    buckets: Sequence[Bucket],
    groups: Sequence[Sequence[int] | np.ndarray],
    policy: BatchPolicy,
) -> tuple[Bucket, ...]:
    """The same buckets with as many rows as waste least.

    A row without an utterance costs as much as a full one, and so does a batch whose first
    utterance is much longer than its last. Rows are full, halved, and so on, so that different
    corpora compile the same shapes.

    Args:
        buckets: as from `choose_buckets`.
        groups: lengths of the utterances that are batched together, such as those of each column;
            32 of them, evenly spaced, are looked at.
        policy: what a batch costs.
    """
    seen = [np.asarray(groups[i]) for i in _spaced(len(groups), 32)]
    fitted = list(buckets)

    def cost(rows: int, place: int) -> int:
        tried = [*fitted[:place], Bucket(fitted[place].frames, rows), *fitted[place + 1 :]]
        planned = [batch.bucket for lengths in seen for batch in batches(lengths, tried)]
        return sum(one.frames * one.rows + policy.batch_cost for one in planned)

    # What a long bucket takes, a short one has not left. Twice: the first time without knowing.
    for place in [*reversed(range(len(fitted)))] * 2:
        frames = fitted[place].frames
        rows = min(policy.row_choices(frames), key=lambda rows: cost(rows, place))
        fitted[place] = Bucket(frames, rows)
    return tuple(fitted)


def _spaced(total: int, count: int) -> list[int]:
    """Up to `count` of the numbers below `total`, evenly spaced."""
    return sorted({index * total // count for index in range(count)}) if total else []


def batches(lengths: Sequence[int] | np.ndarray, buckets: Sequence[Bucket]) -> list[Batch]:
    """Group utterances of similar length into batches of fixed shapes.

    From the longest on, each batch has the smallest bucket that holds its first utterance and is
    filled with the next ones, so that rows stay empty in one batch only, that of the shortest.

    Args:
        lengths: frames of each utterance.
        buckets: ascending, as from `choose_buckets`.

    Returns:
        From the shortest utterances to the longest, and so within each batch; where lengths are
        equal, in the order given.

    Raises:
        ValueError: an utterance longer than the last bucket.
    """
    lengths = np.asarray(lengths)
    if not len(lengths):
        return []
    edges = np.array([bucket.frames for bucket in buckets])
    if lengths.max() > edges[-1]:
        raise ValueError(f"{lengths.max()} frames do not fit the longest bucket, {edges[-1]}")
    order = np.argsort(lengths, kind="stable")[::-1]
    held = np.searchsorted(edges, lengths[order])
    result, start = [], 0
    while start < len(order):
        bucket = buckets[int(held[start])]
        members = order[start : start + bucket.rows]
        result.append(Batch(bucket, tuple(members[::-1].tolist())))
        start += bucket.rows
    return result[::-1]


def padding_waste(lengths: Sequence[int] | np.ndarray, planned: Sequence[Batch]) -> float:
    """Share of computed frames that belong to no utterance, 0 to 1."""
    computed = sum(batch.bucket.frames * batch.bucket.rows for batch in planned)
    return 1.0 - float(np.sum(lengths)) / computed if computed else 0.0


def pad_rows(
    signals: Sequence[np.ndarray], *, rows: int, length: int
) -> Float[np.ndarray, "row sample"]:
    """Signals as rows of one zero-filled batch, cut at `length`; rows beyond the last stay zero."""
    padded = np.zeros((rows, length), np.float32)
    for row, signal in zip(padded, signals, strict=False):
        used = min(length, len(signal))
        row[:used] = signal[:used]
    return padded
