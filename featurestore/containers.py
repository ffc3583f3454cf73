"""Whether an audio file is whole and how long it is, where libsndfile keeps that to itself.

Libsndfile opens files that were cut off as if they were shorter, and guesses the length of an mp3
without a Xing header. A cut is noticed from the header in wav, rf64, w64, aiff, au, caf, 8svx, voc,
mat4 and nist files, from the last page in ogg and opus, and from the frames in mp3 without a Xing
header; in flac and mp3 with one it is noticed when fewer samples are decoded than the header
promises. The other formats that libsndfile opens are taken at its word.

Errors raised here do not name the file; the caller does.
"""

from __future__ import annotations

import functools
import io
import re
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import soundfile

from featurestore.errors import AudioError

# A data chunk this long is what streaming writers put when they cannot know the length.
_STREAMED = 0x7FFF_0000
# No format packs more samples of a channel into a byte (flac and opus reach about 5,000 in digital
# silence). A header that promises more is damaged, or holds libsndfile's mark for "unknown".
_SAMPLES_PER_BYTE = 8192
# What libsndfile logs of a chunk of samples that is longer than the rest of the file.
_CHUNK = re.compile(r"(?:data|Data Size|SSND|BODY|riff)\s*: (\d+) \(should be (\d+)\)")
_RF64 = re.compile(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)")
_NIST = re.compile(rb"sample_count -i (\d+)")
_WAY_OUT = "copy the file again, or re-encode what is left of it"


def refuse_cut(file: soundfile.SoundFile, raw: BinaryIO, size: int) -> None:
    """Notice what libsndfile passes over: headers that promise more than the file holds.

    Args:
        file: opened by libsndfile.
        raw: its bytes; ogg and nist are read a second time.
        size: number of them.

    Raises:
        AudioError: a file that was cut off, or a length that cannot be true.
    """
    if file.frames > size * _SAMPLES_PER_BYTE:
        raise AudioError(
            f"the header does not state a believable length ({file.frames} samples in {size} bytes,"
            " as streaming encoders write it); re-encode it to a file"
        )
    if file.format == "OGG":
        tail = _read(raw, max(0, size - (1 << 17)), 1 << 17)  # a page has at most 65,307 bytes
        if not _ends_stream(tail[max(0, tail.rfind(b"OggS")) :]):
            raise AudioError(f"truncated: no complete end-of-stream page; {_WAY_OUT}")
    elif file.format not in ("FLAC", "MP3"):  # whose log holds the text of their tags
        _refuse_promise(file, raw)


def _refuse_promise(file: soundfile.SoundFile, raw: BinaryIO) -> None:
    log = file.extra_info
    unit, promised, held = "bytes", 0, 0
    if found := _CHUNK.search(log):
        promised, held = int(found[1]), int(found[2])
    elif found := _RF64.search(log):
        unit, promised, held = "samples", int(found[2]), int(found[1])
    elif file.format == "NIST":
        count = _NIST.search(_read(raw, 0, 1024))
        unit, promised, held = "samples", int(count[1]) if count else 0, file.frames
    if held < promised < _STREAMED:
        amount = "bytes of samples" if unit == "bytes" else unit
        raise AudioError(
            f"truncated: the header promises {promised} {amount}, the file holds {held}; {_WAY_OUT}"
        )
    # Of a wav with an odd chunk, which is whole, the log may say so too.
    if file.format in ("VOC", "MAT4") and re.search("[Ss]eems to be (a )?truncated", log):
        raise AudioError(f"truncated: the header promises more than the file holds; {_WAY_OUT}")


def _ends_stream(page: bytes) -> bool:
    """Whether bytes begin with a whole Ogg page (RFC 3533, section 6) that ends its stream."""
    if len(page) < 27 or not page.startswith(b"OggS") or not page[5] & 0x04:
        return False
    segments = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(segments)


# --- mp3 without a Xing header ------------------------------------------------------------------

# Bit rates in kbit/s by version (1, or 2 and 2.5) and layer: ISO/IEC 11172-3 section 2.4.2.3 and
# 13818-3 section 2.4.2.3. Index 0 is a free rate, which no header states.
_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBITS = {
    (1, 1): tuple(range(32, 449, 32)),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): _LOW,
    (2, 3): _LOW,
}
_RATES = (44_100, 48_000, 32_000)
_WINDOW = 1 << 16  # bytes that are searched for a frame where none is expected


class _Header(NamedTuple):
    """Header of an MPEG frame.

    Attributes:
        kind: what all frames of a stream share: version, layer, sampling rate, mono or not.
        layer: 1, 2 or 3.
        side: bytes between the header and where a Xing tag would be.
        rate: sampling rate in Hz.
        size: bytes of the frame, header included.
        samples: samples per channel that it decodes to.
    """

    kind: int
    layer: int
    side: int
    rate: int
    size: int
    samples: int


@dataclass(frozen=True)
class MpegFrames:
    """Frames of an mp3 that does not say how long it is.

    Attributes:
        places: first byte and number of bytes of every frame.
        samples: samples per channel. Libsndfile decodes every frame to all of its samples: without
            a Xing header it does not know the encoder's delay and cuts nothing off.
    """

    places: list[tuple[int, int]]
    samples: int

    def stream(self, raw: BinaryIO) -> io.BytesIO:
        """The frames of an mp3 as a file that libsndfile decodes to the last one.

        Libsndfile divides the size of a file by that of its first frame and reads no further;
        zeros after the last frame make that guess large enough.
        """
        raw.seek(0)
        data = raw.read()
        frames = b"".join([data[at : at + size] for at, size in self.places])
        guessed = len(self.places) * (self.places[0][1] + 4) + 4096 if self.places else 0
        return io.BytesIO(frames.ljust(guessed, b"\0"))


def mpeg_frames(raw: BinaryIO, rate: int) -> MpegFrames | None:
    """Find the frames of an mp3; None if its first frame says how many there are.

    Reads frame headers, not the file. ID3 and APE tags are passed over where they stand.

    Args:
        raw: an mp3.
        rate: its sampling rate in Hz.

    Raises:
        AudioError: no frame, a last frame that was cut off, or something else between frames.
    """
    at = 0
    while skipped := _tag_size(raw, at):
        at += skipped
    first = _header_at(raw, at)
    if first is None or first.rate != rate:
        at = _search(raw, at, rate)
        first = _header_at(raw, at) if at >= 0 else None
    if first is None:
        raise AudioError("no MPEG frame with a stated bit rate at the start; re-encode it")
    tag = _read(raw, at, first.size)
    if _states_length(tag, first):
        return None
    if _is_tag(tag, first):
        at += first.size
    places = _walk(raw, at, first)
    return MpegFrames(places, len(places) * first.samples)


def _walk(raw: BinaryIO, at: int, first: _Header) -> list[tuple[int, int]]:
    end = raw.seek(0, io.SEEK_END)
    places = []
    while at < end:
        header = _header_at(raw, at)
        if header is not None and header.kind == first.kind:
            if at + header.size > end:
                raise AudioError(
                    f"truncated: the last MPEG frame has {end - at} of {header.size} bytes; "
                    f"{_WAY_OUT}"
                )
            places.append((at, header.size))
            at += header.size
        elif skipped := _tag_size(raw, at):
            at += skipped
        elif end - at <= _WINDOW and _search(raw, at) < 0:
            break  # padding, or a tag of another kind
        else:
            raise AudioError(
                f"damaged: no MPEG frame at byte {at} of {end}; "
                "re-encode it with a decoder that skips what is damaged"
            )
    return places


def _read(raw: BinaryIO, at: int, size: int) -> bytes:
    raw.seek(at)
    return raw.read(size)


def _header_at(raw: BinaryIO, at: int) -> _Header | None:
    raw.seek(at)
    return _header(raw.read(4))


@functools.lru_cache(maxsize=1024)  # a stream repeats a handful of headers
def _header(head: bytes) -> _Header | None:
    word = int.from_bytes(head, "big")
    version, layer = word >> 19 & 3, 4 - (word >> 17 & 3)  # version 3 is MPEG 1, 0 is 2.5
    index, rate_index, padding = word >> 12 & 15, word >> 10 & 3, word >> 9 & 1
    if len(head) < 4 or word >> 21 != 0x7FF or version == 1 or layer == 4:
        return None
    if index in (0, 15) or rate_index == 3:
        return None
    low = version != 3
    mono = (word >> 6 & 3) == 3
    rate = _RATES[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    bits = 1000 * _KBITS[1 + low, layer][index - 1]
    samples = {1: 384, 2: 1152, 3: 576 if low else 1152}[layer]
    slot = 4 if layer == 1 else 1  # bytes that sizes are rounded to
    size = (samples // 8 // slot * bits // rate + padding) * slot
    side = (9 if mono else 17) if low else (17 if mono else 32)
    return _Header(word & 0xFFFE_0C00 | mono, layer, side, rate, size, samples)


def _search(raw: BinaryIO, at: int, rate: int | None = None) -> int:
    """First byte of the next two frames in a row, at `rate` if it is given, or -1."""
    window = _read(raw, at, _WINDOW)
    place = window.find(b"\xff")
    while place >= 0:
        header = _header(window[place : place + 4])
        if header is not None and rate in (None, header.rate):
            following = _header_at(raw, at + place + header.size)
            if following is not None and following.kind == header.kind:
                return at + place
        place = window.find(b"\xff", place + 1)
    return -1


def _states_length(frame: bytes, header: _Header) -> bool:
    """Whether a first frame is one from which libsndfile learns the number of frames."""
    flags = frame[header.side + 8 : header.side + 12]
    count = frame[header.side + 12 : header.side + 16]
    return _is_xing(frame, header) and bool(flags[-1:] and flags[-1] & 1 and any(count))


def _is_xing(frame: bytes, header: _Header) -> bool:
    start = header.side + 4
    # After a checksum the side information of a tag is zero; sound may hold the same letters.
    named = frame[start : start + 4] in (b"Xing", b"Info") and not any(frame[6:start])
    return named and header.layer == 3


def _is_tag(frame: bytes, header: _Header) -> bool:
    """Whether a first frame is there for its tag and holds no sound; libsndfile plays a VBRI."""
    return _is_xing(frame, header) or frame[36:40] == b"VBRI"


def _tag_size(raw: BinaryIO, at: int) -> int:
    """Bytes of the ID3v2, ID3v1 or APEv2 tag at a place, 0 where there is none."""
    head = _read(raw, at, 32)
    if head.startswith(b"ID3") and len(head) >= 10:
        size = functools.reduce(lambda high, low: high << 7 | low & 0x7F, head[6:10], 0)
        return 10 + size + (10 if head[5] & 0x10 else 0)
    if head.startswith(b"TAG"):
        return 128
    if head.startswith(b"APETAGEX") and len(head) == 32:
        return 32 + int.from_bytes(head[12:16], "little")
    return 0
