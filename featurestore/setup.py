"""What an ingest makes and how: the choices that the plan and the run share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from featurestore import egemaps
from featurestore.arithmetic import in_precision
from featurestore.batching import BatchPolicy
from featurestore.encoder import AudioFrontEnd, Encoder, batch_policy
from featurestore.errors import FeatureStoreError
from featurestore.frontend import FrontEnd, front_end
from featurestore.hardware import cores
from featurestore.storage import Place
from featurestore.store.ledger import View
from featurestore.store.records import check_store, is_free
from featurestore.store.schema import ViewConfig
from featurestore.types import FRAME_PERIOD_S, NETWORK, PRECISIONS, VIEWS, FrameDtype


@dataclass(frozen=True)
class IngestConfig:
    """How features are made and kept.

    Attributes:
        views: which views to make: `network` (or the encoder's kind, such as `gcu`), `mfcc`,
            `egemaps`.
        captures: capture points of the network; None takes its first one.
        frames: whether to keep every frame, besides pooled statistics.
        dtype: of the frames kept.
        batching: how batches are shaped; None takes what suits the network.
        column_frames: frames per unit of work and shard, or None for what suits the corpus.
        precision: of the network: `parity` (float32), `fast` (what suits this machine), or one by
            name; see `featurestore.arithmetic.in_precision`.
        workers: decoding threads and openSMILE processes.
        certified: utterances of each part that are encoded once more, alone, for its certificate.
    """

    views: tuple[str, ...] = VIEWS
    captures: tuple[str, ...] | None = None
    frames: bool = True
    dtype: FrameDtype = "float16"
    batching: BatchPolicy | None = None
    column_frames: int | None = None
    precision: str = "parity"
    workers: int = field(default_factory=cores)
    certified: int = 2

    def __post_init__(self) -> None:
        """Refuse a type of frames that no view has, and a precision that no network has.

        Raises:
            FeatureStoreError: an unknown type or precision.
        """
        _refuse_unknown("precision", (self.precision,), PRECISIONS)
        _refuse_unknown("frame type", (self.dtype,), get_args(FrameDtype))

    @property
    def wants_network(self) -> bool:
        """Whether a view needs an encoder."""
        return any(name not in ("mfcc", "egemaps") for name in self.views)

    def resolved(self, encoder: Encoder | None) -> IngestConfig:
        """The same with the views and captures that the encoder turns them into.

        Views come in the order network, MFCC, eGeMAPS and captures in the encoder's.

        Raises:
            FeatureStoreError: a view or capture that there is not, or a view without its encoder.
        """
        kind = encoder.kind if encoder is not None else ""
        accepted = tuple(dict.fromkeys((NETWORK, kind or "gcu", "mfcc", "egemaps")))
        _refuse_unknown("view", self.views, accepted)
        if not self.wants_network:
            return dataclasses.replace(self, views=_ordered(self.views, VIEWS))
        if encoder is None:
            raise FeatureStoreError(
                "the network's view needs weights: a TensorFlow checkpoint, a .safetensors file, "
                "wav2vec2:FOLDER or random:SEED (on the command line --weights, in Python encoder=)"
            )
        captures = self.captures
        if captures is None:
            captures = encoder.captures[:1]
        _refuse_unknown("capture", captures, encoder.captures)
        names = tuple(kind if name == NETWORK else name for name in self.views)
        return dataclasses.replace(
            self,
            views=_ordered(names, (kind, "mfcc", "egemaps")),
            captures=_ordered(captures, encoder.captures),
        )


def _ordered(given: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in order if name in given)


def _refuse_unknown(what: str, given: Sequence[str], accepted: Sequence[str]) -> None:
    if not given:
        raise FeatureStoreError(f"no {what} asked for; accepted: {', '.join(accepted)}")
    for name in given:
        if name not in accepted:
            raise FeatureStoreError(f"unknown {what} '{name}'; accepted: {', '.join(accepted)}")


@dataclass(frozen=True)
class Hearing:
    """Views that the device makes together, because they hear the audio alike.

    Attributes:
        front_end: how.
        kinds: of the views.
    """

    front_end: AudioFrontEnd
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """What is to be done how; the same for the plan and the run.

    Attributes:
        root: the store.
        config: how features are made, with the names that the encoder gives.
        encoder: the network, if its view is wanted.
        hearings: what the device makes, one after the other.
        views: places and configurations of the views, by kind.
    """

    root: Place
    config: IngestConfig
    encoder: Encoder | None
    hearings: tuple[Hearing, ...]
    views: dict[str, View]

    def front_end(self, kind: str) -> AudioFrontEnd | None:
        """What counts the frames of a view; None where nothing is heard by the device."""
        return _front_end_of(self.hearings, kind)

    def batching(self, hearing: Hearing) -> BatchPolicy:
        """How the batches of a front end are shaped."""
        if self.config.batching is not None:
            return self.config.batching
        heard = self.encoder is not None and self.encoder.kind in hearing.kinds
        return batch_policy(self.encoder) if self.encoder and heard else BatchPolicy()

    def frame_period_s(self, kind: str) -> float:
        """Seconds between the frames by which a view is planned."""
        end = self.front_end(kind)
        return FRAME_PERIOD_S if end is None else end.frame_period_s

    def width(self, kind: str) -> int:
        """Values of the widest frame among the views that share this view's plan."""
        end = self.front_end(kind)
        shared = (k for k in self.views if self.front_end(k) == end)
        return max(math.prod(self.views[k].config.inner.values()) for k in shared)


def _heard(
    config: IngestConfig, encoder: Encoder | None, variant: str | None
) -> tuple[Hearing, ...]:
    """Front ends of the views, in the views' order.

    MFCC are those that the network hears, or else those that the published weights were trained
    with.
    """
    own = encoder.front_end if encoder is not None else None
    if variant is not None or not isinstance(own, FrontEnd):
        mfcc = front_end(variant or "librosa-0.5")
    else:
        mfcc = own
    ends: dict[AudioFrontEnd, list[str]] = {}
    for kind in config.views:
        if kind == "mfcc" or (isinstance(own, FrontEnd) and kind != "egemaps"):
            ends.setdefault(mfcc, []).append(kind)
        elif kind != "egemaps" and own is not None:
            ends.setdefault(own, []).append(kind)
    return tuple(Hearing(end, tuple(kinds)) for end, kinds in ends.items())


def _front_end_of(hearings: Sequence[Hearing], kind: str) -> AudioFrontEnd | None:
    """What counts the frames of a view: eGeMAPS follow the first hearing, if there is any."""
    for hearing in hearings:
        if kind in hearing.kinds:
            return hearing.front_end
    return hearings[0].front_end if hearings else None


def _view_config(
    kind: str, config: IngestConfig, encoder: Encoder | None, end: AudioFrontEnd | None
) -> ViewConfig:
    """The extractor configuration of one view.

    Raises:
        FeatureStoreError: eGeMAPS without openSMILE.
    """
    if end is None or kind == "egemaps":
        return ViewConfig("egemaps", dtype="float32", features=egemaps.feature_names())
    if kind == "mfcc" or encoder is None:
        return ViewConfig(
            "mfcc", front_end=end.name, captures=("mfcc",), frames=config.frames, dtype="float32"
        )
    return ViewConfig(
        kind,
        front_end=end.name,
        weights=encoder.fingerprint,
        weights_source=_source(encoder),
        captures=config.captures or (),
        layer_names=tuple(encoder.layer_names),
        frames=config.frames,
        dtype=config.dtype if config.frames else "float32",
        precision=getattr(encoder, "precision", "float32"),
        units=encoder.units,
        frame_period_s=end.frame_period_s,
        frame_offset_s=end.frame_offset_s,
        scales=_scales(config, encoder),
    )


def _scales(config: IngestConfig, encoder: Encoder) -> tuple[float, ...]:
    """Step between two values of each capture's int8 frames.

    Raises:
        FeatureStoreError: int8 frames of activations without known bounds.
    """
    if config.dtype != "int8" or not config.frames:
        return ()
    bounds = getattr(encoder, "bounds", {})
    for capture in config.captures or ():
        if capture not in bounds:
            raise FeatureStoreError(
                f"int8 frames need to know how large activations get, and encoder '{encoder.name}' "
                f"does not say so of '{capture}' (member `bounds`); use float16"
            )
    return tuple(bounds[capture] / 127 for capture in config.captures or ())


def _source(encoder: Encoder) -> str:
    """The encoder's name; it says of untrained weights that they are, as do all results."""
    said = encoder.name.startswith("random:") or not encoder.untrained
    return encoder.name if said else f"random:{encoder.name}"


def set_up(
    root: Place, encoder: Encoder | None, config: IngestConfig, variant: str | None
) -> Setup:
    """The choices made, checked against what is in `root`.

    Args:
        root: the store, new or not.
        encoder: the network, if its view is wanted.
        config: how features are made.
        variant: MFCC variant instead of the encoder's own.

    Raises:
        StoreError: a folder that is not a store.
        FeatureStoreError: a view that needs weights or openSMILE, without them; an unknown view or
            capture; a `variant` where nothing hears MFCC.
    """
    if not is_free(root):
        check_store(root)
    config = config.resolved(encoder)
    if encoder is not None and config.wants_network:
        encoder = in_precision(encoder, config.precision)
    hearings = _heard(config, encoder, variant)
    if variant is not None and not any(isinstance(one.front_end, FrontEnd) for one in hearings):
        raise FeatureStoreError(
            f"MFCC variant '{variant}' was asked for, but none of the views "
            f"{', '.join(config.views)} is made from MFCC; leave it out"
        )
    views = {}
    for kind in config.views:
        made = _view_config(kind, config, encoder, _front_end_of(hearings, kind))
        views[kind] = View(root / "views" / made.name, made)
    return Setup(root, config, encoder if config.wants_network else None, hearings, views)
