"""What a view is and which arrays its parts hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from featurestore.errors import StoreError
from featurestore.store.plan import CHUNK_FRAMES, CHUNK_UTTERANCES, Layout
from featurestore.types import COEFFICIENTS, FRAME_PERIOD_S, RESERVED_KINDS, STATISTICS, UNITS

# Fields that came after the first stores. At these values they are left out of `view.json` and of
# the hash in a view's name, so that those stores and new ones of the same network agree.
_LATER: dict[str, Any] = {
    "units": UNITS,
    "frame_period_s": FRAME_PERIOD_S,
    "frame_offset_s": 0.0,
    "scales": (),
}
MISSING_INT8 = -128


@dataclass(frozen=True)
class ViewConfig:
    """One extractor configuration; everything that changes a number in the view is here.

    Attributes:
        kind: `mfcc`, `egemaps`, or that of the encoder, such as `gcu`.
        front_end: how the audio is heard, such as an MFCC variant; "" where none is used.
        weights: sha256 fingerprint of the network's weights; "" where none is used.
        weights_source: where the weights came from, for people; not part of the identity.
        captures: capture points of the network, or ("mfcc",).
        layer_names: names of the layers.
        frames: whether every frame is kept, besides pooled statistics.
        dtype: of the frames.
        precision: arithmetic of the network's matrix products, of which sums are float32.
        features: names of the features of a view that has no frames.
        units: of each layer of the network.
        frame_period_s: seconds between frames.
        frame_offset_s: centre of an utterance's first frame, in seconds.
        scales: for int8 frames, the step between two values of each capture.
    """

    kind: str
    front_end: str = ""
    weights: str = ""
    weights_source: str = ""
    captures: tuple[str, ...] = ()
    layer_names: tuple[str, ...] = ()
    frames: bool = False
    dtype: str = "float16"
    precision: str = "float32"
    features: tuple[str, ...] = ()
    units: int = UNITS
    frame_period_s: float = FRAME_PERIOD_S
    frame_offset_s: float = 0.0
    scales: tuple[float, ...] = ()

    def scale(self, capture: str) -> float | None:
        """Step between two stored values of int8 frames; None where they are floats."""
        return self.scales[self.captures.index(capture)] if self.scales else None

    @property
    def is_network(self) -> bool:
        """Whether it holds activations of an encoder, over layers and units."""
        return self.kind not in RESERVED_KINDS

    @property
    def inner(self) -> dict[str, int]:
        """Dimensions of one frame: layer and unit of a network, coefficient of the front end."""
        if self.is_network:
            return {"layer": len(self.layer_names), "unit": self.units}
        return {"coefficient": COEFFICIENTS}

    @property
    def name(self) -> str:
        """Directory name; two configurations never share one."""
        if self.kind == "egemaps":
            return "egemaps-v02"
        identity = self._fields()
        del identity["weights_source"]
        text = json.dumps(identity, sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _fields(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _LATER or value != _LATER[name]
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, as written to `view.json`."""
        return {"name": self.name, **self._fields()}

    @staticmethod
    def from_json(values: Mapping[str, Any], *, source: str) -> ViewConfig:
        """The configuration in a `view.json`.

        Raises:
            StoreError: fields that this version does not know, or too few.
        """
        known = {field.name for field in dataclasses.fields(ViewConfig)}
        try:
            arguments: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
                if key in known
            }
            return ViewConfig(**arguments)
        except (TypeError, AttributeError) as error:
            raise StoreError(f"{source} does not describe a view: {error}") from None


@dataclass(frozen=True)
class ArraySpec:
    """One array of a part.

    Attributes:
        path: inside the part.
        dims: dimension names.
        shape: whole array.
        chunks: read granularity.
        shards: write granularity, or None for one file per chunk.
        dtype: NumPy name.
        scale: step between two values of integers; None for floats.
    """

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str
    scale: float | None = None

    @property
    def fill(self) -> float | int:
        """What stands where there is no value."""
        return np.nan if self.scale is None else MISSING_INT8

    def create(self, group: zarr.Group) -> zarr.Array:
        """Create the array, or open it where an interrupted run created it."""
        if self.path in group:
            return zarr.open_array(group.store_path / self.path, mode="a", zarr_format=3)
        return group.create_array(
            self.path,
            shape=self.shape,
            chunks=self.chunks,
            shards=self.shards,
            dtype=self.dtype,
            fill_value=self.fill,
            attributes=self._attributes(),
            dimension_names=self.dims,
            # No compression: it saves a tenth of these values and halves the throughput. The
            # checksum is what notices a flipped bit.
            compressors=[Crc32cCodec()],
            filters=None,
        )

    def _attributes(self) -> dict[str, Any]:
        """CF's packed data (conventions 1.11, section 8.1), which xarray unpacks by itself."""
        if self.scale is None:
            return {}
        return {"scale_factor": self.scale, "add_offset": 0.0, "_FillValue": self.fill}


def array_specs(config: ViewConfig, layout: Layout) -> list[ArraySpec]:
    """Arrays of a part of this view, the frames first."""
    if config.kind == "egemaps":
        width = len(config.features)
        return [
            ArraySpec(
                "features",
                ("utterance", "feature"),
                (layout.slots, width),
                (CHUNK_UTTERANCES, width),
                None,
                "float32",
            )
        ]
    dims, sizes = tuple(config.inner), tuple(config.inner.values())
    specs = []
    total, shard = layout.column_frames * layout.columns, layout.column_frames
    for capture in config.captures if config.frames else ():
        outer = sizes[:-1]
        ones = (1,) * len(outer)
        specs.append(
            ArraySpec(
                f"frames/{capture}",
                (*dims[:-1], "frame", dims[-1]),
                (*outer, total, sizes[-1]),
                (*ones, CHUNK_FRAMES, sizes[-1]),
                (*ones, shard, sizes[-1]),
                config.dtype,
                config.scale(capture),
            )
        )
    for capture in config.captures:
        specs.append(
            ArraySpec(
                f"pooled/{capture}",
                ("statistic", "utterance", *dims),
                (len(STATISTICS), layout.slots, *sizes),
                (1, CHUNK_UTTERANCES, *sizes),
                None,
                "float32",
            )
        )
    return specs


def stored_bytes(config: ViewConfig, *, utterances: int, frames: int) -> int:
    """Bytes on disk of one column with this many utterances and frames, in whole chunks."""
    rows = -(-utterances // CHUNK_UTTERANCES) * CHUNK_UTTERANCES
    if config.kind == "egemaps":
        return rows * len(config.features) * 4
    width = math.prod(config.inner.values()) * len(config.captures)
    chunks = -(-frames // CHUNK_FRAMES) if config.frames else 0
    kept = chunks * CHUNK_FRAMES * np.dtype(config.dtype).itemsize
    return width * (kept + rows * len(STATISTICS) * 4)
