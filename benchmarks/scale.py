"""What 10,000 hours would cost before any of it is computed: the plan, and opening the store.

    python benchmarks/scale.py [--utterances 8000000] [--store FOLDER]

No audio is needed. Lengths are drawn from a log-normal distribution with a mean of about 4.5 s, as
in conversational corpora; headers are not read but invented, which is the part of planning that
depends on the disk and not on this package. The store that is opened afterwards has the plan's
metadata and utterance table and none of its shards: whatever tried to read one would fail.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

import featurestore as fs
from featurestore import planning
from featurestore.planning import IngestPlan, plan_ingest
from featurestore.setup import IngestConfig
from featurestore.storage.local import LocalPlace
from featurestore.store.ledger import create_view
from featurestore.store.records import create_store
from featurestore.store.rows import write_rows
from featurestore.store.writer import PartWriter, Utterance, finish_part, read_committed
from featurestore.survey import Headers
from featurestore.types import SAMPLE_RATE


def manifest_of(utterances: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A manifest, and the samples of each of its utterances at 16 kHz."""
    rng = np.random.default_rng(0)
    seconds = np.clip(rng.lognormal(np.log(4.0), 0.5, utterances), 0.5, 30)
    numbers = range(utterances)
    table = pd.DataFrame(
        {
            "id": [f"corpus-{i:08d}" for i in numbers],
            "path": [f"/corpora/speech/{i // 1000:05d}/{i:08d}.flac" for i in numbers],
            "speaker": [f"speaker-{i // 400:06d}" for i in numbers],
            "valence": rng.uniform(1, 5, utterances),
            "arousal": rng.uniform(1, 5, utterances),
        }
    )
    return table, (seconds * SAMPLE_RATE).astype(np.int64)


def plan_of(table: pd.DataFrame, samples: np.ndarray, store: Path) -> IngestPlan:
    """The plan of an ingest of activations, with headers that say what they are to say."""

    def headers(manifest: pd.DataFrame, tick: Any) -> Headers:
        return Headers(np.full(len(manifest), SAMPLE_RATE), samples[: len(manifest)], {})

    config = IngestConfig(views=("gcu",))
    with (
        mock.patch.object(planning, "read_headers", headers),
        mock.patch.object(LocalPlace, "free_bytes", return_value=None),
    ):
        return plan_ingest(table, store, encoder="random:0", config=config)


def write_metadata(plan: IngestPlan) -> None:
    """The store of a plan, without shards: views, records, array metadata and utterance tables."""
    root = plan.setup.root
    create_store(root)
    write_rows(root, plan.rows, tombstones=[])
    for view in plan.setup.views.values():
        create_view(root, view.config)
    (job,) = plan.jobs
    ids = job.rows["id"].to_numpy(object)
    paths = (part for part, _ in job.parts.values())
    for part in paths:
        part.begin(job.plan, ids, job.frames)
        PartWriter(part, job.plan.layout)
        for column in job.plan.columns:
            ends = np.cumsum(job.frames[column.members])
            starts = ends - job.frames[column.members] + column.index * job.plan.column_frames
            rows = [
                vars(Utterance(ids[i], column.slot_start + slot, int(start), int(count), 4.5, "0"))
                for slot, (i, start, count) in enumerate(
                    zip(column.members, starts, job.frames[column.members], strict=True)
                )
            ]
            record = {"column": column.index, "utterances": rows, "set_aside": []}
            part.commit({**record, "origins": [], "objects": {}})
        finish_part(part, job.rows, job.plan, read_committed(part))


@contextmanager
def watched_reads(found: Counter[str]) -> Iterator[None]:
    """Count what is read, by kind, and the bytes of it."""
    read = LocalPlace.read

    def counting(self: LocalPlace, key: str, *where: Any) -> bytes:
        data = read(self, key, *where)
        whole = f"{self.path}/{key}"
        kind = "records"
        if "/frames/" in whole or "/pooled/" in whole:
            kind = "array metadata" if key.endswith("zarr.json") else "array values"
        elif "/utterances/" in whole:
            kind = "utterance table"
        elif "/manifest/" in whole:
            kind = "labels"
        found[kind] += 1
        found[f"{kind}, bytes"] += len(data)
        return data

    with mock.patch.object(LocalPlace, "read", counting):
        yield


def open_all(store: Path) -> dict[str, int]:
    """Open a store in every lazy way; tasks of each array's graph."""
    opened = fs.open_store(store)
    arrays = {
        "statistics of activations": opened.pooled("gcu")["gate"].data,
        "frames of activations": opened.frames("gcu", "gate").data,
        "ids of those frames": opened.frames("gcu", "gate")["utterance"].data,
    }
    return {name: len(array.__dask_graph__()) for name, array in arrays.items()}


def peak_gb() -> float:
    """Largest memory of this process so far, in GB."""
    scale = 1e9 if sys.platform == "darwin" else 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def measure(utterances: int, store: Path) -> dict[str, Any]:
    """Times, memory, tasks and reads of planning and opening."""
    table, samples = manifest_of(utterances)
    facts: dict[str, Any] = {
        "utterances": utterances,
        "hours": float(samples.sum()) / SAMPLE_RATE / 3600,
        "manifest_peak_gb": peak_gb(),
    }
    began = time.perf_counter()
    plan = plan_of(table, samples, store)
    facts |= {
        "plan_s": time.perf_counter() - began,
        "plan_peak_gb": peak_gb(),
        "columns_and_tasks": plan.columns,
        "terabytes": plan.bytes_to_write / 1e12,
        "padding_waste": plan.padding_waste,
    }
    began = time.perf_counter()
    write_metadata(plan)
    facts |= {"metadata_s": time.perf_counter() - began, "metadata_peak_gb": peak_gb()}
    reads: Counter[str] = Counter()
    began = time.perf_counter()
    with watched_reads(reads):
        facts["graph_tasks"] = open_all(store)
    facts |= {
        "open_s": time.perf_counter() - began,
        "open_peak_gb": peak_gb(),
        "reads": dict(sorted(reads.items())),
    }
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--utterances", type=int, default=8_000_000)
    parser.add_argument("--store", type=Path, help="where to build the store; removed afterwards")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.store))
    try:
        print(json.dumps(measure(options.utterances, folder / "store"), indent=1))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
