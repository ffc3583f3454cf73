"""What a study keeps of earlier runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from featurestore.study.cache import Cache, fingerprint


def table_of(*values: float) -> dict[str, pd.DataFrame]:
    made = pd.DataFrame({"value": values, "name": ["a"] * len(values)})
    made.attrs["notes"] = ["said"]
    return {"rows": made, "none": pd.DataFrame()}


def again() -> dict[str, pd.DataFrame]:
    pytest.fail("it was computed again")


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    made = Cache(tmp_path).tables("set", "key", lambda: table_of(0.1, np.nan))
    cache = Cache(tmp_path)
    kept = cache.tables("set", "key", again)
    assert (cache.made, cache.used) == ([], ["set"])
    for name, table in made.items():
        pd.testing.assert_frame_equal(kept[name], table, check_column_type=False)
        assert kept[name].attrs == table.attrs
    other = Cache(tmp_path)
    other.tables("set", "other key", lambda: table_of(1.0))
    other.tables("sets", "key", lambda: table_of(1.0))
    assert other.made == ["set", "sets"]
    nothing = Cache(None)
    nothing.tables("set", "key", lambda: table_of(1.0))
    assert (nothing.made, nothing.used) == (["set"], [])


def damage(entry: Path, how: str) -> None:
    rows, facts = entry / "rows.parquet", entry / "tables.json"
    content = rows.read_bytes()
    if how == "half":
        rows.write_bytes(content[: len(content) // 2])
    elif how == "bit":
        place = content.index(np.float64(0.1).tobytes())
        rows.write_bytes(content[:place] + b"\x00" + content[place + 1 :])
    elif how == "gone":
        rows.unlink()
    elif how == "unfinished":
        facts.unlink()
    else:
        facts.write_text(how)


@pytest.mark.parametrize(
    "how",
    [
        *("half", "bit", "gone", "unfinished"),
        *("", "[]", "null", '{"rows"', '{"rows": 1}', '{"a": ["b"]}', '{"rows": ["0", {}]}'),
    ],
)
def test_a_damaged_entry_is_computed_again(tmp_path: Path, how: str) -> None:
    Cache(tmp_path).tables("set", "key", lambda: table_of(0.1, 0.2))
    (entry,) = tmp_path.iterdir()
    damage(entry, how)
    cache = Cache(tmp_path)
    found = cache.tables("set", "key", lambda: table_of(0.3))
    assert cache.made == ["set"]
    kept = Cache(tmp_path).tables("set", "key", again)
    assert kept["rows"]["value"].tolist() == found["rows"]["value"].tolist() == [0.3]


def test_only_its_own_folders_are_forgotten(tmp_path: Path) -> None:
    Cache(tmp_path).tables("set", "old", lambda: table_of(1.0))
    (old,) = tmp_path.iterdir()
    name = "0123456789abcdef01234567"
    mine = [tmp_path / "set", tmp_path / f"Set-{name}", tmp_path / f"set-{name}x"]
    for path in mine:
        path.mkdir()
    file, link = tmp_path / f"file-{name}", tmp_path / f"link-{name}"
    file.write_text("mine")
    link.symlink_to(mine[0], target_is_directory=True)
    cache = Cache(tmp_path)
    cache.tables("set", "new", lambda: table_of(2.0))
    cache.forget_others()
    assert not old.exists()
    assert all(path.exists() for path in [*mine, file, link])
    assert len(list(tmp_path.iterdir())) == len(mine) + 3
    Cache(None).forget_others()
    Cache(tmp_path / "nowhere").forget_others()


def test_a_fingerprint_is_of_contents() -> None:
    values = np.arange(6.0).reshape(2, 3)
    assert fingerprint(values) == fingerprint(values.T.copy().T)
    others = [values.T, values.ravel(), values.astype(np.float32), values + 1e-12]
    assert len({fingerprint(one) for one in [values, *others]}) == 5
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(np.array(["a", "b"])) != fingerprint(np.array(["ab", ""]))
