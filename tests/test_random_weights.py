"""Untrained weights: the same for everyone, and spread as the original program spreads them."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
import soundfile

from featurestore.checkpoint import import_tensorflow
from featurestore.errors import CheckpointError
from featurestore.random_weights import (
    SPEECH_MFCC_MEAN,
    SPEECH_MFCC_STD,
    fan_in,
    random_weights,
)
from featurestore.weights import Weights

GOLDEN = "model.ckpt-205919"
KERNEL = "block_0_1/conv_filter/W"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(0)


def test_random_weights_are_the_same_bits_everywhere(weights):
    # Whoever changes this number changes the features that users have stored as random:0.
    assert weights.fingerprint.startswith("188418d7cb0f3ae6e5cd9225")
    assert random_weights(0).fingerprint == weights.fingerprint
    assert random_weights(1).fingerprint != weights.fingerprint


def test_no_two_kernels_share_a_stream(weights):
    starts = {
        round(float(values.flat[0]) * math.sqrt(fan_in(values.shape)), 6)
        for name, values in weights.tensors.items()
        if name.endswith("/W")
    }
    assert len(starts) == 48


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        (KERNEL, 1 / math.sqrt(7 * 128)),
        ("block_1_4/conv_out/W", 1 / math.sqrt(128)),
        ("front/conv_in/W", 1 / math.sqrt(math.sqrt(20 * 128))),
        ("logit/conv_2/W", 1 / math.sqrt(math.sqrt(128 * 28))),
    ],
)
def test_kernels_fill_the_range_of_the_original(weights, name, limit):
    values = weights.tensors[name].astype(np.float64)
    assert 0.99 * limit < np.abs(values).max() <= np.float32(limit)
    assert values.std() == pytest.approx(limit / math.sqrt(3), rel=0.03)
    assert values.mean() == pytest.approx(0, abs=0.05 * limit)


@pytest.mark.parametrize("name", [KERNEL, "block_2_8/conv_out/W", "front/conv_in/W"])
def test_golden_after_a_few_steps_still_has_the_spread_of_its_initialiser(golden, weights, name):
    trained = import_tensorflow(golden / GOLDEN).tensors[name]
    assert trained.std() == pytest.approx(weights.tensors[name].std(), rel=0.03)


def test_other_tensors_do_nothing(weights):
    for name, values in weights.tensors.items():
        part = name.rsplit("/", 1)[1]
        if part != "W" and name not in ("front/conv_in/mean", "front/conv_in/variance"):
            assert (values == {"gamma": 1, "variance": 1}.get(part, 0)).all(), name


def test_first_layer_is_at_its_working_point_on_speech(weights):
    kernel = weights.tensors["front/conv_in/W"][0].astype(np.float64)
    mean = np.array(SPEECH_MFCC_MEAN) @ kernel
    variance = np.array(SPEECH_MFCC_STD) ** 2 @ kernel**2
    np.testing.assert_allclose(weights.tensors["front/conv_in/mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(weights.tensors["front/conv_in/variance"], variance, rtol=1e-6)
    speech = np.random.default_rng(0).normal(SPEECH_MFCC_MEAN, SPEECH_MFCC_STD, (2000, 20))
    active = np.tanh((speech @ kernel - mean) / np.sqrt(variance))
    assert (np.abs(active) > 0.99).mean() < 0.02


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", None, True])
def test_seeds_that_are_none(seed):
    with pytest.raises(CheckpointError, match="accepted: an integer from 0 to 4294967295"):
        random_weights(seed)


def test_the_program_that_measured_the_moments_still_runs(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, (24_000, 2))
    soundfile.write(tmp_path / "a.wav", noise, 24_000)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("id,path\na,a.wav\nb,missing.wav\n")
    program = ROOT / "benchmarks" / "mfcc_moments.py"
    done = run(
        [sys.executable, program, manifest, "--limit", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # it also runs from an uninstalled checkout
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "# 1 files, 32 frames"
    for line, name in zip(lines[1:], ("SPEECH_MFCC_MEAN", "SPEECH_MFCC_STD"), strict=True):
        assert line.startswith(f"{name} = (")
        assert line.count(",") == 19
