"""`transcribe`: speech to text, with times, and error rates where the text is known."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.app import JsonOption, QuietOption, app, example, note, print_json
from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    import pandas as pd

    from featurestore.transcription import TranscriptionPlan
    from featurestore.transcripts import Transcription, Unread, Write

_SPEAKERS = 24  # shown
_SHOWN = 10  # transcripts, or files set aside, that are shown; a file or --json has all
_MANIFESTS = (".csv", ".parquet")

GIBBERISH = (
    "note: the weights are random, not trained: the text is gibberish, and its error rates are\n"
    "      what a network gets that knows nothing."
)


@app.command(epilog=example("featurestore transcribe interview.wav answers.wav"))
def transcribe(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="FILES|MANIFEST", help="Audio files, or one CSV or Parquet table."),
    ],
    weights: Annotated[str, typer.Option("--weights", "-w", help="As for ingest.")] = "default",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="FILE.csv, .json or .jsonl, with times."),
    ] = None,
    beam: Annotated[
        int | None,
        typer.Option(min=1, help="Width of a beam search, such as 16; else the best path alone."),
    ] = None,
    score: Annotated[
        bool,
        typer.Option("--score/--no-score", help="Count errors against the manifest's text."),
    ] = True,
    front_end: Annotated[
        str | None,
        typer.Option(help="librosa-0.5, librosa or vctk-decimate, instead of the weights' own."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decoding threads.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn speech into text, with the time of every character.

    With a manifest that has a column 'text', character and word error rates follow, overall and by
    speaker. Files that cannot be read are set aside with their reasons; the rest goes on.
    """
    from featurestore.encoder import load_encoder
    from featurestore.transcription import TranscribeConfig, plan_transcription
    from featurestore.transcripts import check_suffix

    if output is not None:
        check_suffix(output)
    table = _table(inputs)
    chosen: dict[str, Any] = {"workers": workers} if workers else {}
    config = TranscribeConfig(beam=beam, score=score, **chosen)
    encoder = load_encoder(weights, variant=front_end)
    progress = False if quiet else None
    plan = plan_transcription(table, encoder=encoder, config=config, progress=progress)
    _note_plan(plan)
    kept, facts = _run(plan, output=output, progress=progress, keep_all=output is None)
    if as_json:
        _print_json(kept if output is None else None, facts)
    else:
        _print_transcripts(kept)
    _note_summary(facts, output)
    if encoder.untrained:
        note(GIBBERISH)
    if not facts["utterances"]:
        raise typer.Exit(1)


def _table(inputs: list[str]) -> pd.DataFrame:
    """A manifest, or a table of files."""
    import pandas as pd

    from featurestore.corpus import read_manifest

    tables = [given for given in inputs if Path(given).suffix.lower() in _MANIFESTS]
    if tables and len(inputs) > 1:
        raise FeatureStoreError(
            f"{tables[0]} is a table and {len(inputs) - 1} other inputs are given; give one "
            "manifest, or audio files"
        )
    if tables:
        return read_manifest(tables[0])
    for given in inputs:
        if Path(given).is_dir():
            raise FeatureStoreError(
                f"{given} is a folder; give its files, or make a manifest of a known corpus: "
                "featurestore corpus --help"
            )
    return pd.DataFrame({"path": inputs})


def _run(
    plan: TranscriptionPlan, *, output: Path | None, progress: bool | None, keep_all: bool
) -> tuple[list[Transcription | Unread], dict[str, Any]]:
    """Transcribe and write: results for the terminal, all or the first few, and facts."""
    from featurestore.transcription import run_transcription
    from featurestore.transcripts import Tally, transcript_file

    began, tally = time.perf_counter(), Tally()
    kept: list[Transcription | Unread] = []

    def facts() -> dict[str, Any]:
        seconds = time.perf_counter() - began
        return {
            "weights": plan.recogniser.encoder.name,
            "fingerprint": plan.recogniser.encoder.fingerprint,
            "beam": plan.config.beam,
            **tally.to_dict(),
            "seconds": seconds,
            "times_real_time": tally.seconds_of_audio / seconds,
        }

    file: AbstractContextManager[Write] = nullcontext(lambda result: None)
    if output is not None:
        file = transcript_file(output, scored=bool(plan.scored), facts=facts)
    # Without a terminal there is no bar; a line now and then tells a job's log that it lives.
    shown = True if progress is None else progress
    with file as write:
        for result in run_transcription(plan, progress=shown):
            tally.add(result)
            write(result)
            if keep_all or len(kept) < _SHOWN:
                kept.append(result)
    return kept, facts()


def _print_json(transcripts: list[Transcription | Unread] | None, facts: dict[str, Any]) -> None:
    """Facts, and the transcripts a line each where no file has them."""
    if transcripts is None:
        print_json(facts)
        return
    from featurestore.transcripts import json_document

    with json_document(sys.stdout, facts=lambda: facts) as write:
        for one in transcripts:
            write(one)


def _print_transcripts(results: list[Transcription | Unread]) -> None:
    from featurestore.transcripts import Transcription

    read = [one for one in results if isinstance(one, Transcription)]
    width = max((len(one.id) for one in read), default=0)
    scored = any(one.reference for one in read)
    for one in read:
        rate = f"{one.reference.characters.rate:>7.1%}" if one.reference else " " * 7
        print(f"{one.id:<{width}}  {rate + '  ' if scored else ''}{one.text}".rstrip())


def _note_plan(plan: TranscriptionPlan) -> None:
    how = f"beam of {plan.config.beam}" if plan.config.beam else "most probable path"
    note(
        f"Plan: {plan.utterances:,} utterances, {plan.hours:.2f} h, {plan.scored:,} with text, "
        f"{len(plan.unread)} set aside; weights {plan.recogniser.encoder.name}, {how}"
    )


def _note_summary(facts: dict[str, Any], output: Path | None) -> None:
    note(
        f"Done: {facts['utterances']:,} utterances, {facts['hours']:.2f} h in "
        f"{facts['seconds']:,.1f} s ({facts['times_real_time']:,.0f}x real time)"
    )
    if "cer" in facts:
        note(
            f"  error rates     CER {facts['cer']:.1%}, WER {facts['wer']:.1%} over "
            f"{facts['scored']:,} utterances with text"
        )
        _note_speakers(facts["speakers"])
    if facts.get("dropped"):
        common = sorted(facts["dropped"].items(), key=lambda item: -item[1])[:_SHOWN]
        note(
            f"  left out        {facts['incomplete']:,} references hold characters without a "
            "spelling: " + ", ".join(f"{character!r} {count}x" for character, count in common)
        )
    unread = facts["unread"]
    if unread:
        note(f"  set aside       {len(unread)}:")
    for one in unread[:_SHOWN]:
        note(f"    {one['id']}: {one['reason']}")
    if len(unread) > _SHOWN:
        note(f"    and {len(unread) - _SHOWN} more; --json lists all")
    if output is not None:
        note(f"File: {output}")


def _note_speakers(speakers: list[dict[str, Any]]) -> None:
    if len(speakers) < 2:
        return
    width = max(len(one["speaker"]) for one in speakers)
    for one in speakers[:_SPEAKERS]:
        note(
            f"    {one['speaker']:<{width}}  CER {one['cer']:>6.1%}  WER {one['wer']:>6.1%}  "
            f"({one['utterances']:,})"
        )
    if len(speakers) > _SPEAKERS:
        note(f"    and {len(speakers) - _SPEAKERS} more speakers; --json lists all")
