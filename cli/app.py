"""The commands, their shared options, and how errors leave the program."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from featurestore import __version__
from featurestore.errors import FeatureStoreError

_ORDER = [
    "corpus",
    "ingest",
    "info",
    "verify",
    "compact",
    "forget",
    "upgrade",
    "export",
    "correlate",
    "map",
    "evaluate",
    "trace",
    "report",
    "study",
    "audit-precision",
    "finetune",
    "results",
    "train",
    "transcribe",
    "weights",
    "bench",
    "demo",
]


class _InOrder(TyperGroup):
    """Lists the commands in the order in which a corpus goes through them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = typer.Typer(
    name="featurestore",
    cls=_InOrder,
    help="Activations of a speech recogniser as a feature store, and what they say about emotion.",
    epilog="Start with: `featurestore demo DIR`",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(
    help="Import and look at network weights.", no_args_is_help=True, rich_markup_mode="markdown"
)
app.add_typer(weights_app, name="weights")

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print facts as JSON on standard output, and nothing else.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def _print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def example(text: str) -> str:
    """An epilog that shows how a command is called."""
    return f"Example: `{text}`"


def print_json(values: Any) -> None:
    """Facts for scripts, on standard output. What is undefined (NaN) becomes null."""
    print(json.dumps(_without_nan(values), indent=2, ensure_ascii=False, default=str))


def _without_nan(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and values != values else values


def note(text: str) -> None:
    """A line for people, on standard error, so that standard output stays clean for scripts."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line. Errors end it with one line and exit code 1, wrong usage with 2."""
    # The commands register themselves; importing them costs no more than typer does.
    from featurestore.cli import (  # noqa: F401
        analysis,
        bench,
        demo,
        export,
        finetune,
        ingest,
        precision,
        results,
        store,
        study,
        train,
        transcribe,
        weights,
    )

    try:
        app()
    except FeatureStoreError as error:
        note(f"error: {error}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; do not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        note(f"error: {error.strerror or error}{where}")
        sys.exit(1)
