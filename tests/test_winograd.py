"""Convolutions by short transforms equal the direct form."""

from __future__ import annotations

import cmath
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import trials
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.kernels import dilated_convolution
from featurestore.kernels.winograd import (
    Scheme,
    convolution_of_prepared,
    fourier,
    prepare,
    scheme,
    toom_cook,
    winograd_convolution,
)

TOLERANCE = 3e-6  # relative to the largest |z| of the network, 16


def _arguments(
    utterances: int, frames: int, *, channels: int = 8, seed: int = 0
) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 2)
    z = jax.random.uniform(keys[0], (utterances, frames, channels), minval=-16, maxval=16)
    kernel = jax.random.normal(keys[1], (7, channels, 2 * channels)) / (7 * channels) ** 0.5
    return z, kernel


def _exact(z: jax.Array, kernel: jax.Array, dilation: int) -> np.ndarray:
    """The definition in float64."""
    wide, taps = np.asarray(z, np.float64), np.asarray(kernel, np.float64)
    padded = np.pad(wide, ((0, 0), (3 * dilation, 3 * dilation), (0, 0)))
    shifted = [padded[:, tap * dilation :][:, : z.shape[1]] for tap in range(7)]
    return sum(one @ tap for one, tap in zip(shifted, taps, strict=True))


_by_transforms = jax.jit(winograd_convolution, static_argnames="dilation")
_directly = jax.jit(dilated_convolution, static_argnames="dilation")


@settings(max_examples=trials(16), deadline=None)
@given(
    utterances=st.integers(1, 3),
    frames=st.integers(1, 140),
    dilation=st.sampled_from((1, 2, 3, 4, 8, 16)),
    seed=st.integers(0, 1000),
)
def test_equals_the_direct_form(utterances: int, frames: int, dilation: int, seed: int) -> None:
    z, kernel = _arguments(utterances, frames, seed=seed)
    found = _by_transforms(z, kernel, dilation=dilation)
    expected = _directly(z, kernel, dilation=dilation)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=16 * TOLERANCE)
    np.testing.assert_allclose(found, _exact(z, kernel, dilation), rtol=0, atol=16 * TOLERANCE)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 9, 15, 16, 17, 24, 25, 64])
def test_every_length_of_a_sequence(length: int) -> None:
    z, kernel = _arguments(2, length, seed=length)
    found = _by_transforms(z, kernel, dilation=1)
    np.testing.assert_allclose(found, _exact(z, kernel, 1), rtol=0, atol=16 * TOLERANCE)


def test_is_as_exact_as_the_direct_form_at_the_network_size() -> None:
    z, kernel = _arguments(2, 256, channels=128)
    exact = _exact(z, kernel, 4)
    plan = scheme(frames=256, dilation=4)
    found = convolution_of_prepared(z, prepare(kernel, plan), plan, dilation=4)
    direct = dilated_convolution(z, kernel, dilation=4)
    assert np.abs(found - exact).max() < 4 * np.abs(direct - exact).max()


@pytest.mark.parametrize(
    ("plan", "length"),
    [
        (toom_cook((0, 1, -1, 2, -2, 0.5, -0.5), 2), 9),
        (
            toom_cook(
                (1, -1, 1j, cmath.rect(1, math.pi / 4), cmath.rect(1, 3 * math.pi / 4)),
                2,
                infinity=False,
            ),
            11,
        ),
        (fourier(9), 9),
    ],
)
def test_other_algorithms(plan: Scheme, length: int) -> None:
    z, kernel = _arguments(1, length)
    convolve = jax.jit(partial(convolution_of_prepared, plan=plan, dilation=1))
    found = convolve(z, prepare(kernel, plan))
    np.testing.assert_allclose(found, _exact(z, kernel, 1), rtol=0, atol=16 * TOLERANCE)


def test_points_that_do_not_suffice_are_refused() -> None:
    with pytest.raises(ValueError, match="2 points for 4 outputs"):
        toom_cook((0, 1), 4)


def test_has_the_gradient_of_the_direct_form() -> None:
    z, kernel = _arguments(1, 20)

    def loss(convolve, z: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(convolve(z, kernel, dilation=2)))

    found, expected = (
        jax.jit(jax.grad(partial(loss, convolve), argnums=(0, 1)))(z, kernel)
        for convolve in (winograd_convolution, dilated_convolution)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
