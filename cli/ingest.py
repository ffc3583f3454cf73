"""`corpus` and `ingest`: from a folder of speech to a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.app import JsonOption, QuietOption, app, example, note, print_json
from featurestore.types import VIEWS

if TYPE_CHECKING:
    from featurestore.ingest import IngestSummary
    from featurestore.planning import IngestPlan, Skipped
    from featurestore.setup import IngestConfig

_SHOWN = 10  # files set aside that are listed; --json lists all


@app.command(epilog=example("featurestore corpus iemocap IEMOCAP_full_release -o iemocap.csv"))
def corpus(
    kind: Annotated[
        str,
        typer.Argument(help="ravdess, iemocap, vctk, librispeech, emodb, fsdd, or table."),
    ],
    path: Annotated[Path, typer.Argument(help="The corpus folder; for 'table' a CSV or Parquet.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Manifest to write: .csv or .parquet.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Read a corpus into a manifest: one row per utterance, with speaker, text and labels."""
    from featurestore.corpus import label_columns, read_corpus, write_manifest

    table = read_corpus(kind, path)
    write_manifest(table, output)
    facts = {
        "manifest": str(output),
        "utterances": len(table),
        "speakers": int(table["speaker"].nunique()),
        "labels": label_columns(table),
    }
    if as_json:
        print_json(facts)
        return
    print(f"{output}: {facts['utterances']:,} utterances, {facts['speakers']} speakers")
    print(f"labels: {', '.join(label_columns(table)) or 'none'}")


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


@app.command(epilog=example("featurestore ingest iemocap.csv iemocap.store --weights random:0"))
def ingest(
    manifest: Annotated[Path, typer.Argument(help="CSV or Parquet with a column 'path'.")],
    store: Annotated[Path, typer.Argument(help="Folder of the store, new or to be added to.")],
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            "-w",
            help="default, a registered name, FILE.safetensors, the folder of a training run, a "
            "TensorFlow checkpoint prefix, random:SEED, or another network as wav2vec2:FOLDER.",
        ),
    ] = "default",
    views: Annotated[str, typer.Option(help="What to extract, separated by commas.")] = ",".join(
        VIEWS
    ),
    capture: Annotated[
        str | None,
        typer.Option(
            help="Capture points of the network, separated by commas, such as gate, skip, "
            "residual. The network's first one by default."
        ),
    ] = None,
    frames: Annotated[
        bool, typer.Option("--frames/--no-frames", help="Keep every frame, or only statistics.")
    ] = True,
    dtype: Annotated[str, typer.Option(help="Of the frames kept: float16 or float32.")] = "float16",
    front_end: Annotated[
        str | None,
        typer.Option(help="librosa-0.5, librosa or vctk-decimate, instead of the weights' own."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding threads and openSMILE processes.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Extract features of every utterance into a store.

    Running the same command again completes an interrupted store. Files that cannot be read are set
    aside with their reasons; the rest goes on.
    """
    from featurestore.setup import IngestConfig

    chosen: dict[str, Any] = {"workers": workers} if workers else {}
    config = IngestConfig(
        views=tuple(_names(views)),
        captures=None if capture is None else tuple(_names(capture)),
        frames=frames,
        dtype=dtype,  # type: ignore[arg-type]
        **chosen,
    )
    plan, summary = run_ingest(
        manifest,
        store,
        weights=weights,
        config=config,
        variant=front_end,
        dry_run=dry_run,
        progress=False if quiet else None,
        talk=not as_json,
    )
    if as_json:
        print_json(plan.to_dict() if summary is None else summary.to_dict())


def run_ingest(
    manifest: Path,
    store: Path,
    *,
    weights: str,
    config: IngestConfig,
    variant: str | None = None,
    dry_run: bool = False,
    progress: bool | None = None,
    talk: bool = True,
) -> tuple[IngestPlan, IngestSummary | None]:
    """Plan, print the plan, run, print the summary."""
    from featurestore.planning import plan_ingest

    plan = plan_ingest(
        manifest, store, encoder=weights, config=config, variant=variant, progress=progress
    )
    if talk:
        _print_plan(plan)
    if dry_run:
        return plan, None
    from featurestore.ingest import run_plan

    # Without a terminal there is no bar; a line now and then tells a job's log that it lives.
    shown = True if progress is None else progress
    try:
        summary = run_plan(plan, progress=shown)
    except KeyboardInterrupt:
        note("stopped: what is written is safe; run the same command again to go on")
        raise typer.Exit(130) from None
    if talk:
        _print_summary(summary)
        if plan.setup.encoder is not None and plan.setup.encoder.untrained:
            note(UNTRAINED)
    return plan, summary


UNTRAINED = (
    "note: the weights are random, not trained. Such a network is a control: it shows what the\n"
    "      architecture and the front end give away by themselves. It is not a finding about\n"
    "      speech recognition; a trained network has to do better than this."
)


def _print_plan(plan: IngestPlan) -> None:
    print(f"Plan for {plan.store}")
    periods = " and ".join(f"{1000 * period:g}" for period in plan.frame_periods_s)
    rows = [
        ("utterances", f"{plan.utterances:,} to do of {plan.corpus_utterances:,} in the manifest"),
        ("audio", f"{plan.hours:.2f} h, {plan.frames:,} frames of {periods} ms"),
        ("views", ", ".join(plan.views)),
        ("to write", f"{plan.bytes_to_write / 1e6:,.1f} MB in {plan.columns} columns"),
        ("padding waste", f"{plan.padding_waste:.1%} of computed frames"),
        ("compilations", f"{plan.compilations}"),
        ("set aside", f"{len(plan.skipped)}"),
    ]
    if plan.relabelled:
        rows.append(("labels", f"{plan.relabelled:,} stored utterances will follow the manifest"))
    for name, value in rows:
        print(f"  {name:<15} {value}")


def _print_summary(summary: IngestSummary) -> None:
    print(
        f"Done: {summary.utterances:,} utterances, {summary.hours:.2f} h in "
        f"{summary.seconds:,.1f} s ({summary.times_real_time:,.0f}x real time)"
    )
    for stage, seconds in summary.stages.items():
        print(f"  {stage:<15} {seconds:,.1f} s busy")
    if summary.relabelled:
        print(f"  labels          {summary.relabelled:,} stored utterances follow the manifest")
    _print_skipped(summary.skipped)
    print(f"Store: {summary.store} ({', '.join(summary.views)})")


def _print_skipped(skipped: tuple[Skipped, ...]) -> None:
    if not skipped:
        print("  set aside       none")
        return
    print(f"  set aside       {len(skipped)}; they are tried again by the next run:")
    for one in skipped[:_SHOWN]:
        print(f"    {one.id} ({', '.join(one.views)}): {one.reason}")
    if len(skipped) > _SHOWN:
        print(f"    and {len(skipped) - _SHOWN} more; --json lists all")
