"""The arithmetic of a network's matrix products: parity with the original, or speed."""

from __future__ import annotations

from featurestore.encoder import Encoder
from featurestore.errors import FeatureStoreError
from featurestore.types import PRECISIONS


def fast_precision() -> str:
    """What `fast` is on this machine: `float16` on a GPU, `winograd` on a CPU.

    With |z| up to 16, float16 has three bits more than bfloat16.
    """
    import jax

    return "winograd" if jax.default_backend() == "cpu" else "float16"


def in_precision(encoder: Encoder, precision: str) -> Encoder:
    """The same network with other arithmetic in its matrix products; sums stay float32.

    Args:
        encoder: a network.
        precision: `parity` (float32, as the original computes), `fast` (what `fast_precision`
            says), or one by name: `float32`, `winograd` (float32 with a third of the
            multiplications), `float16`, `bfloat16` (type of the factors).

    Raises:
        FeatureStoreError: an unknown precision, or a network that has only float32.
    """
    if precision not in PRECISIONS:
        raise FeatureStoreError(
            f"unknown precision '{precision}'; accepted: {', '.join(PRECISIONS)}"
        )
    wanted = "float32" if precision == "parity" else precision
    if precision == "fast":
        wanted = fast_precision()
    if wanted == getattr(encoder, "precision", "float32"):
        return encoder
    if hasattr(encoder, "in_precision"):
        return encoder.in_precision(wanted)
    if precision == "fast":
        return encoder
    raise FeatureStoreError(f"encoder '{encoder.name}' has no precision but float32; leave it out")
