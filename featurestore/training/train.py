"""The training loop: epochs of steps, what they are seen by, and how they go on after a stop."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.errors import TrainingError
from featurestore.frontend import front_end
from featurestore.progress import progress_bar
from featurestore.training.augment import NO_AUGMENTATION
from featurestore.training.config import TrainConfig
from featurestore.training.data import Example, TrainingSet, hours
from featurestore.training.loader import Batch, Loader
from featurestore.training.run import Run, held_out_rows
from featurestore.weights import Weights

_IDS_SHOWN = 20


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended.

    Attributes:
        run: its folder.
        weights: file of the best epoch's weights.
        epochs: done so far.
        steps: done so far.
        best_epoch: the epoch of the lowest held-out CER.
        cer: held-out character error rate of that epoch, greedy and without a language model.
        wer: its word error rate.
        loss: training loss of the last epoch, nats per symbol.
        hours: of speech in the training set.
        seconds: of this call.
        stopped_early: whether the held-out CER had ceased to fall.
        undecodable: reasons by id for audio that failed while training.
    """

    run: Path
    weights: Path
    epochs: int
    steps: int
    best_epoch: int
    cer: float
    wer: float
    loss: float
    hours: float
    seconds: float
    stopped_early: bool
    undecodable: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"run": str(self.run), "weights": str(self.weights)}


@dataclass
class _Position:
    """Where a training stands; saved with every checkpoint."""

    epoch: int = 0  # the one under way
    batch: int = 0  # of it, to be done next
    best_epoch: int = -1
    best_cer: float = math.inf
    best_wer: float = math.inf
    seconds: float = 0.0  # of training, all calls together
    loss_sum: float = 0.0  # over the batches of the epoch
    finished: bool = False
    undecodable: dict[str, str] = field(default_factory=dict)


def train(
    data: TrainingSet,
    run: str | os.PathLike[str],
    config: TrainConfig,
    *,
    workers: int = 2,
    checkpoint_s: float = 300.0,
    devices: list[Any] | None = None,
    progress: bool | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainSummary:
    """Train the network to spell what it hears, or go on with a training that was stopped.

    A run that is stopped at any moment and called again with the same arguments ends with the same
    parameters as one that was not, on the same kind of machine.

    Args:
        data: from `featurestore.training.data.training_set`.
        run: folder for checkpoints, curves and the best weights.
        config: everything else that decides the outcome.
        workers: decoding threads.
        checkpoint_s: seconds between checkpoints; one is written after every epoch too.
        devices: JAX devices to train on; all by default.
        progress: whether to show a bar; None shows it on a terminal.
        on_step: called with the number of steps taken, after each.

    Returns:
        How it ended.

    Raises:
        TrainingError: the folder is of another training, or the loss is no number.
        CheckpointError: weights to start from that cannot be used.
    """
    folder = Run(Path(run), config, data)
    with folder.owned():
        try:
            loop = _Loop(data, folder, config, workers=workers, devices=devices)
            return loop.go(checkpoint_s=checkpoint_s, progress=progress, on_step=on_step)
        finally:
            folder.close()


class _Loop:
    def __init__(
        self,
        data: TrainingSet,
        run: Run,
        config: TrainConfig,
        *,
        workers: int,
        devices: list[Any] | None,
    ) -> None:
        from featurestore.checkpoint import load_weights
        from featurestore.training.step import Trainer

        self.data, self.run, self.config = data, run, config
        count = len(devices) if devices else _device_count()
        self.loader = self._loader(data.train, config.augmentation, workers, count)
        self.reader = self._loader(data.held_out, NO_AUGMENTATION, workers, count)
        # Epochs differ by a batch or two, by the speeds drawn; the schedule takes the first's.
        steps = len(self.loader.plan(0)) * config.epochs
        self.trainer = Trainer(config, steps=steps, devices=devices)
        self.start = load_weights(config.weights or f"random:{config.seed}")
        self.state = self.trainer.initial_state(self.start)
        self.position = _Position()
        self.pending: list[dict[str, Any]] = []

    def _loader(self, examples: Any, augmentation: Any, workers: int, devices: int) -> Loader:
        return Loader(
            examples,
            front_end=front_end(self.config.front_end),
            augmentation=augmentation,
            frames_per_batch=self.config.frames_per_batch,
            epochs=self.config.epochs,
            seed=self.config.seed,
            devices=devices,
            workers=workers,
        )

    def go(
        self,
        *,
        checkpoint_s: float,
        progress: bool | None,
        on_step: Callable[[int], None] | None,
    ) -> TrainSummary:
        began = time.monotonic()
        self._resume()
        total = sum(example.duration_s for example in self.data.train) * self.config.epochs
        status = _Status()
        with progress_bar(
            "training", total, unit="h", scale=3600, rate=status.text, show=progress
        ) as tick:
            if self.position.epoch:
                tick(total * self.position.epoch / self.config.epochs)
            while not self.position.finished:
                self._epoch(status, tick=tick, checkpoint_s=checkpoint_s, on_step=on_step)
                status.cer = self.position.best_cer
        return self._summary(time.monotonic() - began)

    def _resume(self) -> None:
        found = self.run.restore(self.state)
        if found is None:
            self.run.cut("steps", "step", 0)
            self.run.cut("epochs", "epoch", 0)
            return
        state, position = found
        self.state = self.trainer.place(state)
        self.position = _Position(**position)
        self.run.cut("steps", "step", int(state["step"]))
        self.run.cut("epochs", "epoch", self.position.epoch)

    def _epoch(
        self,
        status: _Status,
        *,
        tick: Callable[[float], None],
        checkpoint_s: float,
        on_step: Callable[[int], None] | None,
    ) -> None:
        position = self.position
        planned = self.loader.plan(position.epoch)
        began = saved = time.monotonic()
        before = position.seconds
        for batch in self.loader.batches(planned[position.batch :], position.epoch):
            loss = self._step(batch)
            status.loss = loss
            position.batch += 1
            position.loss_sum += loss
            position.seconds = before + time.monotonic() - began
            tick(batch.seconds)
            if on_step is not None:
                on_step(int(self.state["step"]))
            if time.monotonic() - saved >= checkpoint_s:
                self._save()
                saved = time.monotonic()
        self._evaluate(len(planned))
        self._save()

    def _step(self, batch: Batch) -> float:
        self.position.undecodable.update(batch.failed)
        settled = self.config.settled(self.position.epoch)
        self.state, result = self.trainer.step(self.state, batch, settled=settled)
        loss, norm = float(result.loss), float(result.norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            shown = ", ".join(batch.ids[:_IDS_SHOWN])
            more = f" and {len(batch.ids) - _IDS_SHOWN} more" if len(batch.ids) > _IDS_SHOWN else ""
            raise TrainingError(
                f"the loss is {loss} and the gradient's norm {norm} at step "
                f"{int(self.state['step'])}, in the batch of {shown}{more}. The last checkpoint "
                f"in {self.run.folder} is from before. Look at these utterances; if they are "
                "sound, train into a new folder with a lower --learning-rate"
            )
        self.pending.append({"step": int(self.state["step"]), "loss": loss, "norm": norm})
        return loss

    def _save(self) -> None:
        if self.pending:
            self.run.append("steps", self.pending)
            self.pending = []
        self.run.save(self.state, asdict(self.position))

    def _evaluate(self, batches: int) -> None:
        """Recognise the held-out utterances, keep the weights if they are the best so far."""
        from featurestore.report.training import draw_training
        from featurestore.training.error_rates import character_error_rate, word_error_rate

        position = self.position
        texts = self._recognised()
        heard = [example for example in self.data.held_out if example.id in texts]
        references = [example.transcript.text for example in heard]
        hypotheses = [texts[example.id] for example in heard]
        cer = character_error_rate(references, hypotheses)
        wer = word_error_rate(references, hypotheses)
        position.epoch, position.batch = position.epoch + 1, 0
        row = {
            "epoch": position.epoch,
            "step": int(self.state["step"]),
            "loss": position.loss_sum / max(batches, 1),
            "cer": cer,
            "wer": wer,
            "train_s": round(position.seconds, 1),
            "hours": round(hours(self.data.train) * position.epoch, 3),
        }
        self.run.append("epochs", [row])
        position.loss_sum = 0.0
        if cer < position.best_cer:
            position.best_epoch, position.best_cer, position.best_wer = position.epoch, cer, wer
            self._keep_weights(texts)
        stale = position.epoch - position.best_epoch
        patience = self.config.patience
        hopeless = 0 < patience <= stale and self.config.settled(position.epoch - 1)
        position.finished = position.epoch >= self.config.epochs or hopeless
        draw_training(self.run.rows("epochs"), self.run.folder / "training.png")

    def _recognised(self) -> dict[str, str]:
        """Greedy transcripts of the held-out utterances that can be decoded, by id."""
        from featurestore.training.decoding import greedy_batch

        texts: dict[str, str] = {}
        for batch in self.reader.batches(self.reader.plan(0), 0):
            best = self.trainer.recognise(self.state, batch)
            rows = len(batch.ids)
            found = greedy_batch(best[:rows], batch.n_frames[:rows])
            texts.update(zip(batch.ids, found, strict=True))
            self.position.undecodable.update(batch.failed)
        if not texts:
            raise TrainingError("none of the held-out utterances can be decoded")
        return texts

    def _keep_weights(self, texts: dict[str, str]) -> None:
        import numpy as np

        from featurestore.checkpoint import save_safetensors
        from featurestore.training.error_rates import count_errors

        tensors = {
            name: np.asarray(value, np.float32)
            for part in ("parameters", "statistics")
            for name, value in self.state[part].items()
        }
        source = f"trained:{self.run.folder.name}:epoch-{self.position.epoch}"
        weights = Weights(tensors, source=source, front_end=self.config.front_end)
        save_safetensors(weights, self.run.folder / "weights.safetensors")
        examples: list[Example] = [e for e in self.data.held_out if e.id in texts]
        errors = count_errors(
            [e.transcript.text for e in examples], [texts[e.id] for e in examples]
        )
        rates = {e.id: one.rate for e, one in zip(examples, errors, strict=True)}
        self.run.write("held-out", held_out_rows(self.data.held_out, texts, rates))

    def _summary(self, seconds: float) -> TrainSummary:
        position = self.position
        rows = self.run.rows("epochs")
        return TrainSummary(
            run=self.run.folder,
            weights=self.run.folder / "weights.safetensors",
            epochs=position.epoch,
            steps=int(self.state["step"]),
            best_epoch=position.best_epoch,
            cer=position.best_cer,
            wer=position.best_wer,
            loss=rows[-1]["loss"],
            hours=hours(self.data.train),
            seconds=seconds,
            stopped_early=position.epoch < self.config.epochs,
            undecodable=dict(position.undecodable),
        )


class _Status:
    """What the progress bar says besides hours."""

    def __init__(self) -> None:
        self.loss = self.cer = math.nan

    def text(self, speed: float) -> str:
        shown = f"loss {self.loss:.3f}  {speed:.0f} h/h"
        return shown if math.isnan(self.cer) else f"{shown}  CER {self.cer:.1%}"


def _device_count() -> int:
    import jax

    return len(jax.devices())


def read_training_set(
    manifest: pd.DataFrame | str | os.PathLike[str],
    config: TrainConfig,
    *,
    progress: bool | None = None,
) -> TrainingSet:
    """`training_set` of a manifest or the path of one.

    Raises:
        ManifestError: a bad manifest, naming row and column.
        TrainingError: no transcripts, or nothing left to train on or to hold out.
    """
    from featurestore.planning import load_table
    from featurestore.training.data import training_set

    return training_set(load_table(manifest), config, progress=progress)
