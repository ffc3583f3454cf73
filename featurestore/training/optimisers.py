"""From gradients to steps: AdamW, Muon, the original's MaxProp, and the learning rate's course."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

OptimiserName = Literal["adamw", "muon", "maxprop"]

_SECOND_MOMENT = 0.98  # decay of AdamW's squared gradients
_RMS = 0.2  # root mean square of a Muon step at learning rate 1, as AdamW's is about


class MaxPropState(NamedTuple):
    """`largest`: the decayed largest absolute gradient that each parameter has seen."""

    largest: Any


def scale_by_maxprop(*, decay: float = 0.99, epsilon: float = 1e-8) -> optax.GradientTransformation:
    """The optimiser of sugartensor 1.0.0.2, with which the published weights were trained.

    `m = max(decay * m + epsilon, |g|)`, then the step is `g / m`; m starts at zero.

    Args:
        decay: how much of the largest gradient is kept from step to step.
        epsilon: keeps m from zero.
    """

    def init(parameters: Any) -> MaxPropState:
        return MaxPropState(jax.tree.map(jnp.zeros_like, parameters))

    def update(gradients: Any, state: MaxPropState, parameters: Any = None) -> Any:
        del parameters
        largest = jax.tree.map(
            lambda m, g: jnp.maximum(decay * m + epsilon, jnp.abs(g)), state.largest, gradients
        )
        return jax.tree.map(jnp.divide, gradients, largest), MaxPropState(largest)

    return optax.GradientTransformation(init, update)


def schedule(peak: float, *, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup` steps, then a half cosine down to a hundredth of the peak.

    Args:
        peak: learning rate at the end of the warm-up.
        warmup: steps, cut to a fifth of all where the whole training is short.
        steps: of the whole training.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / 100,
        peak_value=peak,
        warmup_steps=max(1, min(warmup, steps // 5)),
        decay_steps=max(2, steps),
        end_value=peak / 100,
    )


def optimiser(
    name: OptimiserName, rate: optax.Schedule, *, clip: float, weight_decay: float
) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then the optimiser.

    Args:
        name: `adamw`; `muon`, which takes a step of equal size along all directions of a kernel
            (Jordan et al. 2024), scaled as AdamW's steps are (Liu et al. 2025), and Adam's for
            what is no kernel; or `maxprop`, which knows no weight decay.
        rate: learning rate by step.
        clip: largest global norm of a gradient.
        weight_decay: on the kernels alone.
    """
    if name == "maxprop":
        step = optax.chain(scale_by_maxprop(), optax.scale_by_learning_rate(rate))
    elif name == "muon":
        step = optax.contrib.muon(
            rate,
            weight_decay=weight_decay,
            weight_decay_mask=_kernels,
            adam_b2=_SECOND_MOMENT,
            consistent_rms=_RMS,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        step = optax.adamw(
            rate, b1=0.9, b2=_SECOND_MOMENT, weight_decay=weight_decay, mask=_kernels
        )
    return optax.chain(optax.clip_by_global_norm(clip), step)


def _kernels(parameters: Any) -> Any:
    """Weight decay is for kernels; gamma, beta and biases have no use for it."""
    return {name: name.endswith("/W") for name in parameters}


def _matrices(parameters: Any) -> Any:
    """A kernel is a matrix of everything that goes into an output, by outputs."""
    return {
        name: optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)
        if name.endswith("/W")
        else None
        for name, x in parameters.items()
    }
