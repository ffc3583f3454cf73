"""Audio files and objects as something that libsndfile opens.

A path may be the URL of an object, such as `s3://bucket/a.wav`. What is decoded whole is copied to
a temporary file first; of a header or a segment only the blocks are fetched that libsndfile reads.

Errors raised here do not name the file; the caller does.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, NamedTuple

import soundfile

from featurestore.errors import AudioError, StoreError
from featurestore.storage import is_url, split_file

# Bytes fetched at a time of an object of which not all is wanted, and twice as many at its start: a
# header is rarely longer, and a search in a long file, as flac and ogg need for a segment, takes
# more requests than bytes.
HEADER_BLOCK, SEGMENT_BLOCK = 1 << 17, 1 << 19
_PIECE = 1 << 23  # bytes of an object in memory while it is copied
# libsndfile goes by these endings where a file has no header, and cannot see that of an object.
_HEADERLESS = (".au", ".snd", ".gsm", ".vox", ".vox6", ".vox8")


class Source(NamedTuple):
    """A file to be opened.

    Attributes:
        file: what libsndfile opens.
        raw: the same bytes.
        size: how many.
    """

    file: str | bytes | io.RawIOBase
    raw: BinaryIO
    size: int


def open_sound(source: str | bytes | io.IOBase) -> soundfile.SoundFile:
    """What libsndfile makes of a file.

    Raises:
        AudioError: nothing.
    """
    try:
        return soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, TypeError) as error:
        # TypeError: soundfile takes a file of unknown ending for headerless samples.
        detail = getattr(error, "error_string", "")
        # libsndfile says "does not exist" of an mp3 without a single frame.
        if not detail or "does not exist" in detail:
            detail = "format not recognised"
        raise AudioError(
            f"not a readable audio file ({detail.strip(' .')}); "
            "wav, flac, ogg, opus and mp3 are read"
        ) from None


@contextmanager
def _reasons() -> Iterator[None]:
    """What a disk or an object store says as an AudioError of one line."""
    try:
        yield
    except FileNotFoundError as error:
        no_bucket = "NoSuchBucket" in str(error) or "bucket" in (error.strerror or "")
        raise AudioError("there is no such bucket" if no_bucket else "file not found") from None
    except IsADirectoryError:
        raise AudioError("a folder, not an audio file") from None
    except (OSError, ValueError, StoreError) as error:  # ValueError: a NUL character in the name
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AudioError(reason.splitlines()[0]) from None


def open_source(name: str | bytes, block: int | None) -> AbstractContextManager[Source]:
    """A file or an object, open while the block runs.

    Args:
        name: a path or a URL.
        block: bytes of an object to fetch at a time; None for all of it at once.

    Raises:
        AudioError: it is not there, empty, or cannot be read.
    """
    if isinstance(name, bytes) or not is_url(name):
        return _local(name if isinstance(name, bytes) else name.removeprefix("file://"))
    return _copied(name) if block is None else _in_part(name, block)


@contextmanager
def _local(name: str | bytes) -> Iterator[Source]:
    with _reasons():
        found = os.stat(name)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError
        if not found.st_size:  # also pipes, which must not be waited for
            raise AudioError("empty file (0 bytes)")
        raw = open(name, "rb")  # noqa: SIM115 - libsndfile does not say why it cannot open a file
    with raw:
        yield Source(name, raw, found.st_size)


# --- objects ------------------------------------------------------------------------------------


class _Object:
    """An object of which what is read is fetched, in blocks, and kept.

    Where it is read on after what was fetched last, the next request is for twice as much: an mp3
    of which every frame header has to be seen takes few requests.
    """

    def __init__(self, url: str, block: int) -> None:
        """Fetch the first two blocks.

        Raises:
            AudioError: nothing is there, an empty object, or no access.
        """
        with _reasons():
            self._place, self._key = split_file(url)
            if not self._key:
                raise IsADirectoryError
            head = self._head(2 * block)
            # A small object takes no request but this.
            self.size = len(head) if len(head) < 2 * block else self._stated_size()
        if not self.size:
            raise AudioError("empty file (0 bytes)")
        self._failure: Exception | None = None
        self._block = block
        self._blocks: dict[int, bytes] = {}
        self._keep(0, head)

    def _stated_size(self) -> int:
        return self._place.size(self._key)

    def _head(self, size: int) -> bytes:
        return self._place.read(self._key, 0, size)

    def _keep(self, index: int, data: bytes) -> None:
        for at in range(0, len(data), self._block):
            self._blocks[index + at // self._block] = data[at : at + self._block]
        self._next, self._ahead = index + -(-len(data) // self._block), len(data) // self._block

    def _fetch(self, wanted: range) -> None:
        missing = [index for index in wanted if index not in self._blocks]
        if not missing:
            return
        count = missing[-1] + 1 - missing[0]
        if missing[0] == self._next:
            count = max(count, 2 * self._ahead)
        start = missing[0] * self._block
        stop = min(start + count * self._block, self.size)
        data = self._place.read(self._key, start, stop)
        if len(data) != stop - start:
            raise AudioError("the object changed while it was read; try again")
        self._keep(missing[0], data)

    def read(self, at: int, size: int) -> bytes:
        """Bytes from a place on, fewer at the end; nothing once a request has failed."""
        stop = min(at + size, self.size)
        if at >= stop or self._failure:
            return b""
        wanted = range(at // self._block, (stop - 1) // self._block + 1)
        try:
            self._fetch(wanted)
        except Exception as error:  # libsndfile, which calls this, would lose it
            self._failure = error
            return b""
        skipped = wanted.start * self._block
        return b"".join(self._blocks[index] for index in wanted)[at - skipped : stop - skipped]

    def raise_failure(self) -> None:
        """Raise what a request failed with, as an AudioError, if one did."""
        if self._failure:
            with _reasons():
                raise self._failure

    def pieces(self) -> Iterator[bytes]:
        """All of it, without keeping it.

        Raises:
            AudioError: a request failed.
        """
        yield from self._blocks.values()
        at = sum(map(len, self._blocks.values()))
        while at < self.size:
            with _reasons():
                piece = self._place.read(self._key, at, min(at + _PIECE, self.size))
            if not piece:
                raise AudioError("the object changed while it was read; try again")
            yield piece
            at += len(piece)


class _View(io.RawIOBase):
    """An object as a file."""

    def __init__(self, found: _Object) -> None:
        self._found, self._at = found, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._found.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._found.read(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextmanager
def _in_part(url: str, block: int) -> Iterator[Source]:
    """An object of which only what is read is fetched."""
    found = _Object(url, block)
    if _headerless_ending(url) and not _recognised(_View(found)):
        with _copied(url) as source:
            yield source
        return
    try:
        yield Source(_View(found), io.BufferedReader(_View(found)), found.size)
    finally:
        found.raise_failure()  # of which libsndfile has made a file that ends early


@contextmanager
def _copied(url: str) -> Iterator[Source]:
    """A temporary copy of an object: libsndfile reads a file without waiting for Python's lock."""
    with tempfile.TemporaryDirectory(prefix="featurestore-") as folder:
        name = os.path.join(folder, f"audio{_headerless_ending(url)}")
        _copy(_Object(url, _PIECE).pieces(), name)
        with _local(name) as source:
            yield source


def _copy(pieces: Iterator[bytes], name: str) -> None:
    try:
        with open(name, "wb") as copy:
            copy.writelines(pieces)
    except OSError as error:  # of the disk: those of the object are AudioErrors by now
        raise AudioError(
            f"cannot be copied to {tempfile.gettempdir()} ({error.strerror}); "
            "set TMPDIR to a folder with room for the longest file"
        ) from None


def _headerless_ending(url: str) -> str:
    ending = os.path.splitext(url)[1]
    return ending if ending.lower() in _HEADERLESS else ""


def _recognised(file: io.RawIOBase) -> bool:
    try:
        with open_sound(file):
            return True
    except AudioError:
        return False
