"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

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
