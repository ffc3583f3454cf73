"""The network: padding is invisible, and an independent implementation agrees with it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.special
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.batching import BatchPolicy, Bucket
from featurestore.checkpoint import Weights, load_weights
from featurestore.encoder import Encoder, encode, load_encoder
from featurestore.errors import AudioError, CheckpointError
from featurestore.extract import Extracted, Request, collect, dispatch
from featurestore.frontend import frame_count, mfcc
from featurestore.gcu import (
    DILATIONS,
    LAYER_NAMES,
    RECEPTIVE_FIELD,
    GCUNetwork,
    network_parameters,
)
from featurestore.random_weights import SPEECH_MFCC_MEAN, SPEECH_MFCC_STD
from featurestore.types import CAPTURES

EVERY = ("front", *CAPTURES, "logits")
# Around the reach of one tap, of one block, of the whole network, and of a bucket's edge.
LENGTHS = (1, 8, 9, 97, 280, 700)
POLICIES = (
    BatchPolicy(),
    BatchPolicy(frames_per_batch=1),  # everyone alone, in a shared bucket length
    BatchPolicy(frames_per_batch=1500, compile_cost=10**9),  # everyone in the longest bucket
)


def speech_coefficients(frames: int, seed: int) -> np.ndarray:
    """Random MFCC with the moments of read speech."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((frames, 20)) * SPEECH_MFCC_STD + SPEECH_MFCC_MEAN
    return values.astype(np.float32)


@functools.cache
def weights_named(name: str) -> Weights:
    if name == "golden":
        path = SHARED / "golden" / "model.ckpt-205919"
        if not Path(f"{path}.index").exists():
            pytest.skip("reference data golden is not beside this checkout")
        return load_weights(path)
    return load_weights(name)


@functools.cache
def encoder_named(name: str) -> Encoder:
    return load_encoder(weights_named(name))


@functools.cache
def alone(name: str, frames: int) -> dict[str, np.ndarray]:
    return encode(encoder_named(name), [speech_coefficients(frames, seed=frames)])[0]


@pytest.fixture(scope="module", params=["random:0", "golden"])
def weights(request: pytest.FixtureRequest) -> str:
    weights_named(request.param)
    return request.param


def check_company(name: str, lengths: list[int], policy: BatchPolicy) -> None:
    found = encode(
        encoder_named(name),
        [speech_coefficients(frames, seed=frames) for frames in lengths],
        policy=policy,
    )
    assert len(found) == len(lengths)
    for frames, result in zip(lengths, found, strict=True):
        assert set(result) == set(EVERY)
        for capture in EVERY:
            np.testing.assert_allclose(
                result[capture], alone(name, frames)[capture], rtol=0, atol=1e-5, err_msg=capture
            )


@settings(max_examples=5, deadline=None)
@given(
    name=st.sampled_from(["random:0", "golden"]),
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=2, max_size=4),
    policy=st.sampled_from(POLICIES),
)
def test_company_order_and_bucket_do_not_matter(name, lengths, policy):
    if name == "golden" and not (SHARED / "golden").exists():
        name = "random:1"
    check_company(name, lengths, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_all_lengths_together_equal_each_alone(weights, policy):
    check_company(weights, list(LENGTHS), policy)


def test_loud_company_and_garbage_beyond_the_end_do_not_matter():
    encoder = encoder_named("random:0")
    coefficients = speech_coefficients(40, seed=40)
    padded = np.full((1, 96, 20), 1e4, np.float32)
    padded[0, :40] = coefficients
    found = jax.jit(encoder.apply)(encoder.variables, padded, np.array([40], np.int32))
    expected = encode(encoder, [coefficients])[0]
    for name in EVERY:
        np.testing.assert_allclose(
            np.asarray(found[name])[0][..., :40, :], expected[name], rtol=0, atol=1e-5
        )


# --- an independent implementation -----------------------------------------------------------


def normalised(tensors, name, x):
    """Batch normalisation of speech-to-text-wavenet with running statistics."""
    beta, gamma, mean, variance = (
        tensors[f"{name}/{part}"].astype(np.float64)
        for part in ("beta", "gamma", "mean", "variance")
    )
    return (x - mean) / np.sqrt(variance + 1e-8) * gamma + beta


def convolved(tensors, name, x, rate):
    """Seven taps, `rate` frames apart, the middle one on the frame itself, zeros outside."""
    kernel = tensors[f"{name}/W"].astype(np.float64)[0]
    out = np.zeros((len(x), kernel.shape[-1]))
    for frame in range(len(x)):
        for tap in range(7):
            source = frame + (tap - 3) * rate
            if 0 <= source < len(x):
                out[frame] += x[source] @ kernel[tap]
    return out


def numpy_network(tensors, coefficients):
    """The published network in float64, one line per line of its description."""

    def one_by_one(name, x):
        return normalised(tensors, name, x @ tensors[f"{name}/W"].astype(np.float64)[0])

    z = np.tanh(one_by_one("front/conv_in", coefficients.astype(np.float64)))
    out = {"front": z, "gate": [], "skip": [], "residual": []}
    total = 0.0
    for block in range(3):
        for rate in (1, 2, 4, 8, 16):
            name = f"block_{block}_{rate}"
            filters, gates = (
                normalised(
                    tensors,
                    f"{name}/conv_{part}",
                    convolved(tensors, f"{name}/conv_{part}", z, rate),
                )
                for part in ("filter", "gate")
            )
            g = np.tanh(filters) * scipy.special.expit(gates)
            s = np.tanh(one_by_one(f"{name}/conv_out", g))
            z = z + s
            total = total + s
            for point, value in zip(("gate", "skip", "residual"), (g, s, z), strict=True):
                out[point].append(value)
    hidden = np.tanh(one_by_one("logit/conv_1", total))
    final = tensors["logit/conv_2/W"].astype(np.float64)[0]
    out["logits"] = hidden @ final + tensors["logit/conv_2/b"].astype(np.float64)
    return {name: np.array(value) for name, value in out.items()}


def perturbed(weights: Weights, seed: int) -> Weights:
    """Weights whose batch normalisation is nowhere trivial."""
    rng = np.random.default_rng(seed)
    tensors = dict(weights.tensors)
    for name, value in tensors.items():
        if name.endswith(("/beta", "/mean", "/b")):
            tensors[name] = (value + 0.3 * rng.standard_normal(value.shape)).astype(np.float32)
        elif name.endswith(("/gamma", "/variance")):
            tensors[name] = (value * rng.uniform(0.3, 2.0, value.shape)).astype(np.float32)
    return Weights(tensors, source="perturbed")


@pytest.mark.parametrize("frames", [1, 41])
def test_equals_an_unfolded_float64_implementation(weights, frames):
    read = weights_named(weights)
    if weights == "random:0":
        read = perturbed(read, seed=1)
    coefficients = speech_coefficients(frames, seed=5)
    found = encode(load_encoder(read), [coefficients])[0]
    expected = numpy_network(read.tensors, coefficients)
    for name in EVERY:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-5, err_msg=name)


def test_folding_survives_a_tiny_variance():
    tensors = dict(weights_named("random:0").tensors)
    tensors["block_0_1/conv_out/variance"] = np.full(128, 1e-9, np.float32)
    tensors["block_0_1/conv_out/gamma"] = np.full(128, 1e-5, np.float32)
    read = Weights(tensors, source="tiny variance")
    coefficients = speech_coefficients(20, seed=6)
    found = encode(load_encoder(read), [coefficients])[0]
    expected = numpy_network(read.tensors, coefficients)
    np.testing.assert_allclose(found["gate"], expected["gate"], rtol=0, atol=1e-5)


def test_every_parameter_of_the_network_comes_from_the_checkpoint():
    wanted = jax.eval_shape(
        GCUNetwork().init, jax.random.key(0), np.zeros((1, 4, 20), np.float32), np.array([4])
    )
    made = network_parameters(weights_named("random:0").tensors)
    shape_of = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, str(leaf.dtype)))
    assert shape_of(made) == shape_of(wanted)


# --- reach ------------------------------------------------------------------------------------


def test_the_receptive_field_is_559_frames():
    assert RECEPTIVE_FIELD == 559 == 1 + 6 * sum(DILATIONS)
    before = speech_coefficients(700, seed=700)
    after = before.copy()
    after[350] += 300.0
    # Two rows of one batch, so that only the perturbed frame differs.
    one, two = encode(encoder_named("random:0"), [before, after])
    distance = np.abs(np.arange(700) - 350)
    reach = 0
    for layer, rate in enumerate(DILATIONS):
        reach += 3 * rate
        for capture in CAPTURES:
            changed = (one[capture][layer] != two[capture][layer]).any(axis=-1)
            assert not changed[distance > reach].any(), (capture, layer)
    assert reach == 279
    for capture in ("residual", "gate", "skip"):
        changed = (one[capture][-1] != two[capture][-1]).any(axis=-1)
        assert changed[distance <= 200].all()
    logits = (one["logits"] != two["logits"]).any(axis=-1)
    assert not logits[distance > 279].any()


def test_the_first_block_reaches_three_frames_each_way():
    before = speech_coefficients(48, seed=48)
    after = before.copy()
    after[20] += 50.0
    one, two = encode(encoder_named("random:0"), [before, after])
    changed = np.flatnonzero((one["gate"][0] != two["gate"][0]).any(axis=-1))
    np.testing.assert_array_equal(changed, np.arange(17, 24))
    front = np.flatnonzero((one["front"] != two["front"]).any(axis=-1))
    np.testing.assert_array_equal(front, [20])


# --- the interface ----------------------------------------------------------------------------


def test_shapes_types_and_bounds():
    found = alone("random:0", 9)
    assert {name: value.shape for name, value in found.items()} == {
        "front": (9, 128),
        "gate": (15, 9, 128),
        "skip": (15, 9, 128),
        "residual": (15, 9, 128),
        "logits": (9, 28),
    }
    assert all(value.dtype == np.float32 for value in found.values())
    assert all(np.isfinite(value).all() for value in found.values())
    assert np.abs(found["gate"]).max() < 1.0
    assert np.abs(found["skip"]).max() <= 1.0


def test_one_frame_and_no_utterances():
    assert encode(encoder_named("random:0"), []) == []
    assert alone("random:0", 1)["gate"].shape == (15, 1, 128)


def test_results_own_their_memory_and_inputs_are_left_alone():
    coefficients = speech_coefficients(8, seed=8)
    coefficients.flags.writeable = False
    for value in encode(encoder_named("random:0"), [coefficients])[0].values():
        assert value.flags.owndata
        assert value.flags.writeable


def test_any_float_type_is_taken():
    coefficients = speech_coefficients(8, seed=8)
    found = encode(encoder_named("random:0"), [coefficients.astype(np.float64)])[0]
    np.testing.assert_array_equal(found["gate"], alone("random:0", 8)["gate"])


@pytest.mark.parametrize("shape", [(10, 19), (10,), (1, 10, 20), (20, 10), (0, 20), (0,), ()])
def test_another_shape_is_an_error_that_names_utterance_and_shape(shape):
    good = speech_coefficients(8, seed=8)
    with pytest.raises(AudioError) as caught:
        encode(encoder_named("random:0"), [good, np.zeros(shape, np.float32)])
    message = str(caught.value)
    assert message.startswith("utterance 1: ")
    assert str(shape) in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_no_finite_float32_are_an_error(value):
    bad = np.zeros((8, 20))
    bad[3, 3] = value
    with pytest.raises(AudioError, match="utterance 0: MFCC hold values that are not finite"):
        encode(encoder_named("random:0"), [bad])


def test_what_an_encoder_says_of_itself():
    encoder = encoder_named("random:0")
    assert encoder.untrained
    assert not encoder.published
    assert (encoder.layers, encoder.units, encoder.receptive_field) == (15, 128, 559)
    assert encoder.layer_names == LAYER_NAMES
    assert LAYER_NAMES[0] == "block_0_1"
    assert LAYER_NAMES[7] == "block_1_4"
    assert LAYER_NAMES[-1] == "block_2_16"
    assert encoder.fingerprint != load_encoder("random:1").fingerprint


def test_a_variant_overrides_the_front_end_of_the_weights():
    assert load_encoder("random:0", variant="librosa").front_end.name == "librosa"
    with pytest.raises(AudioError, match="unknown MFCC variant 'kaldi'"):
        load_encoder("random:0", variant="kaldi")


def test_unknown_weights_are_an_error():
    with pytest.raises(CheckpointError, match="random:SEED"):
        load_encoder("no-such-weights")


def test_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        # 13 rows of one bucket: a shape that no other test has traced.
        found = encode(
            encoder_named("random:0"), [speech_coefficients(5, seed=s) for s in range(13)]
        )
        coefficients = mfcc(np.full(3333, 0.1, np.float32), variant="librosa")
    assert len(found) == 13
    assert coefficients.dtype == np.float32


# --- frames and pooled statistics from waveforms -------------------------------------------------

SAMPLES = (1, 700, 5000, 20_000, 40_000)
EVERYTHING = Request(captures=CAPTURES, mfcc=True, frames=True, dtype="float32")


def waveform(samples: int) -> np.ndarray:
    rng = np.random.default_rng(samples)
    time = np.arange(samples) / 16_000
    tone = np.sin(2 * np.pi * (120 + 30 * np.sin(5 * time)) * time)
    return (0.3 * tone + 0.02 * rng.standard_normal(samples)).astype(np.float32)


@dataclass(frozen=True)
class One:
    """An utterance of a batch."""

    batch: Extracted
    row: int

    def frames(self, capture: str) -> np.ndarray:
        return self.batch.frames(capture, self.row)

    @property
    def captures(self) -> set[str]:
        return set(self.batch.layers)

    @property
    def pooled(self) -> dict[str, np.ndarray]:
        return {name: values[self.row] for name, values in self.batch.pooled.items()}


def run_batch(encoder: Encoder, request: Request, bucket: Bucket, sizes) -> list[One]:
    prepared = [encoder.front_end.prepare(waveform(samples)) for samples in sizes]
    counts = [frame_count(samples) for samples in sizes]
    running = dispatch(encoder, request, bucket=bucket, prepared=prepared, n_frames=counts)
    found = collect(running, n_frames=counts)
    return [One(found, row) for row in range(len(counts))]


@pytest.fixture(scope="module")
def zero_padded() -> Encoder:
    return load_encoder("random:0", variant="librosa")  # takes any length


@pytest.fixture(scope="module")
def extracted(zero_padded: Encoder) -> list[One]:
    return run_batch(zero_padded, EVERYTHING, Bucket(96, 6), SAMPLES)


def test_frames_from_waveforms_equal_mfcc_then_encode(zero_padded, extracted):
    for samples, found in zip(SAMPLES, extracted, strict=True):
        coefficients = mfcc(waveform(samples), variant="librosa")
        np.testing.assert_allclose(found.frames("mfcc"), coefficients, rtol=0, atol=1.3e-4)
        expected = encode(zero_padded, [found.frames("mfcc")])[0]
        for capture in CAPTURES:
            np.testing.assert_allclose(
                found.frames(capture), expected[capture], rtol=0, atol=1e-5, err_msg=capture
            )


def test_pooled_statistics_equal_numpy_over_the_frames(extracted):
    for found in extracted:
        for name in found.captures:
            frames = found.frames(name)
            wide = frames.astype(np.float64)
            expected = [f(wide, axis=-2) for f in (np.mean, np.std, np.min, np.max)]
            assert found.pooled[name].dtype == np.float32
            # MFCC are several hundred, where 1e-5 is less than a float32 step.
            rtol = 1e-6 if name == "mfcc" else 0
            np.testing.assert_allclose(
                found.pooled[name], expected, rtol=rtol, atol=1e-5, err_msg=name
            )


def test_pooled_statistics_of_one_frame(extracted):
    only = extracted[0]
    assert only.frames("gate").shape == (15, 1, 128)
    mean, std, low, high = only.pooled["gate"]
    np.testing.assert_array_equal(std, 0.0)
    np.testing.assert_array_equal(low, high)
    np.testing.assert_array_equal(mean, low)


def test_bucket_and_order_do_not_matter_to_pooled_statistics(zero_padded, extracted):
    backwards = run_batch(zero_padded, EVERYTHING, Bucket(256, 5), SAMPLES[::-1])[::-1]
    for one, two in zip(extracted, backwards, strict=True):
        for name in CAPTURES:
            np.testing.assert_allclose(one.pooled[name], two.pooled[name], rtol=0, atol=1e-5)
            np.testing.assert_allclose(one.frames(name), two.frames(name), rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.pooled["mfcc"], two.pooled["mfcc"], rtol=1e-6, atol=1.3e-4)


def test_half_precision_frames_are_the_rounded_ones_and_pooling_is_not(zero_padded, extracted):
    request = Request(captures=CAPTURES, mfcc=True, frames=True)
    for half, full in zip(
        run_batch(zero_padded, request, Bucket(96, 6), SAMPLES), extracted, strict=True
    ):
        for name in CAPTURES:
            assert half.frames(name).dtype == np.float16
            rounded = full.frames(name).astype(np.float16)
            step = np.spacing(np.abs(rounded)).astype(np.float32)
            distance = np.abs(half.frames(name).astype(np.float32) - rounded.astype(np.float32))
            # Another program may round the last float32 bit otherwise, right at a float16 tie.
            assert (distance <= step).all()
            assert (distance > 0).mean() < 1e-2
            np.testing.assert_allclose(half.pooled[name], full.pooled[name], rtol=0, atol=1e-5)
        assert half.frames("mfcc").dtype == np.float32


def test_only_what_is_asked_for_comes_back(zero_padded):
    pooled_only = Request(captures=("skip",), mfcc=False, frames=False)
    for found in run_batch(zero_padded, pooled_only, Bucket(16, 2), SAMPLES[:2]):
        assert not found.captures
        assert {name: value.shape for name, value in found.pooled.items()} == {"skip": (4, 15, 128)}
    no_network = Request(captures=(), mfcc=True, frames=True)
    found = run_batch(zero_padded, no_network, Bucket(16, 2), SAMPLES[1:3])
    assert [value.frames("mfcc").shape for value in found] == [(2, 20), (10, 20)]
    assert [set(value.pooled) for value in found] == [{"mfcc"}, {"mfcc"}]


def test_strict_dtype_promotion_of_the_whole_extraction(zero_padded):
    with jax.numpy_dtype_promotion("strict"):
        request = Request(captures=("gate",), mfcc=True, frames=True)
        found = run_batch(zero_padded, request, Bucket(24, 3), (700, 5000))
    assert [value.frames("gate").shape for value in found] == [(15, 2, 128), (15, 10, 128)]
