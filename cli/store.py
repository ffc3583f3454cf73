"""`info`, `verify`, `forget`, `compact`: what a store holds, and its upkeep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.app import JsonOption, QuietOption, app, example, note, print_json

if TYPE_CHECKING:
    from featurestore.maintenance import Recomputed
    from featurestore.store.verify import Verification

StoreArgument = Annotated[
    str, typer.Argument(help="The store: a folder, or a URL such as s3://bucket/prefix.")
]


@app.command(epilog=example("featurestore info iemocap.store --utterance Ses01F_impro01_F000"))
def info(
    store: StoreArgument,
    utterance: Annotated[
        str | None, typer.Option(help="Say how every row of this utterance came to be.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a store holds, or where an utterance's rows came from."""
    from featurestore.store.summary import lineage, summarise_store

    if utterance is not None:
        _print_lineage(lineage(store, utterance), utterance, as_json=as_json)
        return
    facts = summarise_store(store)
    if as_json:
        print_json(facts)
        return
    print(
        f"{facts['store']}: {len(facts['views'])} views, {facts['bytes'] / 1e6:,.1f} MB, state "
        f"{facts['state']}"
    )
    for view in facts["views"]:
        print(view["name"])
        for name, value in _view_rows(view):
            print(f"  {name:<12} {value}")


def _print_lineage(entries: list[dict[str, Any]], id: str, *, as_json: bool) -> None:
    if as_json:
        print_json(entries)
        return
    print(id)
    for entry in entries:
        print(entry["view"])
        for name, value in _lineage_rows(entry):
            print(f"  {name:<12} {value}")


NOT_RECORDED = "not recorded"  # of rows that featurestore 0.2 and older made


def _lineage_rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    audio = entry["audio"]
    frames = "" if entry["kind"] == "egemaps" else ", frames {}-{}".format(*entry["frames"])
    rows = [
        ("lies in", f"{entry['part']}, column {entry['column']}, row {entry['row']}{frames}"),
        ("audio", f"{audio.get('path', '?')} ({audio['duration_s']:.3f} s)"),
        ("sha256", f"{audio['sha256']} of the decoded samples"),
    ]
    if entry["front_end"]:
        rows.append(("front end", entry["front_end"]))
    if entry["weights"]:
        rows.append(("weights", f"{entry['weights_source']} ({entry['weights']})"))
    if entry["captures"]:
        rows.append(("captures", ", ".join(entry["captures"])))
        rows.append(("pooling", ", ".join(entry["pooling"])))
        kept = entry["dtype"] or "not kept"
        rows.append(("precision", f"computed in {entry['precision']}, frames {kept}"))
    known = entry["made_at"] != NOT_RECORDED
    rows.append(("made", f"{entry['made_at']} on {entry['device']}" if known else NOT_RECORDED))
    rows.append(("with", ", ".join(f"{name} {v}" for name, v in entry["versions"].items())))
    return rows


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
    if view["padding_difference"] is not None:
        value = f"{view['padding_difference']:.1e} at most between batched and encoded alone"
        rows.append(("certificate", value))
    return rows


@app.command(
    epilog=example("featurestore verify iemocap.store --recompute 20 --audio IEMOCAP_full_release")
)
def verify(
    store: StoreArgument,
    recompute: Annotated[
        int,
        typer.Option(min=0, help="Encode this many random utterances of each view anew, alone."),
    ] = 0,
    audio: Annotated[
        str | None,
        typer.Option(help="Where the audio is now; where it was at ingest if not given."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", help="Of the network; those that the view names if none."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Have what is damaged made again by the next ingest."),
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything a store holds and check it against its checksums and records."""
    from featurestore.store.verify import repair as take_back
    from featurestore.store.verify import verify as run

    found = run(store, progress=False if quiet else None)
    if not as_json:
        _print_verification(found)
    repaired = take_back(store, found) if repair and not found.sound else None
    again = _recompute(store, recompute, audio, weights) if recompute and found.sound else []
    if as_json:
        facts = {**vars(found), "sound": found.sound, "repaired_parts": repaired}
        facts["problems"] = [vars(problem) for problem in found.problems]
        facts["recomputed"] = [_recomputed_facts(one) for one in again]
        print_json(facts)
    else:
        for one in again:
            _print_recomputed(one)
        _say_what_next(found, repaired=repaired)
    if not found.sound or any(one.differences.other_audio for one in again):
        raise typer.Exit(1)


def _print_verification(found: Verification) -> None:
    print(
        f"{found.store}: {found.views} views, {found.parts} parts, {found.utterances:,} "
        f"utterance rows, {found.bytes_read / 1e6:,.1f} MB read"
    )
    for problem in found.problems:
        note(" ".join(filter(None, (problem.view, problem.part))) + f": {problem.what}")
    print("sound" if found.sound else f"{len(found.problems)} problems", flush=True)


def _say_what_next(found: Verification, *, repaired: int | None) -> None:
    mendable = sum(problem.mendable for problem in found.problems)
    if repaired is not None:
        note(f"{repaired} parts are to be completed now: run the same 'featurestore ingest' again")
    elif mendable:
        note(
            f"{mendable} of these can be mended: 'featurestore verify {found.store} --repair', "
            "then the same 'featurestore ingest' again"
        )
    if len(found.problems) > mendable:
        note(
            "what cannot be mended has lost its plan or its labels: ingest into a new store, or "
            "bring the file back from a copy"
        )


def _recompute(store: str, count: int, audio: str | None, weights: str | None) -> list[Recomputed]:
    from featurestore.maintenance import recompute

    return recompute(store, count, audio=audio, encoder=weights)


def _recomputed_facts(one: Recomputed) -> dict[str, Any]:
    return {"view": one.view, "layers": one.layer_names, **vars(one.differences)}


def _print_recomputed(one: Recomputed) -> None:
    found = one.differences
    print(f"{one.view}: {found.utterances} utterances encoded alone; largest difference per layer")
    captures = list(found.pooled)
    heads = [f"{name} {kind}" for name in captures for kind in ("statistics", "frames")]
    print(f"  {'layer':<14}" + "".join(f"{head:>22}" for head in heads))
    for index, layer in enumerate(one.layer_names):
        values = [
            getattr(found, kind).get(name, [None] * len(one.layer_names))[index]
            for name in captures
            for kind in ("pooled", "frames")
        ]
        cells = ["-" if value is None else f"{value:.1e}" for value in values]
        print(f"  {layer:<14}" + "".join(f"{cell:>22}" for cell in cells))
    for id, reason in found.unreadable.items():
        note(f"{id}: not recomputed: {reason}")
    for id in found.other_audio:
        note(f"{id}: its file holds other audio now than when it was stored")


@app.command(epilog=example("featurestore forget iemocap.store --speaker Ses01F"))
def forget(
    store: StoreArgument,
    speaker: Annotated[
        list[str] | None, typer.Option(help="Whose utterances go; repeatable.")
    ] = None,
    utterance: Annotated[
        list[str] | None, typer.Option(help="An id that goes; repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove speakers or utterances from every view, and keep them from coming back.

    Parts that hold them are written anew and the old ones removed. A tombstone without names keeps
    a later ingest of an old manifest from bringing them back, unless it says --readmit. Copies,
    backups and old versions in a versioned bucket are yours to remove.
    """
    from featurestore.maintenance import forget as run

    done = run(store, speakers=speaker or [], utterances=utterance or [])
    if as_json:
        print_json(vars(done))
        return
    parts = ", ".join(f"{count} in {view}" for view, count in done.rewritten.items()) or "none"
    print(f"{done.store}: {done.utterances:,} utterances are gone; parts written anew: {parts}")
    print("Figures and tables computed before are of another state: featurestore results FOLDER")


@app.command(epilog=example("featurestore compact iemocap.store"))
def compact(store: StoreArgument, quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Merge the parts that several ingests have made into one per view."""
    from featurestore.maintenance import compact as run

    done = run(store, progress=False if quiet else None)
    if as_json:
        print_json(vars(done))
        return
    for view, count in done.before.items():
        print(f"{view}: {count} parts before, {done.after[view]} now")


@app.command(epilog=example("featurestore upgrade old.store"))
def upgrade(store: StoreArgument, quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Bring a store of featurestore 0.1 or 0.2 to the current format, in place."""
    from featurestore.store.upgrade import upgrade as run

    parts = run(store, progress=False if quiet else None)
    if as_json:
        print_json({"store": store, "parts": parts})
    else:
        print(
            f"{store}: {parts} parts have checksums of every file now; 'featurestore verify' them"
        )
