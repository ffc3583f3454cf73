"""What is compiled for fine-tuning: pooled units, predictions, and a step of training."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from featurestore.batching import Batch, Bucket
from featurestore.encoder import Encoder, program_key
from featurestore.training.heads import Head, Standard, label_loss, predict_pooled
from featurestore.training.pooling import pool_frames
from featurestore.training.tuning_config import Loss, Pool

Parameters = dict[str, Any]
"""`encoder`, the network's weights, and `head`; a stage trains one of them or both."""

_BETAS = (0.9, 0.98)


class Programs:
    """The programs of one kind of network, pooling and loss, compiled once per shape of batch.

    Folds share them: whatever differs between folds is an argument. So do encoders of one
    architecture, whose weights are arguments too.

    Args:
        encoder: a network whose front end makes frames, one per frame of its activations.
        pool: how its first capture point is pooled.
        loss: what a step lowers.
        clip: largest norm of a step's gradient.
        weight_decay: of the encoder's matrices.
    """

    def __init__(
        self, encoder: Encoder, *, pool: Pool, loss: Loss, clip: float, weight_decay: float
    ) -> None:
        self._encoder, self._pool, self._loss = encoder, pool, loss
        self._optimiser = optax.chain(
            optax.clip_by_global_norm(clip),
            optax.scale_by_adam(*_BETAS),
            optax.add_decayed_weights(weight_decay, mask=_decayed),
        )
        self.pooled = jax.jit(self._pooled)
        self.predict = jax.jit(self._predict)
        self.start = jax.jit(self._optimiser.init)
        self.step = jax.jit(self._step)

    def _pooled(
        self,
        variables: Any,
        head: Head,
        coefficients: Float[Array, "utterance frame coefficient"],
        n_frames: Int[Array, " utterance"],
    ) -> Float[Array, "utterance feature"]:
        """Pooled units of a padded batch."""
        capture = self._encoder.captures[0]
        activations = self._encoder.apply(variables, coefficients, n_frames)[capture]
        pool = self._pool if self._pool != "attention" or "queries" in head else "mean"
        return jax.vmap(
            lambda x, count: pool_frames(x, count, pool=pool, queries=head.get("queries"))
        )(activations, n_frames)

    def _predict(
        self, parameters: Parameters, standard: dict[str, Array], batch: dict[str, Array]
    ) -> Float[Array, "utterance target"]:
        """Predictions for standardised labels, from `pooled`, or else from `coefficients`."""
        pooled = batch.get("pooled")
        if pooled is None:
            pooled = self._pooled(
                parameters["encoder"],
                parameters["head"],
                batch["coefficients"],
                batch["n_frames"],
            )
        return predict_pooled(
            parameters["head"],
            pooled,
            feature_mean=standard["feature_mean"],
            feature_scale=standard["feature_scale"],
        )

    def _step(
        self,
        trained: Parameters,
        frozen: Parameters,
        state: Any,
        standard: dict[str, Array],
        batch: dict[str, Array],
        rates: dict[str, Array],
    ) -> tuple[Parameters, Any, Array]:
        """One step of AdamW.

        Args:
            trained: parameters to change.
            frozen: the others.
            state: of the optimiser.
            standard: of the fold, as from `arrays_of`.
            batch: what to predict from, `truth` and `known` (utterance, target), and `weight`, the
                share that the batch has of an average one.
            rates: learning rates of the parts trained.

        Returns:
            New parameters, new state, and the mean loss without the penalty.
        """

        def objective(trained: Parameters) -> tuple[Array, Array]:
            parameters = {**frozen, **trained}
            losses = label_loss(
                self._predict(parameters, standard, batch),
                truth=batch["truth"],
                known=batch["known"],
                loss=self._loss,
            )
            squares = jnp.sum(parameters["head"]["kernel"] ** 2, axis=0)
            total = batch["weight"] * losses + standard["penalty"] * squares
            return jnp.mean(total), jnp.mean(losses)

        gradients, loss = jax.grad(objective, has_aux=True)(trained)
        updates, state = self._optimiser.update(gradients, state, trained)
        steps = {
            part: jax.tree.map(lambda u, part=part: -rates[part] * u, tree)
            for part, tree in updates.items()
        }
        return optax.apply_updates(trained, steps), state, loss


def _decayed(parameters: Parameters) -> Any:
    """The matrices of the encoder; the head has a penalty of its own."""
    return {
        part: jax.tree.map(lambda x, part=part: part == "encoder" and x.ndim > 1, tree)
        for part, tree in parameters.items()
    }


_programs: dict[Hashable, Programs] = {}


def programs_for(
    encoder: Encoder, *, pool: Pool, loss: Loss, clip: float, weight_decay: float
) -> Programs:
    """The same programs for the same architecture and settings, so that they compile once."""
    key = (program_key(encoder), pool, loss, clip, weight_decay)
    if key not in _programs:
        _programs[key] = Programs(
            encoder, pool=pool, loss=loss, clip=clip, weight_decay=weight_decay
        )
    return _programs[key]


def arrays_of(standard: Standard) -> dict[str, Array]:
    """What the compiled programs take of a fold's `Standard`."""
    names = ("feature_mean", "feature_scale", "penalty")
    return {name: jnp.asarray(getattr(standard, name)) for name in names}


def shuffled(
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    buckets: Sequence[Bucket],
    rng: np.random.Generator,
) -> list[Batch]:
    """Batches of all `rows` in random order, each of utterances of one bucket at random.

    Args:
        rows: utterances of the corpus.
        lengths: frames of every utterance of the corpus.
        buckets: ascending shapes that hold them.
        rng: decides.
    """
    edges = np.array([bucket.frames for bucket in buckets])
    held = np.searchsorted(edges, lengths[rows])
    found = []
    for index, bucket in enumerate(buckets):
        members = rng.permutation(rows[held == index])
        found += [
            Batch(bucket, tuple(int(i) for i in members[start : start + bucket.rows]))
            for start in range(0, len(members), bucket.rows)
        ]
    return [found[i] for i in rng.permutation(len(found))]


def padded(
    batch: Batch, coefficients: Sequence[Float[np.ndarray, "frame coefficient"]]
) -> dict[str, np.ndarray]:
    """A batch's coefficients with zeros beyond each utterance, and how many frames each has."""
    shape = (batch.bucket.rows, batch.bucket.frames, coefficients[0].shape[1])
    values, n_frames = np.zeros(shape, np.float32), np.zeros(batch.bucket.rows, np.int32)
    for row, member in enumerate(batch.members):
        n_frames[row] = len(coefficients[member])
        values[row, : n_frames[row]] = coefficients[member]
    return {"coefficients": values, "n_frames": n_frames}


def padded_labels(
    members: Sequence[int], truth: Float[np.ndarray, "utterance target"], *, rows: int
) -> dict[str, np.ndarray]:
    """`truth` of a batch's utterances, 0 where unknown, and `known`, 1 where it is known."""
    values = np.full((rows, truth.shape[1]), np.nan, np.float32)
    values[: len(members)] = truth[list(members)]
    known = np.isfinite(values)
    return {"truth": np.where(known, values, 0.0), "known": known.astype(np.float32)}
