"""Manifests on disk: CSV and Parquet, read and written without changing a cell."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Literal

import pandas as pd

from featurestore.corpus.cells import Problems
from featurestore.corpus.manifest import label_columns, normalise, validate_manifest
from featurestore.errors import ManifestError, StoreError
from featurestore.files import replacing
from featurestore.storage import is_url, split_file

Format = Literal["csv", "parquet"]
FORMATS: dict[str, Format] = {".csv": "csv", ".parquet": "parquet"}


def read_manifest(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads a manifest, or any table with a column `path`, from a CSV or Parquet file.

    CSV is comma-separated UTF-8, with or without a byte order mark. Only the empty cell is missing:
    "NA", "None" and "null" are text, and the id "0001" keeps its zeros. Relative paths start at
    the table's own folder, also where that is a URL; absolute paths and URLs stand as they are.

    Args:
        path: The table; `.csv` or `.parquet`; a file, or a URL such as `s3://bucket/corpus.csv`.

    Returns:
        The manifest, checked and normalised as by `validate_manifest`.

    Raises:
        ManifestError: if the file cannot be read or the table cannot be used; names rows (counted
            from 1 below the header), columns and values.
    """
    name = os.fspath(path)
    kind = _format(name)
    data = _read(name)
    table = _read_csv(data, name) if kind == "csv" else _read_parquet(data, name)
    return normalise(
        table,
        source=name,
        folder=_folder(name),
        allow_unknown_speakers=False,
    )


def write_manifest(df: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Writes a manifest so that `read_manifest` returns exactly the same table.

    The file appears under its name only when it is complete. If no speaker is known, the column
    `speaker` is left out.

    Args:
        df: The manifest; it is checked and normalised first.
        path: Where to, a file or a URL; `.csv` or `.parquet` decides the format. An existing file
            is replaced.

    Raises:
        ManifestError: if the manifest is not valid, the suffix is another one, or the file cannot
            be written.
    """
    name = os.fspath(path)
    kind = _format(name)
    table = validate_manifest(df)
    if not table["speaker"].any():
        table = table.drop(columns="speaker")
    try:
        _write(_csv(table) if kind == "csv" else _parquet(table), name)
    except (OSError, StoreError) as error:
        raise ManifestError(f"{name}: cannot be written: {_reason(error)}") from error


def _format(name: str) -> Format:
    suffix = os.path.splitext(name)[1]
    kind = FORMATS.get(suffix.lower())
    if kind is None:
        raise ManifestError(
            f"{name}: the suffix {suffix!r} is not that of a table; "
            "manifests are .csv or .parquet files"
        )
    return kind


def _folder(name: str) -> Path | str:
    """Where the relative paths of a table start."""
    if is_url(name):
        return name.rpartition("/")[0]
    return Path(os.path.abspath(name.removeprefix("file://"))).parent


def _read(name: str) -> bytes:
    try:
        if not is_url(name) and not os.path.isfile(name.removeprefix("file://")):
            raise FileNotFoundError
        place, key = split_file(name)
        return place.read(key)
    except FileNotFoundError:
        raise ManifestError(
            f"{name}: there is no such file; give the path or URL of a .csv or .parquet table"
        ) from None
    except (OSError, StoreError) as error:
        raise ManifestError(f"{name}: cannot be read: {_reason(error)}") from error


def _write(data: bytes, name: str) -> None:
    if is_url(name):
        place, key = split_file(name)
        place.replace(key, data)
        return
    with replacing(name.removeprefix("file://")) as temporary:
        temporary.write_bytes(data)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _read_csv(data: bytes, name: str) -> pd.DataFrame:
    # The csv module rather than pandas.read_csv, which reads rows that are longer than the header
    # as having an index column, shorter ones as having missing cells, and a NUL as the cell's end.
    try:
        with io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="") as stream:
            rows = [row for row in csv.reader(stream, strict=True) if row]
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{name}: not UTF-8 text (byte 0x{error.object[error.start]:02x}); "
            "save the table as 'CSV UTF-8'"
        ) from error
    except csv.Error as error:
        raise ManifestError(
            f"{name}: not a CSV table ({error}); quote cells that contain commas or quotes"
        ) from error
    if not rows:
        raise ManifestError(
            f"{name}: the file is empty; write a header (path,speaker,...) and a row per utterance"
        )
    header, *body = rows
    problems = Problems(name)
    for number, row in enumerate(body):
        if len(row) != len(header):
            problems.add(
                f"{len(row)} cells where the header names {len(header)} columns; "
                "correct the row, and quote cells that contain commas",
                row=number,
            )
    problems.raise_any()
    return pd.DataFrame(body, columns=pd.Index(header, dtype=object), dtype=object)


def _csv(table: pd.DataFrame) -> bytes:
    table = table.copy()
    for name in label_columns(table):
        # A column without any number would read as empty text.
        if table[name].dtype != object and table[name].isna().all():
            table[name] = pd.Series(["nan"] * len(table), dtype=object)
    text = table.select_dtypes(include="object")
    # Minimal quoting leaves a lone carriage return bare, and it would read as the end of the row.
    returns = any("\r" in cell for name in text for cell in text[name])
    written: str = table.to_csv(
        index=False,
        lineterminator="\n",
        quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL,
    )
    return written.encode()


def _parquet(table: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    table.to_parquet(stream, engine="pyarrow", index=False)
    return stream.getvalue()


def _read_parquet(data: bytes, name: str) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(data), engine="pyarrow")
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise ManifestError(
            f"{name}: not a readable Parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error
