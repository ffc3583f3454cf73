"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

# Array shapes in signatures are checked whenever a test calls a function. Public functions, which
# refuse bad input with errors of their own, are left to show those.
install_import_hook(
    ["featurestore.analysis.moments", "featurestore.extract", "featurestore.kernels"],
    "beartype.beartype",
)

SHARED = Path(os.environ.get("FEATURESTORE_SHARED", Path(__file__).parents[1] / ".." / "shared"))


def trials(number: int) -> int:
    """How often to do what chance decides: `number`, or the share of it that is asked for."""
    return max(4, round(number * float(os.environ.get("FEATURESTORE_TRIALS", "1"))))


def shared(*parts: str) -> Path:
    """A path of the reference data beside the repository, or a skip where there is none."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data {'/'.join(parts)} is not beside this checkout")
    return path.resolve()


@pytest.fixture(scope="session")
def golden() -> Path:
    return shared("golden")


@pytest.fixture(scope="session")
def speech() -> Path:
    return shared("speech")


_MAPPINGS = 20_000


@pytest.fixture(scope="module", autouse=True)
def _programs_are_let_go() -> Iterator[None]:
    """Keep the suite below the 65,530 memory mappings that Linux gives a process.

    A program that XLA makes for a CPU takes about 15 of them; where there are none left, its
    compiler dies of a segmentation fault.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MAPPINGS:
        from featurestore import encoder, extract, recognition
        from featurestore.training import tuning_step

        for programs in (
            encoder._applied,
            extract._programs,
            recognition._programs,
            tuning_step._programs,
        ):
            programs.clear()
        jax.clear_caches()
