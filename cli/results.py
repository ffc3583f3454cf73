"""`results`: whether figures and tables are what their store says now."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.app import JsonOption, app, example, print_json

if TYPE_CHECKING:
    from featurestore.result_files import CheckedResult


@app.command(epilog=example("featurestore results figures"))
def results(
    folder: Annotated[Path, typer.Argument(help="Folder of figures and tables.")],
    store: Annotated[
        str | None, typer.Option(help="Where the store is now, if it was moved.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say of each figure and table whether it was computed from the store as it is now.

    Exit code 1 if any was not: the store has changed or is gone, or the file was changed.
    """
    from featurestore.result_files import check_results

    found = check_results(folder, store)
    current = sum(one.current for one in found)
    if as_json:
        listed = [{**asdict(one), "current": one.current} for one in found]
        whole = current == len(found)
        print_json({"folder": str(folder), "current": whole, "results": listed})
    else:
        width = max((len(one.file) for one in found), default=0)
        for one in found:
            print(f"{one.file:<{width}}  {one.said}")
        print(f"{current} of {len(found)} results in {folder} are current")
        _print_commands([one for one in found if not one.current])
    if current < len(found):
        raise typer.Exit(1)


def _print_commands(stale: list[CheckedResult]) -> None:
    """How to make results again, each command once."""
    commands = dict.fromkeys((one.directory, one.command) for one in stale)
    if commands:
        print("computed by:")
    for directory, command in commands:
        print(f"  cd {shlex.quote(directory)} && {command}" if directory else f"  {command}")
