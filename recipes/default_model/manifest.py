"""Builds the manifest that the default model is trained on.

    python recipes/default_model/manifest.py SPEECH_DIR -o OUT_DIR --synthetic 5 --natural 2 \
        --espeak-share 0.5

SPEECH_DIR holds speechocean762, cathy, ljspeech and fsdd, each with a `manifest.csv`. OUT_DIR gets
`manifest.csv` with a split (train, dev, test) for each utterance, and below `synthetic/` the
speech that espeak-ng (and hibari-tts, if asked for) adds to train. The test utterances are in
`test-CORPUS.csv` too, for `featurestore transcribe`: error rates are told by corpus.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from splits import Holdout, combined, held_out_sentences, overview
from voices import Engine, synthesised

from featurestore.corpus import write_manifest

COLUMNS = ["id", "path", "speaker", "text", "split", "corpus", "sex", "age"]


def main(arguments: list[str] | None = None) -> None:
    """Builds the manifest and prints what is in it."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    table, dropped = combined(options.speech, holdout=Holdout(seed=options.seed))
    table = _with_synthetic(table, options)
    table = table.sort_values("id", ignore_index=True).fillna({"sex": ""})
    table = _thinned(table, share=options.espeak_share, seed=options.seed)
    write_manifest(table[COLUMNS], options.output / "manifest.csv")
    for corpus, rows in table[table["split"] == "test"].groupby("corpus"):
        write_manifest(rows[COLUMNS], options.output / f"test-{corpus}.csv")
    _print(overview(table), "used")
    _print(dropped.table(), "dropped")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("speech", type=Path, help="folder of the corpora")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--synthetic", type=float, default=0.0, help="hours spoken by espeak-ng (0: none)"
    )
    parser.add_argument(
        "--natural", type=float, default=0.0, help="hours spoken by hibari-tts (0: none)"
    )
    parser.add_argument(
        "--espeak-share", type=float, default=1.0, help="share of the espeak sentences to keep"
    )
    parser.add_argument("--processes", type=int, default=2, help="how many speak at a time")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is drawn")
    return parser


def _with_synthetic(table: pd.DataFrame, options: argparse.Namespace) -> pd.DataFrame:
    tables = [table]
    # Ten digits are said often enough in fsdd itself.
    spoken = (table["split"] == "train") & (table["corpus"] != "fsdd")
    asked: dict[Engine, float] = {"espeak": options.synthetic, "hibari": options.natural}
    for engine, hours in asked.items():
        if hours > 0:
            tables.append(
                synthesised(
                    engine,
                    hours=hours,
                    transcripts=table.loc[spoken, "text"].tolist(),
                    forbidden=held_out_sentences(table),
                    folder=options.output.resolve() / "synthetic",
                    seed=options.seed,
                    processes=options.processes,
                )
            )
    return pd.concat(tables, ignore_index=True)


def _thinned(table: pd.DataFrame, *, share: float, seed: int) -> pd.DataFrame:
    """A share of the sentences of espeak-ng: all its voices in less time to train."""
    spoken = table["corpus"] == "espeak"
    kept = table[spoken].sample(frac=share, random_state=seed).index
    return table[~spoken | table.index.isin(kept)].reset_index(drop=True)


def _print(table: pd.DataFrame, title: str) -> None:
    print(f"{title}:")
    print(table.to_string(index=False, float_format="%.2f") if len(table) else "nothing", "\n")


if __name__ == "__main__":
    main()
