"""`train`: make a recogniser from speech with transcripts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.app import JsonOption, QuietOption, app, example, note, print_json

if TYPE_CHECKING:
    from featurestore.training.config import TrainConfig
    from featurestore.training.data import Example, TrainingSet
    from featurestore.training.train import TrainSummary

_SHOWN = 10  # reasons and characters that are listed


@app.command(epilog=example("featurestore train librispeech.csv -o runs/librispeech"))
def train(
    manifest: Annotated[
        Path,
        typer.Argument(help="CSV or Parquet with 'path' and 'text', and perhaps 'split'."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.")
    ],
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 30,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation, held-out.")] = 0,
    weights: Annotated[
        str, typer.Option("--weights", "-w", help="Weights to start from; random by default.")
    ] = "",
    optimiser: Annotated[
        str, typer.Option(help="adamw, muon, or maxprop as the original.")
    ] = "adamw",
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 2e-3,
    warmup: Annotated[int, typer.Option(help="Steps until the peak.")] = 500,
    weight_decay: Annotated[float, typer.Option(help="Of the kernels; not for maxprop.")] = 0.05,
    clip: Annotated[float, typer.Option(help="Largest norm of a gradient.")] = 1.0,
    dropout: Annotated[float, typer.Option(help="Share of units silenced.")] = 0.1,
    frames_per_batch: Annotated[int, typer.Option(help="Frames of 32 ms in a batch.")] = 2560,
    longest: Annotated[float, typer.Option(help="Longest utterance in seconds.")] = 20.0,
    held_out: Annotated[
        float, typer.Option(help="Share of speakers held out, without a column 'split'.")
    ] = 0.1,
    settle: Annotated[
        float, typer.Option(help="Share of epochs at the end with fixed normalisation.")
    ] = 0.3,
    patience: Annotated[
        int, typer.Option(help="Epochs without a better held-out CER to stop after; 0: never.")
    ] = 10,
    precision: Annotated[
        str, typer.Option(help="auto (bfloat16 on a GPU), float32 or bfloat16.")
    ] = "auto",
    front_end: Annotated[str, typer.Option(help="librosa-0.5 or librosa.")] = "librosa-0.5",
    speed: Annotated[float, typer.Option(help="Augment: speed, plus or minus.")] = 0.12,
    noise: Annotated[float, typer.Option(help="Augment: share of utterances with noise.")] = 0.5,
    gain_db: Annotated[float, typer.Option(help="Augment: loudness, plus or minus dB.")] = 12.0,
    tilt_db: Annotated[float, typer.Option(help="Augment: channel, dB.")] = 3.0,
    warp: Annotated[float, typer.Option(help="Augment: vocal tract, plus or minus.")] = 0.12,
    mask_bands: Annotated[int, typer.Option(help="Augment: widest gaps in mel bands.")] = 16,
    mask_frames: Annotated[int, typer.Option(help="Augment: longest gaps in frames.")] = 6,
    coefficient_shift: Annotated[
        bool, typer.Option("--coefficient-shift", help="Augment: the original's roll of the MFCC.")
    ] = False,
    no_augmentation: Annotated[
        bool, typer.Option("--no-augmentation", help="Train on the recordings as they are.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads.")] = 2,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0.0, help="Between checkpoints; one after every epoch too.")
    ] = 5.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the network to spell speech (CTC), on a CPU or on GPUs.

    Rows whose 'split' is dev or validation are held out, test is left alone; without the column
    whole speakers are held out. The same command goes on with a run that was stopped, to the same
    result. RUN/weights.safetensors are the weights of the epoch with the lowest held-out character
    error rate: use them with `--weights RUN`.
    """
    from featurestore.training.augment import NO_AUGMENTATION, Augmentation
    from featurestore.training.config import TrainConfig
    from featurestore.training.extra import require_training

    require_training()
    varied = Augmentation(
        speed=speed,
        noise=noise,
        gain_db=gain_db,
        tilt_db=tilt_db,
        warp=warp,
        bands=mask_bands,
        frames=mask_frames,
        coefficient_shift=coefficient_shift,
    )
    config = TrainConfig(
        epochs=epochs,
        seed=seed,
        optimiser=optimiser,  # type: ignore[arg-type]  # checked by the configuration
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        dropout=dropout,
        frames_per_batch=frames_per_batch,
        longest_s=longest,
        held_out=held_out,
        settle=settle,
        patience=patience,
        precision=precision,  # type: ignore[arg-type]
        front_end=front_end,  # type: ignore[arg-type]
        weights=weights,
        augmentation=NO_AUGMENTATION if no_augmentation else varied,
    )
    from featurestore.training.train import read_training_set
    from featurestore.training.train import train as run_training

    data = read_training_set(manifest, config, progress=False if quiet else None)
    if not as_json:
        _print_plan(data, config, output)
    if dry_run:
        if as_json:
            print_json(_facts(data))
        return
    try:
        summary = run_training(
            data,
            output,
            config,
            workers=workers,
            checkpoint_s=60 * checkpoint_minutes,
            progress=not quiet,
        )
    except KeyboardInterrupt:
        note("stopped: run the same command again to go on from the last checkpoint")
        raise typer.Exit(130) from None
    if as_json:
        print_json(_facts(data) | summary.to_dict())
    else:
        _print_summary(summary)


def _facts(data: TrainingSet) -> dict[str, object]:
    from featurestore.training.data import hours

    return {
        "train_utterances": len(data.train),
        "train_hours": hours(data.train),
        "held_out_utterances": len(data.held_out),
        "held_out_hours": hours(data.held_out),
        "held_out_by": data.rule,
        "left_out": data.skipped,
        "unspelled": dict(data.unspelled),
    }


def _print_plan(data: TrainingSet, config: TrainConfig, output: Path) -> None:
    from featurestore.training.data import hours

    def part(examples: Sequence[Example]) -> str:
        speakers = len({example.speaker for example in examples})
        return f"{len(examples):,} utterances, {hours(examples):.2f} h, {speakers} speakers"

    print(f"Plan for {output}")
    rows = [
        ("train on", part(data.train)),
        ("hold out", f"{part(data.held_out)} (by {data.rule})"),
        ("epochs", f"{config.epochs}: {config.epochs * hours(data.train):,.1f} h of speech"),
        ("start", config.weights or f"random:{config.seed}"),
        ("left out", f"{len(data.skipped)}"),
    ]
    for name, value in rows:
        print(f"  {name:<15} {value}")
    for reason, count in Counter(data.skipped.values()).most_common(_SHOWN):
        print(f"    {count:,}: {reason}")
    if data.unspelled:
        shown = ", ".join(f"{c!r} {n}x" for c, n in data.unspelled.most_common(_SHOWN))
        print(f"  without spelling {shown}")
    sys.stdout.flush()


def _print_summary(summary: TrainSummary) -> None:
    early = "; stopped early, the held-out CER no longer fell" if summary.stopped_early else ""
    print(f"Done: {summary.epochs} epochs, {summary.steps:,} steps{early}")
    print(
        f"  held-out CER    {summary.cer:.1%} (WER {summary.wer:.1%}), epoch {summary.best_epoch}"
    )
    print(f"  training loss   {summary.loss:.3f} nats a symbol")
    if summary.undecodable:
        print(f"  not decodable   {len(summary.undecodable)}; they were left out:")
        for id, reason in list(summary.undecodable.items())[:_SHOWN]:
            print(f"    {id}: {reason}")
    print(f"Weights: {summary.weights}")
    print(f"Curves:  {summary.run / 'training.png'}")
