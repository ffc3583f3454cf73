"""`weights`: import, list and look at network weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.app import JsonOption, example, note, print_json, weights_app

if TYPE_CHECKING:
    from featurestore.registry import NamedWeights

_RANDOM = "random:SEED, an untrained network, is always available as a control."


@weights_app.command("list", epilog=example("featurestore weights list"))
def list_(as_json: JsonOption = False) -> None:
    """List the weights that have names: the shipped default and those imported."""
    from featurestore.registry import DEFAULT, list_named, weights_home

    found = list_named()
    if as_json:
        listed = [_record(named) for named in found]
        print_json({"weights": listed, "home": str(weights_home()), "always": "random:SEED"})
        return
    if found:
        _print_table([_row(named) for named in found])
    if not any(named.shipped for named in found):
        print(f"This copy of featurestore comes without the weights named '{DEFAULT}'.")
    print(_RANDOM)
    for named in found:
        if named.problem:
            note(f"note: {named.name}: {named.problem}")


def _record(named: NamedWeights) -> dict[str, Any]:
    record = dataclasses.asdict(named.record) if named.record else {}
    return {**record, "name": named.name, "path": str(named.path), "problem": named.problem}


def _row(named: NamedWeights) -> tuple[str, ...]:
    where = "shipped" if named.shipped else str(named.path)
    if named.record is None:
        return (named.name, "cannot be used", "", "", "", "", where)
    record = named.record
    return (
        named.name,
        record.sha256[:12],
        record.front_end,
        "yes" if record.published else "no",
        f"{record.bytes / 1e6:.1f} MB",
        record.source,
        where,
    )


def _print_table(rows: list[tuple[str, ...]]) -> None:
    table = [("name", "sha256", "front end", "published", "size", "source", "where"), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


@weights_app.command("import", epilog=example("featurestore weights import ./model.ckpt-205919"))
def import_(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="TensorFlow checkpoint (without .index or .data), FILE.safetensors, or the folder "
            "of a training run."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Name to register, instead of the checkpoint's own."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="FILE.safetensors to write; registers nothing."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the kernels: float32, or float16 for half the size.")
    ] = "float32",
    licence: Annotated[str, typer.Option(help="Under which the weights may be used.")] = "",
    remark: Annotated[str, typer.Option("--note", help="Words to keep with the weights.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace weights that have the name already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read and check weights and register them under a name that every --weights accepts.

    A checkpoint of the original TensorFlow program is read without TensorFlow; every CRC in it is
    checked. It keeps its own name, such as model.ckpt-205919.
    """
    from featurestore.checkpoint import checkpoint_name, read_checkpoint, register, save_safetensors
    from featurestore.weights import describe

    if output is not None:
        if name or licence or remark or replace:
            raise typer.BadParameter(
                "registers nothing, so --name, --licence, --note and --replace do not go with it",
                param_hint="--output",
            )
        weights = save_safetensors(read_checkpoint(checkpoint), output, dtype=dtype)  # type: ignore[arg-type]  # checked
        _print({"file": str(output), **describe(weights)}, as_json=as_json)
        return
    weights = read_checkpoint(checkpoint)
    named = register(
        weights,
        name or checkpoint_name(checkpoint),
        dtype=dtype,  # type: ignore[arg-type]  # checked
        licence=licence,
        note=remark,
        replace=replace,
    )
    _print(_record(named), as_json=as_json)


@weights_app.command("show", epilog=example("featurestore weights show default"))
def show(
    weights: Annotated[
        str,
        typer.Argument(
            help="default, a registered name, FILE.safetensors, the folder of a training run, a "
            "TensorFlow checkpoint prefix or random:SEED."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what weights are and whether they are the published ones."""
    from featurestore.checkpoint import load_weights
    from featurestore.registry import find_named
    from featurestore.weights import describe

    facts = describe(load_weights(weights))
    if named := find_named(weights):
        facts = {**_record(named), **facts}
    _print(facts, as_json=as_json)


@weights_app.command("card", epilog=example("featurestore weights card default"))
def card(
    name: Annotated[str, typer.Argument(help="default, or a registered name.")] = "default",
) -> None:
    """Print the model card: what weights were trained on, how well they do, what they are not."""
    from featurestore.registry import model_card

    print(model_card(name).rstrip())


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name == "published":
            value = "yes, the published checkpoint" if value else "no, not the published checkpoint"
        if value != "":
            print(f"{name:<12} {value}")
