"""What training needs beyond what everything else does."""

from __future__ import annotations

import importlib.util

from featurestore.errors import TrainingError

_NEEDED = ("optax", "orbax.checkpoint", "jiwer")


def require_training() -> None:
    """Raise unless the extra `train` is installed.

    Raises:
        TrainingError: a library is missing, named.
    """
    missing = [name for name in _NEEDED if not _found(name)]
    if missing:
        raise TrainingError(
            f"training needs {', '.join(missing)}, which is not installed; "
            "run pip install 'featurestore[train]'"
        )


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around a submodule
        return False
