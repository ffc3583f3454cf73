"""`corpus` and `ingest`: from a folder of speech to a store."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    manifest: Annotated[
        str, typer.Argument(help="CSV or Parquet with a column 'path'; a file or a URL.")
    ],
    store: Annotated[
        str,
        typer.Argument(help="The store, new or to be added to: a folder, or s3://bucket/prefix."),
    ],
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
    dtype: Annotated[
        str,
        typer.Option(help="Of the frames kept: float16, float32, or int8 for an archive."),
    ] = "float16",
    precision: Annotated[
        str,
        typer.Option(
            help="Of the network: parity (float32, as the original computes) or fast (winograd "
            "on a CPU, float16 on a GPU); or one of float32, winograd, float16, bfloat16."
        ),
    ] = "parity",
    front_end: Annotated[
        str | None,
        typer.Option(help="librosa-0.5, librosa or vctk-decimate, instead of the weights' own."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding threads and openSMILE processes.")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Make stored utterances whose audio has changed again."),
    ] = False,
    readmit: Annotated[
        bool,
        typer.Option("--readmit", help="Let back in what 'featurestore forget' took out."),
    ] = False,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Do the work on a dask cluster: local, local:N (processes), or the address of a "
            "scheduler, such as tcp://host:8786."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Extract features of every utterance into a store.

    Running the same command again completes an interrupted store and adds what is new. Files that
    cannot be read are set aside with their reasons; the rest goes on. Ctrl-C once ends after the
    columns in hand, twice at once; nothing that is committed is lost either way.
    """
    from featurestore.setup import IngestConfig

    chosen: dict[str, Any] = {"workers": workers} if workers else {}
    config = IngestConfig(
        views=tuple(_names(views)),
        captures=None if capture is None else tuple(_names(capture)),
        frames=frames,
        dtype=dtype,  # type: ignore[arg-type]
        precision=precision,
        **chosen,
    )
    plan, summary = run_ingest(
        manifest,
        store,
        weights=weights,
        config=config,
        variant=front_end,
        replace=replace,
        readmit=readmit,
        scheduler=scheduler,
        dry_run=dry_run,
        progress=False if quiet else None,
        talk=not as_json,
    )
    if as_json:
        print_json(plan.to_dict() if summary is None else summary.to_dict())


def run_ingest(
    manifest: str | Path,
    store: str | Path,
    *,
    weights: str,
    config: IngestConfig,
    variant: str | None = None,
    replace: bool = False,
    readmit: bool = False,
    scheduler: str | None = None,
    dry_run: bool = False,
    progress: bool | None = None,
    talk: bool = True,
) -> tuple[IngestPlan, IngestSummary | None]:
    """Plan, print the plan, run, print the summary."""
    from featurestore.planning import plan_ingest

    plan = plan_ingest(
        manifest,
        store,
        encoder=weights,
        config=config,
        variant=variant,
        replace=replace,
        readmit=readmit,
        progress=progress,
    )
    if talk:
        _print_plan(plan)
    if dry_run:
        return plan, None
    from featurestore.ingest import run_plan

    # Without a terminal there is no bar; a line now and then tells a job's log that it lives.
    shown = True if progress is None else progress
    with cluster_client(scheduler) as client, _interruptible() as stopped:
        summary = run_plan(plan, client=client, stopped=stopped, progress=shown)
    if talk:
        _print_summary(summary)
        if plan.setup.encoder is not None and plan.setup.encoder.untrained:
            note(UNTRAINED)
    if summary.stopped:
        note(_STOPPED)
        raise typer.Exit(130)
    return plan, summary


@contextmanager
def cluster_client(scheduler: str | None) -> Iterator[Any]:
    """A client of the cluster that was asked for, if one was."""
    if scheduler is None:
        yield None
        return
    from featurestore.distribution import cluster

    with cluster(scheduler) as client:
        note(f"cluster: {len(client.nthreads())} workers, dashboard {client.dashboard_link}")
        yield client


_STOPPED = "stopped: what is written is safe; run the same command again to go on"


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ask to stop at the first Ctrl-C and stop at the second; says whether it was asked."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        note("stopping after the columns in hand; Ctrl-C again stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    except KeyboardInterrupt:
        note(_STOPPED)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGINT, before)


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
        *_precision(plan),
        ("to write", f"{plan.bytes_to_write / 1e6:,.1f} MB in {plan.columns} columns"),
        ("padding waste", f"{plan.padding_waste:.1%} of computed frames"),
        ("compilations", f"{plan.compilations}, or loaded from an earlier run"),
        *([] if plan.memory_bytes is None else [("memory", f"{plan.memory_bytes / 1e6:,.0f} MB")]),
        ("set aside", f"{len(plan.skipped)}"),
    ]
    if plan.relabelled:
        rows.append(("labels", f"{plan.relabelled:,} stored utterances will follow the manifest"))
    if plan.replaced:
        rows.append(("replaced", f"{len(plan.replaced):,} stored utterances have other audio now"))
    if plan.forgotten:
        rows.append(
            ("forgotten", f"{plan.forgotten:,} rows stay out, as was asked; --readmit lets them in")
        )
    for name, value in rows:
        print(f"  {name:<15} {value}")


def _precision(plan: IngestPlan) -> list[tuple[str, str]]:
    """What was asked for, and what it is here; nothing to say of the default."""
    if plan.setup.encoder is None or plan.setup.config.precision == "parity":
        return []
    return [("precision", getattr(plan.setup.encoder, "precision", "float32"))]


def _print_summary(summary: IngestSummary) -> None:
    print(
        f"Done: {summary.utterances:,} utterances, {summary.hours:.2f} h in "
        f"{summary.seconds:,.1f} s ({summary.times_real_time:,.0f}x real time)"
    )
    for stage, seconds in summary.stages.items():
        print(f"  {stage:<15} {seconds:,.1f} s")
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
