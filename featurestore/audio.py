"""Audio files to mono float samples. The only module that decodes.

libsndfile reads wav, flac, ogg/opus and mp3, and aiff, au, caf, w64, nist and more; soxr resamples.
Everything that a header can tell is read without decoding, so that a plan is exact before any work
starts. `containers` says in which formats a file that was cut off is noticed.
A path may be the URL of an object, such as `s3://bucket/a.wav`; `sources` opens it.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from featurestore.containers import MpegFrames, mpeg_frames, refuse_cut
from featurestore.errors import AudioError
from featurestore.sources import HEADER_BLOCK, SEGMENT_BLOCK, open_sound, open_source
from featurestore.types import SAMPLE_RATE

_BLOCK = 1 << 20  # samples per channel decoded at a time, so that channels do not pile up in memory
# Annotations are rounded: a segment may end this much beyond its file, and is cut there.
_END_TOLERANCE_S = 0.05
# Hz. What is beyond is damage: telephones have 8,000, the fastest converters 768,000.
_RATES = (1_000, 768_000)
# Full scale is 1, and floats with the range of 16-bit integers reach 32,768. What is beyond this is
# damage, which may overflow a power spectrum in float32.
_LOUDEST = 1e6
# An mp3 frame may have bits in those before it. After a seek, which soundfile does after every
# read, libsndfile goes back too few of them, and up to a frame is wrong. At a variable bit rate 4
# frames of lead left 1 of 64 segments wrong, 10 none.
_MP3_LEAD = 10 * 1152


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    Attributes:
        rate: sampling rate in Hz.
        channels: number of channels.
        samples: samples per channel.
    """

    rate: int
    channels: int
    samples: int


@dataclass(frozen=True)
class _Found:
    """A header, and the frames of an mp3 whose header says nothing."""

    info: AudioInfo
    frames: MpegFrames | None


@dataclass(frozen=True)
class Clip:
    """A decoded segment.

    Attributes:
        samples: mono float32 with full scale 1, all finite and none beyond 1e6.
        rate: sampling rate in Hz.
        sha256: of the decoded float32 samples of all channels, before the downmix.
    """

    samples: Float[np.ndarray, " sample"]
    rate: int
    sha256: str


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the name of the file to every error; on one line, whatever characters are in it."""
    try:
        yield
    except AudioError as error:
        name = os.fsdecode(path)
        raise AudioError(f"{error}: {name if name.isprintable() else repr(name)}") from None


@contextmanager
def _open(
    path: str | os.PathLike[str], *, block: int | None = HEADER_BLOCK
) -> Iterator[tuple[soundfile.SoundFile, BinaryIO, _Found]]:
    """A file that is neither cut nor absurd, its bytes, and what its header says.

    Args:
        path: a file or a URL.
        block: bytes of an object to fetch at a time; None for all of it at once.
    """
    name = os.fspath(path)
    with open_source(name, block) as (source, raw, size), open_sound(source) as file:
        low, high = _RATES
        if not low <= file.samplerate <= high:
            raise AudioError(
                f"the header states a sampling rate of {file.samplerate} Hz, {low} to {high} Hz "
                "are read; correct the header, or re-encode the file"
            )
        refuse_cut(file, raw, size)
        frames = mpeg_frames(raw, file.samplerate) if file.format == "MP3" else None
        samples = file.frames if frames is None else frames.samples
        yield file, raw, _Found(AudioInfo(file.samplerate, file.channels, samples), frames)


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """What the header of an audio file says, without decoding it.

    An mp3 without a Xing header says nothing; its frames are counted.

    Args:
        path: as `read_clip`. Of an object, a few hundred KiB are fetched; all of an mp3 without a
            Xing header.

    Raises:
        AudioError: no such file, an empty or cut one, or not audio.
    """
    with _naming(path), _open(path) as (_, _, found):
        return found.info


def probe_segment(
    path: str | os.PathLike[str], *, start: float = 0.0, end: float = math.nan
) -> tuple[AudioInfo, int]:
    """What the header says, and the number of samples that `read_clip` decodes of a segment.

    Args:
        path: as `read_clip`.
        start: seconds; NaN is the beginning.
        end: seconds; NaN is the end of the file.

    Raises:
        AudioError: as `probe` and `span`.
    """
    with _naming(path), _open(path) as (_, _, found):
        return found.info, span(found.info, start, end)[1]


def span(info: AudioInfo, start: float = 0.0, end: float = math.nan) -> tuple[int, int]:
    """First sample and number of samples of a segment.

    Args:
        info: the file's header.
        start: seconds; NaN is the beginning.
        end: seconds; NaN is the end of the file.

    Raises:
        AudioError: no samples, a segment without a sample, one that begins before 0 or is
            infinite, or one that leaves the file by more than 0.05 s.
    """
    duration = info.samples / info.rate
    if not info.samples:
        raise AudioError("the file holds no samples")
    if start < 0 or math.isinf(start) or math.isinf(end):
        raise AudioError(
            f"segment {start:g}-{end:g} s: expected seconds from 0 to {duration:.3f}, or nothing"
        )
    first = 0 if math.isnan(start) else round(start * info.rate)
    last = info.samples if math.isnan(end) else round(end * info.rate)
    if last > info.samples + _END_TOLERANCE_S * info.rate or first >= info.samples:
        raise AudioError(
            f"segment {start:g}-{end:g} s leaves the file, which is {duration:.3f} s long"
        )
    last = min(last, info.samples)
    if last <= first:
        raise AudioError(f"segment {start:g}-{end:g} s holds no sample")
    return first, last - first


def resampled_length(samples: int, rate: int) -> int:
    """Samples at 16 kHz that `samples` at `rate` Hz become: rounded up, as librosa does."""
    return -(-samples * SAMPLE_RATE // rate)


def resample(samples: Float[np.ndarray, " sample"], rate: int) -> Float[np.ndarray, " sample"]:
    """Mono samples at `rate` Hz to 16 kHz by soxr's high quality filter, as `librosa.load` does."""
    if rate == SAMPLE_RATE:
        return samples
    length = resampled_length(len(samples), rate)
    out = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")[:length]
    return np.pad(out, (0, length - len(out)))


def _blocks(file: soundfile.SoundFile, first: int, count: int) -> Iterator[np.ndarray]:
    """Samples of all channels from `first` on: (samples, channels)."""
    lead = _MP3_LEAD if file.format == "MP3" else 0
    if not file.seekable():  # gsm and other telephone codecs
        for skipped in range(0, first, _BLOCK):
            file.read(min(_BLOCK, first - skipped))
    done = 0
    while done < count:
        heard = min(first + done, lead)
        begin = first + done - heard
        if file.seekable() and file.tell() != begin:
            file.seek(begin)
        wanted = heard + min(_BLOCK, count - done)
        block = file.read(wanted, dtype="float32", always_2d=True)[heard:]
        if not len(block):
            return
        done += len(block)
        yield block


def _decode(file: soundfile.SoundFile, first: int, count: int) -> tuple[np.ndarray, str]:
    """Mono samples and the hash of all channels."""
    digest = hashlib.sha256()
    samples = np.empty(count, np.float32)
    done = 0
    try:
        for block in _blocks(file, first, count):
            digest.update(block.data)
            with np.errstate(invalid="ignore", over="ignore"):  # refused by _check_values
                samples[done : done + len(block)] = _downmix(block)
            done += len(block)
    except soundfile.LibsndfileError as error:
        detail = error.error_string.strip(" .") or "the decoder lost its place"
        raise AudioError(
            f"damaged or truncated ({detail}); copy the file again, or re-encode what is left of it"
        ) from None
    if done < count:
        raise AudioError(
            f"truncated: the header promises {first + count} samples, {first + done} could be "
            "decoded; copy the file again, or re-encode what is left of it"
        )
    return samples, digest.hexdigest()


def _check_values(samples: Float[np.ndarray, " sample"], first: int, rate: int) -> None:
    if samples.min() >= -_LOUDEST and samples.max() <= _LOUDEST:  # both false of NaN
        return
    bad = int(np.argmin(np.abs(samples) <= _LOUDEST))
    place = f"sample {first + bad} ({(first + bad) / rate:.3f} s)"
    if not np.isfinite(samples[bad]):
        raise AudioError(f"{place} is not a finite number; write the file again without it")
    raise AudioError(
        f"{place} is {samples[bad]:g}, full scale is 1 and up to {_LOUDEST:g} is read; "
        "the file is damaged or has another scale: divide it by that"
    )


def _downmix(block: np.ndarray) -> np.ndarray:
    """The average of the channels; NumPy takes its time over an average of one."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def read_clip(path: str | os.PathLike[str], *, start: float = 0.0, end: float = math.nan) -> Clip:
    """Decode a file, or only the part of it between `start` and `end`, to mono at its own rate.

    Args:
        path: wav, flac, ogg, opus or mp3; a file, or a URL such as `s3://bucket/a.wav`.
        start: seconds; NaN is the beginning.
        end: seconds; NaN is the end of the file.

    Raises:
        AudioError: a file that cannot be decoded whole, holds values that are not finite or beyond
            1e6, or a segment that leaves it.
    """
    every = not start > 0 and math.isnan(end)
    with _naming(path), _open(path, block=None if every else SEGMENT_BLOCK) as opened:
        file, raw, found = opened
        first, count = span(found.info, start, end)
        if found.frames is None:
            samples, digest = _decode(file, first, count)
        else:
            with open_sound(found.frames.stream(raw)) as whole:
                samples, digest = _decode(whole, first, count)
        _check_values(samples, first, found.info.rate)
    return Clip(samples, found.info.rate, digest)


def load_audio(
    path: str | os.PathLike[str], *, start: float = 0.0, end: float = math.nan
) -> Float[np.ndarray, " sample"]:
    """Decode a file or a part of it to mono float32 at 16 kHz.

    Args:
        path: wav, flac, ogg, opus or mp3, any rate and number of channels; a file or a URL.
        start: seconds.
        end: seconds; NaN is the end of the file.

    Raises:
        AudioError: as `read_clip`.
    """
    clip = read_clip(path, start=start, end=end)
    return resample(clip.samples, clip.rate)
