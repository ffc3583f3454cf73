"""The manifest: what its columns mean, and the check that every table passes before any work.

A manifest is a `pandas.DataFrame` with one row per utterance and these columns, in this order:

====================  =====================================================================
`id`                  text; unique, never empty
`path`                text; absolute path or URL (`s3://bucket/a.wav`) of the audio file
`speaker`             text; "" in every row if the speakers are unknown
`start`, `end`        float64 seconds; only if some row is a segment of its file. A missing start
                      is the beginning of the file, a missing end its end
`text`                text; only if known, "" where it is not
labels                any other column: float64 with NaN where missing, or text with "" where
                      missing
====================  =====================================================================

Text columns have dtype `object` and hold Python `str` in every pandas version.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.corpus.cells import (
    Problems,
    cells_of,
    is_blank,
    is_numeric,
    mostly_numbers,
    number_column,
    text_column,
    text_series,
)
from featurestore.errors import ManifestError
from featurestore.storage import is_url

COLUMNS = ("id", "path", "speaker", "start", "end", "text")

# Labels that analyses regress on: never taken for categories, whatever their cells look like.
NUMERIC_LABELS = ("valence", "arousal", "dominance", "activation")

# Measured from the audio; a table that was exported from a store may carry it.
DROPPED = ("duration_s",)

# Names of the store's own dimensions and columns.
RESERVED = (
    "utterance",
    "frame",
    "layer",
    "unit",
    "coefficient",
    "statistic",
    "feature",
    "time_s",
    "frame_start",
    "frame_count",
    "audio_sha256",
    "column",
    "layer_name",
    "slot",
    "gate",
    "skip",
    "residual",
    "mfcc",
    "egemaps",
    "features",
    "c",
    "zarr.json",
)

MAX_NAME_BYTES = 200  # file systems take 255; the store adds to the name


def label_columns(manifest: pd.DataFrame) -> list[str]:
    """The names of a manifest's label columns, in order: all that are not columns of the schema."""
    return [str(name) for name in manifest.columns if name not in COLUMNS]


def validate_manifest(df: pd.DataFrame, *, source: str = "manifest") -> pd.DataFrame:
    """Checks a table and returns it as a manifest.

    Only `path` is required. Missing ids are made from the paths; a missing `speaker` column, or one
    of nothing but "", means that the speakers are unknown; relative paths are taken from the
    current folder, URLs stand as they are; `duration_s` is dropped. A label column of text is
    numeric if more than half of its filled cells are numbers; valence, arousal, dominance and
    activation always are; true and false become 1 and 0. Whether the files exist is not checked
    here: ingest sets missing ones aside.

    Args:
        df: The table, with `start` and `end` in seconds.
        source: What error messages call the table, such as its file name.

    Returns:
        A normalised copy with a fresh index; see the module's description for its columns.

    Raises:
        ManifestError: if the table is not usable; names rows (counted from 1), columns and values.
    """
    return normalise(df, source=source, folder=Path.cwd(), allow_unknown_speakers=True)


def normalise(
    df: pd.DataFrame, *, source: str, folder: Path | str, allow_unknown_speakers: bool
) -> pd.DataFrame:
    """`validate_manifest` with the folder that relative paths start from.

    Args:
        df: The table.
        source: What error messages call it.
        folder: Where relative paths start; a URL is text.
        allow_unknown_speakers: Whether a speaker column of nothing but "" is accepted.

    Returns:
        The manifest.

    Raises:
        ManifestError: if the table is not usable.
    """
    table = _with_checked_header(df, source=source)
    problems = Problems(source)
    columns: dict[str, pd.Series] = {}
    written = text_column(table["path"], name="path", problems=problems)
    paths = [_absolute(path, folder) for path in written]
    segments = _segments(table, problems)
    made = "id" not in table
    if made:
        ids = _made_ids(paths, segments, folder=folder)
    else:
        ids = text_column(table["id"], name="id", problems=problems)
    problems.ids = ids
    _check_filled(written, name="path", way_out="write the audio file's path", problems=problems)
    _check_ids(ids, made=made, problems=problems)
    columns["id"], columns["path"] = text_series(ids), text_series(paths)
    columns["speaker"] = _speakers(table, problems, allow_unknown=allow_unknown_speakers)
    if segments is not None:
        columns["start"], columns["end"] = (pd.Series(values) for values in segments)
    if "text" in table:
        text = text_column(table["text"], name="text", problems=problems)
        if any(text):
            columns["text"] = text_series(text)
    for name in label_columns(table):
        columns[name] = _label(table[name], name=name, problems=problems)
    problems.raise_any()
    return pd.DataFrame(columns)


def _absolute(path: str, folder: Path | str) -> str:
    """A path as it can be opened from anywhere; URLs and absolute paths stand as they are."""
    if is_url(path):
        return path
    path = path.removeprefix("file://")
    if not is_url(folder) or os.path.isabs(path):
        # os.path.join drops the folder before an absolute path.
        return os.path.abspath(os.path.join(folder, path))
    scheme, _, place = str(folder).partition("://")
    bucket, _, prefix = place.partition("/")
    # The slash keeps what climbs above the bucket inside it, as it does at the root of a disk.
    key = posixpath.normpath(posixpath.join("/", prefix, path))
    return f"{scheme}://{bucket}{key}"


def _with_checked_header(df: pd.DataFrame, *, source: str) -> pd.DataFrame:
    if not isinstance(df, pd.DataFrame):
        raise ManifestError(
            f"{source}: a manifest is a pandas.DataFrame, not a {type(df).__name__}; "
            "read a CSV or Parquet file with read_manifest(path)"
        )
    indexed = [name for name in df.index.names if name in COLUMNS and name not in df.columns]
    table = df.reset_index(level=indexed) if indexed else df
    problems = Problems(source)
    names = [name.strip() if isinstance(name, str) else name for name in table.columns]
    for position, name in enumerate(names, start=1):
        _check_name(name, position=position, problems=problems)
    for name, count in Counter(names).items():
        if count > 1:
            problems.add(f"the name occurs {count} times; rename or remove one", column=str(name))
    if "path" not in names:
        found = ", ".join(repr(name) for name in names) or "none"
        hint = ""
        if any(isinstance(name, str) and (";" in name or "\t" in name) for name in names):
            hint = "; the header seems to be separated by something else than commas"
        problems.add(f"there is no column 'path'; columns found: {found}{hint}")
    problems.raise_any()
    if table.empty:
        raise ManifestError(f"{source}: the table has no rows; write one row per utterance")
    table = table.set_axis(names, axis=1).reset_index(drop=True)
    return table.drop(columns=[name for name in DROPPED if name in names])


def _check_name(name: object, *, position: int, problems: Problems) -> None:
    if not isinstance(name, str):
        problems.add(f"column {position} is named {name!r}; column names are text: rename it")
    elif not name:
        problems.add(
            f"column {position} has no name; name it or remove it "
            "(pandas writes such a column unless told index=False)"
        )
    elif name in RESERVED:
        problems.add("the name is taken by the store's own tables; rename the column", column=name)
    elif (
        "/" in name
        or name.startswith((".", "__"))
        or not name.isprintable()
        or len(name.encode("utf-8")) > MAX_NAME_BYTES
    ):
        problems.add(
            "the store keeps each label in an array of its name, which cannot contain '/' or "
            f"unprintable characters, begin with '.' or '__', or exceed {MAX_NAME_BYTES} bytes; "
            "rename the column",
            column=name,
        )


def _segments(table: pd.DataFrame, problems: Problems) -> tuple[np.ndarray, np.ndarray] | None:
    """Start and end in seconds, or None if no row has either."""
    way_out = "write seconds, or leave the cell empty"
    values = {}
    for name in ("start", "end"):
        if name in table:
            column = number_column(table[name], name=name, problems=problems, way_out=way_out)
        else:
            column = np.full(len(table), np.nan)
        for row in np.flatnonzero(column < 0):
            problems.add(f"{column[row]:g} s is negative; {way_out}", row=int(row), column=name)
        values[name] = column
    start, end = values["start"], values["end"]
    first = np.nan_to_num(start, nan=0.0)
    for row in np.flatnonzero((end <= first) & (end >= 0) & np.isfinite(first)):
        problems.add(
            f"the end, {end[row]:g} s, is not after the start, {first[row]:g} s; "
            "correct one of them, or leave the end empty for the end of the file",
            row=int(row),
            column="end",
        )
    if np.isnan(start).all() and np.isnan(end).all():
        return None
    return start, end


def _made_ids(
    paths: list[str], segments: tuple[np.ndarray, np.ndarray] | None, *, folder: Path | str
) -> list[str]:
    """Ids from paths: the shortest of stem, relative path without suffix, and relative path."""
    files = list(dict.fromkeys(paths))
    base = f"{folder}/" if is_url(folder) else os.path.join(os.path.abspath(folder), "")
    relative = [path.removeprefix(base) for path in files]
    choices = (
        [os.path.splitext(os.path.basename(path))[0] for path in files],
        [os.path.splitext(path)[0] for path in relative],
        relative,
    )
    # Two files share an id only in the last resort; where all collide, the ids' own check says so.
    names = next((names for names in choices if len(set(names)) == len(names)), relative)
    name_of = dict(zip(files, names, strict=True))
    ids = [name_of[path] for path in paths]
    if segments is None or len(files) == len(paths):
        return ids
    return [
        name + _segment_suffix(start, end) for name, start, end in zip(ids, *segments, strict=True)
    ]


def _segment_suffix(start: float, end: float) -> str:
    if np.isnan(start) and np.isnan(end):
        return ""
    first = 0.0 if np.isnan(start) else start
    return f"@{first:.3f}-" + ("end" if np.isnan(end) else f"{end:.3f}")


def _check_filled(values: list[str], *, name: str, way_out: str, problems: Problems) -> None:
    for row, value in enumerate(values):
        if not value.strip():
            problems.add(f"the cell is empty; {way_out}", row=row, column=name)


def _check_ids(ids: list[str], *, made: bool, problems: Problems) -> None:
    if not made:
        _check_filled(
            ids,
            name="id",
            way_out="write an id, or remove the column to have ids made from the paths",
            problems=problems,
        )
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not name.strip():
            continue
        if name in first:
            problems.add(
                f"the id {name!r} is already that of row {first[name] + 1}; "
                + ("it was made from the path: add a column 'id'" if made else "ids are unique"),
                row=row,
                column="id",
            )
        first.setdefault(name, row)


def _speakers(table: pd.DataFrame, problems: Problems, *, allow_unknown: bool) -> pd.Series:
    if "speaker" not in table:
        return text_series([""] * len(table))
    cells = cells_of(table["speaker"])
    if allow_unknown and all(isinstance(cell, str) and not cell for cell in cells):
        return text_series([""] * len(table))
    speakers = text_column(table["speaker"], name="speaker", problems=problems)
    for row, cell in enumerate(cells):
        if is_blank(cell):
            problems.add(
                "the speaker is missing; name the speaker, or remove the whole column if the "
                "speakers are unknown",
                row=row,
                column="speaker",
            )
    return text_series(speakers)


def _label(column: pd.Series, *, name: str, problems: Problems) -> pd.Series:
    always = name in NUMERIC_LABELS
    way_out = "correct the cell or leave it empty"
    if not always:
        way_out = (
            f"correct the cell, leave it empty, or, if {name!r} is a category, make all its cells "
            "text"
        )
    numeric = is_numeric(column)
    if not numeric and not _holds_text(column):
        problems.add(
            f"the column holds {column.dtype}; labels are numbers or text: convert it first",
            column=name,
        )
        return text_series([""] * len(column))
    if always or numeric or mostly_numbers(column):
        return pd.Series(number_column(column, name=name, problems=problems, way_out=way_out))
    return text_series(text_column(column, name=name, problems=problems))


def _holds_text(column: pd.Series) -> bool:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.dtype.categories.to_series()
    return is_numeric(column) or pd.api.types.is_string_dtype(column.dtype)
