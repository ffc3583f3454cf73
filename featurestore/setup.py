"""What an ingest makes and how: the choices that the plan and the run share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore import egemaps
from featurestore.batching import BatchPolicy
from featurestore.errors import FeatureStoreError
from featurestore.frontend import FrontEnd, front_end
from featurestore.store.ledger import View, check_store, is_free
from featurestore.store.schema import ViewConfig
from featurestore.types import CAPTURES, VIEW_KINDS, Capture, FrameDtype, ViewKind

if TYPE_CHECKING:
    from featurestore.encoder import Encoder


def _cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class IngestConfig:
    """How features are made and kept.

    Attributes:
        views: which views to make.
        captures: capture points of the network.
        frames: whether to keep every frame, besides pooled statistics.
        dtype: of the frames kept.
        batching: how batches are shaped.
        column_frames: frames per unit of work and shard, or None for what suits the corpus.
        workers: decoding threads and openSMILE processes.
    """

    views: tuple[ViewKind, ...] = VIEW_KINDS
    captures: tuple[Capture, ...] = ("gate",)
    frames: bool = True
    dtype: FrameDtype = "float16"
    batching: BatchPolicy = field(default_factory=BatchPolicy)
    column_frames: int | None = None
    workers: int = field(default_factory=_cores)

    def __post_init__(self) -> None:
        """Refuse what no view or network has.

        Raises:
            FeatureStoreError: an unknown view, capture or type.
        """
        _refuse_unknown("view", self.views, VIEW_KINDS)
        _refuse_unknown("capture", self.captures, CAPTURES)
        _refuse_unknown("frame type", (self.dtype,), ("float16", "float32"))


def _refuse_unknown(what: str, given: Sequence[str], accepted: Sequence[str]) -> None:
    if not given:
        raise FeatureStoreError(f"no {what} asked for; accepted: {', '.join(accepted)}")
    for name in given:
        if name not in accepted:
            raise FeatureStoreError(f"unknown {what} '{name}'; accepted: {', '.join(accepted)}")


def view_configs(
    config: IngestConfig, encoder: Encoder | None, end: FrontEnd
) -> dict[ViewKind, ViewConfig]:
    """The extractor configuration of each view asked for.

    Raises:
        FeatureStoreError: a view that needs weights or openSMILE, without them.
    """
    made: dict[ViewKind, ViewConfig] = {}
    if "gcu" in config.views:
        if encoder is None:
            raise FeatureStoreError(
                "view 'gcu' needs weights: a TensorFlow checkpoint, a .safetensors file or "
                "random:SEED (on the command line --weights, in Python encoder=)"
            )
        made["gcu"] = ViewConfig(
            "gcu",
            front_end=end.name,
            weights=encoder.fingerprint,
            weights_source=encoder.name,
            captures=tuple(name for name in CAPTURES if name in config.captures),
            layer_names=encoder.layer_names,
            frames=config.frames,
            dtype=config.dtype if config.frames else "float32",
        )
    if "mfcc" in config.views:
        made["mfcc"] = ViewConfig(
            "mfcc", front_end=end.name, captures=("mfcc",), frames=config.frames, dtype="float32"
        )
    if "egemaps" in config.views:
        made["egemaps"] = ViewConfig("egemaps", dtype="float32", features=egemaps.feature_names())
    return made


@dataclass(frozen=True)
class Setup:
    """What is to be done how; the same for the plan and the run.

    Attributes:
        root: folder of the store.
        config: how features are made.
        encoder: the network, if there is one.
        front_end: how samples become MFCC.
        views: places and configurations of the views.
    """

    root: Path
    config: IngestConfig
    encoder: Encoder | None
    front_end: FrontEnd
    views: dict[ViewKind, View]


def set_up(root: Path, encoder: Encoder | None, config: IngestConfig, variant: str | None) -> Setup:
    """The choices made, checked against what is in `root`.

    Args:
        root: folder of the store, new or not.
        encoder: the network, if view `gcu` is wanted.
        config: how features are made.
        variant: MFCC variant instead of the encoder's own.

    Raises:
        StoreError: a folder that is not a store.
        FeatureStoreError: a view that needs weights or openSMILE, without them.
    """
    if not is_free(root):
        check_store(root)
    end = encoder.front_end if variant is None and encoder else front_end(variant or "librosa-0.5")
    views = {
        kind: View(root / "views" / made.name, made)
        for kind, made in view_configs(config, encoder, end).items()
    }
    return Setup(root, config, encoder, end, views)
