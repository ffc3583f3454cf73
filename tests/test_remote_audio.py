"""Recordings and manifests in object stores: what is found there, and how much of it is fetched."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from object_server import s3_server

from featurestore import sources
from featurestore.audio import AudioInfo, Clip, load_audio, probe, probe_segment, read_clip
from featurestore.containers import _header
from featurestore.corpus import read_manifest, validate_manifest, write_manifest
from featurestore.errors import AudioError, ManifestError
from featurestore.storage import as_place, objects
from featurestore.storage import bucket as buckets
from featurestore.storage.objects import FsspecPlace, ObstorePlace

KIB = 1 << 10
RATE = 16_000


class Fetched(list[int]):
    """Bytes of every request."""

    @property
    def kib(self) -> float:
        return sum(self) / KIB


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    found = Fetched()
    for kind in (FsspecPlace, ObstorePlace):

        def read(self, key, start=None, stop=None, *, real=kind.read):
            data = real(self, key, start, stop)
            found.append(len(data))
            return data

        monkeypatch.setattr(kind, "read", read)
    return found


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server():
        yield "s3://corpora"


@pytest.fixture
def memory() -> Iterator[str]:
    import fsspec

    yield "memory://corpora"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def no_copy_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())


def noise(seconds: float, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.2, (round(seconds * RATE), channels))


def encode(path: Path, samples: np.ndarray, **options: object) -> Path:
    """In steps of a second: libsndfile overflows its stack on long vorbis."""
    channels = samples.shape[1]
    with soundfile.SoundFile(path, "w", RATE, channels, **options) as file:  # type: ignore[arg-type]
        for at in range(0, len(samples), RATE):
            file.write(samples[at : at + RATE])
    return path


def put(path: Path | bytes, url: str) -> str:
    folder, _, key = url.rpartition("/")
    as_place(folder).write(key, path if isinstance(path, bytes) else path.read_bytes())
    return url


def without_xing(path: Path) -> None:
    data = path.read_bytes()
    header = _header(data[:4])
    assert header is not None
    path.write_bytes(data[header.size :])


def refused(url: str, **segment: float) -> str:
    """The one message with which both a probe and a decoder refuse an object."""
    messages = []
    for call in (probe_segment, read_clip):
        with pytest.raises(AudioError) as caught:
            call(url, **segment)
        messages.append(str(caught.value))
    for message in messages:
        assert message.isprintable()
        assert message.endswith(f": {url}")
        assert tempfile.gettempdir() not in message
    return messages[0]


def outcome(call: Callable[..., object], name: str | Path, **segment: float) -> object:
    """What is found, or the message without the name."""
    try:
        found = call(name, **segment)
    except AudioError as error:
        return str(error).removesuffix(f": {name}")
    return found.sha256 if isinstance(found, Clip) else found


# --- the same as from a disk --------------------------------------------------------------------

FORMATS = {
    "wav": {"subtype": "PCM_16"},
    "flac": {"subtype": "PCM_16"},
    "ogg": {"subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
    "headless.mp3": {},
}


@pytest.mark.parametrize("name", FORMATS)
def test_an_object_is_what_the_file_is(tmp_path: Path, bucket: str, name: str) -> None:
    path = encode(tmp_path / f"a.{name}", noise(40.0, 2), **FORMATS[name])
    if name == "headless.mp3":
        without_xing(path)
    url = put(path, f"{bucket}/deep/er/a.{name}")
    assert probe(url) == probe(path)
    whole, expected = read_clip(url), read_clip(path)
    assert whole.sha256 == expected.sha256
    np.testing.assert_array_equal(whole.samples, expected.samples)
    for start, end in ((0.0, 1.0), (20.5, 21.25), (38.0, math.nan), (math.nan, 2.0)):
        assert probe_segment(url, start=start, end=end) == probe_segment(path, start=start, end=end)
        assert read_clip(url, start=start, end=end).sha256 == (
            read_clip(path, start=start, end=end).sha256
        )
        np.testing.assert_array_equal(
            load_audio(url, start=start, end=end), load_audio(path, start=start, end=end)
        )


CONTAINERS = [
    (container, subtype)
    for container in soundfile.available_formats()
    # raw has no header, sd2 has it in another file; mpeg and ogg are above.
    if container not in ("RAW", "SD2", "MP3", "OGG")
    for subtype in soundfile.available_subtypes(container)
    if subtype not in ("DWVW_12", "MPEG_LAYER_III")  # which libsndfile does not write
]
# Of these libsndfile reads everything to learn how long they are.
READ_WHOLE = {("AIFF", "DWVW_16"), ("AIFF", "DWVW_24")}


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
def test_every_container_that_libsndfile_writes(
    tmp_path: Path, memory: str, fetched: Fetched, container: str, subtype: str
) -> None:
    path = encode(tmp_path / "a.bin", noise(45.0), format=container, subtype=subtype)
    url = put(path, f"{memory}/a.bin")
    size = path.stat().st_size
    assert probe(url) == probe(path)
    if (container, subtype) not in READ_WHOLE and container != "SDS":
        assert fetched.kib <= 512 or size <= 512 * KIB
    fetched.clear()
    # What is refused of a file, as seeking in DWVW is, is refused of an object.
    assert outcome(read_clip, url, start=15.0, end=15.5) == (
        outcome(read_clip, path, start=15.0, end=15.5)
    )
    assert sum(fetched) <= size + 512 * KIB  # the last block may come twice
    for lost in (1000, size // 2):
        path.write_bytes(path.read_bytes()[:-lost])
        put(path, url)
        assert outcome(probe, url) == outcome(probe, path)


def chunk(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)


def as_riff(data: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    body = data[8:12] + before + data[12:] + after
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("where", ["before", "after"])
def test_long_chunks_around_the_samples_of_a_wav(
    tmp_path: Path, memory: str, fetched: Fetched, where: str
) -> None:
    """The header begins, or goes on, where no first or last block reaches."""
    plain = encode(tmp_path / "a.wav", noise(60.0)).read_bytes()
    cover = b"".join(chunk(b"junk", bytes([n]) * 600_000) for n in range(3))
    cover += chunk(b"LIST", b"INFO" + chunk(b"INAM", b"a name"))
    path = tmp_path / "b.wav"
    path.write_bytes(as_riff(plain, **{where: cover}))
    url = put(path, f"{memory}/b.wav")
    assert probe(url) == probe(path) == AudioInfo(RATE, 1, 60 * RATE)
    assert fetched.kib < 1024
    assert read_clip(url, start=50.0, end=51.0).sha256 == (
        read_clip(path, start=50.0, end=51.0).sha256
    )


def test_an_mp3_behind_a_large_picture(tmp_path: Path, memory: str, fetched: Fetched) -> None:
    path = encode(tmp_path / "a.mp3", noise(20.0))
    size = 1_500_000
    sevens = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x04\x00\x00" + sevens + bytes(size) + path.read_bytes())
    url = put(path, f"{memory}/a.mp3")
    assert probe(url) == probe(path)
    assert read_clip(url).sha256 == read_clip(path).sha256


@pytest.mark.parametrize("ending", ["vox", "gsm", "au", "AU"])
def test_an_ending_stands_for_a_missing_header(tmp_path: Path, memory: str, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(np.random.default_rng(0).bytes(33 * 600))
    url = put(path, f"{memory}/a.{ending}")
    assert probe(url) == probe(path)
    assert read_clip(url, start=0.1).sha256 == read_clip(path, start=0.1).sha256
    assert read_clip(url).sha256 == read_clip(path).sha256


def test_an_ending_does_not_hide_a_header(tmp_path: Path, memory: str, fetched: Fetched) -> None:
    path = encode(tmp_path / "a.au", noise(60.0), subtype="PCM_16")
    assert probe(put(path, f"{memory}/a.au")) == probe(path)
    assert fetched == [256 * KIB]


def test_a_file_url_is_a_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", noise(0.1))
    assert probe(f"file://{path}") == probe(path)
    assert read_clip(f"file://{path}").sha256 == read_clip(path).sha256


# --- how much is fetched ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "requests", "kib"),
    [("wav", 1, 256), ("flac", 1, 256), ("ogg", 3, 512), ("opus", 3, 512), ("mp3", 2, 384)],
)
def test_a_header_is_little_of_a_long_object(
    tmp_path: Path, bucket: str, fetched: Fetched, name: str, requests: int, kib: int
) -> None:
    path = encode(tmp_path / f"a.{name}", noise(240.0), **FORMATS[name])
    url = put(path, f"{bucket}/a.{name}")
    assert probe(url) == probe(path)
    assert len(fetched) <= requests
    assert fetched.kib <= kib < path.stat().st_size / KIB


def test_a_short_object_takes_one_request(tmp_path: Path, s3: str, fetched: Fetched) -> None:
    path = encode(tmp_path / "a.wav", noise(5.0))
    url = put(path, f"{s3}/short.wav")
    for call in (probe, read_clip, lambda url: read_clip(url, start=2.0)):
        call(url)
        assert fetched == [path.stat().st_size]
        fetched.clear()


def test_the_frames_of_an_mp3_are_counted_in_few_requests(
    tmp_path: Path, memory: str, fetched: Fetched
) -> None:
    path = encode(tmp_path / "a.mp3", noise(400.0))
    without_xing(path)
    url = put(path, f"{memory}/a.mp3")
    assert probe(url) == probe(path)
    assert len(fetched) <= 8
    assert sum(fetched) <= path.stat().st_size + 128 * KIB  # the last block may come twice


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_a_segment_is_little_of_a_long_object(
    tmp_path: Path, memory: str, fetched: Fetched, name: str
) -> None:
    path = encode(tmp_path / f"a.{name}", noise(400.0, 2), **FORMATS[name])
    url = put(path, f"{memory}/a.{name}")
    found = read_clip(url, start=350.0, end=352.0)
    assert fetched.kib <= 4096 < path.stat().st_size / KIB / 4
    assert found.sha256 == read_clip(path, start=350.0, end=352.0).sha256


def test_a_long_object_is_copied_in_pieces(
    tmp_path: Path, bucket: str, fetched: Fetched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_PIECE", 100_000)
    for samples in (99_999, 100_000, 200_000, 250_001):
        path = encode(tmp_path / "a.wav", noise(samples / RATE))
        url = put(path, f"{bucket}/{samples}.wav")
        assert read_clip(url).sha256 == read_clip(path).sha256
        assert sum(fetched) == path.stat().st_size
        fetched.clear()


# --- what cannot be read ------------------------------------------------------------------------


def test_a_missing_object(bucket: str) -> None:
    assert refused(f"{bucket}/nowhere/a.wav").startswith("file not found")


def test_an_empty_object(bucket: str) -> None:
    assert refused(put(b"", f"{bucket}/empty.wav")).startswith("empty file (0 bytes)")


def test_no_object(bucket: str) -> None:
    put(b"x", f"{bucket}/folder/a.wav")
    assert refused(f"{bucket}/folder/").startswith("a folder")
    assert refused(f"{bucket}/folder").startswith(("a folder", "file not found"))


def test_a_missing_bucket(s3: str) -> None:
    assert refused("s3://not-there/a.wav").startswith("there is no such bucket")


def test_an_unknown_scheme() -> None:
    assert "Protocol not known" in refused("nothing://bucket/a.wav")


@pytest.mark.parametrize("size", [20, 5000, 3_000_000])
def test_garbage(bucket: str, fetched: Fetched, size: int) -> None:
    url = f"{bucket}/picture.wav"
    put((b"\x89PNG\r\n" + np.random.default_rng(0).bytes(size))[:size], url)
    with pytest.raises(AudioError, match="not a readable audio file"):
        probe(url)
    assert fetched.kib <= 512
    assert "not a readable audio file" in refused(url)


@pytest.mark.parametrize("name", ["wav", "ogg", "opus", "headless.mp3"])
def test_a_truncated_object(tmp_path: Path, bucket: str, name: str) -> None:
    path = encode(tmp_path / f"a.{name}", noise(60.0), **FORMATS[name])
    if name == "headless.mp3":
        without_xing(path)
    assert "truncated" in refused(put(path.read_bytes()[:-50], f"{bucket}/a.{name}"))
    assert "truncated" in refused(f"{bucket}/a.{name}", start=1.0, end=2.0)


def test_a_truncated_flac_is_noticed_by_its_decoder(tmp_path: Path, bucket: str) -> None:
    path = encode(tmp_path / "a.flac", noise(20.0))
    url = put(path.read_bytes()[:-5000], f"{bucket}/a.flac")
    with pytest.raises(AudioError, match="truncated") as caught:
        read_clip(url)
    assert str(caught.value).endswith(f": {url}")


def test_a_segment_outside(tmp_path: Path, memory: str) -> None:
    url = put(encode(tmp_path / "a.wav", noise(1.0)), f"{memory}/a.wav")
    assert "leaves the file" in refused(url, start=9.0)


@pytest.fixture(scope="module")
def minutes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Long objects by name."""
    folder = tmp_path_factory.mktemp("minutes")
    names = ("wav", "opus", "headless.mp3")
    paths = {n: encode(folder / f"a.{n}", noise(150.0), **FORMATS[n]) for n in names}
    without_xing(paths["headless.mp3"])
    return {name: path.read_bytes() for name, path in paths.items()}


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "the object store refuses access"), "refuses access"),
        (OSError(errno.EIO, "the object store failed (timed out)"), "timed out"),
        (OSError("two\nlines"), "two"),
        (FileNotFoundError("gone"), "file not found"),
    ],
)
@pytest.mark.parametrize("name", ["wav", "opus", "headless.mp3"])
def test_a_request_that_fails_half_way(
    minutes: dict[str, bytes],
    memory: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: OSError,
    says: str,
    failing: int,
) -> None:
    """Libsndfile knows no errors of reading: it would find a file that ends there."""
    url = put(minutes[name], f"{memory}/a.{name}")
    real, calls = FsspecPlace.read, 0

    def read(self, key, start=None, stop=None):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise error
        return real(self, key, start, stop)

    monkeypatch.setattr(FsspecPlace, "read", read)
    for call in (probe, lambda url: read_clip(url, start=100.0, end=145.0), read_clip):
        calls = 0
        try:
            call(url)
        except AudioError as caught:
            assert str(caught).startswith(("the", "two", "file not found"))  # noqa: PT017
            assert says in str(caught)  # noqa: PT017
            assert str(caught).endswith(f": {url}")  # noqa: PT017
        else:
            assert calls < failing


def test_an_object_that_shrinks_meanwhile(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(encode(tmp_path / "a.wav", noise(60.0)), f"{memory}/a.wav")
    monkeypatch.setattr(FsspecPlace, "size", lambda self, key: 10**8)
    monkeypatch.setattr(sources, "_PIECE", 1 << 18)
    for options in ({"start": 1.0, "end": 50.0}, {}):
        with pytest.raises(AudioError, match="changed while it was read"):
            read_clip(url, **options)


def test_a_server_that_is_not_there(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(buckets, "PATIENCE", buckets.Patience(retries=0))
    objects._bucket.cache_clear()
    try:
        assert "the object store failed" in refused("s3://corpora/a.wav")
    finally:
        objects._bucket.cache_clear()


def test_no_room_for_a_copy(tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(encode(tmp_path / "a.wav", noise(1.0)), f"{memory}/a.wav")

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def writelines(self, pieces):
            next(pieces)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources, "open", lambda *_: Full(), raising=False)
    with pytest.raises(AudioError, match=r"No space left on device\); set TMPDIR") as caught:
        read_clip(url)
    assert str(caught.value).endswith(f": {url}")


# --- manifests ----------------------------------------------------------------------------------

TABLE = {
    "id": ["a", "b", "c"],
    "path": ["s3://corpora/x/a.wav", "/disk/b.wav", "memory://other/c.wav"],
    "speaker": ["s1", "s2", "ü"],
    "start": [0.0, 1.5, math.nan],
    "end": [1.0, math.nan, 2.0],
    "text": ["", "a,\r\nb", '"'],
    "valence": [0.1, math.nan, 3.0],
    "mood": ["NA", "", "0001"],
}


@pytest.mark.parametrize("ending", ["csv", "parquet", "CSV"])
def test_a_manifest_goes_to_a_bucket_and_back(bucket: str, tmp_path: Path, ending: str) -> None:
    manifest = validate_manifest(pd.DataFrame(TABLE))
    assert manifest["path"].tolist() == TABLE["path"]
    url = f"{bucket}/{ending}/m.{ending}"
    for name in (url, url, os.fspath(tmp_path / f"m.{ending}"), f"file://{tmp_path}/n.{ending}"):
        write_manifest(manifest, name)
        pd.testing.assert_frame_equal(read_manifest(name), manifest, check_exact=True)
    assert list(as_place(f"{bucket}/{ending}").sizes()) == [f"m.{ending}"]
    # The same bytes as in a file.
    if ending == "csv":
        data = as_place(f"{bucket}/csv").read("m.csv")
        assert data == (tmp_path / "m.csv").read_bytes()


def test_relative_paths_start_at_the_folder_of_the_table(memory: str) -> None:
    cells = ["a.wav", "wav/b.wav", "../c.wav", "./x/../d.wav", "/disk/e.wav", "s3://other/f.wav"]
    url = put("\n".join(["path", *cells]).encode(), f"{memory}/one/two/m.csv")
    assert read_manifest(url)["path"].tolist() == [
        f"{memory}/one/two/a.wav",
        f"{memory}/one/two/wav/b.wav",
        f"{memory}/one/c.wav",
        f"{memory}/one/two/d.wav",
        "/disk/e.wav",
        "s3://other/f.wav",
    ]
    url = put("\n".join(["path", *cells[:3]]).encode(), f"{memory}/m.csv")
    assert read_manifest(url)["path"].tolist() == [
        f"{memory}/a.wav",
        f"{memory}/wav/b.wav",
        f"{memory}/c.wav",
    ]


def test_a_table_on_disk_may_name_objects(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("path\ns3://corpora//odd/../a.wav\nb.wav\nfile:///disk/c.wav\n")
    found = read_manifest(file)["path"].tolist()
    assert found == ["s3://corpora//odd/../a.wav", str(tmp_path / "b.wav"), "/disk/c.wav"]


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        (["a.wav", "x/b.wav"], ["a", "b"]),
        (["x/a.wav", "y/a.wav"], ["x/a", "y/a"]),
        (["a.wav", "a.flac"], ["a.wav", "a.flac"]),
        (["s3://other/x/a.wav", "y/a.wav"], ["s3://other/x/a", "y/a"]),
    ],
)
def test_ids_are_made_from_urls(memory: str, cells: list[str], ids: list[str]) -> None:
    url = put("\n".join(["path", *cells]).encode(), f"{memory}/in/m.csv")
    assert read_manifest(url)["id"].tolist() == ids


def test_ids_of_segments_of_an_object(memory: str) -> None:
    url = put(b"path,start,end\na.wav,0,1\na.wav,1,\n", f"{memory}/in/m.csv")
    assert read_manifest(url)["id"].tolist() == ["a@0.000-1.000", "a@1.000-end"]


def test_a_table_of_a_bucket_that_cannot_be_used(bucket: str) -> None:
    for name, data, says in (
        ("none.csv", None, "there is no such file"),
        ("m.xlsx", None, "'.xlsx'"),
        ("m.csv", b"", "the file is empty"),
        ("m.csv", b"path,speaker\na.wav,Zo\xeb\n", "not UTF-8 text (byte 0xeb)"),
        ("m.csv", b"path,speaker\na.wav,x\nb.wav\n", "row 2: 1 cells"),
        ("m.parquet", b"PAR1 but not really", "not a readable Parquet file"),
    ):
        url = f"{bucket}/bad/{name}"
        if data is not None:
            put(data, url)
        with pytest.raises(ManifestError) as caught:
            read_manifest(url)
        assert str(caught.value).startswith(f"{url}: ")
        assert says in str(caught.value)
    with pytest.raises(ManifestError, match="Protocol not known"):
        read_manifest("nothing://bucket/m.csv")


def test_a_bucket_that_takes_no_table(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self, key, *pieces):
        raise PermissionError(errno.EACCES, "the object store refuses access", key)

    monkeypatch.setattr(FsspecPlace, "write", refuse)
    with pytest.raises(ManifestError, match=r"m\.csv: cannot be written: .* refuses access"):
        write_manifest(pd.DataFrame(TABLE), f"{memory}/m.csv")
