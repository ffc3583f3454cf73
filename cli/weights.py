"""`weights import` and `weights show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featurestore.cli.app import JsonOption, example, print_json, weights_app


@weights_app.command(
    "import", epilog=example("featurestore weights import model.ckpt-205919 -o wavenet.safetensors")
)
def import_(
    prefix: Annotated[str, typer.Argument(help="TensorFlow checkpoint, without .index or .data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.safetensors to write.")],
    as_json: JsonOption = False,
) -> None:
    """Read the original TensorFlow checkpoint, check every CRC, and save it as safetensors."""
    from featurestore.checkpoint import import_tensorflow, save_safetensors
    from featurestore.weights import describe

    weights = import_tensorflow(prefix)
    save_safetensors(weights, output)
    _print({"file": str(output), **describe(weights)}, as_json=as_json)


@weights_app.command("show", epilog=example("featurestore weights show random:0"))
def show(
    weights: Annotated[
        str, typer.Argument(help="Checkpoint prefix, .safetensors, registered name or random:SEED.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what weights are and whether they are the published ones."""
    from featurestore.checkpoint import load_weights
    from featurestore.weights import describe

    _print(describe(load_weights(weights)), as_json=as_json)


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name == "published":
            value = "yes, the published checkpoint" if value else "no, not the published checkpoint"
        print(f"{name:<12} {value}")
