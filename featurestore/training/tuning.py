"""Training a head, then the network under it, on the speakers of one fold."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Shaped
from numpy.typing import NDArray

from featurestore.batching import Batch, BatchPolicy, choose_buckets
from featurestore.batching import batches as in_order
from featurestore.encoder import Encoder
from featurestore.errors import AnalysisError, TrainingError
from featurestore.progress import progress_bar
from featurestore.training.heads import label_loss, ridge_head
from featurestore.training.optimisers import schedule
from featurestore.training.tuning_config import FinetuneConfig, Pass
from featurestore.training.tuning_step import (
    Parameters,
    arrays_of,
    padded,
    padded_labels,
    programs_for,
    shuffled,
)
from featurestore.training.utterances import LabelledUtterances
from featurestore.types import FRAME_PERIOD_S

_POOLED_ROWS = 64  # utterances per step while only the head is trained, on frozen pooled units
# Padded frames that could be trained on while one more shape is compiled: 3 s at 6,000 frames/s, as
# measured on two CPU cores.
_COMPILE_COST = 18_000


@dataclass(frozen=True, eq=False)
class Tuned:
    """The outcome of one fold.

    Attributes:
        head_only: (test, target) predictions with the best head on frozen weights.
        tuned: (test, target) predictions with the best parameters of all passes.
        passes: what happened.
        best: which pass `tuned` comes from.
        held_out_speakers: who decided.
    """

    head_only: Float64[np.ndarray, "test target"]
    tuned: Float64[np.ndarray, "test target"]
    passes: tuple[Pass, ...]
    best: Pass
    held_out_speakers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one fold: to fit, to decide when to stop, to test.

    Attributes:
        fit: rows to train on.
        held: rows of the training speakers that are held out.
        test: rows of the speaker that is left out.
        held_speakers: who is held out.
    """

    fit: NDArray[np.int64]
    held: NDArray[np.int64]
    test: NDArray[np.int64]
    held_speakers: tuple[str, ...]


def split_fold(
    speakers: Shaped[np.ndarray, " utterance"],
    *,
    speaker: str,
    share: float,
    rng: np.random.Generator,
) -> Split:
    """Leave one speaker out to test, and hold out a share of the others, at least one, to stop by.

    Raises:
        AnalysisError: fewer than three speakers.
    """
    others = [str(one) for one in np.unique(speakers) if one != speaker]
    if len(others) < 2:
        raise AnalysisError(
            f"Fine-tuning takes at least 3 speakers: one to test, one to stop by and one to train "
            f"on; here are {len(others) + 1} ({', '.join([speaker, *others])})."
        )
    count = min(len(others) - 1, max(1, round(share * len(others))))
    held = sorted(rng.choice(others, count, replace=False).tolist())
    is_held = np.isin(speakers, held)
    return Split(
        fit=np.flatnonzero((speakers != speaker) & ~is_held),
        held=np.flatnonzero(is_held),
        test=np.flatnonzero(speakers == speaker),
        held_speakers=tuple(held),
    )


@dataclass
class _Best:
    """The parameters of the lowest held-out loss so far."""

    parameters: Parameters
    found: Pass


class Tuner:
    """Trains folds of one corpus, one after the other; each is a function of seed and speaker.

    Args:
        data: the corpus.
        encoder: a network that hears MFCC; every fold begins with its weights.
        config: how.
        progress: whether to show a bar while `pooled` is made; None shows one on a terminal.
    """

    def __init__(
        self,
        data: LabelledUtterances,
        encoder: Encoder,
        config: FinetuneConfig,
        *,
        progress: bool | None = None,
    ) -> None:
        self.data, self.encoder, self.config = data, encoder, config
        self._progress = progress
        policy = BatchPolicy(config.frames_per_batch, _COMPILE_COST // max(1, config.epochs))
        self.buckets = choose_buckets(data.lengths, policy)
        self.programs = programs_for(
            encoder,
            pool=config.pool,
            loss=config.loss,
            clip=config.clip,
            weight_decay=config.weight_decay,
        )

    @functools.cached_property
    def pooled(self) -> Float[np.ndarray, "utterance feature"]:
        """Units of all utterances pooled under the weights that training begins with.

        For attention their mean, with which it begins.
        """
        units = len(self.encoder.layer_names) * self.encoder.units
        out = np.empty((len(self.data.ids), units), np.float32)
        seconds = self.data.lengths * FRAME_PERIOD_S
        with progress_bar(
            "Frozen network", seconds.sum(), unit="h", scale=3600, show=self._progress
        ) as tick:
            for batch in in_order(self.data.lengths, self.buckets):
                members, values = list(batch.members), padded(batch, self.data.coefficients)
                found = self.programs.pooled(
                    self.encoder.variables, {}, values["coefficients"], values["n_frames"]
                )
                out[members] = np.asarray(found)[: len(members)]
                tick(float(seconds[members].sum()))
        return out

    def seconds(self, speaker: str) -> float:
        """Seconds of audio that a fold's training goes through if nothing stops it early."""
        config = self.config
        frames = float(self.data.lengths[self.data.speakers != speaker].sum())
        passes = config.epochs + (config.frozen_epochs if config.pool == "attention" else 0)
        return passes * frames * FRAME_PERIOD_S

    def tune(
        self,
        speaker: str,
        *,
        tick: Callable[[float], None] = lambda seconds: None,
        say: Callable[[str], None] = lambda losses: None,
    ) -> Tuned:
        """Train without a speaker and predict that speaker.

        Args:
            speaker: who is left out.
            tick: called with the seconds of audio just trained on.
            say: called with the losses, for people.

        Raises:
            AnalysisError: fewer than three speakers.
            TrainingError: a loss that is not a number.
        """
        digest = hashlib.sha256(speaker.encode()).digest()
        rng = np.random.default_rng([self.config.seed, int.from_bytes(digest[:8], "big")])
        split = split_fold(self.data.speakers, speaker=speaker, share=self.config.held_out, rng=rng)
        return _Fold(self, split, speaker, rng, tick, say).run()


class _Fold:
    """One fold while it is trained."""

    def __init__(
        self,
        tuner: Tuner,
        split: Split,
        speaker: str,
        rng: np.random.Generator,
        tick: Callable[[float], None],
        say: Callable[[str], None],
    ) -> None:
        self.tuner, self.split, self.speaker, self.rng = tuner, split, speaker, rng
        self.tick, self.say = tick, say
        self.data, self.config, self.programs = tuner.data, tuner.config, tuner.programs
        encoder = tuner.encoder
        head, self.standard = ridge_head(
            tuner.pooled[split.fit],
            truth=self.data.truth[split.fit],
            speakers=self.data.speakers[split.fit],
            queries=(len(encoder.layer_names), encoder.units)
            if self.config.pool == "attention"
            else None,
        )
        self.truth = self.standard.standardised(self.data.truth)
        self.arrays = arrays_of(self.standard)
        self.parameters: Parameters = {"encoder": encoder.variables, "head": head}
        self.passes: list[Pass] = []

    def run(self) -> Tuned:
        """Ridge, head, everything; then the predictions of the best."""
        frozen = self.config.pool != "attention"
        first = Pass("ridge", 0, math.nan, self._held_loss(self.parameters, pooled=frozen), 0.0)
        self.passes.append(first)
        best = _Best(self.parameters, first)
        self._stage("frozen", ("head",), self.config.frozen_epochs, best, pooled=frozen)
        head_only = self._predictions(best.parameters, self.split.test, pooled=frozen)
        self._stage("all", ("encoder", "head"), self.config.epochs, best, pooled=False)
        return Tuned(
            head_only=self.standard.in_label_units(head_only),
            tuned=self.standard.in_label_units(
                self._predictions(best.parameters, self.split.test, pooled=False)
            ),
            passes=tuple(self.passes),
            best=best.found,
            held_out_speakers=self.split.held_speakers,
        )

    def _stage(
        self, stage: str, parts: tuple[str, ...], epochs: int, best: _Best, *, pooled: bool
    ) -> None:
        """Train some parts from the best parameters on, as long as the held-out loss falls."""
        if not epochs:
            return
        trained = {part: best.parameters[part] for part in parts}
        frozen = {p: value for p, value in best.parameters.items() if p not in parts}
        state = self.programs.start(trained)
        plans = [list(self._batches(pooled=pooled)) for _ in range(epochs)]
        rates = self._rates(sum(len(plan) for plan in plans))
        lately = best.found.held_out
        since = 0
        for epoch, plan in enumerate(plans, start=1):
            began, losses = time.perf_counter(), []
            for members, make in plan:
                rate = {part: next(rates[part]) for part in parts}
                batch = make()
                batch["weight"] = np.float32(len(members) * len(plan) / len(self.split.fit))
                trained, state, loss = self.programs.step(
                    trained, frozen, state, self.arrays, batch, rate
                )
                losses.append(self._checked(float(loss), stage, epoch, members))
                if not pooled:
                    self.tick(float(self.data.lengths[list(members)].sum()) * FRAME_PERIOD_S)
                    self.say(f"loss {np.mean(losses):.3f}, held out {lately:.3f}")
            parameters = {**frozen, **trained}
            lately = self._held_loss(parameters, pooled=pooled)
            if not pooled:
                self.tick(float(self.data.lengths[self.split.held].sum()) * FRAME_PERIOD_S)
            done = Pass(stage, epoch, float(np.mean(losses)), lately, time.perf_counter() - began)
            self.passes.append(done)
            if lately < best.found.held_out:
                best.parameters, best.found, since = parameters, done, 0
            else:
                since += 1
            if since >= self.config.patience:
                return

    def _rates(self, steps: int) -> dict[str, Iterator[np.float32]]:
        course = np.asarray(
            schedule(1.0, warmup=round(self.config.warmup * steps), steps=steps)(np.arange(steps)),
            np.float32,
        )
        peaks = {"encoder": self.config.encoder_rate, "head": self.config.head_rate}
        return {part: iter(course * np.float32(peak)) for part, peak in peaks.items()}

    def _batches(
        self, *, pooled: bool
    ) -> Iterator[tuple[tuple[int, ...], Callable[[], dict[str, Any]]]]:
        """The batches of a pass: who is in it, and how to make it."""
        if pooled:
            order = self.rng.permutation(self.split.fit)
            for start in range(0, len(order), _POOLED_ROWS):
                members = tuple(int(i) for i in order[start : start + _POOLED_ROWS])
                yield members, functools.partial(self._pooled_batch, members)
            return
        for batch in shuffled(self.split.fit, self.data.lengths, self.tuner.buckets, self.rng):
            yield batch.members, functools.partial(self._frames_batch, batch)

    def _pooled_batch(self, members: tuple[int, ...]) -> dict[str, Any]:
        values = np.zeros((_POOLED_ROWS, self.tuner.pooled.shape[1]), np.float32)
        values[: len(members)] = self.tuner.pooled[list(members)]
        return {"pooled": values, **padded_labels(members, self.truth, rows=_POOLED_ROWS)}

    def _frames_batch(self, batch: Batch) -> dict[str, Any]:
        return {
            **padded(batch, self.data.coefficients),
            **padded_labels(batch.members, self.truth, rows=batch.bucket.rows),
        }

    def _predictions(
        self, parameters: Parameters, rows: NDArray[np.int64], *, pooled: bool
    ) -> Float[np.ndarray, "utterance target"]:
        """Predictions for standardised labels."""
        if pooled:
            batch = {"pooled": self.tuner.pooled[rows]}
            return np.asarray(self.programs.predict(parameters, self.arrays, batch))
        out = np.empty((len(rows), self.truth.shape[1]), np.float32)
        coefficients = [self.data.coefficients[row] for row in rows]
        for one in in_order(self.data.lengths[rows], self.tuner.buckets):
            found = self.programs.predict(parameters, self.arrays, padded(one, coefficients))
            out[list(one.members)] = np.asarray(found)[: len(one.members)]
        return out

    def _held_loss(self, parameters: Parameters, *, pooled: bool) -> float:
        held = self.split.held
        labels = padded_labels(held.tolist(), self.truth, rows=len(held))
        predicted = self._predictions(parameters, held, pooled=pooled)
        losses = label_loss(
            jnp.asarray(predicted),
            truth=jnp.asarray(labels["truth"]),
            known=jnp.asarray(labels["known"]),
            loss=self.config.loss,
        )
        return float(np.mean(losses))

    def _checked(self, loss: float, stage: str, epoch: int, members: tuple[int, ...]) -> float:
        if math.isfinite(loss):
            return loss
        ids = ", ".join(self.data.ids[list(members)][:4])
        raise TrainingError(
            f"fold {self.speaker!r}, stage {stage!r}, epoch {epoch}: the loss is {loss} on a batch "
            f"of {len(members)} utterances ({ids}, ...); lower the learning rates "
            f"(encoder_rate {self.config.encoder_rate:g}, head_rate {self.config.head_rate:g})"
        )
