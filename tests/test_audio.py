"""Decoding against soundfile and librosa, and every kind of file that cannot be decoded."""

from __future__ import annotations

import builtins
import errno
import math
import os
import warnings
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import audio
from featurestore.audio import (
    AudioInfo,
    load_audio,
    probe,
    probe_segment,
    read_clip,
    resample,
    resampled_length,
    span,
)
from featurestore.containers import _header
from featurestore.errors import AudioError
from featurestore.survey import survey

# Ending, options for soundfile.
FORMATS = {
    "wav-pcm16": ("wav", {"subtype": "PCM_16"}),
    "wav-pcm24": ("wav", {"subtype": "PCM_24"}),
    "wav-float": ("wav", {"subtype": "FLOAT"}),
    "wav-double": ("wav", {"subtype": "DOUBLE"}),
    "wavex": ("wav", {"format": "WAVEX", "subtype": "PCM_16"}),
    "rf64": ("wav", {"format": "RF64", "subtype": "PCM_16"}),
    "flac": ("flac", {"subtype": "PCM_16"}),
    "flac24": ("flac", {"subtype": "PCM_24"}),
    "vorbis": ("ogg", {"subtype": "VORBIS"}),
    "opus": ("opus", {"format": "OGG", "subtype": "OPUS"}),
    "mp3": ("mp3", {}),
}
EVERY = pytest.mark.parametrize("kind", FORMATS)
# A decoder that predicts from what it heard before starts a segment with another past.
SEGMENT_ATOL = {"opus": 5e-3, "mp3": 1e-6, "vorbis": 1e-6}


def sound(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A glide over noise, other in every channel: (samples, channels)."""
    rng = np.random.default_rng(channels)
    time = np.arange(round(seconds * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * (200 + 90 * c + 80 * time) * time) for c in range(channels)]
    return np.stack(tones, axis=1) + 0.02 * rng.standard_normal((len(time), channels))


def write(folder: Path, kind: str, samples: np.ndarray, rate: int = 16_000) -> Path:
    ending, options = FORMATS[kind]
    path = folder / f"{kind}-{rate}.{ending}"
    soundfile.write(path, samples, rate, **options)
    return path


def librosa_load(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        # librosa 0.11 imports audioread, which imports modules that Python 3.11 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        return librosa.load(path, sr=16_000, mono=True)[0]


def pcm16(samples: np.ndarray) -> np.ndarray:
    """Rounded here: libsndfile rounds floats to other integers in wav than in flac."""
    return np.round(samples * 32_767).astype(np.int16)


def refused(path: Path | str, **options: float) -> str:
    """The one-line message with which a file is refused, wherever it is found out."""
    with pytest.raises(AudioError) as caught:
        load_audio(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    name = os.fspath(path)
    assert message.endswith(f": {name if name.isprintable() else repr(name)}")
    return message


# --- what can be decoded ------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("channels", [1, 2])
def test_equals_librosa_at_16_khz(tmp_path, kind, channels):
    path = write(tmp_path, kind, sound(0.7, 16_000, channels))
    expected = librosa_load(path)
    found = load_audio(path)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("kind", ["wav-pcm16", "flac"])
def test_equals_librosa_at_any_rate(tmp_path, kind, rate):
    path = write(tmp_path, kind, sound(0.4321, rate, 2), rate)
    expected = librosa_load(path)
    found = load_audio(path)
    info = probe(path)
    assert len(found) == resampled_length(info.samples, rate)
    # librosa multiplies by a rounded ratio and may add one zero.
    assert len(expected) - len(found) in (0, 1)
    np.testing.assert_allclose(found, expected[: len(found)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["vorbis", "opus", "mp3"])
def test_lossy_formats_at_48_khz_equal_librosa(tmp_path, kind):
    path = write(tmp_path, kind, sound(0.5, 48_000), 48_000)
    expected = librosa_load(path)
    np.testing.assert_allclose(load_audio(path), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["wav-pcm16", "flac", "wav-float", "vorbis"])
def test_eight_channels_are_averaged(tmp_path, kind):
    path = write(tmp_path, kind, sound(0.3, 16_000, 8))
    assert probe(path).channels == 8
    every, _ = soundfile.read(path, dtype="float32", always_2d=True)
    clip = read_clip(path)
    assert clip.samples.shape == (4800,)
    np.testing.assert_allclose(clip.samples, every.mean(axis=1), rtol=0, atol=1e-6)


@EVERY
def test_the_header_says_how_much_will_be_decoded(tmp_path, kind):
    path = write(tmp_path, kind, sound(0.7, 16_000, 2))
    info = probe(path)
    clip = read_clip(path)
    assert (info.channels, info.rate) == (2, clip.rate)
    assert info.samples == len(clip.samples)


@pytest.mark.parametrize("samples", [1, 2, 100])
@pytest.mark.parametrize("kind", ["wav-pcm16", "wav-float", "flac", "vorbis", "opus", "mp3"])
def test_very_short_files(tmp_path, kind, samples):
    path = write(tmp_path, kind, sound(samples / 16_000, 16_000))
    assert probe(path).samples == samples
    assert load_audio(path).shape == (samples,)


@EVERY
def test_silence_decodes_to_zeros(tmp_path, kind):
    path = write(tmp_path, kind, np.zeros(16_000))
    np.testing.assert_allclose(load_audio(path), 0.0, rtol=0, atol=1e-5)


def test_files_longer_than_a_block_are_read_whole(tmp_path, monkeypatch):
    path = write(tmp_path, "flac", sound(1.0, 16_000, 2))
    whole = read_clip(path)
    monkeypatch.setattr(audio, "_BLOCK", 1000)
    pieces = read_clip(path)
    np.testing.assert_array_equal(pieces.samples, whole.samples)
    assert pieces.sha256 == whole.sha256


def test_recordings_equal_librosa(speech):
    for pattern in ("librivox/*.wav", "fsdd/**/*.flac", "cathy/**/*.opus"):
        path = sorted(speech.glob(pattern))[0]
        expected = librosa_load(path)
        np.testing.assert_allclose(load_audio(path), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["Größe 日本語 ñ.wav", "a b%20'\";$(x).flac", "x" * 246 + ".wav"])
def test_unusual_file_names(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, sound(0.1, 16_000), 16_000)
    assert len(name.encode()) <= 255
    assert load_audio(path).shape == (1600,)
    assert load_audio(str(path)).shape == (1600,)


def test_an_ending_does_not_decide_the_format(tmp_path):
    path = write(tmp_path, "flac", sound(0.1, 16_000)).rename(tmp_path / "renamed.wav")
    assert load_audio(path).shape == (1600,)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_streamed_wav_has_no_length_in_its_header(tmp_path, size):
    path = write(tmp_path, "wav-pcm16", sound(0.5, 16_000))
    expected = load_audio(path)
    data = bytearray(path.read_bytes())
    chunk = data.find(b"data")
    data[chunk + 4 : chunk + 8] = size.to_bytes(4, "little")
    data[4:8] = b"\xff" * 4
    path.write_bytes(data)
    assert probe(path).samples == 8000
    np.testing.assert_array_equal(load_audio(path), expected)


def test_bytes_after_the_samples_are_no_samples(tmp_path):
    path = write(tmp_path, "wav-pcm16", sound(0.5, 16_000))
    expected = load_audio(path)
    path.write_bytes(path.read_bytes() + b"LIST\x04\x00\x00\x00abcd" + b"trailing")
    np.testing.assert_array_equal(load_audio(path), expected)


# --- resampling ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 6000),
    st.one_of(st.integers(1000, 200_000), st.sampled_from([8000, 44_100, 48_000, 96_000])),
)
def test_resampled_length_is_exact(samples, rate):
    found = resample(np.ones(samples, np.float32), rate)
    assert len(found) == resampled_length(samples, rate) == math.ceil(samples * 16_000 / rate)
    assert len(found) >= 1
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_16_khz_is_passed_through():
    samples = np.ones(10, np.float32)
    assert resample(samples, 16_000) is samples


# --- segments -----------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 0.25), (0.5, 1.0), (0.7501, 0.76), (1.2, math.nan)]
)
def test_a_segment_is_a_slice_of_the_file(tmp_path, kind, start, end):
    path = write(tmp_path, kind, sound(1.5, 16_000, 2))
    whole = read_clip(path)
    clip = read_clip(path, start=start, end=end)
    last = len(whole.samples) if math.isnan(end) else round(end * whole.rate)
    expected = whole.samples[round(start * whole.rate) : last]
    assert clip.rate == whole.rate
    assert clip.samples.shape == expected.shape
    np.testing.assert_allclose(clip.samples, expected, rtol=0, atol=SEGMENT_ATOL.get(kind, 0))


@pytest.mark.parametrize("rate", [8000, 44_100, 96_000])
def test_a_segment_is_cut_at_the_rate_of_the_file(tmp_path, rate):
    path = write(tmp_path, "wav-pcm16", sound(1.0, rate), rate)
    whole, _ = soundfile.read(path, dtype="float32")
    first, last = round(0.3337 * rate), round(0.8003 * rate)
    found = read_clip(path, start=0.3337, end=0.8003).samples
    np.testing.assert_array_equal(found, whole[first:last])
    np.testing.assert_array_equal(
        load_audio(path, start=0.3337, end=0.8003), resample(whole[first:last], rate)
    )


@EVERY
def test_the_rest_of_the_file_is_not_decoded(tmp_path, kind, monkeypatch):
    path = write(tmp_path, kind, sound(2.0, 16_000))
    read = soundfile.SoundFile.read
    frames: list[int] = []

    def counted(file, *args, **kwargs):
        block = read(file, *args, **kwargs)
        frames.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    clip = read_clip(path, start=1.0, end=1.1)
    assert len(clip.samples) == round(1.1 * clip.rate) - round(clip.rate)
    assert sum(frames) == len(clip.samples) + (audio._MP3_LEAD if kind == "mp3" else 0)


def test_an_unknown_start_or_end_is_that_of_the_file(tmp_path):
    path = write(tmp_path, "flac", sound(0.5, 16_000))
    whole = read_clip(path)
    assert read_clip(path, start=math.nan, end=math.nan).sha256 == whole.sha256
    assert read_clip(path, start=0.0, end=0.5).sha256 == whole.sha256


def test_a_rounded_end_may_leave_the_file_a_little(tmp_path):
    path = write(tmp_path, "flac", sound(0.5, 16_000))
    assert len(read_clip(path, start=0.2, end=0.55).samples) == 4800
    assert "0.500 s long" in refused(path, start=0.2, end=0.56)


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (5.0, math.nan, "leaves the file"),
        (0.5, math.nan, "leaves the file"),
        (0.2, 3.0, "leaves the file"),
        (0.3, 0.3, "holds no sample"),
        (0.3, 0.2, "holds no sample"),
        (0.3, 0.30001, "holds no sample"),
        (0.0, -1.0, "holds no sample"),
        (-0.1, 0.2, "expected seconds from 0"),
        (0.1, math.inf, "expected seconds from 0"),
        (math.inf, math.nan, "expected seconds from 0"),
        (-math.inf, 0.2, "expected seconds from 0"),
    ],
)
def test_a_segment_that_the_file_does_not_have(tmp_path, start, end, reason):
    path = write(tmp_path, "wav-pcm16", sound(0.5, 16_000))
    assert reason in refused(path, start=start, end=end)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 10**7),
    st.sampled_from([8000, 16_000, 44_100]),
    st.floats(0, 700),
    st.floats(0, 700),
)
def test_a_span_lies_in_the_file_or_is_refused(samples, rate, start, end):
    try:
        first, count = span(AudioInfo(rate, 1, samples), start, end)
    except AudioError:
        return
    assert count >= 1
    assert 0 <= first < first + count <= samples
    assert abs(first - start * rate) <= 0.5
    assert abs(first + count - end * rate) <= 0.5 or first + count == samples


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("headed", [True, False])
def test_an_mp3_is_decoded_with_the_bits_of_earlier_frames(tmp_path, monkeypatch, rate, headed):
    path = tmp_path / "a.mp3"
    frames = write_mp3(path, loud_and_silent(rate, loud_first=True), rate, "VARIABLE")
    whole = soundfile.read(path, dtype="float32")[0]
    if not headed:
        path.write_bytes(b"".join(frames[1:]))
        whole = read_clip(path).samples
    for start in np.arange(0.11, 3.9, 0.1):
        found = read_clip(path, start=start, end=start + 0.1).samples
        expected = whole[round(start * rate) :][: len(found)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    monkeypatch.setattr(audio, "_BLOCK", 5000)
    np.testing.assert_allclose(read_clip(path).samples, whole, rtol=0, atol=1e-6)


def test_a_segment_of_a_codec_that_cannot_seek(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(1.0, 8000), 8000, subtype="GSM610")
    whole = read_clip(path).samples
    found = read_clip(path, start=0.5, end=0.75).samples
    np.testing.assert_array_equal(found, whole[4000:6000])


@EVERY
def test_a_survey_and_a_decoder_find_the_same_segment(tmp_path, kind):
    path = write(tmp_path, kind, sound(1.0, 16_000))
    for start, end in ((0.0, math.nan), (0.25, 0.5), (0.9, 1.04)):
        info, count = probe_segment(path, start=start, end=end)
        assert info == probe(path)
        assert count == len(read_clip(path, start=start, end=end).samples)


# --- mp3 without a Xing header ------------------------------------------------------------------

XING_DELAY = 576 + 529  # LAME's delay and that of a decoder, which a Xing header lets it cut off
ID3V1 = b"TAG".ljust(128, b"x")
ID3V2 = b"ID3\x04\x00\x00\x00\x00\x01\x00" + b"\xff\xfb\x90\x00".ljust(128, b"\0")
ID3V2_WITH_FOOTER = ID3V2[:5] + b"\x10" + ID3V2[6:] + b"3DI" + ID3V2[3:10]
APE = b"APETAGEX" + (2000).to_bytes(4, "little") + (40).to_bytes(4, "little") + bytes(16 + 40)


def mpeg(path: Path) -> list[bytes]:
    """Frames of an mp3; the first is the Xing header that libsndfile writes."""
    data, frames = path.read_bytes(), []
    while data:
        header = _header(data[:4])
        assert header is not None
        frames.append(data[: header.size])
        data = data[header.size :]
    return frames


def write_mp3(path: Path, samples: np.ndarray, rate: int, mode: str) -> list[bytes]:
    soundfile.write(path, samples, rate, bitrate_mode=mode, compression_level=0.5)
    return mpeg(path)


def loud_and_silent(rate: int, *, loud_first: bool, channels: int = 1) -> np.ndarray:
    samples = np.random.default_rng(0).normal(0, 0.2, (4 * rate, channels))
    samples[rate:] *= loud_first < 1
    samples[:rate] *= loud_first
    return samples


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("loud_first", [True, False])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16_000, 2), (22_050, 1), (44_100, 2)])
def test_mp3_without_a_xing_header(tmp_path, mode, loud_first, rate, channels):
    samples = loud_and_silent(rate, loud_first=loud_first, channels=channels)
    path = tmp_path / "a.mp3"
    frames = write_mp3(path, samples, rate, mode)
    expected = read_clip(path).samples
    path.write_bytes(b"".join(frames[1:]))
    found = read_clip(path)
    assert probe(path).samples == len(found.samples) == (len(frames) - 1) * (1152, 576)[rate < 3e4]
    np.testing.assert_allclose(
        found.samples[XING_DELAY:][: len(expected)], expected, rtol=0, atol=1e-6
    )
    assert len(found.samples) >= XING_DELAY + len(expected)
    segment = read_clip(path, start=0.5, end=0.9).samples
    assert len(segment) == round(0.9 * rate) - round(0.5 * rate)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ID3V2, b""),
        (ID3V2 * 2, ID3V1),
        (ID3V2_WITH_FOOTER, b""),
        (b"", APE + ID3V1),
        (b"", bytes(5000)),
        (b"", b"LYRICSBEGIN and so on"),
        (b"\x12\x34\xff\xfb" * 30, b""),  # the end of a frame, as captured streams begin
    ],
)
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_what_is_around_mpeg_frames_is_no_sound(tmp_path, before, after, mode):
    path = tmp_path / "a.mp3"
    samples = loud_and_silent(44_100, loud_first=True)
    body = b"".join(write_mp3(path, samples, 44_100, mode)[1:])
    path.write_bytes(body)
    expected = read_clip(path)
    path.write_bytes(before + body + after)
    assert probe(path).samples == len(expected.samples)
    assert read_clip(path).sha256 == expected.sha256


def test_a_constant_rate_of_which_the_first_frame_is_a_long_one(tmp_path):
    # libsndfile reads no further than the size of the file divided by that of the first frame.
    path = tmp_path / "a.mp3"
    frames = write_mp3(path, sound(4.0, 44_100), 44_100, "CONSTANT")[1:]
    sizes = [len(frame) for frame in frames]
    assert max(sizes) == min(sizes) + 1
    first = sizes.index(max(sizes))
    path.write_bytes(b"".join(frames[first:]))
    assert soundfile.info(path).frames < (len(frames) - first) * 1152
    assert len(read_clip(path).samples) == (len(frames) - first) * 1152 == probe(path).samples


def test_first_frames_that_name_no_length(tmp_path):
    path = tmp_path / "a.mp3"
    xing, *frames = write_mp3(path, loud_and_silent(16_000, loud_first=True), 16_000, "VARIABLE")
    path.write_bytes(b"".join(frames))
    expected = read_clip(path)
    at = xing.index(b"Xing")
    without_count = xing[: at + 7] + bytes([xing[at + 7] & ~1]) + xing[at + 8 :]
    count_of_zero = xing[: at + 8] + bytes(4) + xing[at + 12 :]
    vbri = (xing[:4] + bytes(32) + b"VBRI").ljust(len(xing), b"\0")
    for first in (without_count, count_of_zero, vbri):
        path.write_bytes(ID3V2 + first + b"".join(frames))
        assert probe(path).samples == len(expected.samples)
        assert read_clip(path).sha256 == expected.sha256


def test_mp3_files_that_were_strung_together(tmp_path):
    path = tmp_path / "a.mp3"
    samples = loud_and_silent(16_000, loud_first=True)
    frames = write_mp3(path, samples, 16_000, "VARIABLE")[1:]
    path.write_bytes((ID3V2 + b"".join(frames) + ID3V1) * 3)
    assert probe(path).samples == len(read_clip(path).samples) == 3 * 576 * len(frames)


def silent_mpeg(version: int, layer: int, index: int, rate: int, mono: int) -> bytes | None:
    """A frame of zeros, which is silence; None where the standard has no such frame."""
    word = 0x7FF << 21 | version << 19 | (4 - layer) << 17 | 1 << 16 | index << 12 | rate << 10
    head = (word | mono * 0xC0).to_bytes(4, "big")
    found = _header(head)
    return found and head.ljust(found.size, b"\0")


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("version", [0, 2, 3])
def test_every_size_of_mpeg_frames_against_libsndfile(tmp_path, version, layer):
    path = tmp_path / "a.mp3"
    for index in range(1, 15):
        for rate in range(3):
            frame = silent_mpeg(version, layer, index, rate, mono=index % 2)
            assert frame is not None
            path.write_bytes(frame * 12)
            # 12 frames of one size: here its guess is right, and the decoder finds all of them.
            expected, decoded_rate = soundfile.read(path)
            assert probe(path) == AudioInfo(decoded_rate, 2 - index % 2, len(expected))
            assert len(read_clip(path).samples) == len(expected)


def test_headers_that_are_none():
    frame = silent_mpeg(3, 3, 9, 0, 1)
    assert frame is not None
    assert _header(frame[:4]) is not None
    assert silent_mpeg(1, 3, 9, 0, 1) is None
    assert silent_mpeg(3, 4, 9, 0, 1) is None
    assert silent_mpeg(3, 3, 0, 0, 1) is None
    assert silent_mpeg(3, 3, 15, 0, 1) is None
    assert silent_mpeg(3, 3, 9, 3, 1) is None
    assert _header(frame[:3]) is None
    assert _header(b"\0" + frame[1:4]) is None


@pytest.mark.parametrize("lost", [1, 50, 100])
def test_an_mp3_without_a_xing_header_that_was_cut_off(tmp_path, lost):
    path = tmp_path / "a.mp3"
    frames = write_mp3(path, sound(2.0, 16_000), 16_000, "CONSTANT")[1:]
    path.write_bytes(b"".join(frames)[:-lost])
    assert "truncated: the last MPEG frame has" in refused(path)
    with pytest.raises(AudioError, match="copy the file again"):
        probe(path)


def test_an_mp3_without_a_xing_header_that_is_damaged(tmp_path):
    path = tmp_path / "a.mp3"
    frames = write_mp3(path, sound(2.0, 16_000), 16_000, "CONSTANT")[1:]
    half = len(frames) // 2
    body = b"".join(frames[:half])
    path.write_bytes(body + bytes(100) + b"".join(frames[half:]))
    assert f"no MPEG frame at byte {len(body)} of" in refused(path)
    path.write_bytes(body + bytes(200_000))
    assert "damaged" in refused(path)
    other = mpeg(write(tmp_path, "mp3", sound(1.0, 22_050), 22_050))[1:]
    path.write_bytes(b"".join([*frames, *other]))
    assert f"no MPEG frame at byte {len(b''.join(frames))} of" in refused(path)


def test_counting_frames_does_not_read_the_sound(tmp_path, monkeypatch):
    path = tmp_path / "a.mp3"
    frames = write_mp3(path, sound(2.0, 16_000), 16_000, "CONSTANT")[1:]
    path.write_bytes(b"".join(frames))
    monkeypatch.setattr("featurestore.containers.MpegFrames.stream", None)
    assert probe(path).samples == 576 * len(frames)


# --- fingerprints -------------------------------------------------------------------------------


def test_the_hash_is_of_the_samples_and_not_of_the_container(tmp_path):
    samples = pcm16(sound(0.5, 16_000, 2))
    wav, flac = (write(tmp_path, kind, samples) for kind in ("wav-pcm16", "flac"))
    assert read_clip(wav).sha256 == read_clip(flac).sha256
    assert len(read_clip(wav).sha256) == 64
    segments = [read_clip(path, start=0.1, end=0.2).sha256 for path in (wav, flac)]
    assert segments[0] == segments[1] != read_clip(wav).sha256


def test_the_hash_sees_one_bit_and_channels_that_average_the_same(tmp_path):
    samples = pcm16(sound(0.1, 16_000, 2))
    before = read_clip(write(tmp_path, "wav-pcm16", samples))
    swapped = read_clip(write(tmp_path, "wav-pcm16", samples[:, ::-1]))
    np.testing.assert_array_equal(before.samples, swapped.samples)
    assert before.sha256 != swapped.sha256
    samples[700, 1] ^= 1
    assert read_clip(write(tmp_path, "wav-pcm16", samples)).sha256 != before.sha256


# --- what cannot be decoded ---------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    path = tmp_path / "nowhere.wav"
    assert "file not found" in refused(path)
    with pytest.raises(AudioError, match="file not found"):
        probe(path)


def test_an_empty_file(tmp_path):
    path = tmp_path / "empty.wav"
    path.touch()
    assert "empty" in refused(path)


def test_a_folder(tmp_path):
    path = tmp_path / "folder.wav"
    path.mkdir()
    assert "folder" in refused(path)


def test_a_name_longer_than_the_file_system_allows(tmp_path):
    assert "too long" in refused(tmp_path / ("x" * 300 + ".wav"))


def test_a_name_with_a_nul(tmp_path):
    refused(f"{tmp_path}/a\0b.wav")


def test_a_link_to_itself(tmp_path):
    path = tmp_path / "loop.wav"
    path.symlink_to(path)
    assert os.strerror(errno.ELOOP) in refused(path)


def test_a_file_that_the_system_does_not_let_us_see(tmp_path, monkeypatch):
    path = write(tmp_path, "flac", sound(0.1, 16_000))
    real = os.stat

    def denied(name, *args, **kwargs):
        if os.fspath(name) == os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "stat", denied)
    message = refused(path)
    monkeypatch.undo()
    assert "Permission denied" in message


def test_a_file_that_the_system_does_not_let_us_read(tmp_path, monkeypatch):
    path = write(tmp_path, "mp3", sound(0.1, 16_000))
    real = builtins.open

    def denied(name, *args, **kwargs):
        if name == os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", denied)
    message = refused(path)
    monkeypatch.undo()
    assert "Permission denied" in message


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_the_permission_to_read_it(tmp_path):
    path = write(tmp_path, "wav-pcm16", sound(0.1, 16_000))
    path.chmod(0)
    assert "Permission denied" in refused(path)


@pytest.mark.parametrize("name", ["a\nb.wav", "a\r\tb.wav", "\x1b[31m.wav", "a\u2028b.wav"])
def test_a_name_that_would_break_the_line(tmp_path, name):
    path = tmp_path / name
    assert "file not found" in refused(path)
    path.write_bytes(b"no audio at all")
    assert "not a readable audio file" in refused(path)
    soundfile.write(path, sound(0.1, 16_000), 16_000)
    assert "leaves the file" in refused(path, start=9.0)
    assert load_audio(path).shape == (1600,)


def test_a_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "pipe.wav"
    os.mkfifo(path)
    assert "empty" in refused(path)


@pytest.mark.parametrize("rate", [1, 100, 999, 768_001, 2**31 - 1])
def test_a_sampling_rate_that_nobody_records_with(tmp_path, rate):
    path = write(tmp_path, "wav-pcm16", sound(0.1, 16_000))
    data = bytearray(path.read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(data)
    message = refused(path)
    assert f"sampling rate of {rate} Hz, 1000 to 768000 Hz are read" in message
    with pytest.raises(AudioError, match="sampling rate"):
        probe(path)


@pytest.mark.parametrize("rate", [1000, 768_000])
def test_the_lowest_and_highest_sampling_rates(tmp_path, rate):
    path = write(tmp_path, "wav-pcm16", np.zeros(2000), rate)
    assert load_audio(path).shape == (resampled_length(2000, rate),)


def test_a_survey_names_the_file_of_every_problem(tmp_path):
    path = str(write(tmp_path, "wav-pcm16", sound(0.5, 16_000)))
    none = str(write(tmp_path, "wav-float", np.zeros((0, 1))))
    manifest = pd.DataFrame(
        {
            "id": ["whole", "late", "none", "missing", "empty"],
            "path": [path, path, none, str(tmp_path / "nowhere.wav"), path],
            "start": [0.0, 7.0, math.nan, 0.0, 0.2],
            "end": [math.nan, 8.0, math.nan, 1.0, 0.2],
        }
    )
    measured, problems = survey(manifest, None, lambda _: None)
    assert measured.keys() == {"whole"}
    assert problems.keys() == {"late", "none", "missing", "empty"}
    for id, name in zip(manifest["id"][1:], manifest["path"][1:], strict=True):
        assert problems[id].endswith(f": {name}")
        assert "\n" not in problems[id]


@pytest.mark.parametrize("kind", ["wav-pcm16", "wav-float", "wavex", "rf64"])
def test_no_samples(tmp_path, kind):
    message = refused(write(tmp_path, kind, np.zeros((0, 1))))
    assert "no samples" in message


def test_no_samples_is_not_what_a_probe_fails_at(tmp_path):
    assert probe(write(tmp_path, "wav-pcm16", np.zeros((0, 1)))).samples == 0


JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x48\x00\x48\x00\x00\xff\xdb\x00\x43\x00"


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "opus", "mp3", "raw", ""])
@pytest.mark.parametrize("size", [20, 5000, 200_000])
def test_a_renamed_picture(tmp_path, ending, size):
    path = tmp_path / f"picture.{ending}"
    noise = np.random.default_rng(size).integers(0, 250, size, np.uint8).tobytes()
    path.write_bytes((JPEG + noise)[:size])
    message = refused(path)
    assert "not a readable audio file" in message
    assert "wav, flac, ogg, opus and mp3" in message
    assert "does not exist" not in message


@pytest.mark.parametrize("kind", ["wav-pcm16", "flac", "vorbis", "opus", "mp3"])
def test_only_the_first_bytes_of_a_file(tmp_path, kind):
    path = write(tmp_path, kind, sound(0.5, 16_000))
    data = path.read_bytes()
    for size in (1, 4, 12, 40):
        path.write_bytes(data[:size])
        refused(path)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["wav-pcm16", "wav-pcm24", "flac", "vorbis", "opus", "mp3"])
def test_a_file_that_was_cut_off(tmp_path, kind, share):
    path = write(tmp_path, kind, sound(2.0, 16_000))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


@pytest.mark.parametrize("lost", [1, 2, 50])
@pytest.mark.parametrize("kind", ["wav-pcm16", "wavex", "flac", "vorbis", "opus", "mp3"])
def test_a_file_that_lost_its_last_bytes(tmp_path, kind, lost):
    # Ogg: the last page may hold seconds, and its header alone says that the stream ends.
    path = write(tmp_path, kind, sound(2.0, 16_000))
    path.write_bytes(path.read_bytes()[:-lost])
    assert "truncated" in refused(path)


@pytest.mark.parametrize("kind", ["wav-pcm16", "vorbis", "opus"])
def test_a_probe_notices_a_cut_before_anything_is_planned(tmp_path, kind):
    path = write(tmp_path, kind, sound(2.0, 16_000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AudioError, match="truncated"):
        probe(path)


OTHERS = [
    ("AIFF", "PCM_16"),
    ("AIFF", "FLOAT"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("W64", "PCM_16"),
    ("NIST", "PCM_16"),
    ("NIST", "ULAW"),
    ("RF64", "PCM_16"),
    ("SVX", "PCM_16"),
    ("VOC", "PCM_16"),
    ("MAT4", "PCM_16"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "GSM610"),
]


@pytest.mark.parametrize(("container", "subtype"), OTHERS)
def test_other_containers_are_read_whole_and_not_in_part(tmp_path, container, subtype):
    path = tmp_path / "other.bin"
    soundfile.write(path, sound(1.0, 16_000), 16_000, format=container, subtype=subtype)
    expected, _ = soundfile.read(path, frames=soundfile.info(path).frames, dtype="float32")
    np.testing.assert_array_equal(load_audio(path), expected)
    assert probe(path).samples == len(expected) >= 16_000
    data = path.read_bytes()
    for lost in (1000, len(data) // 2):
        path.write_bytes(data[:-lost])
        refused(path)
        with pytest.raises(AudioError):
            probe(path)


@pytest.mark.parametrize("total", [0, 2**36 - 1, 2**33])
def test_a_flac_header_without_a_believable_length(tmp_path, total):
    # 0 is what an encoder writes into a pipe; libsndfile makes 2^63 - 1 samples of it.
    path = write(tmp_path, "flac", sound(0.5, 16_000))
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | total >> 32
    data[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    assert "believable length" in refused(path)
    with pytest.raises(AudioError, match="believable length"):
        probe(path)


def test_digital_silence_packs_well_and_is_believed(tmp_path):
    for kind in ("flac", "vorbis", "opus", "mp3"):
        path = write(tmp_path, kind, np.zeros(16_000 * 120), 16_000)
        assert probe(path).samples >= 16_000 * 120, path.stat().st_size


def test_a_flac_that_promises_more_than_it_holds(tmp_path):
    path = write(tmp_path, "flac", sound(0.5, 16_000))
    data = bytearray(path.read_bytes())
    data[22:26] = (9000).to_bytes(4, "big")
    path.write_bytes(data)
    assert "truncated" in refused(path)


@pytest.mark.parametrize("kind", ["wav-float", "wav-double"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_samples_that_are_no_numbers(tmp_path, kind, value):
    samples = sound(0.5, 16_000, 2)
    samples[800, 1] = value
    message = refused(write(tmp_path, kind, samples))
    assert "sample 800 (0.050 s) is not a finite number" in message


def test_infinities_that_cancel_and_sums_that_overflow(tmp_path):
    for pair in ([math.inf, -math.inf], [3e38, 3e38]):
        samples = np.array([[0.0, 0.0], pair])
        assert "sample 1 " in refused(write(tmp_path, "wav-float", samples))


@pytest.mark.parametrize("value", [1.1e6, -1e20, 3e38])
def test_samples_far_beyond_full_scale(tmp_path, value):
    samples = sound(0.5, 16_000)
    samples[800] = value
    path = write(tmp_path, "wav-float", samples)
    message = refused(path, start=0.01)
    assert f"sample 800 (0.050 s) is {value:g}, full scale is 1 and up to 1e+06 is read" in message
    assert load_audio(path, start=0.1).shape == (6400,)


def test_floats_with_the_scale_of_integers_are_left_alone(tmp_path):
    samples = np.full(1600, -1e6)
    np.testing.assert_array_equal(load_audio(write(tmp_path, "wav-float", samples)), samples)


def test_not_a_number_outside_the_segment_does_not_matter(tmp_path):
    samples = sound(0.5, 16_000)
    samples[7000] = math.nan
    path = write(tmp_path, "wav-float", samples)
    assert load_audio(path, start=0.0, end=0.4).shape == (6400,)
    assert "not a finite number" in refused(path, start=0.4)


def test_files_are_closed_and_can_be_replaced(tmp_path):
    path = write(tmp_path, "wav-pcm16", sound(0.5, 16_000))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        probe(path)
        load_audio(path)
        refused(path, start=9.0)
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert after == before
