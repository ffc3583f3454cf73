"""Manifests on disk: CSV and Parquet, read and written without changing a cell."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Literal

import pandas as pd

from featurestore.corpus.cells import Problems
from featurestore.corpus.manifest import label_columns, normalise, validate_manifest
from featurestore.errors import ManifestError
from featurestore.files import replacing

Format = Literal["csv", "parquet"]
FORMATS: dict[str, Format] = {".csv": "csv", ".parquet": "parquet"}


def read_manifest(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads a manifest, or any table with a column `path`, from a CSV or Parquet file.

    CSV is comma-separated UTF-8, with or without a byte order mark. Only the empty cell is missing:
    "NA", "None" and "null" are text, and the id "0001" keeps its zeros. Relative paths start at
    the table's own folder.

    Args:
        path: The table; `.csv` or `.parquet`.

    Returns:
        The manifest, checked and normalised as by `validate_manifest`.

    Raises:
        ManifestError: if the file cannot be read or the table cannot be used; names rows (counted
            from 1 below the header), columns and values.
    """
    file = Path(path)
    kind = _format(file)
    if not file.is_file():
        raise ManifestError(
            f"{file}: there is no such file; give the path of a .csv or .parquet table"
        )
    table = _read_csv(file) if kind == "csv" else _read_parquet(file)
    return normalise(
        table,
        source=str(file),
        folder=Path(os.path.abspath(file)).parent,
        allow_unknown_speakers=False,
    )


def write_manifest(df: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Writes a manifest so that `read_manifest` returns exactly the same table.

    The file appears under its name only when it is complete. If no speaker is known, the column
    `speaker` is left out.

    Args:
        df: The manifest; it is checked and normalised first.
        path: Where to; `.csv` or `.parquet` decides the format. An existing file is replaced.

    Raises:
        ManifestError: if the manifest is not valid, the suffix is another one, or the file cannot
            be written.
    """
    file = Path(path)
    kind = _format(file)
    table = validate_manifest(df)
    if not table["speaker"].any():
        table = table.drop(columns="speaker")
    try:
        with replacing(file) as temporary:
            if kind == "csv":
                _write_csv(table, temporary)
            else:
                table.to_parquet(temporary, engine="pyarrow", index=False)
    except OSError as error:
        raise ManifestError(f"{file}: cannot be written: {error.strerror or error}") from error


def _format(file: Path) -> Format:
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise ManifestError(
            f"{file}: the suffix {file.suffix!r} is not that of a table; "
            "manifests are .csv or .parquet files"
        )
    return kind


def _read_csv(file: Path) -> pd.DataFrame:
    # The csv module rather than pandas.read_csv, which reads rows that are longer than the header
    # as having an index column, shorter ones as having missing cells, and a NUL as the cell's end.
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = [row for row in csv.reader(stream, strict=True) if row]
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{file}: not UTF-8 text (byte 0x{error.object[error.start]:02x}); "
            "save the table as 'CSV UTF-8'"
        ) from error
    except csv.Error as error:
        raise ManifestError(
            f"{file}: not a CSV table ({error}); quote cells that contain commas or quotes"
        ) from error
    except OSError as error:
        raise ManifestError(f"{file}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise ManifestError(
            f"{file}: the file is empty; write a header (path,speaker,...) and a row per utterance"
        )
    header, *body = rows
    problems = Problems(str(file))
    for number, row in enumerate(body):
        if len(row) != len(header):
            problems.add(
                f"{len(row)} cells where the header names {len(header)} columns; "
                "correct the row, and quote cells that contain commas",
                row=number,
            )
    problems.raise_any()
    return pd.DataFrame(body, columns=pd.Index(header, dtype=object), dtype=object)


def _write_csv(table: pd.DataFrame, file: Path) -> None:
    table = table.copy()
    for name in label_columns(table):
        # A column without any number would read as empty text.
        if table[name].dtype != object and table[name].isna().all():
            table[name] = pd.Series(["nan"] * len(table), dtype=object)
    text = table.select_dtypes(include="object")
    # Minimal quoting leaves a lone carriage return bare, and it would read as the end of the row.
    returns = any("\r" in cell for name in text for cell in text[name])
    table.to_csv(
        file,
        index=False,
        encoding="utf-8",
        lineterminator="\n",
        quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL,
    )


def _read_parquet(file: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(file, engine="pyarrow")
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise ManifestError(
            f"{file}: not a readable Parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error
