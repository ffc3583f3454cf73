from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from featurestore.kernels import frame_mask, gated_block, masked_statistics, pointwise
from featurestore.kernels.cases import GATED_BLOCK, GatedCase
from featurestore.kernels.gated_block import Block
from featurestore.kernels.gated_block_mosaic import (
    gated_block_mosaic,
    unavailable,
    unsupported_jax,
)

SMALL = [case for case in GATED_BLOCK if not case.timed]
# Two groups of utterances, and two tiles of two warpgroups, the last of each not full.
RAGGED = GatedCase("more than a group and a tile", (17, 0, 9, 3, 2, 1, 8, 16, 4), 17, 4)

writable = pytest.mark.skipif(unsupported_jax() is not None, reason=f"{unsupported_jax()}")


@functools.partial(jax.jit, static_argnames=("dilation", "precision"))
def by_xla(z, n_frames, weights, dilation, precision):
    return gated_block(
        z, n_frames, weights, dilation=dilation, precision=precision, implementation="xla"
    )


def compare(case: GatedCase, found: Block, precision: str, sums: float = 2e-6) -> None:
    """With the definition, with XLA's sums of the same factors, and each step with the last.

    Args:
        case: what was computed.
        found: the block in question, with everything kept.
        precision: of its factors.
        sums: what another order of sums may change; a GPU's tensor cores also round them otherwise.
    """
    z, n_frames, weights = case.arguments()
    own = jax.vmap(lambda n: frame_mask(case.frames, n))(n_frames) == 1
    used = np.array(case.n_frames) > 0

    def off(a: jax.Array, b: jax.Array) -> float:
        return float(jnp.abs(jnp.where(own, a - b, 0.0)).max())

    # A product's factors are rounded by 2^-11 or 2^-8; each sum has 896 terms of variance 1 / 896.
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[precision]
    definition = by_xla(z, n_frames, weights, case.dilation, "float32")
    assert off(found.gate, definition.gate) < 4 * rounding * case.scale
    assert off(found.skip, definition.skip) < 8 * rounding * case.scale

    # The same products, added up in another order.
    rounded = by_xla(z, n_frames, weights, case.dilation, precision)
    assert off(found.gate, rounded.gate) < sums * case.scale
    # Here a g may have been rounded the other way.
    assert off(found.skip, rounded.skip) < rounding
    skip = pointwise(found.gate, weights.out_kernel, precision=precision) + weights.out_bias
    assert off(found.skip, jnp.tanh(skip)) < sums
    np.testing.assert_array_equal(found.residual, jnp.where(own, z + found.skip, 0.0))
    moments = jax.vmap(masked_statistics, out_axes=1)(found.gate, n_frames)
    np.testing.assert_allclose(found.moments[:, used], moments[:, used], atol=sums)
    np.testing.assert_allclose(
        found.moments[:, used], rounded.moments[:, used], atol=sums * case.scale
    )


@writable
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_kernel_interpreted_is_the_block(case: GatedCase):
    z, n_frames, weights = case.arguments()
    found = gated_block_mosaic(
        z, n_frames, weights, dilation=case.dilation, precision="float16", interpret=True
    )
    compare(case, found, "float16")


@writable
@pytest.mark.parametrize(("precision", "warpgroups"), [("float16", 2), ("bfloat16", 1)])
def test_any_number_of_utterances_frames_and_warpgroups_without_a_race(precision, warpgroups):
    z, n_frames, weights = RAGGED.arguments()
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        found = gated_block_mosaic(
            z,
            n_frames,
            weights,
            dilation=RAGGED.dilation,
            precision=precision,
            warpgroups=warpgroups,
        )
    compare(RAGGED, found, precision)


@writable
def test_what_is_not_kept_is_none_and_changes_nothing():
    case = SMALL[3]
    z, n_frames, weights = case.arguments()
    run = functools.partial(
        gated_block_mosaic, dilation=case.dilation, precision="float16", interpret=True
    )
    everything = run(z, n_frames, weights)
    pooled = run(z, n_frames, weights, keep=("moments",))
    assert pooled.gate is None
    assert pooled.skip is None
    np.testing.assert_array_equal(pooled.residual, everything.residual)
    np.testing.assert_array_equal(pooled.moments, everything.moments)
    skip = run(z, n_frames, weights, keep=("skip",))
    assert skip.gate is None
    assert skip.moments is None
    np.testing.assert_array_equal(skip.skip, everything.skip)


@writable
def test_moments_of_a_unit_that_hardly_moves_keep_their_digits():
    n = jnp.array([40, 23], jnp.int32)
    z, _, weights = GatedCase("still", (40, 40), 40, 2).arguments()
    z = z * (jnp.arange(40)[:, None] < n[:, None, None])
    still = weights._replace(
        gated_kernel=weights.gated_kernel.at[..., :64].mul(1e-4),
        gated_bias=weights.gated_bias.at[:64].set(0.8),
    )
    found = gated_block_mosaic(z, n, still, dilation=2, precision="float16", interpret=True)
    for row, frames in enumerate([40, 23]):
        gate = np.asarray(found.gate, np.float64)[row, :frames]
        np.testing.assert_allclose(found.moments[0, row], gate.mean(axis=0), atol=1e-7)
        np.testing.assert_allclose(found.moments[1, row], gate.std(axis=0), rtol=1e-5)
        np.testing.assert_array_equal(found.moments[2, row], gate.min(axis=0))
        np.testing.assert_array_equal(found.moments[3, row], gate.max(axis=0))


@writable
@pytest.mark.parametrize(
    ("dilation", "warpgroups"), [(1, 1), (2, 2), (4, 1), (8, 2), (16, 1), (16, 2)]
)
def test_it_is_lowered_for_hopper_without_one(dilation, warpgroups):
    arguments = RAGGED.arguments()
    run = functools.partial(
        gated_block_mosaic,
        dilation=dilation,
        precision="float16",
        keep=("moments",),
        warpgroups=warpgroups,
    )
    text = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    [call] = [line for line in text.splitlines() if "@mosaic_gpu_v2" in line]
    # The residual stream and moments of 8 frames each: g and s have nowhere to go.
    rows = -(-RAGGED.frames // (8 * warpgroups)) * 8 * warpgroups * 8
    results = re.findall(r"tensor<([0-9x]+)xf32>", call.rpartition("->")[2])
    assert results == [f"2x{rows}x128", f"2x{rows // 64}x4x8x128"]


def test_what_it_cannot_do_is_said():
    z, n_frames, weights = SMALL[0].arguments()
    with pytest.raises(NotImplementedError, match="16-bit factors only"):
        gated_block_mosaic(z, n_frames, weights, dilation=1, precision="float32")
    z, n_frames, weights = GatedCase("narrow", (4,), 8, 1, units=64).arguments()
    with pytest.raises(NotImplementedError, match="128 units, not weights of shape"):
        gated_block_mosaic(z, n_frames, weights, dilation=1, precision="float16")


def test_a_cpu_is_no_hopper():
    reason = unavailable(jax.devices("cpu")[0])
    assert reason is not None
    assert reason == unsupported_jax() or "this is a cpu" in reason


@pytest.mark.parametrize("warpgroups", [1, 2])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", [*GATED_BLOCK, RAGGED], ids=lambda case: case.name)
def test_the_kernel_on_this_gpu_is_the_block(case: GatedCase, precision, warpgroups):
    if reason := unavailable(jax.devices()[0]):
        pytest.skip(reason)
    z, n_frames, weights = case.arguments()
    run = functools.partial(
        gated_block_mosaic, dilation=case.dilation, precision=precision, warpgroups=warpgroups
    )
    compare(case, jax.jit(run)(z, n_frames, weights), precision, sums=1e-5)
