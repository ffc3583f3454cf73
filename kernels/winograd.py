"""Dilated convolutions of seven taps by short transforms, with a third of the multiplications.

Frames a dilation apart form sequences with an ordinary convolution each. Every sequence is cut into
blocks, and a block of outputs y follows from its frames x and the taps w by a bilinear algorithm,

    y = C ((A x) * (B w)),

with constant matrices A, B, C: evaluation of polynomials at points, products there, interpolation,
transposed (Winograd 1980, "Arithmetic complexity of computations"). Over channels * is one matrix
product per row of A. A pair of conjugate points takes three rows instead of four (Gauss's trick).

A long sequence has blocks of 8 outputs from 17 products, at points on the unit circle and four real
ones, where direct evaluation takes 56. A short one is a single block of its own length, whose
points are roots of unity alone: a discrete Fourier transform, long enough that what wraps around is
not looked at.

Rounding errors are of the size of those of the direct form, but relative to the largest frame of a
block, and they depend on where blocks begin and hence on the number of frames.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_Number = complex | float | int
_Row = Sequence[_Number]
_Matrix = tuple[tuple[float, ...], ...]

_TAPS = 7
_REACH = _TAPS // 2
_BLOCK = 8
_LONGEST_CIRCULAR = 24
# And infinity. Roots of unity alone take 20 products for 8 outputs, and their errors are 1.5 times
# smaller (r.m.s.); those of real points alone are 4 times larger for 4 outputs already.
_POINTS: tuple[_Number, ...] = (
    *(0, 1, -1, 2 / 3, -2 / 3, 3 / 2, -3 / 2),
    *(cmath.rect(1, math.pi * eighth / 4) for eighth in (1, 2, 3)),
)


class Scheme(NamedTuple):
    """A bilinear algorithm for a block of outputs.

    Attributes:
        frames: to products (product, frame): A.
        taps: to products (product, tap): B.
        outputs: from products (output, product): C.
        circular: whether the block is all there is, without frames before and after it.
    """

    frames: _Matrix
    taps: _Matrix
    outputs: _Matrix
    circular: bool


def _scheme(rows: Sequence[tuple[_Row, _Row, _Row, bool]], *, circular: bool) -> Scheme:
    """The real algorithm from values at points.

    Args:
        rows: for each point, what makes its value of the frames and of the taps, what outputs make
            of their product, and whether the conjugate point does the same.
        circular: as in `Scheme`.
    """
    frames: list[tuple[float, ...]] = []
    taps: list[tuple[float, ...]] = []
    outputs: list[tuple[float, ...]] = []
    for x, w, y, paired in rows:
        # Both factors of the same size keep their digits.
        size = math.sqrt(sum(abs(value) ** 2 for value in x) / len(x))
        xr, xi = [v.real / size for v in x], [v.imag / size for v in x]
        wr, wi = [v.real * size for v in w], [v.imag * size for v in w]
        if not paired:
            parts = [(xr, wr, [v.real for v in y])]
        else:
            # X W = (P - S) + i (P + Q), P = (xr + xi) wr, Q = xr (wi - wr), S = xi (wr + wi).
            real, imaginary = [2 * v.real for v in y], [-2 * v.imag for v in y]
            both = [a + b for a, b in zip(real, imaginary, strict=True)]
            parts = [
                ([a + b for a, b in zip(xr, xi, strict=True)], wr, both),
                (xr, [b - a for a, b in zip(wr, wi, strict=True)], imaginary),
                (xi, [a + b for a, b in zip(wr, wi, strict=True)], [-a for a in real]),
            ]
        for x_row, w_row, y_row in parts:
            frames.append(tuple(x_row))
            taps.append(tuple(w_row))
            outputs.append(tuple(y_row))
    return Scheme(tuple(frames), tuple(taps), tuple(zip(*outputs, strict=True)), circular)


def _polynomial(roots: _Row) -> _Row:
    """Coefficients, the lowest first, of the product of all (x - root)."""
    found: list[_Number] = [1]
    for root in roots:
        above, below = [0, *found], [*found, 0]
        found = [a - root * b for a, b in zip(above, below, strict=True)]
    return found


def _last(count: int) -> _Row:
    """Zeros, and a one at the end."""
    return [0] * (count - 1) + [1]


@lru_cache
def toom_cook(points: tuple[_Number, ...], block: int, *, infinity: bool = True) -> Scheme:
    """Blocks of outputs among others, by evaluation at points.

    Args:
        points: distinct ones; one that is not real stands for its conjugate too. With infinity
            they are as many as the frames of a block, `block` + 6.
        block: outputs.
        infinity: whether the leading coefficient is one of the values.
    """
    finite = [q for p in points for q in ((p, p.conjugate()) if complex(p).imag else (p,))]
    if len(finite) + infinity != block + _TAPS - 1:
        raise ValueError(f"{len(finite)} points for {block} outputs")

    def powers(point: _Number, count: int) -> _Row:
        return [point**power for power in range(count)]

    def basis(point: _Number) -> _Row:
        others = [other for other in finite if other != point]
        scale = math.prod((point - other for other in others), start=complex(1))
        return [value / scale for value in _polynomial(others)] + [0] * infinity

    rows: list[tuple[_Row, _Row, _Row, bool]] = [
        (basis(p), powers(p, _TAPS), powers(p, block), complex(p).imag != 0) for p in points
    ]
    if infinity:
        rows.append((_polynomial(finite), _last(_TAPS), _last(block), False))
    return _scheme(rows, circular=False)


@lru_cache
def fourier(length: int) -> Scheme:
    """All outputs of a sequence of that length: a discrete Fourier transform."""
    size = length + _REACH
    rows = []
    for bin_ in range(size // 2 + 1):
        angle = 2 * math.pi * bin_ / size
        x = [cmath.rect(1, -angle * frame) for frame in range(length)]
        w = [cmath.rect(1, angle * (tap - _REACH)) for tap in range(_TAPS)]
        y = [cmath.rect(1 / size, angle * frame) for frame in range(length)]
        rows.append((x, w, y, 0 < 2 * bin_ < size))
    return _scheme(rows, circular=True)


def scheme(*, frames: int, dilation: int) -> Scheme:
    """The algorithm for a buffer of that many frames."""
    length = -(-frames // dilation)
    n_blocks = -(-length // _BLOCK)
    blocks = toom_cook(_POINTS, _BLOCK)
    if length <= _LONGEST_CIRCULAR:
        whole = fourier(length)
        # Larger transforms take their time: they have to save more than a few products.
        if n_blocks == 1 or len(whole.frames) < 0.8 * n_blocks * len(blocks.frames):
            return whole
    return blocks


def prepare(kernel: Float[Array, "7 channel out"], plan: Scheme) -> Float[Array, "_ channel out"]:
    """Taps as `convolution_of_prepared` wants them: one matrix per product of the plan.

    Takes about a tenth of the time of a convolution of 2,000 frames, so it pays to keep them.
    """
    taps = jnp.array(plan.taps, jnp.float32)
    return jnp.tensordot(taps, kernel, 1, precision=jax.lax.Precision.HIGHEST)


def convolution_of_prepared(
    z: Float[Array, "utterance frame channel"],
    prepared: Float[Array, "product channel out"],
    plan: Scheme,
    *,
    dilation: int,
) -> Float[Array, "utterance frame out"]:
    """`dilated_convolution` by what `prepare` made of its kernel.

    Args:
        z: input.
        prepared: taps.
        plan: what they were prepared for; `scheme` of these frames and this dilation.
        dilation: distance between taps in frames.
    """
    highest = jax.lax.Precision.HIGHEST
    utterances, frames, channels = z.shape
    block = len(plan.outputs)
    n_blocks = -(-frames // (dilation * block))
    spare = n_blocks * block * dilation - frames
    reach = 0 if plan.circular else _REACH * dilation
    padded = jnp.pad(z, ((0, 0), (reach, reach + spare), (0, 0)))
    rows = padded.reshape(utterances, -1, dilation, channels)
    # (frame of a block, utterance, block, residue, channel): whatever follows is a matrix product.
    if n_blocks == 1:
        x = jnp.moveaxis(rows, 1, 0)
    else:
        last = (n_blocks - 1) * block + 1
        x = jnp.stack([rows[:, k : k + last : block] for k in range(len(plan.frames[0]))])
    x = jnp.tensordot(jnp.array(plan.frames, z.dtype), x, 1, precision=highest)
    y = jnp.matmul(x.reshape(len(prepared), -1, channels), prepared, precision=highest)
    y = jnp.tensordot(jnp.array(plan.outputs, z.dtype), y, 1, precision=highest)
    y = jnp.moveaxis(y.reshape(block, utterances, n_blocks, dilation, -1), 0, 2)
    return y.reshape(utterances, n_blocks * block * dilation, -1)[:, :frames]


def winograd_convolution(
    z: Float[Array, "utterance frame channel"],
    kernel: Float[Array, "7 channel out"],
    *,
    dilation: int,
) -> Float[Array, "utterance frame out"]:
    """`featurestore.kernels.products.dilated_convolution` of seven taps, by short transforms.

    Args:
        z: input.
        kernel: seven taps, `dilation` frames apart.
        dilation: distance between taps in frames.
    """
    plan = scheme(frames=z.shape[1], dilation=dilation)
    return convolution_of_prepared(z, prepare(kernel, plan), plan, dilation=dilation)
