"""The CTC loss (Graves et al. 2006) over padded batches.

optax has this loss too. Its gradient is what automatic differentiation makes of the recursion; here
the gradient is the closed form (Graves et al., equation 16), which takes a fraction of the time on
a CPU: `benchmarks/training.py` runs both. The tests compare both with PyTorch's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from featurestore.training.alphabet import BLANK

# Stands for log 0: finite, so that no difference of two of them is NaN.
_LOG_ZERO = -1e30


def min_frames(
    labels: Int[Array, "utterance symbol"], n_labels: Int[Array, " utterance"]
) -> Int[Array, " utterance"]:
    """Fewest frames that align each target: one a symbol, and a blank between equal neighbours."""
    inside = jnp.arange(1, labels.shape[1]) < n_labels[:, None]
    repeated = (labels[:, 1:] == labels[:, :-1]) & inside
    return n_labels + jnp.sum(repeated, axis=1)


@jax.custom_vjp
def ctc_loss(
    logits: Float[Array, "utterance frame class"],
    n_frames: Int[Array, " utterance"],
    labels: Int[Array, "utterance symbol"],
    n_labels: Int[Array, " utterance"],
) -> Float[Array, " utterance"]:
    """Negative log-likelihood of each target, in nats.

    Args:
        logits: unnormalised; frames from an utterance's `n_frames` on are padding.
        n_frames: frames of each utterance, at least 1 for a target to be possible.
        labels: targets from 0 to 26; what follows an utterance's `n_labels` is padding.
        n_labels: symbols of each target; 0 for an empty one.

    Returns:
        Infinity for a target that no alignment fits, with a gradient of zero, as PyTorch's
        `ctc_loss` with `zero_infinity` has it for the gradient.
    """
    return _forward(logits, n_frames, labels, n_labels)[0]


def _extended(labels: Array, n_labels: Array) -> tuple[Array, Array]:
    """Targets with blanks around every symbol, and which states a path may enter from two back."""
    symbols = labels.shape[1]
    padded = jnp.where(jnp.arange(symbols) < n_labels[:, None], labels, BLANK)
    states = jnp.full((len(labels), 2 * symbols + 1), BLANK, labels.dtype)
    states = states.at[:, 1::2].set(padded)
    before = jnp.pad(states, ((0, 0), (2, 0)), constant_values=BLANK)[:, :-2]
    return states, (states != BLANK) & (states != before)


def _emissions(logits: Array, states: Array) -> tuple[Array, Array]:
    """Log-probabilities (frame, utterance, class) and those of the states (frame, ..., state)."""
    log_probabilities = jnp.swapaxes(jax.nn.log_softmax(logits, axis=-1), 0, 1)
    picked = jnp.broadcast_to(states, (len(log_probabilities), *states.shape))
    return log_probabilities, jnp.take_along_axis(log_probabilities, picked, axis=-1)


def _log_sum(a: Array, b: Array, c: Array) -> Array:
    highest = jnp.maximum(jnp.maximum(a, b), c)
    return highest + jnp.log(jnp.exp(a - highest) + jnp.exp(b - highest) + jnp.exp(c - highest))


def _shifted(x: Array, by: int) -> Array:
    return jnp.pad(x, ((0, 0), (by, 0)), constant_values=_LOG_ZERO)[:, : x.shape[1]]


def _paths_until(emissions: Array, skips: Array) -> Array:
    """Log-probability of all paths that end in a state, its own emission included."""
    first = jnp.where(jnp.arange(emissions.shape[-1]) < 2, emissions[0], _LOG_ZERO)

    def step(alpha: Array, emission: Array) -> tuple[Array, Array]:
        two_back = jnp.where(skips, _shifted(alpha, 2), _LOG_ZERO)
        alpha = jnp.maximum(_log_sum(alpha, _shifted(alpha, 1), two_back) + emission, _LOG_ZERO)
        return alpha, alpha

    return jnp.concatenate([first[None], jax.lax.scan(step, first, emissions[1:])[1]])


def _paths_from(emissions: Array, skips: Array, n_frames: Array, n_labels: Array) -> Array:
    """Log-probability of all paths from a state to the end, its own emission left out."""
    state = jnp.arange(emissions.shape[-1])
    last = 2 * n_labels[:, None]
    ends = jnp.where((state == last) | (state == last - 1), 0.0, _LOG_ZERO)

    def forward_shifted(x: Array, by: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, by)), constant_values=_LOG_ZERO)[:, by:]

    def step(carry: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        index, emission = inputs  # of the frame after this one
        ahead = carry + emission
        two_ahead = forward_shifted(jnp.where(skips, ahead, _LOG_ZERO), 2)
        beta = jnp.maximum(_log_sum(ahead, forward_shifted(ahead, 1), two_ahead), _LOG_ZERO)
        beta = jnp.where((index < n_frames)[:, None], beta, ends)
        return beta, beta

    later = (jnp.arange(1, len(emissions)), emissions[1:])
    betas = jax.lax.scan(step, ends, later, reverse=True)[1]
    return jnp.concatenate([betas, ends[None]])


def _forward(logits: Array, n_frames: Array, labels: Array, n_labels: Array) -> tuple[Array, Any]:
    states, skips = _extended(labels, n_labels)
    log_probabilities, emissions = _emissions(logits, states)
    alphas = _paths_until(emissions, skips)
    rows = jnp.arange(len(labels))
    last = alphas[jnp.maximum(n_frames - 1, 0), rows]
    whole = jnp.take_along_axis(last, 2 * n_labels[:, None], axis=1)[:, 0]
    before = jnp.take_along_axis(last, jnp.maximum(2 * n_labels - 1, 0)[:, None], axis=1)[:, 0]
    likelihood = jnp.where(n_labels > 0, jnp.logaddexp(whole, before), whole)
    possible = (n_frames >= min_frames(labels, n_labels)) & (n_frames > 0)
    losses = jnp.where(possible, -likelihood, jnp.inf)
    saved = (log_probabilities, alphas, emissions, states, skips, possible)
    return losses, (*saved, n_frames, n_labels)


def _backward(saved: Any, cotangent: Array) -> tuple[Array, None, None, None]:
    """Softmax minus the posterior probability of each class, frame by frame."""
    log_probabilities, alphas, emissions, states, skips, possible, *lengths = saved
    n_frames, n_labels = lengths
    betas = _paths_from(emissions, skips, n_frames, n_labels)
    # Their sum over the states is the likelihood at every frame; dividing by it there, not by the
    # one at the end, keeps the rounding of the recursions out of the gradient.
    occupied = jax.nn.softmax(alphas + betas, axis=-1)
    one_hot = jax.nn.one_hot(states, log_probabilities.shape[-1], dtype=occupied.dtype)
    posterior = jnp.einsum("tus,usc->tuc", occupied, one_hot, precision="highest")
    gradient = jnp.swapaxes(jnp.exp(log_probabilities) - posterior, 0, 1)
    inside = jnp.arange(gradient.shape[1]) < n_frames[:, None]
    kept = (inside & possible[:, None])[..., None]
    return jnp.where(kept, gradient * cotangent[:, None, None], 0.0), None, None, None


ctc_loss.defvjp(_forward, _backward)
