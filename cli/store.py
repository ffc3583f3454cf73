"""`info` and `verify`: what a store holds, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featurestore.cli.app import JsonOption, QuietOption, app, example, note, print_json

StoreArgument = Annotated[Path, typer.Argument(help="Folder of the store.")]


@app.command(epilog=example("featurestore info iemocap.store"))
def info(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Say what a store holds."""
    from featurestore.store.summary import summarise_store

    facts = summarise_store(store)
    if as_json:
        print_json(facts)
        return
    print(f"{facts['store']}: {len(facts['views'])} views, {facts['bytes'] / 1e6:,.1f} MB")
    for view in facts["views"]:
        print(view["name"])
        for name, value in _view_rows(view):
            print(f"  {name:<12} {value}")


def _view_rows(view: dict[str, Any]) -> list[tuple[str, str]]:
    state = "complete" if view["complete"] else "incomplete: run the same ingest again"
    rows = [
        ("state", f"{state} ({view['parts']} parts)"),
        ("utterances", f"{view['utterances']:,}, {view['hours']:.2f} h"),
    ]
    rows += [("speakers", str(view["speakers"])), ("labels", ", ".join(view["labels"]))]
    if view["weights_source"]:
        rows.append(("weights", f"{view['weights_source']} ({view['weights'][:12]})"))
    if view["front_end"]:
        rows.append(("front end", view["front_end"]))
    if view["layers"]:
        rows.append(("layers", f"{view['layers']} of {view['units']} units"))
    if view["captures"]:
        kept = f"frames in {view['dtype']}" if view["frames"] else "statistics only"
        every = f"one every {1000 * view['frame_period_s']:g} ms"
        rows.append(("captures", f"{', '.join(view['captures'])}; {kept}, {every}"))
    return rows


@app.command(epilog=example("featurestore verify iemocap.store"))
def verify(store: StoreArgument, quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Read everything a store holds and check it against its checksums and records."""
    from featurestore.store.verify import verify as run

    found = run(store, progress=False if quiet else None)
    if as_json:
        facts = {**vars(found), "sound": found.sound}
        print_json({**facts, "problems": [vars(problem) for problem in found.problems]})
    else:
        print(
            f"{found.store}: {found.views} views, {found.parts} parts, {found.utterances:,} "
            f"utterance rows, {found.bytes_read / 1e6:,.1f} MB read"
        )
        for problem in found.problems:
            note(f"{problem.view} {problem.part}: {problem.what}")
        print("sound" if found.sound else f"{len(found.problems)} problems")
    if not found.sound:
        raise typer.Exit(1)
