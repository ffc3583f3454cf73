"""`bench`: what this machine does, stage by stage, beside other software and its own limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.app import JsonOption, QuietOption, app, example, note, print_json


@app.command(epilog=example("featurestore bench ravdess.csv -o bench"))
def bench(
    manifest: Annotated[
        str | None,
        typer.Argument(help="As for ingest; without one, a few minutes of speech are synthesised."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the results; its disk is measured.")
    ] = Path("bench"),
    stages: Annotated[
        str | None,
        typer.Option(
            help="Only these, separated by commas: limits, decode, mfcc, network, ingest, egemaps, "
            "reading, analysis."
        ),
    ] = None,
    utterances: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="At most so many, evenly spread; 400, or 100 of synthesised speech.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = 5,
    weights: Annotated[
        str, typer.Option("--weights", "-w", help="As for ingest; they do not change the speed.")
    ] = "default",
    quick: Annotated[
        bool, typer.Option("--quick", help="Few utterances, one run: shows that everything works.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: each stage, the ingest, reading and analyses, and what it can do.

    Both sides of a comparison run in turns and are first checked to compute the same. What
    `pip install 'featurestore[bench,egemaps]'` brings is compared with; without it, the rest is
    measured. Run it on an idle machine.
    """
    from featurestore.benchmarks.suite import BenchConfig, plan_bench, run_bench, write_report
    from featurestore.progress import progress_bar

    config = BenchConfig(
        manifest=manifest,
        utterances=utterances or (100 if manifest is None else 400),
        repeats=repeats,
        quick=quick,
        weights=weights,
        **({} if stages is None else {"families": _names(stages)}),
    )
    plan = plan_bench(config)
    if not quiet:
        note(plan.to_text())
    show = False if quiet else None
    with progress_bar("Measuring", plan.steps, unit="steps", show=show) as tick:
        report = run_bench(plan, output, tick=tick)
    files = write_report(report, output)
    if as_json:
        print_json({**report.to_dict(), "files": [str(file) for file in files]})
    else:
        print(report.to_markdown())
        print(f"written: {', '.join(map(str, files))}")
    if any(row.failed for row in report.rows):
        note("error: two sides that should compute the same do not, or one stopped; see the table")
        raise typer.Exit(1)


def _names(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
