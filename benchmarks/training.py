"""What a training step is made of, each part beside the obvious way to write it.

    python benchmarks/training.py [--rows 16] [--frames 160] [--repeats 7] [--json FILE]

Random MFCC and transcripts of that shape, 0.032 s a frame. The parts run in turns with what they
are compared with, after a first run that compiles: one dilated convolution and its gradients in
bfloat16 by matrix products beside the same by XLA's convolution, and loss and gradient of the whole
network in bfloat16 beside float32. Run it on an idle machine; what other processes took is measured
and printed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from featurestore.benchmarks.report import machine_facts
from featurestore.benchmarks.timing import Contest, Contestant, OtherProcesses, Timing, alternate
from featurestore.random_weights import random_weights
from featurestore.training.alphabet import BLANK
from featurestore.training.ctc import ctc_loss
from featurestore.training.network import convolve, convolve_by_products, forward, split
from featurestore.types import COEFFICIENTS, FRAME_PERIOD_S, UNITS

DILATION = 4


def _example(rows: int, frames: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    symbols = max(1, frames // 3)
    return {
        "coefficients": jnp.asarray(random.normal(0, 30, (rows, frames, COEFFICIENTS)), "float32"),
        "n_frames": jnp.full(rows, frames, jnp.int32),
        "labels": jnp.asarray(random.integers(0, BLANK, (rows, symbols)), "int32"),
        "n_labels": jnp.full(rows, symbols, jnp.int32),
        "z": jnp.asarray(random.normal(size=(rows, frames, UNITS)), "float32"),
        "kernel": jnp.asarray(random.normal(0, 0.03, (7, UNITS, 2 * UNITS)), "float32"),
    }


def _timed(function: Callable[..., Any], *arguments: Any) -> Contestant:
    compiled = jax.jit(function)

    def run(_: Path) -> None:
        jax.block_until_ready(compiled(*arguments))

    return run


def contests(rows: int, frames: int) -> dict[str, Contest]:
    """The parts, by what they are called in the table."""
    e = _example(rows, frames)
    lengths = (e["n_frames"], e["labels"], e["n_labels"])

    def convolution(convolution: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
        def scalar(z: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(convolution(z, kernel, DILATION, dtype)))

        return jax.grad(scalar, argnums=(0, 1))

    parameters, _ = split(random_weights(0).tensors)
    parameters = jax.tree.map(jnp.asarray, parameters)

    def network(dtype: Any) -> Callable[..., Any]:
        def loss(parameters: Any, coefficients: jax.Array) -> jax.Array:
            logits, _ = forward(parameters, coefficients, e["n_frames"], dtype=dtype)
            return jnp.sum(ctc_loss(logits, *lengths))

        return jax.value_and_grad(loss)

    seconds = rows * frames * FRAME_PERIOD_S
    return {
        "convolution and gradients in bfloat16, products beside XLA's": Contest(
            seconds,
            _timed(convolution(convolve_by_products, jnp.bfloat16), e["z"], e["kernel"]),
            _timed(convolution(convolve, jnp.bfloat16), e["z"], e["kernel"]),
        ),
        "network, loss and gradient, bfloat16 beside float32": Contest(
            seconds,
            _timed(network(jnp.bfloat16), parameters, e["coefficients"]),
            _timed(network(jnp.float32), parameters, e["coefficients"]),
        ),
    }


def _row(name: str, contest: Contest, ours: Timing, theirs: Timing) -> dict[str, Any]:
    ratios = [t / o for t, o in zip(theirs.seconds, ours.seconds, strict=True)]
    return {
        "part": name,
        "ours_ms": 1e3 * ours.median,
        "theirs_ms": 1e3 * theirs.median,
        "ratio": float(np.median(ratios)),
        "times_real_time": contest.audio_s / ours.median,
    }


def main(arguments: list[str] | None = None) -> None:
    """Time every part and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    others, rows = OtherProcesses(), []
    for name, contest in contests(options.rows, options.frames).items():
        ours, theirs = alternate(contest, repeats=options.repeats)
        assert theirs is not None
        rows.append(_row(name, contest, ours, theirs))
    print("| part | ours, ms | theirs, ms | ratio | times real time |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['part']} | {row['ours_ms']:.1f} | {row['theirs_ms']:.1f} "
            f"| {row['ratio']:.2f} | {row['times_real_time']:,.0f} |"
        )
    facts = machine_facts(torch_device=None, threads=os.cpu_count() or 1)
    facts |= {"cores_busy_elsewhere": others.cores()}
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=2))
    print(f"\n{facts}")


if __name__ == "__main__":
    main()
