"""Which implementation of an operation runs, and why: said once per operation in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)
_said: set[tuple[str, str, str]] = set()


def choose(operation: str, wanted: str, available: Mapping[str, Any], auto: tuple[str, str]) -> Any:
    """The implementation of that name, or the best one here.

    Args:
        operation: for the log and the error.
        wanted: a name, or "auto".
        available: implementations by name.
        auto: what "auto" is here, and why.

    Raises:
        ValueError: an unknown name.
    """
    name, why = auto if wanted == "auto" else (wanted, "asked for")
    if name not in available:
        raise ValueError(
            f"unknown implementation '{name}' of {operation}; accepted: auto, "
            f"{', '.join(available)}"
        )
    if (operation, name, why) not in _said:
        _said.add((operation, name, why))
        _log.info("%s: %s (%s)", operation, name, why)
    return available[name]
