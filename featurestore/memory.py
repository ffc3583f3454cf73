"""How much memory an ingest takes while it runs, known before it does.

Above what the process has when everything is compiled:

    2 columns                 one is filled while one is written
    + 1 shard                 a layer of a column, on its way to the disk
    + 6 batches of samples    3 decoded ahead, 1 on its way, 2 on the device
    + 2 batches in flight     temporary memory of the program, and what it brings back
    + 32 MB                   rows, records, and what the allocator keeps

While a batch is padded it is there twice, but not yet what its program takes.

None of it depends on how large the corpus is, but the longest utterance is a batch if it is longer
than one. On a GPU a program's temporary memory is the device's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from featurestore.batching import Bucket
from featurestore.pipeline import BATCHES_AHEAD, BATCHES_RUNNING
from featurestore.store.plan import Layout
from featurestore.store.schema import ViewConfig
from featurestore.types import HOP_LENGTH

_SAMPLE_BYTES = 4
_STATISTICS = 4
_REST = 32_000_000


def column_bytes(config: ViewConfig, layout: Layout) -> int:
    """Of a view's share of a column in memory."""
    values = math.prod(config.inner.values()) * len(config.captures) if config.captures else 0
    frames = layout.column_frames * values * _itemsize(config) if config.frames else 0
    utterances = -(-layout.slots // layout.columns)
    return frames + utterances * (_STATISTICS * values + len(config.features)) * 4


def shard_bytes(config: ViewConfig, layout: Layout) -> int:
    """Of one layer of a column, as it is written; a front end is one layer."""
    layers = config.inner.get("layer", 1) if config.captures else 1
    return column_bytes(config, layout) // max(1, layers * len(config.captures))


def running_bytes(
    parts: Iterable[tuple[ViewConfig, Layout]],
    buckets: Iterable[Bucket],
    *,
    bytes_per_frame: int,
    devices: int = 1,
) -> int:
    """Peak of an ingest above the process at rest; see the module's formula.

    Args:
        parts: views that are made together, and the size of their columns.
        buckets: shapes that run.
        bytes_per_frame: temporary memory of the encoder's program.
        devices: that work at the same time.
    """
    parts = list(parts)
    frames = max((bucket.frames * bucket.rows for bucket in buckets), default=0)
    columns = sum(column_bytes(config, layout) for config, layout in parts)
    shard = max((shard_bytes(config, layout) for config, layout in parts), default=0)
    back = sum(
        math.prod(config.inner.values()) * len(config.captures) * _itemsize(config)
        for config, _ in parts
        if config.captures and config.frames
    )
    samples = (BATCHES_AHEAD + devices + BATCHES_RUNNING * devices) * HOP_LENGTH * _SAMPLE_BYTES
    device = BATCHES_RUNNING * devices * (bytes_per_frame + back)
    return 2 * columns + shard + frames * (samples + device) + _REST


def _itemsize(config: ViewConfig) -> int:
    return {"int8": 1, "float16": 2}.get(config.dtype, 4)
