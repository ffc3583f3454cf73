"""Corpora as manifests: one row per utterance, in a plain pandas table."""

from __future__ import annotations

from featurestore.corpus.manifest import label_columns as label_columns
from featurestore.corpus.manifest import validate_manifest as validate_manifest
from featurestore.corpus.registry import CORPORA as CORPORA
from featurestore.corpus.registry import read_corpus as read_corpus
from featurestore.corpus.table import read_manifest as read_manifest
from featurestore.corpus.table import write_manifest as write_manifest

__all__ = [
    "CORPORA",
    "label_columns",
    "read_corpus",
    "read_manifest",
    "validate_manifest",
    "write_manifest",
]
