"""The manifest: what is refused and how, and round trips through CSV and Parquet."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.corpus import label_columns, read_manifest, validate_manifest, write_manifest
from featurestore.errors import ManifestError

GOOD = {
    "id": ["a", "b", "c"],
    "path": ["/x/a.wav", "/x/b.wav", "/x/c.wav"],
    "speaker": ["s1", "s2", "s1"],
    "start": [0.0, 1.0, np.nan],
    "end": [1.0, np.nan, 2.0],
    "valence": [1.0, 2.0, 3.0],
    "mood": ["good", "bad", ""],
}


def table(**changes: list[object]) -> pd.DataFrame:
    return pd.DataFrame({**GOOD, **changes})


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ManifestError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "row", "column", "says"),
    [
        ({"path": ["/x/a.wav", "", "/x/c.wav"]}, "row 2 (id 'b')", "path", "empty"),
        ({"path": ["/x/a.wav", "/x/b.wav", None]}, "row 3 (id 'c')", "path", "empty"),
        ({"id": ["a", "b", "a"]}, "row 3 (id 'a')", "id", "already that of row 1"),
        ({"id": ["a", " ", "c"]}, "row 2", "id", "empty"),
        ({"id": ["a", None, "c"]}, "row 2", "id", "empty"),
        ({"id": ["a", ["b"], "c"]}, "row 2", "id", "list"),
        ({"speaker": ["s1", "", "s2"]}, "row 2 (id 'b')", "speaker", "speaker is missing"),
        ({"speaker": [None, "s", "s2"]}, "row 1 (id 'a')", "speaker", "speaker is missing"),
        ({"start": [0, "soon", 0]}, "row 2 (id 'b')", "start", "'soon' is not a number"),
        ({"start": [0, -0.5, 0]}, "row 2 (id 'b')", "start", "-0.5 s is negative"),
        ({"end": [1, 2, -1]}, "row 3 (id 'c')", "end", "-1 s is negative"),
        ({"end": [1, 1.0, 2]}, "row 2 (id 'b')", "end", "not after the start, 1 s"),
        ({"end": [1, 2, 0]}, "row 3 (id 'c')", "end", "not after the start, 0 s"),
        ({"end": [math.inf, 2, 1]}, "row 1 (id 'a')", "end", "inf is not a finite number"),
        ({"valence": [1, 2, "high"]}, "row 3 (id 'c')", "valence", "'high' is not a number"),
        ({"arousal": ["x", "", ""]}, "row 1 (id 'a')", "arousal", "'x' is not a number"),
        ({"age": ["31", "42", "1_000"]}, "row 3 (id 'c')", "age", "all its cells text"),
        ({"age": [31, math.inf, 3]}, "row 2 (id 'b')", "age", "finite"),
        ({"age": ["31", "-inf", "3"]}, "row 2 (id 'b')", "age", "finite"),
        ({"mood": ["good", b"bad", "x"]}, "row 2 (id 'b')", "mood", "bytes"),
    ],
)
def test_a_bad_cell_is_refused_by_row_and_column(
    changes: dict[str, list[object]], row: str, column: str, says: str
) -> None:
    message = refusal(lambda: validate_manifest(table(**changes), source="mine.csv"))
    assert message.startswith(f"mine.csv: {row}, column '{column}': ")
    assert says in message
    assert message.count("rows are counted from 1 below the header") == 1


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["path", "frame"], "column 'frame': the name is taken"),
        (["path", "audio_sha256"], "column 'audio_sha256': the name is taken"),
        (["path", "v", " v "], "column 'v': the name occurs 2 times"),
        (["path", ""], "column 2 has no name"),
        (["path", 3], "column 2 is named 3"),
        (["path", "a/b"], "column 'a/b'"),
        (["path", "__x"], "column '__x'"),
        (["path", "x" * 201], "200 bytes"),
        (["Path", "v"], "no column 'path'; columns found: 'Path', 'v'"),
        (["path;speaker"], "separated by something else than commas"),
        ([], "columns found: none"),
    ],
)
def test_a_bad_header_is_refused(names: list[object], says: str) -> None:
    df = pd.DataFrame([["1"] * len(names)], columns=pd.Index(names, dtype=object))
    assert says in refusal(lambda: validate_manifest(df))


def test_a_file_name_that_is_no_text_is_refused() -> None:
    paths = pd.Series(["/x/a.wav", "/x/b\udce9.wav"], dtype=object)
    message = refusal(lambda: validate_manifest(pd.DataFrame({"path": paths})))
    assert "row 2" in message
    assert "column 'path'" in message
    assert "UTF-8" in message


def test_what_is_no_table_is_refused() -> None:
    assert "not a list" in refusal(lambda: validate_manifest([1]))  # type: ignore[arg-type]
    assert "no rows" in refusal(lambda: validate_manifest(pd.DataFrame({"path": []})))
    dated = table(day=pd.to_datetime(["2020-01-01"] * 3))
    assert "column 'day'" in refusal(lambda: validate_manifest(dated))
    assert "complex" in refusal(lambda: validate_manifest(table(z=[1j, 2j, 3j])))


def test_many_problems_are_counted_and_the_first_five_shown() -> None:
    df = pd.DataFrame({"path": [f"{n}.wav" for n in range(9)], "valence": ["x"] * 9})
    message = refusal(lambda: validate_manifest(df))
    assert "9 problems" in message
    assert "row 5 (id '4')" in message
    assert "row 6" not in message
    assert message.endswith("and 4 more")


def test_columns_are_ordered_and_typed() -> None:
    df = pd.DataFrame(
        {
            "mood": pd.Categorical(["x", None, "y"]),
            "grade": pd.Categorical([1, 2, 2]),
            "path": ["/x/a.wav", "/x/b.wav", "/x/c.wav"],
            "sure": pd.array([True, None, False], dtype="boolean"),
            " loud ": [True, False, True],
            "rank": ["1", "nan", ""],
            "code": ["1", "x", "y"],
            "text": pd.array(["hi", None, "NA"], dtype="string"),
            "id": [1, 2, 3],
            "speaker": [1.0, 2.0, 3.5],
            "duration_s": [1, 2, 3],
        },
        index=[7, 7, 9],
    )
    out = validate_manifest(df)
    assert list(out.columns[:4]) == ["id", "path", "speaker", "text"]
    assert label_columns(out) == ["mood", "grade", "sure", "loud", "rank", "code"]
    assert out.index.tolist() == [0, 1, 2]
    assert out["id"].tolist() == ["1", "2", "3"]
    assert out["speaker"].tolist() == ["1", "2", "3.5"]
    assert out["text"].tolist() == ["hi", "", "NA"]
    assert out["mood"].tolist() == ["x", "", "y"]
    assert out["code"].tolist() == ["1", "x", "y"]
    for name in ("grade", "sure", "loud", "rank"):
        assert out[name].dtype == np.float64
    np.testing.assert_array_equal(out["sure"], [1, np.nan, 0])
    np.testing.assert_array_equal(out["rank"], [1, np.nan, np.nan])
    for name in ("id", "path", "speaker", "text", "mood", "code"):
        assert out[name].dtype == object
        assert {type(cell) for cell in out[name]} == {str}
    pd.testing.assert_frame_equal(validate_manifest(out), out)


def test_the_given_table_is_not_changed() -> None:
    df = table()
    before = df.copy(deep=True)
    manifest = validate_manifest(df)
    manifest["mood"] = "changed"
    manifest.loc[0, "valence"] = 5.0
    pd.testing.assert_frame_equal(df, before)


def test_an_index_named_id_is_the_id() -> None:
    assert validate_manifest(table().set_index("id"))["id"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "ids"),
    [
        ({"path": ["a.wav", "d/b.flac"]}, ["a", "b"]),
        ({"path": ["a.wav", "d/a.wav"]}, ["a", "d/a"]),
        ({"path": ["a.wav", "a.flac"]}, ["a.wav", "a.flac"]),
        (
            {
                "path": ["a.wav", "a.wav", "b.wav"],
                "start": [None, 1.25, None],
                "end": [1, None, None],
            },
            ["a@0.000-1.000", "a@1.250-end", "b"],
        ),
    ],
)
def test_missing_ids_come_from_paths(columns: dict[str, list[object]], ids: list[str]) -> None:
    assert validate_manifest(pd.DataFrame(columns))["id"].tolist() == ids


def test_a_path_twice_without_segments_is_refused() -> None:
    message = refusal(lambda: validate_manifest(pd.DataFrame({"path": ["a.wav", "a.wav"]})))
    assert "row 2 (id 'a'), column 'id'" in message
    assert "made from the path" in message


def test_unknown_speakers_are_empty_and_survive_the_disk(tmp_path: Path) -> None:
    manifest = validate_manifest(pd.DataFrame({"path": ["a.wav", "b.wav"], "end": [None, None]}))
    assert manifest["speaker"].tolist() == ["", ""]
    assert list(manifest.columns) == ["id", "path", "speaker"]
    write_manifest(manifest, tmp_path / "m.csv")
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "m.csv"), manifest)
    (tmp_path / "blank.csv").write_text("path,speaker\na.wav,\n")
    message = refusal(lambda: read_manifest(tmp_path / "blank.csv"))
    assert "row 1 (id 'a'), column 'speaker'" in message


def test_csv_keeps_what_pandas_would_guess_away(tmp_path: Path) -> None:
    file = tmp_path / "été.csv"
    file.write_text(
        "\ufeffpath, speaker ,id,text,score\n"
        "d/a.wav,NA,0001,None,1.5\n"
        '../b.wav,null,0002,"two\nlines, ""quoted""",nan\n'
        "\n"
        "/abs/c.wav,Zoë,0003,,\n",
        encoding="utf-8",
    )
    out = read_manifest(file)
    assert out["path"].tolist() == [
        str(tmp_path / "d/a.wav"),
        str(tmp_path.parent / "b.wav"),
        "/abs/c.wav",
    ]
    assert out["speaker"].tolist() == ["NA", "null", "Zoë"]
    assert out["id"].tolist() == ["0001", "0002", "0003"]
    assert out["text"].tolist() == ["None", 'two\nlines, "quoted"', ""]
    np.testing.assert_array_equal(out["score"], [1.5, np.nan, np.nan])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"path,speaker\n", "no rows"),
        (b"path,speaker\na.wav,x\nb.wav,x,y\n", "row 2: 3 cells where the header names 2"),
        (b"path,speaker\na.wav,x\nb.wav\n", "row 2: 1 cells where the header names 2"),
        (b"path,speaker\na.wav,Zo\xeb\n", "not UTF-8 text (byte 0xeb)"),
        (b'path\n"a.wav\n', "not a CSV table"),
        (b"path,valence\na.wav,1\nb.wav,high\n", "row 2 (id 'b'), column 'valence': 'high'"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "m.csv"
    file.write_bytes(content)
    message = refusal(lambda: read_manifest(file))
    assert message.startswith(str(file))
    assert says in message


def test_a_bad_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(lambda: read_manifest(tmp_path / "none.csv"))
    assert "'.xlsx'" in refusal(lambda: read_manifest(tmp_path / "m.xlsx"))
    assert "'.txt'" in refusal(lambda: write_manifest(table(), tmp_path / "m.txt"))
    broken = tmp_path / "m.parquet"
    broken.write_bytes(b"PAR1 but not really")
    assert "Parquet" in refusal(lambda: read_manifest(broken))
    absent = tmp_path / "m.parquet" / "m.csv"  # a file where a folder would have to be
    assert "cannot be written" in refusal(lambda: write_manifest(table(), absent))


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.csv"
    write_manifest(table(), file)
    before = file.read_bytes()

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    assert "No space left" in refusal(lambda: write_manifest(table(), file))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


def test_parquet_of_pandas_with_an_index(tmp_path: Path) -> None:
    file = tmp_path / "m.parquet"
    table().set_index("id").to_parquet(file)
    assert read_manifest(file)["id"].tolist() == ["a", "b", "c"]


NASTY = st.sampled_from(
    [
        "NA",
        "None",
        "null",
        "nan",
        "0001",
        "1e5",
        '"',
        ",",
        "\r",
        "\n",
        "\r\n",
        " x ",
        "=1",
        "é",
        "\x00",
    ]
)
TEXT = st.one_of(NASTY, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
NAMED = TEXT.filter(lambda text: bool(text.strip()))
NUMBER = st.one_of(st.just(math.nan), st.floats(allow_nan=False, allow_infinity=False))


@st.composite
def manifests(draw: st.DrawFn) -> pd.DataFrame:
    ids = draw(st.lists(NAMED, min_size=1, max_size=5, unique=True))
    rows = len(ids)

    def column(cells: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(cells, min_size=rows, max_size=rows))

    starts = column(st.one_of(st.just(math.nan), st.floats(0, 1e6)))
    columns: dict[str, list[object]] = {
        "id": list(ids),
        "path": column(NAMED.filter(lambda text: "\x00" not in text)),
        "speaker": column(draw(st.sampled_from([NAMED, st.just("")]))),
        "start": starts,
        "end": [draw(st.sampled_from([math.nan, 1e7, 1e7 + 0.1])) for _ in starts],
        "text": column(TEXT),
        # A letter in front keeps the column text.
        "mood": column(st.one_of(st.just(""), TEXT.map(lambda text: "x" + text))),
        "valence": column(NUMBER),
        "score": column(NUMBER),
    }
    return pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(df=manifests())
def test_round_trip(
    df: pd.DataFrame, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manifest = validate_manifest(df)
    file = tmp_path_factory.getbasetemp() / f"round_trip{suffix}"
    write_manifest(manifest, file)
    pd.testing.assert_frame_equal(read_manifest(file), manifest, check_exact=True)
    pd.testing.assert_frame_equal(validate_manifest(manifest), manifest, check_exact=True)
