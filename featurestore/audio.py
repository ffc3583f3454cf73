"""Audio files to mono float samples. The only module that decodes.

libsndfile reads wav, flac, ogg/opus and mp3; soxr resamples. Everything that a header can tell is
read without decoding, so that a plan is exact before any work starts.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from featurestore.errors import AudioError
from featurestore.types import SAMPLE_RATE

_BLOCK = 1 << 20  # samples per channel decoded at a time, so that channels do not pile up in memory
# Annotations are rounded: a segment may end this much beyond its file, and is cut there.
_END_TOLERANCE_S = 0.05
# A data chunk this long is what streaming writers put when they cannot know the length.
_STREAMED = 0x7FFF_0000
# No format packs more samples of a channel into a byte (flac and opus reach about 5,000 in digital
# silence). A header that promises more is damaged, or holds libsndfile's mark for "unknown".
_SAMPLES_PER_BYTE = 8192


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
class Clip:
    """A decoded segment.

    Attributes:
        samples: mono float32 in [-1, 1], all finite.
        rate: sampling rate in Hz.
        sha256: of the decoded float32 samples of all channels, before the downmix.
    """

    samples: Float[np.ndarray, " sample"]
    rate: int
    sha256: str


def _open(path: str | os.PathLike[str]) -> soundfile.SoundFile:
    name = os.fspath(path)
    try:
        size = os.stat(name).st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = "file not found" if isinstance(error, FileNotFoundError) else None
        reason = reason or getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{reason}: {name}") from None
    if os.path.isdir(name):
        raise AudioError(f"a folder, not an audio file: {name}")
    if not size:
        raise AudioError(f"empty file (0 bytes): {name}")
    try:
        return soundfile.SoundFile(name)
    except (soundfile.LibsndfileError, TypeError) as error:
        # TypeError: soundfile takes a file of unknown ending for headerless samples.
        detail = getattr(error, "error_string", "")
        # libsndfile says "does not exist" of an mp3 without a single frame.
        if not detail or "does not exist" in detail:
            detail = "format not recognised"
        raise AudioError(
            f"not a readable audio file ({detail.strip(' .')}): {name}; "
            "wav, flac, ogg, opus and mp3 are read"
        ) from None


def _refuse_cut_file(file: soundfile.SoundFile, path: str) -> None:
    """Libsndfile shortens wav and ogg files that were cut off without a word; notice them here."""
    size = os.stat(path).st_size
    if file.frames > size * _SAMPLES_PER_BYTE:
        raise AudioError(
            f"the header does not state a believable length ({file.frames} samples in {size} bytes,"
            f" as streaming encoders write it): {path}; re-encode it to a file"
        )
    if file.format in ("WAV", "WAVEX", "RF64"):
        found = re.search(r"data\s*:\s*(\d+) \(should be (\d+)\)", file.extra_info)
        if found and int(found[2]) < int(found[1]) < _STREAMED:
            raise AudioError(
                f"truncated: the header promises {found[1]} bytes of samples, the file holds "
                f"{found[2]}: {path}"
            )
    elif file.format == "OGG":
        with open(path, "rb") as raw:
            raw.seek(max(0, size - (1 << 17)))  # a page has at most 65,307 bytes
            tail = raw.read()
        if not _ends_stream(tail[max(0, tail.rfind(b"OggS")) :]):
            raise AudioError(f"truncated: no complete end-of-stream page: {path}")


def _ends_stream(page: bytes) -> bool:
    """Whether bytes begin with a whole Ogg page (RFC 3533, section 6) that ends its stream."""
    if len(page) < 27 or not page.startswith(b"OggS") or not page[5] & 0x04:
        return False
    segments = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(segments)


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """What the header of an audio file says, without decoding it.

    Raises:
        AudioError: no such file, an empty or cut one, or not audio.
    """
    with _open(path) as file:
        _refuse_cut_file(file, os.fspath(path))
        return AudioInfo(file.samplerate, file.channels, file.frames)


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


def _blocks(file: soundfile.SoundFile, count: int) -> Iterator[np.ndarray]:
    remaining = count
    while remaining:
        block = file.read(min(_BLOCK, remaining), dtype="float32", always_2d=True)
        if not len(block):
            return
        remaining -= len(block)
        yield block


def read_clip(path: str | os.PathLike[str], *, start: float = 0.0, end: float = math.nan) -> Clip:
    """Decode a file, or only the part of it between `start` and `end`, to mono at its own rate.

    Args:
        path: wav, flac, ogg, opus or mp3.
        start: seconds; NaN is the beginning.
        end: seconds; NaN is the end of the file.

    Raises:
        AudioError: a file that cannot be decoded whole, holds values that are not finite, or a
            segment that leaves it.
    """
    digest = hashlib.sha256()
    with _open(path) as file:
        _refuse_cut_file(file, os.fspath(path))
        info = AudioInfo(file.samplerate, file.channels, file.frames)
        try:
            first, count = span(info, start, end)
        except AudioError as error:
            raise AudioError(f"{error}: {os.fspath(path)}") from None
        samples = np.empty(count, np.float32)
        done = 0
        try:
            if first:
                file.seek(first)
            for block in _blocks(file, count):
                digest.update(block.data)
                with np.errstate(invalid="ignore", over="ignore"):  # refused below
                    samples[done : done + len(block)] = block.mean(axis=1, dtype=np.float32)
                done += len(block)
        except soundfile.LibsndfileError as error:
            detail = error.error_string.strip(" .") or "the decoder lost its place"
            raise AudioError(f"damaged or truncated ({detail}): {path}") from None
    if done < count:
        raise AudioError(
            f"truncated: the header promises {count} samples, {done} could be decoded: {path}"
        )
    if not np.isfinite(samples).all():
        bad = int(np.argmin(np.isfinite(samples)))
        raise AudioError(f"sample {bad} ({bad / info.rate:.3f} s) is not a finite number: {path}")
    return Clip(samples, info.rate, digest.hexdigest())


def load_audio(
    path: str | os.PathLike[str], *, start: float = 0.0, end: float = math.nan
) -> Float[np.ndarray, " sample"]:
    """Decode a file or a part of it to mono float32 at 16 kHz.

    Args:
        path: wav, flac, ogg, opus or mp3, any rate and number of channels.
        start: seconds.
        end: seconds; NaN is the end of the file.

    Raises:
        AudioError: as `read_clip`.
    """
    clip = read_clip(path, start=start, end=end)
    return resample(clip.samples, clip.rate)
