"""MFCC against librosa, on speech and on signals that are hard on arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import librosa
import numpy as np
import pytest
import scipy.fft
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.audio import load_audio
from featurestore.errors import AudioError
from featurestore.frontend import (
    FRONT_ENDS,
    FrontEnd,
    buffer_length,
    fill_buffers,
    frame_count,
    front_end,
    mfcc,
    mfcc_of_batch,
)

PAD_MODES = {"librosa": "constant", "librosa-0.5": "reflect"}
VARIANTS = pytest.mark.parametrize("variant", PAD_MODES)
OLD_LIBROSA = int(librosa.__version__.split(".")[0]) == 0


def librosa_mfcc(samples: np.ndarray, variant: str) -> np.ndarray:
    """What librosa 0.11 does, step by step: 1.0 gave `top_db` another meaning.

    In float64: from silence to speech, coefficient 0 is -1,131 to -300, and librosa in float32 is
    itself as much as 1.3e-4 from the truth there.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_fft=2048 is too large")
        power = librosa.feature.melspectrogram(
            y=samples.astype(np.float64),
            sr=16_000,
            n_fft=2048,
            hop_length=512,
            pad_mode=PAD_MODES[variant],
        )
    decibels = librosa.power_to_db(power, top_db=None)
    decibels = np.maximum(decibels, decibels.max() - 80.0)
    return scipy.fft.dct(decibels, axis=-2, type=2, norm="ortho")[:20].T


def assert_close(found: np.ndarray, expected: np.ndarray, atol: float = 1e-4) -> None:
    """Within `atol`, or the distance of two neighbouring float32 of that size where it is more."""
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    step = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    error = np.abs(found - expected) / np.maximum(atol, step)
    assert error.max() <= 1.0, (error.max(), np.argmax(error))


def speech_like(samples: int, seed: int) -> np.ndarray:
    """Pulses through two resonances, syllables of changing loudness, over faint noise."""
    rng = np.random.default_rng(seed)
    source = (rng.random(samples) < 0.008).astype(float) + 0.01 * rng.standard_normal(samples)
    for hertz, width in ((500, 80), (1500, 120), (2500, 160)):
        radius = np.exp(-np.pi * width / 16_000)
        poles = [1, -2 * radius * np.cos(2 * np.pi * hertz / 16_000), radius**2]
        source = scipy.signal.lfilter([1.0 - radius], poles, source)
    envelope = np.abs(np.sin(np.arange(samples) / 16_000 * 2 * np.pi * 2)) ** 2
    signal = source * envelope
    peak = np.abs(signal).max() or 1.0
    return (0.5 * signal / peak + 1e-4 * rng.standard_normal(samples)).astype(np.float32)


def recordings(speech: Path) -> Iterator[Path]:
    for folder, suffix in (("librivox", "wav"), ("ravdess", "flac"), ("fsdd", "flac")):
        files = sorted((speech / folder).rglob(f"*.{suffix}"))
        yield from files[:: max(1, len(files) // 3)][:3]


@VARIANTS
def test_equals_librosa_on_recordings(speech, variant):
    for path in recordings(speech):
        samples = load_audio(path)[:48_000]
        if len(samples) >= front_end(variant).min_samples:
            found = mfcc(samples, variant=variant)
            assert_close(found, librosa_mfcc(samples, variant))


@VARIANTS
@pytest.mark.parametrize("samples", [1025, 16_000, 23_457])
def test_equals_librosa_on_speech_like_sound(variant, samples):
    signal = speech_like(samples, seed=samples)
    assert_close(mfcc(signal, variant=variant), librosa_mfcc(signal, variant))


@pytest.mark.skipif(not OLD_LIBROSA, reason="librosa 1.0 gave top_db another meaning")
@VARIANTS
def test_equals_the_one_call_that_users_of_librosa_make(variant):
    signal = speech_like(16_000, seed=3)
    theirs = librosa.feature.mfcc(y=signal, sr=16_000, n_mfcc=20, pad_mode=PAD_MODES[variant])
    # librosa computes in float32 here, up to 1.3e-4 from its own float64 result.
    assert_close(mfcc(signal, variant=variant), theirs.T, 2e-4)


def silence(samples: int, rng: np.random.Generator) -> np.ndarray:
    return np.zeros(samples)


def impulse(samples: int, rng: np.random.Generator) -> np.ndarray:
    signal = np.zeros(samples)
    signal[rng.integers(samples)] = rng.choice([-1.0, 1.0])
    return signal


def noise(amplitude: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    return amplitude * rng.uniform(-1, 1, samples)


def half_silent(samples: int, rng: np.random.Generator) -> np.ndarray:
    return np.where(np.arange(samples) < samples // 2, rng.uniform(-1, 1, samples), 0.0)


def offset(samples: int, rng: np.random.Generator) -> np.ndarray:
    return 0.5 + 0.01 * rng.standard_normal(samples)


SIGNALS = {
    "silence": silence,
    "impulse": impulse,
    "noise of 1e-6": lambda n, rng: noise(1e-6, n, rng),
    "noise of 1e-3": lambda n, rng: noise(1e-3, n, rng),
    "full scale": lambda n, rng: noise(1.0, n, rng),
    "unscaled integers": lambda n, rng: np.round(noise(32767.0, n, rng)),
    "half silent": half_silent,
    "offset": offset,
}


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(SIGNALS)),
    samples=st.one_of(
        st.integers(1, 5000),
        st.sampled_from([1, 2, 511, 512, 513, 1023, 1024, 1025, 1536, 2047, 2048, 2049]),
    ),
    variant=st.sampled_from(sorted(PAD_MODES)),
    seed=st.integers(0, 99),
)
def test_equals_librosa_on_any_length_and_loudness(kind, samples, variant, seed):
    samples = max(samples, front_end(variant).min_samples)
    signal = SIGNALS[kind](samples, np.random.default_rng(seed)).astype(np.float32)
    found = mfcc(signal, variant=variant)
    assert found.shape == (1 + samples // 512, 20)
    assert_close(found, librosa_mfcc(signal, variant))


@VARIANTS
@pytest.mark.parametrize("hertz", [440, 7990])
def test_a_pure_tone_shows_no_noise_of_the_transform(variant, hertz):
    # Everything but the tone lies near the clamp at -80 dB, where a float32 FFT is off by 7e-4.
    tone = np.sin(2 * np.pi * hertz * np.arange(20_000) / 16_000).astype(np.float32)
    assert_close(mfcc(tone, variant=variant), librosa_mfcc(tone, variant))


@pytest.mark.parametrize("samples", [1, 512, 20_000])
def test_silence_is_the_power_floor_everywhere(samples):
    found = mfcc(np.zeros(samples, np.float32), variant="librosa")
    np.testing.assert_allclose(found[:, 0], -100 * np.sqrt(128), rtol=2e-7)
    np.testing.assert_allclose(found[:, 1:], 0.0, atol=1e-9)


@pytest.mark.parametrize("variant", FRONT_ENDS)
def test_company_in_a_batch_does_not_matter(variant):
    chosen = front_end(variant)
    lengths = [chosen.decimation * n for n in (1025, 1026, 5000, 12_345)]
    signals = [
        scale * speech_like(length, seed=length)
        for scale, length in zip((1e-3, 1.0, 1e-5, 0.1), lengths, strict=True)
    ]
    counts = [frame_count(chosen.decimated_length(len(signal))) for signal in signals]
    buffers = fill_buffers([chosen.prepare(s) for s in signals], rows=6, frames=32)
    batched = jax.jit(mfcc_of_batch)(buffers, np.array([*counts, 0, 0], np.int32))
    found = np.asarray(batched)
    assert found.shape == (6, 32, 20)
    for row, (signal, count) in enumerate(zip(signals, counts, strict=True)):
        alone = mfcc(signal, variant=variant)
        np.testing.assert_allclose(found[row, :count], alone, rtol=0, atol=6.2e-5)
        np.testing.assert_array_equal(found[row, count:], 0.0)
    np.testing.assert_array_equal(found[4:], 0.0)  # rows without an utterance


def test_the_loudest_band_is_sought_in_valid_frames_only():
    # What lies in the buffer beyond the utterance must not set its reference.
    chosen = front_end("librosa")
    signal = 1e-3 * speech_like(5000, seed=0)
    count = frame_count(len(signal))
    buffers = fill_buffers([chosen.prepare(signal)], rows=1, frames=40)
    buffers[0, buffer_length(count) :] = 1e3
    found = np.asarray(jax.jit(mfcc_of_batch)(buffers, np.array([count], np.int32)))[0]
    np.testing.assert_allclose(found[:count], mfcc(signal, variant="librosa"), rtol=0, atol=6.2e-5)


@pytest.mark.parametrize("samples", [3073, 3074, 3075, 48_001])
def test_vctk_decimate_takes_every_third_sample(samples):
    signal = speech_like(samples, seed=1)
    np.testing.assert_array_equal(
        mfcc(signal, variant="vctk-decimate"), mfcc(signal[::3], variant="librosa-0.5")
    )


def test_the_default_is_what_the_weights_were_trained_with():
    signal = speech_like(4000, seed=2)
    np.testing.assert_array_equal(mfcc(signal), mfcc(signal, variant="librosa-0.5"))


@pytest.mark.parametrize("samples", [0, 1, 1024])
def test_too_short_to_reflect_is_an_error_that_says_what_is_needed(samples):
    with pytest.raises(AudioError) as caught:
        mfcc(np.zeros(samples, np.float32), variant="librosa-0.5")
    message = str(caught.value)
    for part in (f"{samples} samples", "librosa-0.5", "at least 1025", "'librosa'"):
        assert part in message


def test_the_shortest_reflection_works():
    signal = speech_like(1025, seed=0)
    found = mfcc(signal, variant="librosa-0.5")
    assert found.shape == (3, 20)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("samples", [0, 1, 3072])
def test_too_short_to_reflect_after_decimation(samples):
    with pytest.raises(AudioError, match=r"vctk-decimate.*at least 1025"):
        mfcc(np.zeros(samples, np.float32), variant="vctk-decimate")


def test_no_samples_are_too_few_for_any_variant():
    with pytest.raises(AudioError, match="at least 1 "):
        mfcc(np.zeros(0, np.float32), variant="librosa")


def test_an_unknown_variant_is_an_error_that_lists_the_known():
    with pytest.raises(AudioError) as caught:
        mfcc(np.zeros(4000, np.float32), variant="kaldi")
    for part in ("kaldi", *FRONT_ENDS):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "named"),
    [
        (np.zeros((4000, 2), np.float32), "(4000, 2)"),
        (np.zeros((1, 4000), np.float32), "(1, 4000)"),
        (np.float32(0), "()"),
        (np.zeros(4000, np.int16), "int16"),
        (np.zeros(4000, bool), "bool"),
        (np.zeros(4000, np.complex64), "complex64"),
    ],
)
def test_what_is_not_one_mono_float_signal_is_an_error(samples, named):
    with pytest.raises(AudioError) as caught:
        mfcc(samples)
    assert named in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_sample_that_is_no_float32_is_an_error_that_says_where(value):
    samples = np.zeros(4000)
    samples[[123, 456]] = value
    with pytest.raises(AudioError, match="sample 123 is not a finite number"):
        mfcc(samples)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_any_float_type_is_taken(dtype):
    samples = speech_like(4000, seed=5).astype(np.float16)
    found = mfcc(samples.astype(dtype))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, mfcc(samples.astype(np.float32)))


def test_input_is_left_alone_and_may_be_strided_or_read_only():
    samples = speech_like(8000, seed=6)
    before = samples.copy()
    samples.flags.writeable = False
    mfcc(samples)
    np.testing.assert_array_equal(mfcc(samples[::-2]), mfcc(samples[::-2].copy()))
    np.testing.assert_array_equal(samples, before)


def test_strict_dtype_promotion():
    chosen: FrontEnd = front_end("librosa")
    buffers = fill_buffers([chosen.prepare(np.ones(700, np.float32))], rows=1, frames=2)
    with jax.numpy_dtype_promotion("strict"):
        # Not the jitted function, which may have been traced before.
        found = jax.jit(mfcc_of_batch)(buffers, np.array([2], np.int32))
    assert found.dtype == np.float32
