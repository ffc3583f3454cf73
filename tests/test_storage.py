"""A place is the same on a disk and in a bucket, by whichever library."""

from __future__ import annotations

import errno
import pickle  # noqa: TID251 - dask sends places to its workers
import string
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from object_server import s3_server

from featurestore.errors import StoreError
from featurestore.storage import Place, as_place, is_url, split_file
from featurestore.storage.arrays import PlaceStore, checksum
from featurestore.storage.local import LocalPlace
from featurestore.storage.objects import FsspecPlace, ObstorePlace
from featurestore.storage.place import PlaceChanged, file_stamp

DATA = bytes(range(100))
# What people call their files, and what a URL, a shell or a database would make something else of.
KEYS = [
    "plain",
    "deep/er/and/deeper",
    "with space/ two  spaces",
    "ünïcødé/日本/émotion",
    "#hash",
    "per%cent/%41/%2F",
    "what?",
    "a+b&c=d;e,f@g:h",
    "it's~(a)!*[x]{y}$",
    "c/0/0",
    "trailing.dot.",
    "=",
]
_number = count()


def sent(thing: Any) -> Any:
    """As another process gets it."""
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["local", "obstore", "memory", "s3fs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty one."""
    if request.param == "local":
        return LocalPlace(tmp_path / "store")
    if request.param == "memory":
        return FsspecPlace(f"memory://corpora/a {next(_number)}")
    request.getfixturevalue("s3")
    if request.param == "obstore":
        return ObstorePlace("s3://corpora", f"a {next(_number)}")
    pytest.importorskip("s3fs")
    return FsspecPlace(f"s3://corpora/a {next(_number)}")


def test_what_was_written_is_read(place: Place) -> None:
    for key in KEYS:
        assert not place.exists(key)
        place.write(key, key.encode())
        assert place.exists(key)
    for key in KEYS:
        assert place.read(key) == key.encode()
        assert place.size(key) == len(key.encode())
    assert place.sizes() == {key: len(key.encode()) for key in KEYS}
    assert place.names() == sorted({key.partition("/")[0] for key in KEYS})
    place.sync(KEYS)


def test_a_key_is_one_object_whatever_is_in_it(place: Place) -> None:
    for key in ("a%20b", "a b", "a+b", "a%2520b"):
        place.write(key, key.encode())
    assert place.names() == ["a b", "a%20b", "a%2520b", "a+b"]
    assert all(place.read(key) == key.encode() for key in place.names())
    place.delete("a b")
    assert place.names() == ["a%20b", "a%2520b", "a+b"]


@pytest.mark.parametrize("data", [b"", b"x", memoryview(b"12345")[1:4], bytes(6 << 20)])
def test_bytes_of_any_number(place: Place, data: bytes) -> None:
    place.write("key", data)
    assert place.read("key") == bytes(data)
    assert place.sizes() == {"key": len(data)}
    place.replace("key", bytes(data) + b"more")
    assert place.read("key") == bytes(data) + b"more"


RANGES = [
    (0, None), (5, None), (99, None), (100, None), (150, None),
    (None, 7), (None, 100), (None, 200), (None, 0),
    (3, 8), (0, 0), (5, 5), (7, 3), (90, 120), (100, 120), (120, 130),
    (-1, None), (-40, None), (-100, None), (-1000, None),
]  # fmt: skip


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_ranges_are_those_of_bytes(place: Place, start: int | None, stop: int | None) -> None:
    place.write("key", DATA)
    assert place.read("key", start, stop) == DATA[start:stop]
    place.write("empty", b"")
    assert place.read("empty", start, stop) == b""


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=300),
    st.one_of(
        st.tuples(st.integers(0, 400), st.none() | st.integers(0, 400)),
        st.tuples(st.integers(-400, -1), st.none()),
    ),
)
def test_any_range(place: Place, data: bytes, span: tuple[int, int | None]) -> None:
    place.write("key", data)
    assert place.read("key", *span) == data[slice(*span)]


_names = st.text(
    string.ascii_letters + string.digits + " #%+&=@äß日~'()_-,;:!$", min_size=1
).filter(lambda name: name.strip() == name and len(name.encode()) < 100)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sets(st.lists(_names, min_size=1, max_size=3).map("/".join), min_size=1, max_size=5))
def test_any_keys(place: Place, keys: set[str]) -> None:
    # On a disk nothing is both a file and a folder.
    keys = {key for key in keys if not any(other.startswith(f"{key}/") for other in keys)}
    inner = place / f"run{next(_number)}"
    for key in keys:
        inner.write(key, key.encode())
    assert inner.sizes() == {key: len(key.encode()) for key in keys}
    assert inner.names() == sorted({key.partition("/")[0] for key in keys})
    assert all(inner.read(key) == key.encode() for key in keys)
    inner.delete_all("")
    assert inner.sizes() == {}


@pytest.mark.parametrize(
    "ask",
    [
        lambda place: place.read("gone"),
        lambda place: place.read("gone", 2, 4),
        lambda place: place.read("gone", 3, 3),
        lambda place: place.read("gone", -3),
        lambda place: place.size("gone"),
        lambda place: place.stamp("gone"),
        lambda place: place.read("deep/gone"),
    ],
)
def test_what_is_missing_is_said_so(place: Place, ask: Callable[[Place], object]) -> None:
    place.write("other", b"")
    with pytest.raises(FileNotFoundError) as caught:
        ask(place)
    assert caught.value.strerror
    assert "gone" in str(caught.value.filename)


def test_nothing_is_there_before_something_is(place: Place) -> None:
    assert place.sizes() == {}
    assert place.names() == []
    assert place.names("deep") == []
    assert place.sizes("deep") == {}
    assert not place.exists("key")
    place.delete("key")
    place.delete("deep/key")
    place.delete_all("deep")
    place.delete_all("")
    place.sweep()


def test_names_and_sizes_at_any_depth(place: Place) -> None:
    for key in ("a", "views/one/x", "views/one/deep/y", "views/oneself/z", "views.json"):
        place.write(key, b"12")
    assert place.names() == ["a", "views", "views.json"]
    assert place.names("views") == ["one", "oneself"]
    assert place.names("views/one") == ["deep", "x"]
    assert place.names("vie") == []
    assert set(place.sizes("views/one")) == {"views/one/x", "views/one/deep/y"}
    assert set(place.sizes("views")) == {"views/one/x", "views/one/deep/y", "views/oneself/z"}
    assert place.sizes("vie") == {}
    assert not place.exists("views")
    inner = place / "views" / "one"
    assert inner.sizes() == {"x": 2, "deep/y": 2}
    assert inner.read("deep/y") == b"12"
    assert (inner.name, inner.url) == ("one", f"{place.url}/views/one")
    place.delete_all("views/one")
    assert set(place.sizes()) == {"a", "views/oneself/z", "views.json"}
    place.delete("a")
    place.delete("a")
    assert place.names() == ["views", "views.json"]
    place.delete_all("")
    assert place.sizes() == {}


def test_another_client_sees_at_once_what_is_there(place: Place) -> None:
    """Lists and headers must not come from a memory of what once was."""
    other = sent(place) if "memory" not in place.url else place
    assert place.names() == []
    other.write("a/b", b"1")
    assert place.names() == ["a"]
    assert place.exists("a/b")
    assert place.sizes() == {"a/b": 1}
    other.write("a/b", b"12")
    assert place.size("a/b") == 2
    other.delete("a/b")
    assert not place.exists("a/b")


def test_the_stamp_changes_with_the_bytes(place: Place) -> None:
    place.write("key", b"1")
    before = place.stamp("key")
    assert place.stamp("key") == before
    assert before.startswith("1-")
    assert '"' not in before
    assert file_stamp(f"{place.url}/key") == before
    place.write("key", b"2")
    assert place.stamp("key") != before
    assert file_stamp(f"{place.url}/gone") == ""


@pytest.mark.parametrize("same", [True, False])
def test_of_many_who_create_a_key_one_wins(place: Place, same: bool) -> None:
    barrier = threading.Barrier(20)

    def create(index: int) -> bool:
        barrier.wait()
        return place.create("ledger/00000.json", b"record" if same else f"record {index}".encode())

    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(create, range(20)))
    assert won.count(True) == 1
    expected = b"record" if same else f"record {won.index(True)}".encode()
    assert place.read("ledger/00000.json") == expected
    assert place.sizes() == {"ledger/00000.json": len(expected)}
    assert not place.create("ledger/00000.json", expected)
    place.delete("ledger/00000.json")
    assert place.create("ledger/00000.json", b"again")


def test_of_many_who_replace_a_version_one_wins(place: Place) -> None:
    if isinstance(place, LocalPlace):
        pytest.skip("a disk has a lock instead")
    place.create("lock.json", b"first")
    tag = place.tagged("lock.json").tag
    barrier = threading.Barrier(10)

    def replace(index: int) -> str:
        barrier.wait()
        try:
            return place.replace_tagged("lock.json", f"of {index}".encode(), tag)
        except PlaceChanged:
            return ""

    with ThreadPoolExecutor(10) as pool:
        tags = list(pool.map(replace, range(10)))
    (won,) = [index for index, new in enumerate(tags) if new]
    found = place.tagged("lock.json")
    assert found.data == f"of {won}".encode()
    assert found.tag == tags[won]
    place.delete_once("lock.json")
    with pytest.raises(PlaceChanged):
        place.replace_tagged("lock.json", b"", tags[won])


def test_a_write_replaces_the_whole(place: Place) -> None:
    """Whoever reads meanwhile finds the one or the other, never some of both."""
    versions = [bytes([value]) * 200_000 for value in (1, 2)]
    place.write("key", versions[0])
    done = threading.Event()
    seen = set()

    def watch() -> None:
        while not done.is_set():
            seen.add(place.read("key"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(20):
        place.write("key", versions[turn % 2])
    done.set()
    watcher.join()
    assert seen <= set(versions)
    assert place.sizes() == {"key": 200_000}


def test_places_are_equal_by_where_they_are(place: Place) -> None:
    inner = place / "views"
    assert inner == place / "views"
    assert hash(inner) == hash(place / "views")
    assert inner != place
    assert place.url in repr(place)
    if not isinstance(place, FsspecPlace):
        assert as_place(place.url) == place
    assert as_place(place) is place
    place.write("views/key", b"1")
    again = sent(inner)
    assert again == inner
    assert again.read("key") == b"1"


# --- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("open_place", [as_place, FsspecPlace], ids=["obstore", "s3fs"])
def test_a_bucket_that_is_not_there(s3: str, open_place: Callable[[str], Place]) -> None:
    place = open_place("s3://misspelt/store")
    for ask in (
        lambda: place.read("key"),
        lambda: place.write("key", b""),
        lambda: place.create("key", b""),
    ):
        with pytest.raises(OSError, match="there is no such bucket") as caught:
            ask()
        assert caught.value.errno == errno.ENXIO
        assert "s3://misspelt/store/key" in str(caught.value)
    with pytest.raises(OSError, match="there is no such bucket"):
        as_place("s3://misspelt").names()  # writing has not made it


def test_a_folder_made_in_a_console_is_empty(s3: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3)
    for key in ("console/", "console/a/"):
        client.put_object(Bucket="corpora", Key=key, Body=b"")
    client.delete_object(Bucket="corpora", Key="console/a/")
    client.close()
    for place in (as_place("s3://corpora/console"), FsspecPlace("s3://corpora/console")):
        assert place.names() == []
        assert place.sizes() == {}


def test_azure_does_not_count_from_the_end(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore
    from obstore.exceptions import NotSupportedError

    place = ObstorePlace("s3://corpora", "azure")
    place.write("key", DATA)
    get = obstore.get

    def like_azure(client, path, *, options=None):
        if options and "suffix" in options["range"]:
            raise NotSupportedError("Azure does not support suffix range requests")
        return get(client, path, options=options)

    monkeypatch.setattr(obstore, "get", like_azure)
    assert place.read("key", -10) == DATA[-10:]
    assert place.read("key", -1000) == DATA


def test_urls_and_paths(tmp_path: Path) -> None:
    assert as_place(f"file://{tmp_path}") == as_place(tmp_path) == LocalPlace(tmp_path)
    assert as_place("s3://corpora/a/b/").url == "s3://corpora/a/b"
    assert is_url("s3://corpora")
    assert not is_url(f"file://{tmp_path}")
    assert split_file("s3://corpora/a/b.csv") == (as_place("s3://corpora/a"), "b.csv")
    assert split_file(tmp_path / "b.csv") == (LocalPlace(tmp_path), "b.csv")
    with pytest.raises(StoreError, match=r"eats a slash.*'s3://corpora/a'"):
        as_place(Path("s3://corpora/a"))
    with pytest.raises(StoreError, match="names no file in a bucket"):
        split_file("s3://corpora")
    with pytest.raises(StoreError, match=r"'gopher://x/y' cannot be opened"):
        as_place("gopher://x/y")


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    place.write("a/key", b"1")
    (tmp_path / "a" / ".0123456789abcdef.partial").write_bytes(b"half")
    assert place.names("a") == ["key"]
    assert place.sizes() == {"a/key": 1}
    place.sweep()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["key"]


# --- Zarr ---------------------------------------------------------------------------------------


@contextmanager
def counted(place: Place) -> Iterator[list[int]]:
    """Bytes of every read of a place of this kind."""
    kind, found = type(place), []
    read = kind.read

    def note(self, key, start=None, stop=None):
        data = read(self, key, start, stop)
        found.append(len(data))
        return data

    kind.read = note
    try:
        yield found
    finally:
        kind.read = read


def sharded(place: Place, values: np.ndarray) -> PlaceStore:
    store = PlaceStore(place)
    group = zarr.open_group(store, mode="a", zarr_format=3)
    array = group.create_array(
        "frames", shape=values.shape, chunks=(10, 8), shards=(100, 8), dtype=values.dtype
    )
    array[:] = values
    return store


def test_arrays_are_read_as_they_were_written(place: Place) -> None:
    values = np.random.default_rng(0).random((250, 8)).astype("f4")
    store = sharded(place, values)
    assert set(store.written) == {
        "zarr.json", "frames/zarr.json", *(f"frames/c/{i}/0" for i in range(3))
    }  # fmt: skip
    for key, (size, crc) in store.written.items():
        data = place.read(key)
        assert (len(data), checksum(data)) == (size, crc)
    reading = PlaceStore(place, read_only=True, expected=store.written)
    array = zarr.open_array(reading, path="frames", mode="r")
    np.testing.assert_array_equal(array[:], values)
    with counted(place) as fetched:
        np.testing.assert_array_equal(array[100:120], values[100:120])
    assert sum(fetched) < place.size("frames/c/1/0") / 2  # two chunks and the index of one shard
    again = sent(reading)
    np.testing.assert_array_equal(zarr.open_array(again, path="frames", mode="r")[:], values)
    assert again == reading


def test_no_value_is_made_up(place: Place) -> None:
    values = np.ones((250, 8), "f4")
    store = sharded(place, values)
    reading = PlaceStore(place, read_only=True, expected=store.written)
    array = zarr.open_array(reading, path="frames", mode="r")
    place.delete("frames/c/1/0")
    np.testing.assert_array_equal(array[:100], values[:100])
    with pytest.raises(StoreError, match=r"frames/c/1/0 is missing, and its values with it"):
        array[100:110]
    with pytest.raises(StoreError, match="is missing"):
        array[:]
    data = place.read("frames/zarr.json")
    place.write("frames/zarr.json", data.replace(b"250", b"240"))
    with pytest.raises(StoreError, match=r"frames/zarr\.json is not what was written"):
        zarr.open_array(reading, path="frames", mode="r")


def test_what_zarr_removes_is_forgotten(place: Place) -> None:
    store = sharded(place, np.ones((250, 8), "f4"))
    group = zarr.open_group(store, mode="a")
    assert sorted(group.array_keys()) == ["frames"]
    del group["frames"]
    assert set(place.sizes()) == {"zarr.json"} == set(store.written)
    with pytest.raises(ValueError, match="read-only"):
        PlaceStore(place, read_only=True).set_sync("key", _buffer(b"1"))


def _buffer(data: bytes) -> zarr.core.buffer.Buffer:
    return zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(data)
