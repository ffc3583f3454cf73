"""The corpora that are known by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable

import pandas as pd

from featurestore.corpus.emodb import read_emodb
from featurestore.corpus.fsdd import read_fsdd
from featurestore.corpus.iemocap import read_iemocap
from featurestore.corpus.librispeech import read_librispeech
from featurestore.corpus.ravdess import read_ravdess
from featurestore.corpus.table import read_manifest
from featurestore.corpus.vctk import read_vctk
from featurestore.errors import ManifestError

_READERS: dict[str, Callable[..., pd.DataFrame]] = {
    "ravdess": read_ravdess,
    "iemocap": read_iemocap,
    "vctk": read_vctk,
    "librispeech": read_librispeech,
    "emodb": read_emodb,
    "fsdd": read_fsdd,
    "table": read_manifest,
}

CORPORA: tuple[str, ...] = tuple(_READERS)


def read_corpus(kind: str, path: str | os.PathLike[str], **options: object) -> pd.DataFrame:
    """Reads a corpus into a manifest: one row per utterance.

    Args:
        kind: One of `CORPORA`: ravdess, iemocap, vctk, librispeech, emodb, fsdd, or table.
        path: The corpus folder; for "table", a CSV or Parquet file.
        **options: Options of that corpus's reader: `channel` ("speech", "song", "all") for ravdess,
            `mic` ("mic1", "mic2") for vctk.

    Returns:
        A DataFrame with id, path, speaker, text where known, and labels, sorted by path; see
        `featurestore.corpus.manifest`. `start` and `end` (seconds) only where a table has them.

    Raises:
        ManifestError: if the kind or an option is unknown, the folder does not hold such a corpus,
            or the corpus or table contradicts itself.
    """
    reader = _READERS.get(kind)
    if reader is None:
        raise ManifestError(
            f"unknown corpus {kind!r}; known are {', '.join(CORPORA)}. "
            "Any other corpus: write a CSV with path, speaker and labels, and read it as 'table'"
        )
    accepted = list(inspect.signature(reader).parameters)[1:]
    for name in options:
        if name not in accepted:
            raise ManifestError(
                f"{kind} has no option {name!r}; it accepts {', '.join(accepted) or 'none'}"
            )
    return reader(path, **options)
