"""The network as it is trained: its normalisation, its gradients, its optimisers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import encode, load_encoder
from featurestore.random_weights import random_weights
from featurestore.training import network
from featurestore.training.config import TrainConfig
from featurestore.training.network import batch_moments, batch_norm, forward, split
from featurestore.training.optimisers import MaxPropState, optimiser, scale_by_maxprop, schedule
from featurestore.training.step import Trainer
from featurestore.weights import EXPECTED_TENSORS


def _padded(lengths: list[int], *, frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    batch = np.zeros((len(lengths), frames, 20), np.float32)
    for row, length in enumerate(lengths):
        batch[row, :length] = random.normal(0, 30, (length, 20))
    return batch, np.array(lengths, np.int32)


def test_a_checkpoint_is_split_without_loss() -> None:
    tensors = random_weights(0).tensors
    parameters, statistics = split(tensors)
    assert parameters.keys() | statistics.keys() == EXPECTED_TENSORS.keys()
    assert not parameters.keys() & statistics.keys()


def test_with_running_statistics_it_is_the_encoder() -> None:
    parameters, statistics = split(random_weights(3).tensors)
    batch, n_frames = _padded([40, 7, 63], frames=64)
    logits, moments = forward(parameters, batch, n_frames, statistics=statistics)
    assert not moments
    alone = encode(load_encoder("random:3"), [batch[i, :n] for i, n in enumerate(n_frames)])
    for row, expected in enumerate(alone):
        found = np.asarray(logits)[row, : n_frames[row]]
        np.testing.assert_allclose(found, expected["logits"], atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 1000))
def test_moments_are_those_of_the_frames_without_padding(lengths: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = max(lengths) + int(random.integers(0, 9))
    x = random.normal(300, 20, (len(lengths), frames, 6)).astype(np.float32)
    mask = (np.arange(frames) < np.array(lengths)[:, None])[..., None].astype(np.float32)
    mean, variance = batch_moments(jnp.asarray(x), jnp.asarray(mask))
    together = np.concatenate([x[i, :n] for i, n in enumerate(lengths)]).astype(np.float64)
    np.testing.assert_allclose(mean, together.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, together.var(axis=0), rtol=1e-4, atol=1e-4)


def test_training_normalises_one_utterance_by_its_own_formula() -> None:
    """The whole network in training mode, against NumPy in float64, for an utterance by itself."""
    parameters, _ = split(random_weights(1).tensors)
    batch, n_frames = _padded([33], frames=48)
    logits, moments = forward(parameters, batch, n_frames)
    expected, expected_moments = _one_utterance(parameters, batch[0, :33].astype(np.float64))
    np.testing.assert_allclose(np.asarray(logits)[0, :33], expected, atol=2e-4)
    for name, value in expected_moments.items():
        np.testing.assert_allclose(moments[name], value, rtol=2e-3, atol=2e-4, err_msg=name)


def _one_utterance(parameters, x):
    """`(x - mean) / sqrt(variance + 1e-8) * gamma + beta`, mean and variance over the frames."""
    moments = {}

    def normal(name, y):
        mean, variance = y.mean(axis=0), y.var(axis=0)
        moments[f"{name}/mean"], moments[f"{name}/variance"] = mean, variance
        scaled = (y - mean) / np.sqrt(variance + 1e-8)
        return scaled * parameters[f"{name}/gamma"] + parameters[f"{name}/beta"]

    def dilated(name, z, rate):
        kernel = parameters[f"{name}/W"][0]
        wide = np.pad(z, ((3 * rate, 3 * rate), (0, 0)))
        return sum(wide[t * rate : t * rate + len(z)] @ kernel[t] for t in range(7))

    z = np.tanh(normal("front/conv_in", x @ parameters["front/conv_in/W"][0]))
    total = np.zeros_like(z)
    for block, rate in network.BLOCKS:
        filters = normal(f"{block}/conv_filter", dilated(f"{block}/conv_filter", z, rate))
        gates = normal(f"{block}/conv_gate", dilated(f"{block}/conv_gate", z, rate))
        gated = np.tanh(filters) / (1 + np.exp(-gates))
        name = f"{block}/conv_out"
        skip = np.tanh(normal(name, gated @ parameters[f"{name}/W"][0]))
        total, z = total + skip, z + skip
    hidden = np.tanh(normal("logit/conv_1", total @ parameters["logit/conv_1/W"][0]))
    return hidden @ parameters["logit/conv_2/W"][0] + parameters["logit/conv_2/b"], moments


def test_padding_and_empty_rows_change_nothing_in_training() -> None:
    parameters, _ = split(random_weights(0).tensors)
    batch, n_frames = _padded([20, 31], frames=31)
    wider = np.zeros((4, 40, 20), np.float32)
    wider[:2, :31] = batch

    def scalar(parameters, batch, n_frames):
        logits, moments = forward(parameters, batch, n_frames)
        mask = np.arange(batch.shape[1]) < n_frames[:, None]
        return jnp.sum(jnp.sin(logits) * mask[..., None]), moments

    compute = jax.value_and_grad(scalar, has_aux=True)
    (value, moments), gradient = compute(parameters, batch, n_frames)
    (again, moments_again), gradient_again = compute(
        parameters, wider, np.append(n_frames, [0, 0]).astype(np.int32)
    )
    assert float(again) == pytest.approx(float(value), abs=1e-3)
    for name, expected in moments.items():
        np.testing.assert_allclose(moments_again[name], expected, rtol=1e-3, atol=1e-5)
    for name, expected in gradient.items():
        scale = float(jnp.abs(expected).max()) + 1e-6
        np.testing.assert_allclose(gradient_again[name], expected, atol=2e-3 * scale)


def test_gradient_of_batch_norm_is_that_of_its_definition() -> None:
    random = np.random.default_rng(0)
    x = random.normal(5, 3, (3, 9, 4)).astype(np.float32)
    mask = (np.arange(9) < np.array([9, 4, 1])[:, None])[..., None].astype(np.float32)
    gamma, beta = (random.normal(size=4).astype(np.float32) for _ in range(2))
    weight = random.normal(size=x.shape).astype(np.float32)

    def defined(x, gamma, beta):
        mean, variance = batch_moments(x, mask)
        y = network.normalise(x, mean, variance, gamma=gamma, beta=beta)
        return jnp.sum(jnp.sin(y) * weight)

    def ours(x, gamma, beta):
        return jnp.sum(jnp.sin(batch_norm(x, mask, gamma, beta)[0]) * weight)

    expected = jax.grad(defined, argnums=(0, 1, 2))(x, gamma, beta)
    for found, wanted in zip(
        jax.grad(ours, argnums=(0, 1, 2))(x, gamma, beta), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("taps", "dilation"), [(7, 1), (7, 4), (1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_convolution_by_products_is_the_convolution(taps, dilation, dtype, tolerance) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 30, 8)).astype(np.float32)
    kernel = (random.normal(size=(taps, 8, 6)) / np.sqrt(8 * taps)).astype(np.float32)

    def value(convolution, dtype):
        def scalar(x, kernel):
            return jnp.sum(jnp.sin(convolution(x, kernel, dilation, dtype)))

        return jax.value_and_grad(scalar, argnums=(0, 1))(x, kernel)

    expected, wanted = value(network.convolve, jnp.float32)
    found, gradients = value(network.convolve_by_products, dtype)
    assert float(found) == pytest.approx(float(expected), rel=tolerance, abs=20 * tolerance)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * float(jnp.abs(other).max()))


def test_dropout_silences_units_for_whole_utterances() -> None:
    parameters, _ = split(random_weights(0).tensors)
    batch, n_frames = _padded([20, 20], frames=20)
    key = jax.random.key(0)
    plain, _ = forward(parameters, batch, n_frames)
    dropped, _ = forward(parameters, batch, n_frames, dropout=0.5, key=key)
    same, _ = forward(parameters, batch, n_frames, dropout=0.5, key=key)
    assert np.array_equal(dropped, same)
    assert not np.allclose(dropped, plain)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6), st.integers(0, 99))
def test_maxprop_is_its_two_lines(first: list[float], seed: int) -> None:
    transformation = scale_by_maxprop()
    gradients = np.stack(
        [
            np.array(first),
            np.random.default_rng(seed).normal(0, 5, len(first)),
            np.zeros(len(first)),
        ]
    ).astype(np.float32)
    state = transformation.init({"w": jnp.zeros(len(first))})
    m = np.zeros(len(first))
    for g in gradients.astype(np.float64):
        m = np.maximum(0.99 * m + 1e-8, np.abs(g))
        step, state = transformation.update({"w": jnp.asarray(g, jnp.float32)}, state)
        assert isinstance(state, MaxPropState)
        np.testing.assert_allclose(step["w"], g / m, rtol=1e-5, atol=1e-7)


def test_learning_rate_warms_up_and_falls() -> None:
    rate = schedule(1e-3, warmup=100, steps=1000)
    course = np.array([rate(step) for step in range(1001)])
    assert course.argmax() == 100
    assert course[100] == pytest.approx(1e-3)
    assert (np.diff(course[:100]) > 0).all()
    assert (np.diff(course[101:]) <= 0).all()
    assert course[-1] == pytest.approx(1e-5)


def test_weight_decay_is_for_kernels_alone() -> None:
    parameters, _ = split(random_weights(0).tensors)
    transformation = optimiser("adamw", optax.constant_schedule(0.1), clip=1.0, weight_decay=0.5)
    still = jax.tree.map(jnp.zeros_like, parameters)
    steps, _ = transformation.update(still, transformation.init(parameters), parameters)
    for name, step in steps.items():
        expected = -0.1 * 0.5 * parameters[name] if name.endswith("/W") else np.zeros(step.shape)
        np.testing.assert_allclose(step, expected, rtol=1e-5, atol=1e-9)


def test_muon_steps_equally_far_along_all_directions_of_a_kernel() -> None:
    parameters, _ = split(random_weights(0).tensors)
    rng = np.random.default_rng(0)
    # Gradients as they come: some directions dominate.
    gradients = {
        name: jnp.asarray(rng.normal(size=x.shape) * np.logspace(-1, 0, x.shape[-1]), jnp.float32)
        for name, x in parameters.items()
    }
    rate = 0.01
    transformation = optimiser("muon", optax.constant_schedule(rate), clip=1e9, weight_decay=0.0)
    steps, _ = transformation.update(gradients, transformation.init(parameters), parameters)
    for name in ("block_0_1/conv_gate/W", "block_2_16/conv_filter/W", "front/conv_in/W"):
        matrix = np.asarray(steps[name]).reshape(-1, steps[name].shape[-1])
        u, _, v = np.linalg.svd(
            np.asarray(gradients[name]).reshape(matrix.shape), full_matrices=False
        )
        along = np.diag(u.T @ matrix @ v.T) / (-rate * 0.2 * np.sqrt(max(matrix.shape)))
        assert along.min() > 0.6, name
        assert along.max() < 1.3, name
        assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.2 * rate, rel=0.25)
    adam = optax.adam(rate, b2=0.98, nesterov=True)
    plain, _ = adam.update(gradients, adam.init(parameters), parameters)
    for name in parameters:
        if not name.endswith("/W"):
            np.testing.assert_allclose(steps[name], plain[name], rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon", "maxprop"])
def test_a_step_leaves_the_given_weights_alone(name) -> None:
    weights = random_weights(0)
    trainer = Trainer(TrainConfig(optimiser=name), steps=10, devices=jax.devices()[:1])
    state = trainer.initial_state(weights)
    assert all(
        np.array_equal(state["parameters"][n], weights.tensors[n]) for n in state["parameters"]
    )
    assert int(state["step"]) == 0
