"""Activations of a speech recogniser as a feature store, and what they say about emotion.

Public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

__version__ = "0.5.0"

if TYPE_CHECKING:
    from featurestore.analysis.comparison import compare as compare
    from featurestore.analysis.correlation import correlate as correlate
    from featurestore.analysis.label_permutation import permutation_test as permutation_test
    from featurestore.analysis.maps import correlation_maps as correlation_maps
    from featurestore.analysis.models import FeatureSet as FeatureSet
    from featurestore.analysis.precision import audit_precision as audit_precision
    from featurestore.analysis.regression import evaluate as evaluate
    from featurestore.analysis.trace import trace as trace
    from featurestore.corpus import read_corpus as read_corpus
    from featurestore.corpus import read_manifest as read_manifest
    from featurestore.corpus import write_manifest as write_manifest
    from featurestore.encoder import Encoder as Encoder
    from featurestore.encoder import encode as encode
    from featurestore.encoder import load_encoder as load_encoder
    from featurestore.export import export as export
    from featurestore.frontend import mfcc as mfcc
    from featurestore.ingest import ingest as ingest
    from featurestore.maintenance import compact as compact
    from featurestore.maintenance import forget as forget
    from featurestore.maintenance import recompute as recompute
    from featurestore.planning import plan_ingest as plan_ingest
    from featurestore.result_files import check_results as check_results
    from featurestore.store.reader import Store as Store
    from featurestore.store.reader import open_store as open_store
    from featurestore.store.summary import lineage as lineage
    from featurestore.store.summary import store_state as store_state
    from featurestore.store.verify import verify as verify
    from featurestore.training.config import TrainConfig as TrainConfig
    from featurestore.training.finetune import finetune as finetune
    from featurestore.training.train import read_training_set as read_training_set
    from featurestore.training.train import train as train
    from featurestore.training.tuning_config import FinetuneConfig as FinetuneConfig
    from featurestore.transcription import transcribe as transcribe

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["analysis", "corpus", "errors", "report", "store", "types"],
    submod_attrs={
        "analysis.comparison": ["compare"],
        "analysis.correlation": ["correlate"],
        "analysis.label_permutation": ["permutation_test"],
        "analysis.maps": ["correlation_maps"],
        "analysis.models": ["FeatureSet"],
        "analysis.precision": ["audit_precision"],
        "analysis.regression": ["evaluate"],
        "analysis.trace": ["trace"],
        "corpus": ["read_corpus", "read_manifest", "write_manifest"],
        "encoder": ["Encoder", "encode", "load_encoder"],
        "export": ["export"],
        "frontend": ["mfcc"],
        "ingest": ["ingest"],
        "maintenance": ["compact", "forget", "recompute"],
        "planning": ["plan_ingest"],
        "result_files": ["check_results"],
        "store.reader": ["Store", "open_store"],
        "store.summary": ["lineage", "store_state"],
        "store.verify": ["verify"],
        "training.config": ["TrainConfig"],
        "training.finetune": ["finetune"],
        "training.train": ["read_training_set", "train"],
        "training.tuning_config": ["FinetuneConfig"],
        "transcription": ["transcribe"],
    },
)
