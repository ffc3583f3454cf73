"""The compiled training step: waveforms in, new parameters out, on one device or over several."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from featurestore.frontend import log_mel_of_batch, mfcc_of_batch
from featurestore.training.augment import Augmentation, augmented_mfcc
from featurestore.training.config import Precision, TrainConfig
from featurestore.training.ctc import ctc_loss
from featurestore.training.loader import Batch
from featurestore.training.network import Tensors, forward, split, updated_statistics
from featurestore.training.optimisers import optimiser, schedule
from featurestore.weights import Weights


class Result(NamedTuple):
    """What a step tells: nats per symbol, and the gradient's global norm before clipping."""

    loss: Array
    norm: Array


def compute_dtype(precision: Precision) -> Any:
    """Type of the convolutions' inputs: bfloat16 on a GPU unless float32 is asked for."""
    on_gpu = jax.default_backend() in ("gpu", "cuda", "rocm")
    return (
        jnp.bfloat16 if precision == "bfloat16" or (precision == "auto" and on_gpu) else jnp.float32
    )


class Trainer:
    """The step of one training, and where its arrays live.

    A batch is split over the devices by rows and the state is held by each of them; the moments of
    batch normalisation and the gradient are those of the whole batch.

    Args:
        config: optimiser, precision, augmentation.
        steps: of the whole training.
        devices: to train on; all by default.
    """

    def __init__(
        self, config: TrainConfig, *, steps: int, devices: list[jax.Device] | None = None
    ) -> None:
        self.devices = devices or jax.devices()
        mesh = Mesh(np.array(self.devices), ("utterance",))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._by_row = NamedSharding(mesh, PartitionSpec("utterance"))
        self._key = jax.random.key(config.seed)
        self._optimiser = optimiser(
            config.optimiser,
            schedule(config.learning_rate, warmup=config.warmup, steps=steps),
            clip=config.clip,
            weight_decay=config.weight_decay,
        )
        gradients = functools.partial(
            _gradients,
            augmentation=config.augmentation,
            dropout=config.dropout,
            dtype=compute_dtype(config.precision),
        )
        state, row = self._everywhere, self._by_row
        self._gradients = {
            settled: jax.jit(
                functools.partial(gradients, settled=settled),
                in_shardings=(state, state, row, row, row, row),
                out_shardings=(state, state, state),
            )
            for settled in (False, True)
        }
        # A program of its own, so that it is compiled once and not for every shape of batch.
        self._update = jax.jit(
            functools.partial(_update, optimise=self._optimiser),
            out_shardings=state,
            donate_argnums=0,
        )
        self._recognise = jax.jit(_recognise, in_shardings=(state, row, row), out_shardings=row)

    def initial_state(self, weights: Weights) -> dict[str, Any]:
        """Parameters, running statistics, the optimiser's state and the number of steps taken."""
        parameters, statistics = split(weights.tensors)
        state = {
            "parameters": parameters,
            "statistics": statistics,
            "optimiser": self._optimiser.init(parameters),
            "step": np.zeros((), np.int32),
        }
        # Copies: the step gives its state away, and the weights may be used elsewhere.
        return jax.device_put(jax.tree.map(np.array, state), self._everywhere)

    def place(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state read back from disk, on the devices."""
        return jax.device_put(state, self._everywhere)

    def step(
        self, state: dict[str, Any], batch: Batch, *, settled: bool = False
    ) -> tuple[dict[str, Any], Result]:
        """One update; `state` is used up. `settled` normalises with the running statistics."""
        arrays = (batch.buffers, batch.n_frames, batch.labels, batch.n_labels)
        placed = jax.device_put(arrays, self._by_row)
        network = {name: state[name] for name in ("parameters", "statistics", "step")}
        result, gradients, moments = self._gradients[settled](network, self._key, *placed)
        return self._update(state, None if settled else moments, gradients), result

    def recognise(self, state: dict[str, Any], batch: Batch) -> Int[np.ndarray, "row frame"]:
        """The most probable class of each frame, normalised with the running statistics."""
        network = {name: state[name] for name in ("parameters", "statistics")}
        arrays = jax.device_put((batch.buffers, batch.n_frames), self._by_row)
        return np.asarray(self._recognise(network, *arrays))


def _gradients(
    network: dict[str, Any],
    key: Array,
    buffers: Float[Array, "row sample"],
    n_frames: Int[Array, " row"],
    labels: Int[Array, "row symbol"],
    n_labels: Int[Array, " row"],
    *,
    settled: bool,
    augmentation: Augmentation,
    dropout: float,
    dtype: Any,
) -> tuple[Result, Tensors, Tensors]:
    voice_key, dropout_key = jax.random.split(jax.random.fold_in(key, network["step"]))
    coefficients = _coefficients(buffers, n_frames, voice_key, augmentation)

    def loss(parameters: Tensors) -> tuple[Array, Tensors]:
        logits, moments = forward(
            parameters,
            coefficients,
            n_frames,
            statistics=network["statistics"] if settled else None,
            dropout=dropout,
            key=dropout_key,
            dtype=dtype,
        )
        losses = ctc_loss(logits, n_frames, labels, n_labels)
        # Rows without an utterance, and what an alignment cannot fit, do not count.
        ignored = jnp.isposinf(losses) | (n_frames == 0)
        symbols = jnp.sum(jnp.where(ignored, 0, n_labels))
        return jnp.sum(jnp.where(ignored, 0.0, losses)) / jnp.maximum(symbols, 1), moments

    (value, moments), gradients = jax.value_and_grad(loss, has_aux=True)(network["parameters"])
    return Result(value, optax.tree.norm(gradients)), gradients, moments


def _update(
    state: dict[str, Any],
    moments: Tensors | None,
    gradients: Tensors,
    *,
    optimise: optax.GradientTransformation,
) -> dict[str, Any]:
    """The next state; without `moments` the running statistics stay."""
    updates, optimiser_state = optimise.update(gradients, state["optimiser"], state["parameters"])
    statistics = state["statistics"]
    if moments is not None:
        statistics = updated_statistics(statistics, moments, state["step"])
    return {
        "parameters": optax.apply_updates(state["parameters"], updates),
        "statistics": statistics,
        "optimiser": optimiser_state,
        "step": state["step"] + 1,
    }


def _coefficients(
    buffers: Array, n_frames: Array, key: Array, augmentation: Augmentation
) -> Float[Array, "row frame coefficient"]:
    if not augmentation.spectral:
        return mfcc_of_batch(buffers, n_frames)
    decibels = log_mel_of_batch(buffers, n_frames)
    # A row's variation does not depend on how many rows there are.
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(buffers)))
    vary = functools.partial(augmented_mfcc, augmentation=augmentation)
    return jax.vmap(vary)(decibels, n_frames, keys)


def _recognise(network: dict[str, Any], buffers: Array, n_frames: Array) -> Array:
    coefficients = mfcc_of_batch(buffers, n_frames)
    logits, _ = forward(
        network["parameters"], coefficients, n_frames, statistics=network["statistics"]
    )
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
