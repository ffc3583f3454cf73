"""Forms of the network's dilated convolution that multiply less, beside XLA's own.

    python benchmarks/convolution_forms.py [--rows 16] [--frames 128] [--repeats 7]
                                           [--weights default] [--form NAME ...] [--json FILE]

Every form runs in turns with the plain convolution in this one process, after a first run that
compiles: one convolution per dilation, and all 15 blocks, of which only each unit's mean leaves the
program. Weights are transformed before the clock starts; a line of its own times the blocks with
that inside. The MFCC are random, as large as those of speech; differences of the gated activation
are from NumPy in float64, and come from the first four rows. Run it on an idle machine; what other
processes took is measured and printed.
"""

from __future__ import annotations

import argparse
import cmath
import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from featurestore import load_encoder
from featurestore.benchmarks.report import machine_facts
from featurestore.benchmarks.timing import Contest, Contestant, OtherProcesses, alternate
from featurestore.gcu import DILATIONS, LAYER_NAMES, TAPS
from featurestore.kernels import dilated_convolution, frame_mask, pointwise
from featurestore.kernels.winograd import (
    Scheme,
    convolution_of_prepared,
    prepare,
    scheme,
    toom_cook,
)
from featurestore.random_weights import SPEECH_MFCC_MEAN, SPEECH_MFCC_STD
from featurestore.types import COEFFICIENTS, UNITS

CHECKED_ROWS = 4
# Frames and dilation to an algorithm; where None is allowed it is the plain convolution.
Form = Callable[[int, int], Scheme]


def _circle(*degrees: float) -> tuple[complex, ...]:
    return tuple(cmath.rect(1, math.radians(degree)) for degree in degrees)


def _always(plan: Scheme) -> Form:
    return lambda frames, dilation: plan


def _chosen(frames: int, dilation: int) -> Scheme:
    return scheme(frames=frames, dilation=dilation)


def forms() -> dict[str, Form]:
    """By name: points, outputs of a block, and products for them where 7 taps would take 7 each."""
    reals = (0, 1, -1, 2, -2, 1 / 2, -1 / 2)
    narrow = (0, 1, -1, 0.6, -0.6, 1 / 0.6, -1 / 0.6)
    fourier_14 = (1, -1, *_circle(*(360 * k / 14 for k in range(1, 7))))
    fourier_22 = (1, -1, *_circle(*(360 * k / 22 for k in range(1, 11))))
    return {
        "real points, 2 of 8": _always(toom_cook(reals, 2)),
        "real points, 4 of 10": _always(toom_cook((*reals, 4, -1 / 4), 4)),
        "real points and ±i, 4 of 11": _always(toom_cook((*narrow, 1j), 4)),
        "Fourier, 8 of 20": _always(toom_cook(fourier_14, 8, infinity=False)),
        "Fourier, 16 of 32": _always(toom_cook(fourier_22, 16, infinity=False)),
        "winograd, 8 of 17 or Fourier": _chosen,
    }


@dataclass(frozen=True)
class Example:
    """What the forms work on.

    Attributes:
        coefficients: MFCC (utterance, frame, 20).
        n_frames: (utterance,).
        parameters: of the network, by layer.
    """

    coefficients: jax.Array
    n_frames: jax.Array
    parameters: dict[str, Any]


def example(rows: int, frames: int, weights: str) -> Example:
    """Random MFCC; every fourth utterance is shorter than the buffer."""
    random = np.random.default_rng(0)
    mean, std = np.array(SPEECH_MFCC_MEAN), np.array(SPEECH_MFCC_STD)
    values = random.normal(mean, std, (rows, frames, COEFFICIENTS))
    n_frames = np.where(np.arange(rows) % 4 == 3, max(1, frames * 7 // 8), frames)
    parameters = load_encoder(weights).variables["params"]
    return Example(jnp.asarray(values, "float32"), jnp.asarray(n_frames, "int32"), parameters)


def prepared_kernels(form: Form, parameters: dict[str, Any], frames: int) -> list[jax.Array]:
    """Transformed taps of every block."""
    return [
        prepare(parameters[name]["gated_kernel"], form(frames, dilation))
        for name, dilation in zip(LAYER_NAMES, DILATIONS, strict=True)
    ]


def network(
    parameters: dict[str, Any],
    kernels: Sequence[jax.Array],
    coefficients: jax.Array,
    n_frames: jax.Array,
    *,
    form: Form | None,
) -> list[jax.Array]:
    """The gated activation of every block, zero beyond each utterance's frames."""
    frames = coefficients.shape[1]
    mask = jax.vmap(frame_mask, in_axes=(None, 0))(frames, n_frames)
    front = parameters["front"]
    z = jnp.tanh(pointwise(coefficients, front["kernel"]) + front["bias"]) * mask
    gates = []
    for name, dilation, kernel in zip(LAYER_NAMES, DILATIONS, kernels, strict=True):
        both = _convolve(z, kernel, form, dilation) + parameters[name]["gated_bias"]
        gate = jnp.tanh(both[..., :UNITS]) * jax.nn.sigmoid(both[..., UNITS:]) * mask
        skip = pointwise(gate, parameters[name]["out_kernel"]) + parameters[name]["out_bias"]
        z = (z + jnp.tanh(skip)) * mask
        gates.append(gate)
    return gates


def _convolve(z: jax.Array, kernel: jax.Array, form: Form | None, dilation: int) -> jax.Array:
    if form is None:
        return dilated_convolution(z, kernel, dilation=dilation)
    plan = form(z.shape[1], dilation)
    return convolution_of_prepared(z, kernel, plan, dilation=dilation)


def _means(*arguments: Any, form: Form | None) -> jax.Array:
    gates = network(*arguments, form=form)
    return jnp.stack([jnp.sum(gate, 1) for gate in gates], 1) / arguments[-1][:, None, None]


def exact_gates(e: Example) -> list[np.ndarray]:
    """What `network` computes for the first rows, in float64."""
    parameters = jax.tree.map(lambda value: np.asarray(value, np.float64), e.parameters)
    coefficients = np.asarray(e.coefficients[:CHECKED_ROWS], np.float64)
    frames = coefficients.shape[1]
    mask = np.arange(frames)[:, None] < np.asarray(e.n_frames)[:CHECKED_ROWS, None, None]
    z = np.tanh(coefficients @ parameters["front"]["kernel"] + parameters["front"]["bias"]) * mask
    gates = []
    for name, dilation in zip(LAYER_NAMES, DILATIONS, strict=True):
        of = parameters[name]
        reach = TAPS // 2 * dilation
        padded = np.pad(z, ((0, 0), (reach, reach), (0, 0)))
        both = of["gated_bias"] + sum(
            padded[:, tap * dilation : tap * dilation + frames] @ of["gated_kernel"][tap]
            for tap in range(TAPS)
        )
        gates.append(mask * np.tanh(both[..., :UNITS]) / (1 + np.exp(-both[..., UNITS:])))
        z = (z + np.tanh(gates[-1] @ of["out_kernel"] + of["out_bias"])) * mask
    return gates


def difference(e: Example, form: Form | None, exact: Sequence[np.ndarray]) -> float:
    """Largest absolute difference of any block's gated activation from float64."""
    kernels = _kernels(e, form)
    rows = e.coefficients[:CHECKED_ROWS], e.n_frames[:CHECKED_ROWS]
    found = jax.jit(partial(network, form=form))(e.parameters, kernels, *rows)
    return max(float(np.abs(gate - other).max()) for gate, other in zip(found, exact, strict=True))


def _kernels(e: Example, form: Form | None) -> list[jax.Array]:
    if form is None:
        return [e.parameters[name]["gated_kernel"] for name in LAYER_NAMES]
    return prepared_kernels(form, e.parameters, e.coefficients.shape[1])


def _timed(function: Callable[..., Any], *arguments: Any) -> Contestant:
    compiled = jax.jit(function)

    def run(folder: Path) -> None:
        jax.block_until_ready(compiled(*arguments))

    return run


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        form: its name.
        part: a dilation, or all blocks.
        form_ms: median milliseconds.
        plain_ms: of the plain convolution.
        ratio: median of plain over form, pair by pair.
        difference: of the gated activation from float64, of all blocks.
        weights_mb: of the transformed weights, of all blocks.
        cores_busy_elsewhere: meanwhile; None if unknown.
    """

    form: str
    part: str
    form_ms: float
    plain_ms: float
    ratio: float
    difference: float | None = None
    weights_mb: float | None = None
    cores_busy_elsewhere: float | None = None

    def to_markdown(self) -> str:
        """The line."""
        error = "" if self.difference is None else f"{self.difference:.1e}"
        size = "" if self.weights_mb is None else f"{self.weights_mb:.0f}"
        busy = "" if self.cores_busy_elsewhere is None else f"{self.cores_busy_elsewhere:.2f}"
        return (
            f"| {self.form} | {self.part} | {self.form_ms:.2f} | {self.plain_ms:.2f} "
            f"| {self.ratio:.2f} | {error} | {size} | {busy} |"
        )


def _row(name: str, part: str, ours: Contestant, theirs: Contestant, repeats: int) -> Row:
    others = OtherProcesses()
    form, plain = alternate(Contest(0.0, ours, theirs), repeats=repeats)
    assert plain is not None
    ratios = [p / f for p, f in zip(plain.seconds, form.seconds, strict=True)]
    medians = 1e3 * form.median, 1e3 * plain.median, statistics.median(ratios)
    return Row(name, part, *medians, cores_busy_elsewhere=others.cores())


def rows_of(name: str, form: Form, e: Example, exact: Sequence[np.ndarray], n: int) -> list[Row]:
    """Lines about a form; `n` runs each."""
    rows, frames = e.coefficients.shape[:2]
    z = jax.random.normal(jax.random.key(0), (rows, frames, UNITS))
    found = []
    for layer in range(5):
        dilation, kernel = DILATIONS[layer], e.parameters[LAYER_NAMES[layer]]["gated_kernel"]
        plan = form(frames, dilation)
        ours = _timed(partial(_convolve, form=form, dilation=dilation), z, prepare(kernel, plan))
        theirs = _timed(partial(_convolve, form=None, dilation=dilation), z, kernel)
        found.append(_row(name, f"dilation {dilation}", ours, theirs, n))

    inputs = e.coefficients, e.n_frames
    plain = _timed(partial(_means, form=None), e.parameters, _kernels(e, None), *inputs)
    kernels = _kernels(e, form)
    ours = _timed(partial(_means, form=form), e.parameters, kernels, *inputs)
    size = sum(kernel.nbytes for kernel in kernels) / 1e6
    whole = _row(name, "15 blocks", ours, plain, n)
    found.append(replace(whole, difference=difference(e, form, exact), weights_mb=size))

    def with_weights(parameters: dict[str, Any], *inputs: jax.Array) -> jax.Array:
        return _means(parameters, prepared_kernels(form, parameters, frames), *inputs, form=form)

    found.append(
        _row(name, "15 blocks and weights", _timed(with_weights, e.parameters, *inputs), plain, n)
    )
    return found


def main(arguments: list[str] | None = None) -> None:
    """Time every form and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--weights", default="default", help="name or file of the weights")
    parser.add_argument("--form", action="append", choices=list(forms()), help="this one only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    others = OtherProcesses()
    e = example(options.rows, options.frames, options.weights)
    exact = exact_gates(e)
    print(
        "| form | part | form, ms | plain, ms | ratio | error of g | weights, MB | others, cores |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    rows = []
    for name, form in forms().items():
        if options.form and name not in options.form:
            continue
        for row in rows_of(name, form, e, exact, options.repeats):
            rows.append(row)
            print(row.to_markdown(), flush=True)
    plain = difference(e, None, exact)
    facts = machine_facts(torch_device=None, threads=os.cpu_count() or 1)
    facts |= {"cores_busy_elsewhere": others.cores()}
    print(
        f"\n{options.rows} utterances of {options.frames} frames; medians of {options.repeats} "
        f"pairs. Error of the plain form: {plain:.1e}.\n\n{facts}"
    )
    if options.json:
        report = {"machine": facts, "plain_difference": plain, "rows": [asdict(r) for r in rows]}
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
