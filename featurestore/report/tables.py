"""Regression results as Markdown and CSV."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.analysis.scores import summarise
from featurestore.errors import AnalysisError
from featurestore.files import replacing
from featurestore.provenance import Provenance
from featurestore.report.spreadsheet import csv_text
from featurestore.report.wording import raised
from featurestore.result_files import read_provenance, record_results

_STATISTICS = {
    "MSE mean": "mse_mean",
    "MSE variance": "mse_variance",
    "MSE standard deviation": "mse_std",
    "MSE over utterances": "mse_weighted",
    "CCC": "ccc_mean",
    "CCC pooled": "ccc_pooled",
    "R2": "r2_mean",
    "Pearson": "pearson_mean",
}


def long_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row per target and feature set: Target, Features, MSE mean, MSE variance, ..., R2.

    Args:
        results: what `evaluate` returned for one table.
    """
    summary = summarise(results).sort_values("target", key=_in_order_seen, kind="stable")
    columns = {"Target": "target", "Features": "feature_set", **_STATISTICS}
    return pd.DataFrame({heading: list(summary[name]) for heading, name in columns.items()})


def _in_order_seen(values: pd.Series) -> pd.Series:
    return values.map({value: i for i, value in enumerate(dict.fromkeys(values))})


def caption(results: pd.DataFrame) -> str:
    """What the numbers of a table are: utterances, speakers, folds, selection, moments."""
    number = str(results["table"].iloc[0])
    sentences = [f"Table {number}."] if number.isdigit() else []
    for target, rows in results.groupby("target", sort=False):
        speakers = rows.drop_duplicates("speaker")
        sentences.append(
            f"{raised(target)}: {int(speakers['n_test'].sum()):,} utterances, "
            f"{len(speakers)} speakers, {rows['fold'].nunique()} folds."
        )
    alone = bool((results["fold"] == results["speaker"]).all())
    sentences += [
        "Linear regression, ordinary least squares where no other is named, "
        + ("leaving one speaker out" if alone else "leaving each fold's speakers out")
        + "; selection, scaling and penalties are fitted inside each training fold.",
        "MSE in squared units of the label: its mean over folds and over utterances; variance and "
        "standard deviation over folds with ddof = 1.",
        "CCC (Lin 1989), Pearson's r and R2 (against the held-out speaker's own mean) are means "
        "over speakers; CCC pooled is that of all held-out predictions together.",
    ]
    return " ".join(sentences)


def markdown_table(
    results: pd.DataFrame, *, notes: Sequence[str] = (), provenance: Provenance | None = None
) -> str:
    """A table as Markdown, with its caption and caveats.

    Args:
        results: what `evaluate` returned for one table.
        notes: caveats to print below, such as that the weights are untrained.
        provenance: what the results were computed from, said in the last line.
    """
    table = long_table(results)
    lines = [
        "| " + " | ".join(_cell(name) for name in table.columns) + " |",
        "| :-- | :-- |" + " --: |" * (table.shape[1] - 2),
    ]
    bounded = [str(name).startswith(("CCC", "R2")) for name in table.columns]
    for row in table.itertuples(index=False):
        cells = [_cell(value, bounded=b) for value, b in zip(row, bounded, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", caption(results)]
    remarks = [*undefined_means(results), *results.attrs.get("notes", []), *notes]
    if remarks:
        lines += ["", *(f"- {remark}" for remark in dict.fromkeys(remarks))]
    if provenance:
        lines += ["", provenance.footer]
    return "\n".join(lines) + "\n"


def write_tables(
    results: pd.DataFrame,
    out_dir: str | os.PathLike[str],
    *,
    notes: Sequence[str] = (),
    provenance: Provenance | None = None,
) -> list[Path]:
    """Write `table<N>.md`, `table<N>.csv` and `table<N>-folds.csv` for each table in `results`.

    Tables that have a name instead of a number are `table-<name>.md`, and so on.

    Files are replaced whole: an interrupted run leaves no half of one.

    Args:
        results: what `evaluate` returned, or several such results concatenated.
        out_dir: folder, made where it is missing.
        notes: caveats to print below the Markdown table.
        provenance: what the results were computed from, said below the Markdown table and recorded
            in the folder's `provenance.json`.

    Returns:
        The files written. The CSV files have all digits, and NaN where a value is undefined; a `'`
        keeps names that begin like a formula from being one.

    Raises:
        AnalysisError: `results` is empty, or a damaged `provenance.json`.
    """
    if results.empty:
        raise AnalysisError("No results to write: the evaluation has no row.")
    folder = Path(out_dir)
    if provenance:
        read_provenance(folder)  # a damaged one is to be known before anything is written
    written = []
    for number in results["table"].unique():
        rows = results[results["table"] == number]
        stem = stem_of(number)
        contents = {
            f"{stem}.md": markdown_table(rows, notes=notes, provenance=provenance),
            f"{stem}.csv": csv_text(long_table(rows)),
            f"{stem}-folds.csv": csv_text(rows),
        }
        for name, text in contents.items():
            with replacing(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
            written.append(folder / name)
    if provenance:
        record_results(folder, written, provenance)
    return written


def stem_of(table: object) -> str:
    """Of the files of a table, by its number or name."""
    return f"table{table}" if str(table).isdigit() else f"table-{table}"


def undefined_means(results: pd.DataFrame) -> list[str]:
    """A remark for every mean over fewer speakers than there are."""
    remarks = []
    for record in summarise(results).to_dict("records"):
        for name in ("ccc", "r2"):
            if record[f"{name}_folds"] < record["speakers"]:
                remarks.append(
                    f"{record['feature_set']}, {record['target']}: {name.upper()} is defined in "
                    f"{record[f'{name}_folds']} of {record['speakers']} speakers."
                )
    return remarks


def _cell(value: Any, *, bounded: bool = False) -> str:
    """Three decimals; four significant digits where those would say nothing or fill the page.

    Args:
        value: text or number.
        bounded: whether the number is a CCC or R2, of which a small value simply is about zero.
    """
    if not isinstance(value, float):
        return str(value).replace("|", r"\|").replace("\n", " ")
    if math.isnan(value):
        return "NaN"
    if abs(value) >= 10_000 or (0 < abs(value) < 0.001 and not bounded):
        return f"{value:.3e}"
    return f"{value:z.3f}"
