"""Names that all kernels share."""

from __future__ import annotations

from typing import Literal

# Type of the factors of matrix products; sums are float32 always, and so is everything else.
Precision = Literal["float32", "float16", "bfloat16"]
