"""espeak-ng, the speech synthesiser that speaks the demo corpus, through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

from featurestore.errors import FeatureStoreError


class Espeak:
    """A synthesiser, as a context manager; for one thread.

    The library keeps its state (such as the phase of its oscillators) in static variables, so a
    second corpus in the same process would sound slightly different. Loading a private copy of the
    file gives every corpus a library that has not spoken yet.

    Raises:
        FeatureStoreError: if espeak-ng is not installed, or cannot read its voices.
    """

    _RETRIEVAL, _DONT_EXIT, _UTF8, _CHARACTERS = 1, 0x8000, 1, 1
    _RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise FeatureStoreError(
                "the demo corpus is spoken by espeak-ng, which is not installed; "
                "run pip install 'featurestore[demo]' (espeak-ng is GPL, hence an extra)"
            ) from error
        self._source = Path(espeakng_loader.get_library_path())
        self._data = espeakng_loader.get_data_path()
        self._chunks: list[bytes] = []
        self.rate = 0  # Hz

    def __enter__(self) -> Espeak:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            copy = shutil.copy(self._source, folder)
            self._library = ctypes.CDLL(str(copy))
        self.rate = self._library.espeak_Initialize(
            self._RETRIEVAL, 0, os.fsencode(self._data), self._DONT_EXIT
        )
        if self.rate <= 0:
            raise FeatureStoreError(
                f"espeak-ng cannot read its voices in {self._data}; "
                "run pip install --force-reinstall espeakng-loader"
            )
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_char), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = kind(self._receive)  # kept: the library holds only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._library.espeak_Terminate()

    def _receive(self, samples: ctypes._Pointer[ctypes.c_char], count: int, events: int) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, text: str, *, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """One sentence as 16-bit samples at `self.rate` (Hz).

        Args:
            text: What to say.
            voice: espeak's name of a voice, such as "en-us+f1".
            rate: Words per minute, 80 to 450.
            pitch: 0 to 100.
            pitch_range: 0 (monotonous) to 100.

        Returns:
            Samples (sample,) of dtype int16.

        Raises:
            FeatureStoreError: if there is no such voice or nothing was said.
        """
        self._chunks.clear()
        library = self._library
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise FeatureStoreError(
                f"this espeak-ng has no voice {voice!r}; run pip install 'espeakng-loader==0.2.4'"
            )
        library.espeak_ng_SetRandSeed(ctypes.c_long(0))
        settings = {
            self._RATE: rate,
            self._VOLUME: 100,
            self._PITCH: pitch,
            self._RANGE: pitch_range,
        }
        for setting, value in settings.items():
            library.espeak_SetParameter(setting, value, 0)
        data = text.encode()
        status = library.espeak_Synth(
            data, ctypes.c_size_t(len(data) + 1), 0, self._CHARACTERS, 0, self._UTF8, None, None
        )
        library.espeak_Synchronize()
        samples = np.frombuffer(b"".join(self._chunks), dtype="<i2")
        if status != 0 or not samples.any():
            raise FeatureStoreError(
                f"espeak-ng said nothing for {text!r} with the voice {voice!r} (status {status}); "
                "run pip install --force-reinstall espeakng-loader"
            )
        return samples
