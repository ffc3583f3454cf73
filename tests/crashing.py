"""What the children of `forks` run: work on stores that is to be killed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd

import featurestore as fs
from featurestore.frontend import front_end
from featurestore.setup import IngestConfig


class Tiny:
    """A network that compiles at once: three layers of sixteen units, each on its own frame."""

    name, kind, untrained, fingerprint = "tiny", "tiny", False, "tiny-1"
    captures, layer_names, units = ("gate", "skip"), ("a", "b", "c"), 16
    receptive_field = 1
    front_end = front_end("librosa-0.5")

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.variables: Any = random.normal(0, 0.01, (3, 20, 16)).astype(np.float32)

    def apply(self, variables: Any, batch: Any, lengths: Any) -> dict[str, Any]:
        import jax.numpy as jnp

        gate = jnp.tanh(jnp.einsum("ufc,lcn->ulfn", batch, variables))
        return {"gate": gate, "skip": gate * gate}


CONFIG = IngestConfig(
    views=("tiny", "mfcc"), captures=Tiny.captures, column_frames=4096, certified=0
)


def ingest(manifest: str, store: str) -> None:
    """Both views of a manifest, in small columns."""
    fs.ingest(pd.read_csv(manifest), store, encoder=Tiny(), config=CONFIG, progress=False)


def forget(store: str, speaker: str) -> None:
    """Forget a speaker."""
    fs.forget(store, speakers=[speaker])


def compact(store: str) -> None:
    """Merge parts."""
    fs.compact(store, progress=False)


def cli(*arguments: str) -> None:
    """The command line."""
    from featurestore.cli import main

    sys.argv = ["featurestore", *arguments]
    main()
