"""Errors that a user can act on.

Every message names the value at fault, what would have been accepted, and the way out. The command
line prints them without a traceback and exits with `exit_code`.
"""

from __future__ import annotations


class FeatureStoreError(Exception):
    """Base of every error that featurestore raises on purpose."""

    exit_code = 1


class ManifestError(FeatureStoreError):
    """A manifest or corpus folder that cannot be used; names the row and the column."""


class AudioError(FeatureStoreError):
    """An audio file or segment that cannot be decoded; ingest sets the utterance aside."""


class CheckpointError(FeatureStoreError):
    """Weights that are missing, damaged, or of another network."""


class StoreError(FeatureStoreError):
    """A feature store that is missing, incomplete, damaged, or asked for what it does not hold."""


class AnalysisError(FeatureStoreError):
    """An analysis that the data cannot answer, such as folds over unknown speakers."""


class TrainingError(FeatureStoreError):
    """A training that cannot start or go on, such as a loss that is not a number."""
