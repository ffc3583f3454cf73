from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_squared_error
from tuning_corpus import corpus

from featurestore.analysis.ridge import fit_ridge
from featurestore.analysis.scores import concordance
from featurestore.training.heads import label_loss, predict_pooled, ridge_head
from featurestore.training.pooling import pool_frames
from featurestore.training.tuning_config import POOLS
from featurestore.training.tuning_step import arrays_of, padded_labels
from featurestore.training.utterances import LabelledUtterances

# --- pooling ----------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    frames=st.integers(1, 12),
    padding=st.sampled_from([0, 1, 4, 7]),
    pool=st.sampled_from(POOLS),
    seed=st.integers(0, 99),
)
def test_pooling_equals_numpy_on_the_frames_alone(frames, padding, pool, seed) -> None:
    random = np.random.default_rng(seed)
    x, queries = random.normal(size=(2, frames, 3)), random.normal(size=(2, 3))
    company = random.normal(0, 100, (2, padding, 3))
    found = pool_frames(
        jnp.asarray(np.concatenate([x, company], axis=1), jnp.float32),
        jnp.asarray(frames),
        pool=pool,
        queries=jnp.asarray(queries, jnp.float32),
    )
    scores = np.exp(np.einsum("lfu,lu->lf", x, queries))
    expected = {
        "mean": x.mean(axis=1),
        "max": x.max(axis=1),
        "attention": np.einsum("lf,lfu->lu", scores / scores.sum(axis=1, keepdims=True), x),
    }[pool]
    np.testing.assert_allclose(found, expected.ravel(), rtol=1e-4, atol=1e-5)


def test_attention_begins_as_the_mean_and_needs_queries() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 3)), jnp.float32)
    count = jnp.asarray(5)
    attended = pool_frames(x, count, pool="attention", queries=jnp.zeros((2, 3)))
    np.testing.assert_allclose(attended, pool_frames(x, count, pool="mean"), rtol=1e-5)
    with pytest.raises(ValueError, match="queries"):
        pool_frames(x, count, pool="attention")


@pytest.mark.parametrize("pool", POOLS)
def test_a_row_without_frames_moves_nothing(pool) -> None:
    x, queries = jnp.ones((2, 8, 3)), jnp.ones((2, 3))

    def total(x: Any, queries: Any) -> Any:
        return pool_frames(x, jnp.asarray(0), pool=pool, queries=queries).sum()

    assert total(x, queries) == 0
    for gradient in jax.grad(total, argnums=(0, 1))(x, queries):
        assert (np.asarray(gradient) == 0).all()


# --- losses and head --------------------------------------------------------------------------


def test_losses_equal_sklearn_and_one_minus_ccc() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=(50, 2))
    truth = (truth - truth.mean(axis=0)) / truth.std(axis=0)
    predicted = 0.4 * truth + random.normal(0.2, 0.5, truth.shape)
    known = np.ones((53, 2), np.float32)
    known[50:] = 0
    with_padding = [np.concatenate([x, np.full((3, 2), 7.0)]) for x in (predicted, truth)]
    for loss in ("mse", "ccc"):
        found = label_loss(
            jnp.asarray(with_padding[0], jnp.float32),
            truth=jnp.asarray(with_padding[1], jnp.float32),
            known=jnp.asarray(known),
            loss=loss,
        )
        for column in range(2):
            y, p = truth[:, column], predicted[:, column]
            expected = {"mse": mean_squared_error(y, p), "ccc": 1 - concordance(y, predicted=p)}
            assert float(found[column]) == pytest.approx(expected[loss], rel=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_losses_of_tiny_batches_are_finite(count: int) -> None:
    known = np.zeros((4, 1), np.float32)
    known[:count] = 1

    def loss(predicted: Any) -> Any:
        return label_loss(
            predicted, truth=jnp.ones((4, 1)), known=jnp.asarray(known), loss="ccc"
        ).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((4, 1)))
    assert float(value) == count
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[count:] == 0).all()


def head_of(data: LabelledUtterances) -> tuple[np.ndarray, Any, Any]:
    random = np.random.default_rng(1)
    pooled = random.normal(2, 0.5, (len(data.ids), 60)).astype(np.float32)
    pooled[:, :1] += 0.1 * data.truth[:, :1].astype(np.float32)
    pooled[:, 5] = 0.25  # a dead unit
    head, standard = ridge_head(pooled, truth=data.truth, speakers=data.speakers)
    return pooled, head, standard


def test_the_head_begins_at_the_ridge_solution() -> None:
    data = corpus()
    pooled, head, standard = head_of(data)
    arrays = arrays_of(standard)
    predicted = predict_pooled(
        head,
        jnp.asarray(pooled),
        feature_mean=arrays["feature_mean"],
        feature_scale=arrays["feature_scale"],
    )
    found = standard.in_label_units(np.asarray(predicted))
    for column in range(2):
        known = np.isfinite(data.truth[:, column])
        ridge = fit_ridge(pooled[known], y=data.truth[known, column], speakers=data.speakers[known])
        np.testing.assert_allclose(found[:, column], ridge.predict(pooled), atol=1e-4)


def test_the_head_begins_where_its_own_loss_is_flat() -> None:
    data = corpus()
    pooled, head, standard = head_of(data)
    arrays = arrays_of(standard)
    labels = padded_labels(range(len(data.ids)), standard.standardised(data.truth), rows=40)

    def objective(head: Any, penalty: Any) -> Any:
        predicted = predict_pooled(
            head,
            jnp.asarray(pooled),
            feature_mean=arrays["feature_mean"],
            feature_scale=arrays["feature_scale"],
        )
        losses = label_loss(predicted, **jax.tree.map(jnp.asarray, labels), loss="mse")
        return jnp.sum(losses + penalty * jnp.sum(head["kernel"] ** 2, axis=0))

    flat = jax.grad(objective)(head, arrays["penalty"])
    steep = jax.grad(objective)(head, 0.5 * arrays["penalty"])
    # Valence lacks labels: its features are standardised over a few more utterances than ridge's.
    assert np.abs(flat["kernel"][:, 0]).max() < 1e-4 < np.abs(steep["kernel"][:, 0]).max()
    assert np.abs(flat["bias"]).max() < 1e-4
