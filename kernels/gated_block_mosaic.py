"""The gated block as one kernel for NVIDIA Hopper (sm_90a), in Pallas for Mosaic GPU.

Both dilated convolutions are one product of 7 taps, N = 256 (filter | gate), whose sums stay in
registers: bias, tanh * sigmoid, the 1x1 product, the residual and the moments follow there, so that
a run that wants moments alone writes neither g nor s to memory.

Layout. Eight utterances are interleaved frame by frame: (group, frame * 8 + utterance, unit). A tap
is then a shift by 8 * dilation rows, and copies, which address tiles of 8 rows, need that multiple.
Between two blocks of one jitted function XLA cancels the way back and forth, where utterances are a
multiple of 8 and frames one of 16.

A tile is 8 frames of 8 utterances (64 rows, M of a wgmma) per computing warpgroup, of which a CTA
has one or two; one more warpgroup does nothing but copy. 448 KiB of weights do not fit beside a
tile: they come in 14 steps of 64 channels of a tap, and the 1x1 matrix, folded to the same shape,
is the fifteenth. The partial moments of 8 frames are combined by XLA, in a fixed order.

Precision. Factors of products are rounded to 16 bits; sums and everything else are float32.

What has run: the interpreter on a CPU, with its race detector, and the compiler for sm_90a down to
machine code. Nothing has run on a GPU yet: copies, swizzles, descriptors of wgmma, fences and
barriers are what interpreter and compiler take them for. The interpreter ignores `wgmma_wait`,
`set_max_registers` and all layouts of registers and shared memory.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu
from jaxtyping import Array, Float, Int

from featurestore.kernels.gated_block import Block, BlockWeights
from featurestore.kernels.types import Precision

plgpu: Any = mosaic_gpu  # what it has depends on the version of jax; see `unsupported_jax`

_TAPS = 7
_UNITS = 128
_UTTERANCES = 8  # interleaved; rows of a tile of shared memory
_FRAMES = 8  # of a warpgroup
_ROWS = _UTTERANCES * _FRAMES  # of a warpgroup: M of a wgmma
_DEPTH = 64  # channels of a step: as many 16-bit values as a swizzle of 128 bytes spans
_STEPS = _TAPS * _UNITS // _DEPTH  # before the last, which brings the 1x1 matrix
_STAGES = {1: 4, 2: 3}  # steps in shared memory at once, by warpgroups: 192 and 208 of 227 KiB
_MULTIPROCESSORS = 132  # of a H100 or H200
_NEEDED = ("kernel", "ACC", "Barrier", "InterpretGPUParams", "Layout", "SMEM", "load", "store")


class _Plan(NamedTuple):
    """What a compiled kernel depends on besides shapes."""

    dilation: int  # distance between taps in frames
    warpgroups: int  # that compute in a CTA: 1 or 2
    written: tuple[str, ...]  # fields of `Block`, in order


class _Inputs(NamedTuple):
    """In global memory; rows are frame * 8 + utterance."""

    factors: Any  # (group, row, unit), 16 bits, 3 * dilation frames of zeros on either side
    z: Any  # (group, row, unit), float32
    weights: Any  # (15 * 64, 256), 16 bits
    gated_bias: Any  # (256,)
    out_bias: Any  # (128,)
    row_end: Any  # (group, 64), int32: for a row of a tile, the first one beyond its utterance
    frame_end: Any  # (group, 8, unit), int32: frames of each utterance


class _Scratch(NamedTuple):
    """In shared memory, and the barriers of its slots."""

    taps: Any  # (stage, row of the CTA, 64), 16 bits: a tap's rows
    weights: Any  # (stage, 64, 256), 16 bits
    tile: Any  # (warpgroup, 64, unit), float32: on its way to global memory
    taps_ready: Any  # a slot has arrived
    weights_ready: Any  # likewise
    free: Any  # every warpgroup is done with a slot


def unsupported_jax() -> str | None:
    """Why the installed jax cannot even interpret the kernel, or None if it can."""
    if jax.__version_info__ < (0, 12):
        return f"jax {jax.__version__} is older than 0.12, for whose Mosaic GPU it is written"
    missing = [name for name in _NEEDED if not hasattr(plgpu, name)]
    return f"jax {jax.__version__} has no {', '.join(missing)} for Mosaic GPU" if missing else None


def unavailable(device: Any) -> str | None:
    """Why the kernel cannot run on this jax and device (for a log), or None if it can."""
    if reason := unsupported_jax():
        return reason
    if device.platform != "gpu":
        return f"it needs an NVIDIA Hopper GPU, and this is a {device.platform}"
    capability = getattr(device, "compute_capability", "unknown")
    return None if capability == "9.0" else f"it needs compute capability 9.0, not {capability}"


def gated_block_mosaic(
    z: Float[Array, "utterance frame unit"],
    n_frames: Int[Array, " utterance"],
    weights: BlockWeights,
    *,
    dilation: int,
    precision: Precision,
    keep: tuple[str, ...] = ("gate", "skip", "moments"),
    warpgroups: int | None = None,
    interpret: bool = False,
) -> Block:
    """One block of a padded batch, as `gated_block`.

    Args:
        z: residual stream, zero beyond each utterance's last frame; 128 units.
        n_frames: frames of each utterance; 0 in rows that are not used.
        weights: of the block, float32.
        dilation: distance between taps in frames.
        precision: type of the factors of products; 16 bits.
        keep: which of `gate`, `skip` and `moments` are computed; others are None.
        warpgroups: that compute in a CTA: 1, 2, or None for what fills the GPU better.
        interpret: on a CPU, slowly.

    Raises:
        NotImplementedError: float32 factors, or another network's shapes.
    """
    if precision == "float32":
        raise NotImplementedError("the Mosaic kernel multiplies 16-bit factors only")
    if weights.gated_kernel.shape != (_TAPS, _UNITS, 2 * _UNITS):
        raise NotImplementedError(
            f"the Mosaic kernel takes {_TAPS} taps of {_UNITS} units, "
            f"not weights of shape {weights.gated_kernel.shape}"
        )
    utterances, frames, _ = z.shape
    written = tuple(name for name in Block._fields if name == "residual" or name in keep)
    plan = _Plan(dilation, warpgroups or _warpgroups(utterances, frames), written)
    inputs = _inputs(z, n_frames, weights, plan, jnp.dtype(precision))
    found = dict(zip(written, _call(inputs, plan, interpret), strict=True))
    moments = found.pop("moments", None)
    block = Block(**{name: _apart(x, utterances, frames) for name, x in found.items()})
    return block if moments is None else block._replace(moments=_combined(moments, n_frames))


def _warpgroups(utterances: int, frames: int) -> int:
    """Two share each load of weights; one makes twice as many CTAs where there are few."""
    tiles = -(-utterances // _UTTERANCES) * -(-frames // (2 * _FRAMES))
    return 2 if tiles >= _MULTIPROCESSORS else 1


def _inputs(
    z: Array, n_frames: Array, weights: BlockWeights, plan: _Plan, dtype: jnp.dtype
) -> _Inputs:
    """Padded to whole tiles and interleaved."""
    utterances, frames, units = z.shape
    beyond = -utterances % _UTTERANCES
    whole = jnp.pad(z, ((0, beyond), (0, -frames % (_FRAMES * plan.warpgroups)), (0, 0)))
    groups = len(whole) // _UTTERANCES
    together = whole.reshape(groups, _UTTERANCES, -1, units).transpose(0, 2, 1, 3)
    reach = (_TAPS // 2) * plan.dilation
    factors = jnp.pad(together.astype(dtype), ((0, 0), (reach, reach), (0, 0), (0, 0)))
    # The 1x1 matrix's second half of rows goes beside the first, to be as wide as the others.
    out = jnp.concatenate([weights.out_kernel[:_DEPTH], weights.out_kernel[_DEPTH:]], axis=1)
    kernel = weights.gated_kernel.reshape(_TAPS * units, 2 * units)
    ends = jnp.pad(n_frames, (0, beyond)).astype(jnp.int32).reshape(groups, _UTTERANCES)
    row_end = _UTTERANCES * ends + jnp.arange(_UTTERANCES, dtype=jnp.int32)
    return _Inputs(
        factors.reshape(groups, -1, units),
        together.reshape(groups, -1, units),
        jnp.concatenate([kernel, out]).astype(dtype),
        weights.gated_bias,
        weights.out_bias,
        jnp.tile(row_end, (1, _FRAMES)),
        jnp.broadcast_to(ends[..., None], (groups, _UTTERANCES, units)),
    )


def _apart(x: Array, utterances: int, frames: int) -> Array:
    """(group, frame * 8 + utterance, unit) to (utterance, frame, unit), without padding."""
    apart = x.reshape(len(x), -1, _UTTERANCES, _UNITS).transpose(0, 2, 1, 3)
    return apart.reshape(len(x) * _UTTERANCES, -1, _UNITS)[:utterances, :frames]


def _combined(
    partial: Float[Array, "group part 4 8 unit"], n_frames: Int[Array, " utterance"]
) -> Float[Array, "4 utterance unit"]:
    """Moments of utterances from those of 8 frames each, after Chan, Golub and LeVeque (1979).

    Args:
        partial: mean, sum of squared deviations from it, minimum and maximum; of zero frames they
            are 0, 0, inf and -inf.
        n_frames: of each utterance.
    """
    _, parts, _, _, units = partial.shape
    moved = partial.transpose(2, 1, 0, 3, 4).reshape(4, parts, -1, units)
    mean, squares, low, high = moved[:, :, : len(n_frames)]
    first = _FRAMES * jnp.arange(parts, dtype=jnp.int32)[:, None]
    count = jnp.clip(n_frames - first, 0, _FRAMES).astype(jnp.float32)[..., None]
    total = n_frames.astype(jnp.float32)[:, None]
    middle = (count * mean).sum(axis=0) / total
    off = mean - middle
    std = jnp.sqrt((squares + count * off * off).sum(axis=0) / total)
    return jnp.stack([middle, std, low.min(axis=0), high.max(axis=0)])


def _call(inputs: _Inputs, plan: _Plan, interpret: bool) -> list[Array]:
    """What `plan.written` says, interleaved; moments are partial (group, part, 4, 8, unit)."""
    z, dtype, stages = inputs.z, inputs.factors.dtype, _STAGES[plan.warpgroups]
    groups, rows, units = z.shape
    stream = jax.ShapeDtypeStruct(z.shape, z.dtype)
    moments = jax.ShapeDtypeStruct((groups, rows // _ROWS, 4, _UTTERANCES, units), z.dtype)
    scratch = _Scratch(
        plgpu.SMEM((stages, _ROWS * plan.warpgroups, _DEPTH), dtype, transforms=_tiled(dtype)),
        plgpu.SMEM((stages, _DEPTH, 2 * units), dtype, transforms=_tiled(dtype)),
        plgpu.SMEM((plan.warpgroups, _ROWS, units), z.dtype, transforms=_tiled(z.dtype)),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=stages),
    )
    run = plgpu.kernel(
        functools.partial(_body, plan=plan),
        out_type=[moments if name == "moments" else stream for name in plan.written],
        scratch_types=list(scratch),
        grid=(groups, rows // (_ROWS * plan.warpgroups)),
        grid_names=("group", "tile"),
        num_threads=plan.warpgroups + 1,
        thread_name="warpgroup",
        kernel_name="gated_block",
        interpret=plgpu.InterpretGPUParams() if interpret else None,
    )
    return run(*inputs)


def _tiled(dtype: jnp.dtype) -> tuple[Any, ...]:
    """How wgmma and copies want a matrix in shared memory: tiles of 8 rows of 128 bytes."""
    return plgpu.TilingTransform((8, 128 // dtype.itemsize)), plgpu.SwizzleTransform(128)


def _body(*refs: Any, plan: _Plan) -> None:
    """Of each warpgroup of a CTA: the last one copies, the others compute."""
    first = len(_Inputs._fields)
    last = first + len(plan.written)
    inputs, scratch = _Inputs(*refs[:first]), _Scratch(*refs[last:])
    out = dict(zip(plan.written, refs[first:last], strict=True))
    warpgroup = jax.lax.axis_index("warpgroup")

    @pl.when(warpgroup == plan.warpgroups)
    def _() -> None:
        _copy(inputs, scratch, plan)

    @pl.when(warpgroup < plan.warpgroups)
    def _() -> None:
        _compute(inputs, out, scratch, plan, warpgroup)


def _copy(inputs: _Inputs, scratch: _Scratch, plan: _Plan) -> None:
    """Every step's rows and weights, as soon as there is a free slot for them."""
    if plan.warpgroups == 2:
        plgpu.set_max_registers(40, action="decrease")
    stages, rows = _STAGES[plan.warpgroups], _ROWS * plan.warpgroups
    group, tile = jax.lax.axis_index("group"), jax.lax.axis_index("tile")
    for step in range(_STEPS + 1):
        slot = step % stages
        if step >= stages:
            plgpu.barrier_wait(scratch.free.at[slot])
        if step < _STEPS:
            tap, part = divmod(step, _UNITS // _DEPTH)
            shift = _UTTERANCES * plan.dilation * tap
            plgpu.copy_gmem_to_smem(
                inputs.factors.at[
                    group, pl.ds(tile * rows + shift, rows), pl.ds(part * _DEPTH, _DEPTH)
                ],
                scratch.taps.at[slot],
                scratch.taps_ready.at[slot],
            )
        plgpu.copy_gmem_to_smem(
            inputs.weights.at[pl.ds(step * _DEPTH, _DEPTH)],
            scratch.weights.at[slot],
            scratch.weights_ready.at[slot],
        )


def _compute(
    inputs: _Inputs, out: dict[str, Any], scratch: _Scratch, plan: _Plan, warpgroup: Array
) -> None:
    """A warpgroup's 64 rows from sums to results."""
    if plan.warpgroups == 2:
        plgpu.set_max_registers(232, action="increase")
    group, tile = jax.lax.axis_index("group"), jax.lax.axis_index("tile")
    part = tile * plan.warpgroups + warpgroup
    rows = pl.ds(part * _ROWS, _ROWS)
    own = pl.ds(warpgroup * _ROWS, _ROWS)
    through = scratch.tile.at[warpgroup]

    gate = _gate(inputs, scratch, plan, own)
    # The taps have been used: their slots take the factors of the second product.
    factors = gate.astype(scratch.taps.dtype)
    scratch.taps[0, own] = factors[:, :_DEPTH]
    scratch.taps[1, own] = factors[:, _DEPTH:]
    if "gate" in out or "moments" in out:
        _put(gate, through, out["gate"].at[group, rows] if "gate" in out else None)
    if "moments" in out:
        found = _moments(through, inputs.frame_end.at[group], part * _FRAMES)
        for index, value in enumerate(found):
            plgpu.store(out["moments"].at[group, part, index], value, optimized=False)
    plgpu.commit_smem()

    z = plgpu.load(inputs.z.at[group, rows], layout=plgpu.Layout.WGMMA, optimized=False)
    skip = _skip(inputs, scratch, plan, own)
    if "skip" in out:
        _put(skip, through, out["skip"].at[group, rows])
    end = plgpu.load(inputs.row_end.at[group], layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)
    row = plgpu.broadcasted_iota(jnp.int32, (_ROWS, _UNITS), 0, layout=plgpu.Layout.WGMMA)
    valid = part * _ROWS + row < jax.lax.broadcast_in_dim(end, row.shape, (0,))
    _put(jnp.where(valid, z + skip, 0.0), through, out["residual"].at[group, rows])
    # Shared memory must outlive the copies out of it.
    plgpu.wait_smem_to_gmem(0)


def _gate(inputs: _Inputs, scratch: _Scratch, plan: _Plan, own: Any) -> Array:
    """The gated activation of a warpgroup's rows (64, unit)."""
    stages = _STAGES[plan.warpgroups]

    def product(sums: Any) -> Array:
        for step in range(_STEPS):
            slot = step % stages
            plgpu.barrier_wait(scratch.taps_ready.at[slot])
            plgpu.barrier_wait(scratch.weights_ready.at[slot])
            plgpu.wgmma(sums, scratch.taps.at[slot, own], scratch.weights.at[slot])
            # With this product under way the one before is done, and its slot free.
            plgpu.wgmma_wait(1)
            if 0 < step <= _STEPS + 1 - stages:
                plgpu.barrier_arrive(scratch.free.at[(step - 1) % stages])
        return sums[...]

    both = pl.run_scoped(product, plgpu.ACC((_ROWS, 2 * _UNITS), jnp.float32))
    filtered = both[:, :_UNITS] + _bias(inputs.gated_bias, 0)
    gate = both[:, _UNITS:] + _bias(inputs.gated_bias, _UNITS)
    return jnp.tanh(filtered) * jax.nn.sigmoid(gate)


def _skip(inputs: _Inputs, scratch: _Scratch, plan: _Plan, own: Any) -> Array:
    """The output of a warpgroup's rows (64, unit), from the 16-bit g that `taps` holds."""
    slot = _STEPS % _STAGES[plan.warpgroups]

    def product(sums: Any) -> Array:
        plgpu.barrier_wait(scratch.weights_ready.at[slot])
        for half in range(_UNITS // _DEPTH):
            kernel = scratch.weights.at[slot, :, pl.ds(half * _UNITS, _UNITS)]
            plgpu.wgmma(sums, scratch.taps.at[half, own], kernel)
        return sums[...]

    sums = pl.run_scoped(product, plgpu.ACC((_ROWS, _UNITS), jnp.float32))
    return jnp.tanh(sums + _bias(inputs.out_bias, 0))


def _bias(ref: Any, first: int) -> Array:
    """128 values, the same for each of a warpgroup's rows."""
    bias = plgpu.load(
        ref.at[pl.ds(first, _UNITS)], layout=plgpu.Layout.WGMMA.reduce(0), optimized=False
    )
    return jax.lax.broadcast_in_dim(bias, (_ROWS, _UNITS), (1,))


def _put(value: Array, through: Any, target: Any) -> None:
    """Into shared memory, once it is free, and on to global memory if there is a target."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    through[...] = value
    plgpu.commit_smem()
    if target is not None:
        plgpu.copy_smem_to_gmem(through, target)


def _moments(gate: Any, frame_end: Any, first: Array) -> tuple[Array, ...]:
    """Mean, sum of squared deviations, minimum and maximum of 8 frames: (8, unit) each.

    Args:
        gate: g in shared memory (64, unit). A frame is 8 rows there, one per utterance; in the
            registers of a product an utterance's frames are spread over warps.
        frame_end: frames of each utterance.
        first: frame of the warpgroup's rows.
    """
    layout = plgpu.Layout.SMEM_GMEM_COPY((_UTTERANCES, _UNITS), jnp.dtype(jnp.float32), 128)
    end = plgpu.load(frame_end, layout=layout, optimized=False)
    owned = [end > first + frame for frame in range(_FRAMES)]
    frames = [
        plgpu.load(gate.at[pl.ds(frame * _UTTERANCES, _UTTERANCES)], layout=layout)
        for frame in range(_FRAMES)
    ]

    def over(combine: Any, values: list[Array], otherwise: float) -> Array:
        chosen = [jnp.where(*pair, otherwise) for pair in zip(owned, values, strict=True)]
        return functools.reduce(combine, chosen)

    count = jnp.clip(end - first, 1, _FRAMES).astype(jnp.float32)
    mean = over(jnp.add, frames, 0.0) / count
    squares = over(jnp.add, [(frame - mean) * (frame - mean) for frame in frames], 0.0)
    low, high = over(jnp.minimum, frames, jnp.inf), over(jnp.maximum, frames, -jnp.inf)
    return mean, squares, low, high
