"""Every implementation of every operation against its definition, and those against the outside."""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from featurestore.frontend import _filters
from featurestore.kernels import (
    CrossProducts,
    Precision,
    combine,
    cross_products,
    gated_block,
    masked_statistics,
)
from featurestore.kernels.cases import (
    CROSS_PRODUCTS,
    GATED_BLOCK,
    MFCC,
    MOMENTS,
    CrossProductsCase,
    GatedCase,
    MfccCase,
    MomentsCase,
)
from featurestore.kernels.cross_products import Centre, overall_mean
from featurestore.kernels.gated_block import Block
from featurestore.kernels.gated_block_mosaic import unavailable
from featurestore.kernels.mfcc import TOP_DB, log_mel, mel_decibels, mfcc

MODULES = {
    name: importlib.import_module(f"featurestore.kernels.{name}")
    for name in ("cross_products", "gated_block", "mfcc", "moments")
}


def implementations(module: str) -> list[str]:
    """All but the definition."""
    return [name for name in MODULES[module]._IMPLEMENTATIONS if name != "reference"]


def over(cases: tuple[Any, ...], *, timed: bool = False) -> pytest.MarkDecorator:
    """One test per case; realistic ones take long where the definition runs."""
    chosen = [case for case in cases if timed or not case.timed]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


def test_every_operation_has_a_definition_and_more() -> None:
    for module in MODULES.values():
        assert "reference" in module._IMPLEMENTATIONS
        assert len(module._IMPLEMENTATIONS) > 1


# The choice of an implementation.


CALLS = pytest.mark.parametrize(
    ("module", "call"),
    [
        ("gated_block", lambda **kw: gated_block(*GATED_BLOCK[0].arguments(), dilation=1, **kw)),
        ("mfcc", lambda **kw: log_mel(*MFCC[0].arguments(), _filters(), **kw)),
        ("moments", lambda **kw: masked_statistics(*MOMENTS[0].arguments(), **kw)),
        (
            "cross_products",
            lambda **kw: cross_products(*CROSS_PRODUCTS[0].arguments(), n_groups=1, **kw),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)


@CALLS
def test_an_unknown_implementation_is_an_error_that_lists_the_known(module, call) -> None:
    with pytest.raises(ValueError, match="unknown implementation 'cuda'") as caught:
        call(implementation="cuda")
    for name in ("auto", *MODULES[module]._IMPLEMENTATIONS):
        assert name in str(caught.value)


@CALLS
def test_unless_asked_for_one_is_chosen_and_said(module, call, monkeypatch, caplog) -> None:
    monkeypatch.setattr(importlib.import_module("featurestore.kernels.choice"), "_said", set())
    with caplog.at_level(logging.INFO, logger="featurestore.kernels.choice"):
        jax.block_until_ready(call())
    messages = [message for message in caplog.messages if "asked for" not in message]
    chosen = [message.split(": ")[1].split(" (")[0] for message in messages]
    assert set(chosen) & set(implementations(module))


def test_what_was_chosen_is_said_once(caplog) -> None:
    choice = importlib.import_module("featurestore.kernels.choice")
    ours = {"reference": "slow", "fast": "quick"}
    auto = ("fast", "as this is a test")
    with caplog.at_level(logging.INFO, logger="featurestore.kernels.choice"):
        for _ in range(3):
            assert choice.choose("an operation of this test", "auto", ours, auto) == "quick"
        assert choice.choose("an operation of this test", "reference", ours, auto) == "slow"
    assert caplog.messages == [
        "an operation of this test: fast (as this is a test)",
        "an operation of this test: reference (asked for)",
    ]


# The gated block. Sums of 16-bit products are float32, so what they are off by comes of rounding
# each factor, by at most 2^-11 or 2^-8 of itself. A sum of 896 products, each of variance 1 / 896
# times the size of z squared, is off by some 0.4 of that times the size of z, the largest of 10,000
# by four times as much: up to 1.5 roundings were found in g, 1.2 in s, 0.8 in the moments. Three
# are allowed; in float32 it is 1e-5.

ROUNDING: dict[Precision, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def gated_tolerance(case: GatedCase, precision: Precision) -> float:
    """Absolute, for g, s and the moments, which lie in -1 to 1."""
    return 1e-5 if precision == "float32" else 3 * ROUNDING[precision] * case.scale


@functools.lru_cache
def gated_definition(case: GatedCase) -> Block:
    return jax.jit(
        functools.partial(gated_block, dilation=case.dilation, implementation="reference")
    )(*case.arguments())


def own_frames(case: GatedCase) -> np.ndarray:
    return np.arange(case.frames)[:, None] < np.array(case.n_frames)[:, None, None]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("implementation", implementations("gated_block"))
@over(GATED_BLOCK)
def test_gated_blocks_are_the_definition(
    case: GatedCase, implementation: str, precision: Precision
) -> None:
    if implementation == "mosaic" and (reason := unavailable(jax.devices()[0])):
        pytest.skip(reason)
    run = functools.partial(
        gated_block, dilation=case.dilation, precision=precision, implementation=implementation
    )
    try:
        found = jax.jit(run)(*case.arguments())
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    expected, own, used = gated_definition(case), own_frames(case), np.array(case.n_frames) > 0
    atol = gated_tolerance(case, precision)
    for name in ("residual", "gate", "skip"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(
            np.where(own, a, 0), np.where(own, b, 0), rtol=1e-6, atol=atol, err_msg=name
        )
    assert not np.where(own, 0, found.residual).any()
    np.testing.assert_allclose(found.moments[:, used], expected.moments[:, used], atol=atol)


def plain_block(z: np.ndarray, weights: Any, dilation: int) -> tuple[np.ndarray, ...]:
    """z + s, g and s of one utterance without padding, in float64, tap by tap."""
    taps, out_bias = np.asarray(weights.gated_kernel, np.float64), np.asarray(weights.out_bias)
    frames, units = z.shape
    both = np.tile(np.asarray(weights.gated_bias, np.float64), (frames, 1))
    for frame in range(frames):
        for tap in range(len(taps)):
            source = frame + (tap - len(taps) // 2) * dilation
            if 0 <= source < frames:
                both[frame] += z[source] @ taps[tap]
    gate = np.tanh(both[:, :units]) / (1 + np.exp(-both[:, units:]))
    skip = np.tanh(gate @ np.asarray(weights.out_kernel, np.float64) + out_bias)
    return z + skip, gate, skip


@over(GATED_BLOCK)
def test_the_gated_blocks_definition_is_the_networks_block_in_float64(case: GatedCase) -> None:
    z, n_frames, weights = case.arguments()
    found, atol = gated_definition(case), 3e-6 * case.scale  # sums of 896 products in float32
    for row, n in enumerate(n_frames.tolist()):
        expected = plain_block(np.asarray(z[row, :n], np.float64), weights, case.dilation)
        for a, b in zip(found[:3], expected, strict=True):
            np.testing.assert_allclose(a[row, :n], b, rtol=1e-6, atol=atol)
        if n:
            gate = expected[1]
            moments = gate.mean(axis=0), gate.std(axis=0), gate.min(axis=0), gate.max(axis=0)
            np.testing.assert_allclose(found.moments[:, row], moments, rtol=0, atol=atol)


@pytest.mark.parametrize("implementation", ["reference", *implementations("gated_block")])
def test_a_gated_block_gives_what_is_asked_for(implementation: str) -> None:
    case = GATED_BLOCK[3]
    run = functools.partial(gated_block, dilation=case.dilation, implementation=implementation)
    try:
        found = run(*case.arguments(), keep=("moments",))
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    assert found.gate is None
    assert found.skip is None
    used = np.array(case.n_frames) > 0
    expected = gated_definition(case).moments[:, used]
    np.testing.assert_allclose(found.moments[:, used], expected, atol=1e-5)


# Mel spectra and MFCC, in float64: implementations differ in the order of sums alone. A band 80 dB
# under the loudest, 1e-8 of its power, is off by some 1e-8 of itself, which is 4e-8 dB.


@functools.cache
def jitted_decibels(implementation: str) -> Any:
    return jax.jit(
        lambda buffers, n: mel_decibels(buffers, n, _filters(), implementation=implementation)
    )


@functools.lru_cache
def definition_of_decibels(case: MfccCase) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(jitted_decibels("reference")(*case.arguments()))


def own_rows(n_frames: tuple[int, ...], frames: int) -> np.ndarray:
    return np.arange(frames) < np.array(n_frames)[:, None]


@pytest.mark.parametrize("implementation", implementations("mfcc"))
@over(MFCC)
def test_mel_spectra_are_the_definition(case: MfccCase, implementation: str) -> None:
    buffers, n_frames = case.arguments()
    with jax.enable_x64(True):
        found = np.asarray(jitted_decibels(implementation)(buffers, n_frames))
    assert found.dtype == np.float64
    own = own_rows(case.n_frames, case.frames)
    np.testing.assert_allclose(found[own], definition_of_decibels(case)[own], rtol=0, atol=1e-6)
    assert np.isfinite(found[np.array(case.n_frames) > 0]).all()


@over(MFCC)
def test_the_definition_of_mel_spectra_is_librosa_in_float64(case: MfccCase) -> None:
    buffers, found = np.asarray(case.arguments()[0]), definition_of_decibels(case)
    for row, n in enumerate(case.n_frames):
        if not n:
            continue
        power = librosa.feature.melspectrogram(
            y=buffers[row, : (n + 3) * 512].astype(np.float64),
            sr=16_000,
            n_fft=2048,
            hop_length=512,
            center=False,
        )
        decibels = librosa.power_to_db(power, top_db=None)
        expected = np.maximum(decibels, decibels.max() - TOP_DB).T
        # librosa's weights are float32 there, 6e-8 or 3e-7 dB off, and so are sums of them.
        np.testing.assert_allclose(found[row, :n], expected, rtol=0, atol=1e-6)


@over(tuple(case for case in MFCC if 0 in case.n_frames or case.beyond))
def test_log_mel_and_mfcc_are_rounded_once_and_zero_beyond(case: MfccCase) -> None:
    buffers, n_frames = case.arguments()
    own = own_rows(case.n_frames, case.frames)
    decibels = np.where(own[..., None], definition_of_decibels(case), 0.0)
    for made, expected in ((log_mel, decibels), (mfcc, decibels @ _filters().dct)):
        found = np.asarray(
            jax.jit(lambda *batch, made=made: made(*batch, _filters()))(buffers, n_frames)
        )
        assert found.dtype == np.float32
        assert not found[~own].any()
        np.testing.assert_allclose(found, expected, rtol=2.0**-23, atol=1e-6)


# Moments: both add float32, in another order, and NumPy float64. A mean of 1,000 values is off by a
# few roundings of 6e-8 of their size; minima and maxima are the same bits.


@functools.cache
def jitted_statistics(implementation: str) -> Any:
    return jax.jit(functools.partial(masked_statistics, implementation=implementation))


@pytest.mark.parametrize("implementation", implementations("moments"))
@over(MOMENTS, timed=True)
def test_masked_statistics_are_the_definition(case: MomentsCase, implementation: str) -> None:
    x, n_frames = case.arguments()
    found, expected = (
        np.asarray(jitted_statistics(name)(x, n_frames)) for name in (implementation, "reference")
    )
    assert found.dtype == np.float32
    atol = 1e-6 * (abs(case.offset) + case.scale)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=atol)
    # The mean enters squared: half its error squared over the deviation.
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=atol / 10)
    np.testing.assert_array_equal(found[2:], expected[2:])


@pytest.mark.parametrize("implementation", ["reference", *implementations("moments")])
@over(MOMENTS, timed=True)
def test_masked_statistics_are_numpys(case: MomentsCase, implementation: str) -> None:
    x, n_frames = case.arguments()
    found = jitted_statistics(implementation)(x, n_frames)
    own = np.asarray(x, np.float64)[:, : case.n_frames]
    atol = 1e-6 * (abs(case.offset) + case.scale)
    np.testing.assert_allclose(found[0], own.mean(axis=1), rtol=0, atol=atol)
    np.testing.assert_allclose(found[1], own.std(axis=1), rtol=1e-5, atol=atol / 10)
    np.testing.assert_array_equal(found[2], own.min(axis=1))
    np.testing.assert_array_equal(found[3], own.max(axis=1))


@pytest.mark.parametrize("implementation", ["reference", *implementations("moments")])
def test_masked_statistics_of_a_batch_and_of_nothing(implementation: str) -> None:
    x = jax.random.normal(jax.random.key(0), (3, 12, 4))
    one = functools.partial(masked_statistics, implementation=implementation)
    found = jax.vmap(one, out_axes=1)(x, jnp.array([12, 0, 5], jnp.int32))
    for row, n in ((0, 12), (2, 5)):
        np.testing.assert_allclose(found[:, row], one(x[row], jnp.int32(n)), rtol=0, atol=1e-6)
    assert np.isnan(found[:2, 1]).all()


# Cross products, in float64: sums of up to 1,100 products of about 1, in another order.

SUMS = CrossProducts._fields[:-1]


@functools.lru_cache
def compute(case: CrossProductsCase, implementation: str) -> CrossProducts:
    return computed(case, implementation)


def computed(case: CrossProductsCase, implementation: str, **options: Any) -> CrossProducts:
    run = functools.partial(
        cross_products, n_groups=len(case.sizes), implementation=implementation, **options
    )
    return jax.jit(run)(*case.arguments())


def assert_same_sums(found: CrossProducts, expected: CrossProducts) -> None:
    for name in SUMS:
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype == (np.int64 if name == "n" else np.float64), name
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("implementation", implementations("cross_products"))
@over(CROSS_PRODUCTS)
def test_cross_products_are_the_definition(case: CrossProductsCase, implementation: str) -> None:
    found = compute(case, implementation)
    assert_same_sums(found, compute(case, "reference"))
    # The constant feature.
    assert not found.x[:, 0].any()
    assert not found.xx[:, 0].any()
    assert not found.xx[:, :, 0].any()


def about(values: np.ndarray, centre: Any) -> np.ndarray:
    return values.astype(np.float64) - np.asarray(centre)


def assert_plain_sums(found: CrossProducts, case: CrossProductsCase) -> None:
    """Plain products in NumPy about the same centre."""
    x, y, groups = map(np.asarray, case.arguments())
    for group, size in enumerate(case.sizes):
        dx = about(x[groups == group], found.centre.x)
        dy = about(y[groups == group], found.centre.y)
        expected = size, dx.sum(0), dy.sum(0), dx.T @ dx, dx.T @ dy, dy.T @ dy
        for name, value in zip(SUMS, expected, strict=True):
            actual = getattr(found, name)[group]
            np.testing.assert_allclose(actual, value, rtol=1e-12, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("implementation", ["reference", *implementations("cross_products")])
@over(CROSS_PRODUCTS)
def test_cross_products_are_numpys(case: CrossProductsCase, implementation: str) -> None:
    x, y, groups = map(np.asarray, case.arguments())
    found = compute(case, implementation)
    if (groups >= 0).any():
        np.testing.assert_allclose(found.centre.x, x[groups >= 0].mean(0, np.float64), rtol=1e-12)
        np.testing.assert_allclose(found.centre.y, y[groups >= 0].mean(0, np.float64), rtol=1e-12)
    assert_plain_sums(found, case)


@pytest.mark.parametrize("implementation", ["reference", *implementations("cross_products")])
def test_any_centre_is_taken(implementation: str) -> None:
    case = CROSS_PRODUCTS[3]
    centre = Centre(np.linspace(-1, 1, case.features), np.full(case.targets, 2.5))
    found = computed(case, implementation, centre=centre)
    np.testing.assert_array_equal(found.centre.x, centre.x)
    np.testing.assert_array_equal(found.centre.y, centre.y)
    assert_plain_sums(found, case)


@pytest.mark.parametrize("implementation", ["reference", *implementations("cross_products")])
def test_covariances_follow_even_of_a_nearly_constant_feature(implementation: str) -> None:
    case = CROSS_PRODUCTS[3]
    x, y, groups = map(np.asarray, case.arguments())
    found = compute(case, implementation)
    for group, size in enumerate(case.sizes):
        own = groups == group
        expected = np.cov(np.hstack([x[own], y[own]]).astype(np.float64), rowvar=False, bias=True)
        mean = np.concatenate([found.x[group], found.y[group]]) / size
        products = np.block(
            [[found.xx[group], found.xy[group]], [found.xy[group].T, found.yy[group]]]
        )
        actual = products / size - np.outer(mean, mean)
        scale = np.sqrt(np.outer(*2 * (np.maximum(np.diag(expected), 1e-30),)))
        np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=1e-11)


@pytest.mark.parametrize("cuts", [(), (40, 80)])
def test_chunks_about_one_centre_add_up(cuts: tuple[int, ...]) -> None:
    case = CROSS_PRODUCTS[3]
    n_groups = len(case.sizes)
    x, y, groups = map(np.asarray, case.arguments())
    centre = overall_mean(x, y, groups, n_groups=n_groups)
    parts = [
        cross_products(*part, n_groups=n_groups, centre=centre)
        for part in zip(*(np.split(values, cuts) for values in (x, y, groups)), strict=True)
    ]
    assert_same_sums(functools.reduce(jax.jit(combine), parts), compute(case, "reference"))
    assert_same_sums(functools.reduce(combine, parts[::-1]), compute(case, "reference"))


def test_chunks_about_two_centres_are_refused() -> None:
    one = compute(CROSS_PRODUCTS[3], "reference")
    other = one._replace(centre=Centre(np.asarray(one.centre.x) + 1e-9, one.centre.y))
    with pytest.raises(ValueError, match=r"two centres of x .* same centre="):
        combine(one, other)


@pytest.mark.parametrize("implementation", ["reference", *implementations("cross_products")])
def test_float64_from_the_host_keeps_its_digits(implementation: str) -> None:
    rng = np.random.default_rng(0)
    x, y = 1e6 + 1e-3 * rng.normal(size=(50, 3)), rng.normal(size=(50, 1))
    groups = np.zeros(50, np.int32)
    found = cross_products(x, y, groups, n_groups=1, implementation=implementation)
    dx = x - x.mean(0)
    np.testing.assert_allclose(found.xx[0], dx.T @ dx, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("implementation", ["reference", *implementations("cross_products")])
def test_strict_dtype_promotion(implementation: str) -> None:
    with jax.numpy_dtype_promotion("strict"):
        found = computed(CROSS_PRODUCTS[4], implementation)
    assert not np.asarray(found.xx).any()
