"""What this machine can do at most: multiply, copy, write, and read what is in memory already."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from featurestore.types import COEFFICIENTS, FRAME_PERIOD_S, UNITS

LAYERS, TAPS = 15, 7
BLOCK = 8 * 2**20  # bytes that are written at a time
# Of the network's definition: a multiplication and an addition are two operations.
FLOP_PER_FRAME = 2 * (COEFFICIENTS * UNITS + LAYERS * (TAPS * UNITS * 2 * UNITS + UNITS * UNITS))
BYTES_PER_FRAME = 2 * UNITS  # of one layer, float16


@dataclass(frozen=True)
class Limits:
    """What was measured, medians.

    Attributes:
        sgemm_numpy: float32 matrix product by NumPy, operations per second.
        sgemm_jax: the same by JAX, on its device.
        memory_copy: bytes copied per second by one thread.
        write: bytes per second written to the folder's disk and flushed to it.
        read: bytes per second read back from the page cache, one thread.
        size: of the square matrices.
        written: bytes written and read.
    """

    sgemm_numpy: float
    sgemm_jax: float
    memory_copy: float
    write: float
    read: float
    size: int
    written: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def sgemm(self) -> float:
        """The faster of both, operations per second."""
        return max(self.sgemm_numpy, self.sgemm_jax)

    @property
    def speeds(self) -> dict[str, float]:
        """Times real time that no code can pass that does what is named."""
        return {
            "network": self.sgemm / FLOP_PER_FRAME * FRAME_PERIOD_S,
            "write frames": self.write / (LAYERS * BYTES_PER_FRAME) * FRAME_PERIOD_S,
            "read layer": self.read / BYTES_PER_FRAME * FRAME_PERIOD_S,
            "read all": self.read / (LAYERS * BYTES_PER_FRAME) * FRAME_PERIOD_S,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Name and value of each, for people."""
        product = f"{self.size} x {self.size}, float32"
        many = f"{self.written / 2**20:,.0f} MiB"
        return [
            (f"matrix product by JAX, {product}", f"{self.sgemm_jax / 1e9:,.0f} GFLOP/s"),
            (f"matrix product by NumPy, {product}", f"{self.sgemm_numpy / 1e9:,.0f} GFLOP/s"),
            ("copy in memory, one thread", f"{self.memory_copy / 1e9:,.1f} GB/s"),
            (f"write {many} and flush", f"{self.write / 1e9:,.2f} GB/s"),
            (f"read {many} from the page cache", f"{self.read / 1e9:,.1f} GB/s"),
        ]


def measure_limits(folder: Path, *, quick: bool = False) -> Limits:
    """Measure all of them, which takes some seconds.

    Args:
        folder: on the disk to measure; a file is made in it and removed.
        quick: small sizes, which prove that it runs and tell little.
    """
    size = 256 if quick else 2048
    volume, repeats = (2 * BLOCK, 2) if quick else (32 * BLOCK, 5)
    written, read = _disk(folder / "limits.bin", volume, repeats)
    return Limits(
        sgemm_numpy=_sgemm_numpy(size, repeats),
        sgemm_jax=_sgemm_jax(size, repeats),
        memory_copy=_memory_copy(volume, repeats),
        write=written,
        read=read,
        size=size,
        written=volume,
    )


def matrices(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two of noise, float32."""
    random = np.random.default_rng(0)
    first, second = random.standard_normal((2, size, size), dtype=np.float32)
    return first, second


def _median(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _sgemm_numpy(size: int, repeats: int) -> float:
    first, second = matrices(size)
    out = np.empty_like(first)
    return 2 * size**3 / _median(lambda: np.matmul(first, second, out=out), repeats)


def _sgemm_jax(size: int, repeats: int) -> float:
    first, second = map(jnp.asarray, matrices(size))
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / _median(lambda: product(first, second).block_until_ready(), repeats)


def _memory_copy(volume: int, repeats: int) -> float:
    source, target = np.ones(volume, np.uint8), np.zeros(volume, np.uint8)
    return volume / _median(lambda: np.copyto(target, source), repeats)


def _disk(path: Path, volume: int, repeats: int) -> tuple[float, float]:
    """Bytes per second written and flushed, and read back."""
    block = memoryview(np.random.default_rng(0).bytes(BLOCK))
    buffer = np.empty(volume, np.uint8)

    def write() -> None:
        with open(path, "wb", buffering=0) as stream:
            for _ in range(volume // BLOCK):
                stream.write(block)
            os.fsync(stream.fileno())

    def read() -> None:
        with open(path, "rb", buffering=0) as stream:
            read_into(stream, buffer)

    try:
        return volume / _median(write, repeats), volume / _median(read, repeats)
    finally:
        path.unlink(missing_ok=True)


def read_into(stream: Any, buffer: np.ndarray) -> int:
    """Fill `buffer` from a file opened without buffering; bytes read."""
    view, done = memoryview(buffer.data), 0
    while done < len(view) and (count := stream.readinto(view[done:])):
        done += count
    return done
