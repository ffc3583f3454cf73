"""Put trained weights and their model card into the package, where they are named `default`.

    python recipes/default_model/release.py RUN/weights.safetensors --card CARD.md

writes featurestore/data/default.safetensors (kernels in float16), default.json (the record with the
SHA-256 that every load checks) and default.md. Equal weights make an equal file.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import featurestore
from featurestore.checkpoint import load_weights, read_checkpoint
from featurestore.errors import CheckpointError, FeatureStoreError
from featurestore.files import replacing
from featurestore.registry import DEFAULT, NamedWeights, shipped_folder, write_named
from featurestore.weights import Weights


def release(
    weights: Weights, card: str, *, folder: Path, source: str, licence: str, note: str = ""
) -> NamedWeights:
    """Writes the three files.

    Args:
        weights: What training ended with.
        card: The model card, in Markdown.
        folder: To write into.
        source: Where the weights came from, as stores and figures will name it.
        licence: Under which the weights may be used.
        note: For people.

    Raises:
        CheckpointError: The weights are untrained, the card is empty, float16 cannot hold a kernel,
            or a file cannot be written.
    """
    if weights.source.startswith("random:"):
        raise CheckpointError(f"{weights.source} is an untrained network; release a trained one")
    if not card.strip():
        raise CheckpointError("the model card is empty; say what the weights are and are not")
    path = folder / f"{DEFAULT}.safetensors"
    named = write_named(
        dataclasses.replace(weights, source=source),
        path,
        dtype="float16",
        licence=licence,
        note=note,
    )
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(card.rstrip() + "\n", encoding="utf-8")
    return named


def main() -> None:
    """Release from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="what training wrote: RUN/weights.safetensors or RUN")
    parser.add_argument("--card", type=Path, required=True, help="model card, Markdown")
    parser.add_argument(
        "--source",
        default=f"{DEFAULT}:{featurestore.__version__}",
        help="what stores and figures call the weights (%(default)s)",
    )
    parser.add_argument("--licence", default="MIT", help="of the weights (%(default)s)")
    parser.add_argument("--note", default="", help="words to keep in the record")
    options = parser.parse_args()
    try:
        named = release(
            read_checkpoint(options.checkpoint),
            options.card.read_text(encoding="utf-8"),
            folder=shipped_folder(),
            source=options.source,
            licence=options.licence,
            note=options.note,
        )
        loaded = load_weights(DEFAULT)
    except (FeatureStoreError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"error: {error}")
    assert named.record is not None
    for name, value in dataclasses.asdict(named.record).items():
        print(f"{name:<12} {value}")
    print(f"written to {named.path}; loads as {loaded.source!r}")


if __name__ == "__main__":
    main()
