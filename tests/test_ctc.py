"""The loss, against PyTorch's and optax's, and against its definition on small problems."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.training.alphabet import BLANK
from featurestore.training.ctc import ctc_loss, min_frames
from featurestore.training.decoding import collapse
from featurestore.types import CLASSES


def _batch(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, frames, labels and symbols: with padding, empty targets and too long ones."""
    random = np.random.default_rng(seed)
    utterances, frames, symbols = (
        random.integers(1, 7),
        random.integers(2, 90),
        random.integers(1, 40),
    )
    logits = random.normal(0, 3, (utterances, frames, CLASSES)).astype(np.float32)
    n_frames = random.integers(1, frames + 1, utterances)
    n_labels = random.integers(0, symbols + 1, utterances)
    n_labels[0] = 0
    labels = random.integers(0, BLANK, (utterances, symbols))
    doubled = random.random(labels.shape) < 0.3
    labels = np.where(doubled, np.roll(labels, 1, axis=1), labels)
    return logits, n_frames.astype(np.int32), labels.astype(np.int32), n_labels.astype(np.int32)


def _ours(logits, n_frames, labels, n_labels):
    def total(x):
        losses = ctc_loss(x, n_frames, labels, n_labels)
        return jnp.sum(jnp.where(jnp.isfinite(losses), losses, 0.0)), losses

    (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    return np.asarray(losses), np.asarray(gradient)


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_gradient_are_those_of_pytorch(seed: int) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    logits, n_frames, labels, n_labels = _batch(seed)

    def theirs(zero_infinity: bool):
        x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        losses = torch.nn.functional.ctc_loss(
            torch.log_softmax(x, -1).transpose(0, 1),
            torch.tensor(labels, dtype=torch.long),
            torch.tensor(n_frames, dtype=torch.long),
            torch.tensor(n_labels, dtype=torch.long),
            blank=BLANK,
            reduction="none",
            zero_infinity=zero_infinity,
        )
        losses.sum().backward()
        return losses.detach().numpy(), x.grad.numpy()

    losses, gradient = _ours(logits, n_frames, labels, n_labels)
    # assert_allclose takes infinities as equal only where both have them
    np.testing.assert_allclose(losses, theirs(False)[0], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(gradient, theirs(True)[1], atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(0, 3))
def test_likelihood_is_the_sum_over_all_paths(seed: int, frames: int, symbols: int) -> None:
    random = np.random.default_rng(seed)
    few = np.array([0, 1, BLANK])  # other classes cannot spell the target
    target = random.integers(0, 2, symbols)
    logits = random.normal(0, 2, (1, frames, CLASSES)).astype(np.float32)
    log_p = np.asarray(jax.nn.log_softmax(logits[0], axis=-1), np.float64)
    paths = (np.array(path) for path in itertools.product(few, repeat=frames))
    likelihood = sum(
        np.exp(log_p[np.arange(frames), path].sum())
        for path in paths
        if collapse(path) == target.tolist()
    )
    labels = np.zeros((1, 3), np.int32)
    labels[0, :symbols] = target
    loss = ctc_loss(logits, np.array([frames]), labels, np.array([symbols]))
    if likelihood == 0:
        assert np.isposinf(loss[0])
    else:
        assert loss[0] == pytest.approx(-np.log(likelihood), abs=1e-4)


def test_neither_padding_nor_what_lies_in_it_matters() -> None:
    logits, n_frames, labels, n_labels = _batch(3)
    losses, gradient = _ours(logits, n_frames, labels, n_labels)
    wide = np.pad(logits, ((0, 0), (0, 9), (0, 0)), constant_values=55.0)
    long = np.pad(labels, ((0, 0), (0, 4)), constant_values=5)
    padded, padded_gradient = _ours(wide, n_frames, long, n_labels)
    np.testing.assert_allclose(padded, losses, rtol=1e-6)
    np.testing.assert_allclose(padded_gradient[:, : logits.shape[1]], gradient, atol=1e-6)
    for row, frames in enumerate(n_frames):
        assert not padded_gradient[row, frames:].any()


def test_an_utterance_without_frames_is_impossible_and_moves_nothing() -> None:
    logits, _, labels, n_labels = _batch(1)
    losses, gradient = _ours(logits, np.zeros(len(logits), np.int32), labels, n_labels)
    assert np.isposinf(losses).all()
    assert not gradient.any()


def test_equal_neighbours_need_a_blank_between_them() -> None:
    labels = np.array([[1, 1, 2, 2], [1, 2, 1, 2], [3, 3, 3, 3]])
    assert min_frames(labels, np.array([4, 4, 2])).tolist() == [6, 4, 3]
