"""The network against activations of the original TensorFlow program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from featurestore.audio import load_audio
from featurestore.batching import BatchPolicy
from featurestore.encoder import Encoder, encode, load_encoder
from featurestore.frontend import mfcc

CLIPS = (1, 4)
NAMES = {"front": "front", "gate": "gate", "skip": "skip", "logit": "logits"}


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def encoder(golden: Path) -> Encoder:
    return load_encoder(golden / "model.ckpt-205919")


@pytest.fixture(scope="module")
def recordings(speech: Path) -> list[Path]:
    return sorted((speech / "librivox").glob("*.wav"))


def assert_golden(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], clip: int, atol: float
) -> None:
    for theirs, ours in NAMES.items():
        np.testing.assert_allclose(
            found[ours], expected[f"{theirs}_{clip}"], rtol=0, atol=atol, err_msg=ours
        )


@pytest.mark.parametrize("clip", CLIPS)
def test_activations_alone_equal_the_original(encoder, expected, clip):
    assert_golden(encode(encoder, [expected[f"mfcc_{clip}"]])[0], expected, clip, 1e-5)


@pytest.mark.parametrize("order", [CLIPS, CLIPS[::-1]])
def test_activations_in_one_padded_batch_equal_the_original(encoder, expected, order):
    coefficients = [expected[f"mfcc_{clip}"] for clip in order]
    for clip, found in zip(order, encode(encoder, coefficients), strict=True):
        assert_golden(found, expected, clip, 1e-5)


def test_activations_in_a_far_longer_bucket_equal_the_original(encoder, expected):
    company = np.full((300, 20), 50.0, np.float32)
    policy = BatchPolicy(frames_per_batch=4096, compile_cost=10**9)  # a single bucket
    inputs = [expected["mfcc_1"], company, expected["mfcc_4"]]
    found = encode(encoder, inputs, policy=policy)
    assert_golden(found[0], expected, 1, 1e-5)
    assert_golden(found[2], expected, 4, 1e-5)


@pytest.mark.parametrize("clip", CLIPS)
def test_residual_is_the_running_sum_of_front_and_skips(encoder, expected, clip):
    found = encode(encoder, [expected[f"mfcc_{clip}"]])[0]
    running = expected[f"front_{clip}"] + np.cumsum(expected[f"skip_{clip}"], axis=0)
    np.testing.assert_allclose(found["residual"], running, rtol=0, atol=3e-5)


@pytest.mark.parametrize("clip", CLIPS)
def test_mfcc_of_the_recording_equal_librosa(recordings, expected, clip):
    found = mfcc(load_audio(recordings[clip]), variant="librosa-0.5")
    golden = expected[f"mfcc_{clip}"]
    # Coefficient 0 is several hundred: one float32 step of its size is 3e-5 to 6e-5.
    np.testing.assert_array_less(np.abs(found - golden), 1e-4 + np.spacing(np.abs(golden)))


@pytest.mark.parametrize("clip", CLIPS)
def test_activations_from_the_recording_equal_the_original(encoder, recordings, expected, clip):
    coefficients = mfcc(load_audio(recordings[clip]), variant=encoder.front_end.name)
    assert_golden(encode(encoder, [coefficients])[0], expected, clip, 1e-3)


def test_the_golden_checkpoint_is_not_the_published_one(encoder):
    assert not encoder.published
    assert not encoder.untrained
    assert encoder.front_end.name == "librosa-0.5"
