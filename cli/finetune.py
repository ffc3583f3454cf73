"""`finetune`: train the network itself on the labels, fold by fold, beside the linear models."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.analysis import check_folder, command_line, note_older
from featurestore.cli.app import JsonOption, QuietOption, app, example, note, print_json

if TYPE_CHECKING:
    from featurestore.encoder import Encoder
    from featurestore.provenance import Provenance, Source
    from featurestore.training.finetune import Finetuned
    from featurestore.training.tuning_config import FinetuneConfig


@app.command(
    epilog=example("featurestore finetune iemocap.store --target arousal,valence -o finetuned")
)
def finetune(
    source: Annotated[
        str, typer.Argument(help="A store with MFCC frames, or a manifest (.csv, .parquet).")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of folds and tables.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="Numeric labels, separated by commas or repeated."),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", "-w", help="Weights that every fold begins with.")
    ] = "default",
    pool: Annotated[str, typer.Option(help="Over frames: mean, max or attention.")] = "mean",
    loss: Annotated[str, typer.Option(help="mse, or ccc (1 - CCC).")] = "mse",
    speakers: Annotated[
        str | None, typer.Option(help="Held-out speakers to run, separated by commas.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=1, help="Run only this many, in ascending order.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes that train everything.")] = None,
    frozen_epochs: Annotated[
        int | None, typer.Option(help="Passes before, that train only the head.")
    ] = None,
    encoder_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate of the network.")
    ] = None,
    head_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the head.")] = None,
    seed: Annotated[int, typer.Option(help="Of order and held-out speakers.")] = 0,
    view: Annotated[
        str | None, typer.Option(help="The store's MFCC view, where several fit.")
    ] = None,
    notes: Annotated[
        list[str] | None, typer.Option("--note", help="A caveat to print under every table.")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the network to predict labels, leaving one speaker out at a time.

    The same table as `evaluate` makes, with the same folds: the linear models on frozen units, and
    the network trained with pooling inside it. Takes minutes per fold on a CPU; the same command
    goes on after the last fold that was finished.
    """
    from featurestore.encoder import load_encoder
    from featurestore.training.extra import require_training
    from featurestore.training.finetune import finetune as run
    from featurestore.training.tuning_config import FinetuneConfig

    require_training()
    check_folder(output)
    given: dict[str, Any] = {
        "epochs": epochs,
        "frozen_epochs": frozen_epochs,
        "encoder_rate": encoder_rate,
        "head_rate": head_rate,
    }
    if target:
        given["targets"] = tuple(name for one in target for name in _names(one))
    config = FinetuneConfig(
        pool=pool,  # type: ignore[arg-type]  # checked by the configuration
        loss=loss,  # type: ignore[arg-type]
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    network = load_encoder(weights)
    try:
        with _opened(source) as opened:
            done = run(
                opened.store if opened else source,
                encoder=network,
                config=config,
                run=output,
                speakers=None if speakers is None else _names(speakers),
                folds=folds,
                view=view,
                progress=False if quiet else None,
                report=None if quiet or as_json else _say,
            )
            origin = _origin(opened, network, config, view) if opened else None
    except KeyboardInterrupt:
        note("stopped: the finished folds are kept; run the same command again to go on")
        raise typer.Exit(130) from None
    _write(done, output, notes or [], origin, as_json=as_json)


def _opened(source: str) -> AbstractContextManager[Source | None]:
    """The store that was given; None for a manifest."""
    from featurestore.provenance import reading

    # As `read_utterances` tells one from the other.
    return nullcontext() if source.endswith((".csv", ".parquet")) else reading(source)


def _origin(
    opened: Source, network: Encoder, config: FinetuneConfig, view: str | None
) -> Provenance:
    """What the tables were computed from: the MFCC that the network was given, and its weights."""
    heard = network.front_end.name
    views = [
        name
        for name, one in ((name, opened.store.config(name)) for name in opened.store.views)
        if one.kind == "mfcc" and one.frames and one.front_end == heard
    ]
    return opened.provenance(
        views=[view] if view else views,
        targets=config.targets,
        weights=(network.fingerprint, network.name),
        config=asdict(config),
        command=command_line(),
    )


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _say(record: dict[str, Any]) -> None:
    """One line per fold."""
    kept = record["kept"]
    where = "the ridge solution" if kept["stage"] == "ridge" else f"{kept['stage']} {kept['epoch']}"
    note(
        f"{record['speaker']}: held-out loss {record['passes'][0]['held_out']:.3f} -> "
        f"{kept['held_out']:.3f} (kept: {where}), {record['seconds']:.0f} s"
    )


def _write(
    done: Finetuned, output: Path, notes: list[str], origin: Provenance | None, *, as_json: bool
) -> None:
    """Tables, the comparison with the linear models, and losses by pass."""
    import pandas as pd

    from featurestore.analysis.comparison import compare, rows_of
    from featurestore.analysis.scores import summarise
    from featurestore.files import replacing
    from featurestore.report.comparisons import markdown_comparison, write_comparison
    from featurestore.report.tables import markdown_table, write_tables
    from featurestore.result_files import record_results

    said = [*done.results.attrs["notes"], *notes]
    tuned = rows_of(done.results, done.names.tuned)
    others = (done.names.ridge, done.names.head, done.names.best)
    compared = pd.concat(
        [compare(tuned, rows_of(done.results, name)) for name in others], ignore_index=True
    )
    files = write_tables(done.results, output, notes=notes, provenance=origin)
    files += write_comparison(compared, output, notes=said, provenance=origin)
    with replacing(output / "passes.csv") as temporary:
        done.passes.to_csv(temporary, index=False, na_rep="NaN")
    files.append(output / "passes.csv")
    if origin:
        record_results(output, files[-1:], origin)
        note_older(output, origin)
    if as_json:
        print_json(
            {
                "files": [str(file) for file in files],
                "seconds": done.seconds,
                "rows": summarise(done.results).reset_index(drop=True).to_dict("records"),
                "comparisons": compared.to_dict("records"),
            }
        )
        return
    print(markdown_table(done.results, notes=notes, provenance=origin))
    print(markdown_comparison(compared, provenance=origin))
    print(f"{len(files)} files in {output}: {', '.join(file.name for file in files)}")
