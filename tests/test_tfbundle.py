"""TensorFlow's checkpoint format: whole files read exactly, broken ones with one-line errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_writer import (
    MAGIC,
    Options,
    block,
    bytes_field,
    entry_proto,
    header_proto,
    index_bytes,
    masked_crc,
    number_field,
    table,
    varint,
    write_bundle,
)

from featurestore.errors import CheckpointError
from featurestore.leveldb_table import MalformedError, read_table
from featurestore.tfbundle import bundle_prefix, is_bundle, read_index, read_tensors

GOLDEN = "model.ckpt-205919"


def refusal(call, *arguments) -> str:
    """The message of the CheckpointError that the call must raise; always one line."""
    with pytest.raises(CheckpointError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    values = np.random.default_rng(0)
    named = {f"block_{i}/conv/W": values.standard_normal((2, i + 1), np.float32) for i in range(40)}
    return {
        **named,
        "empty": np.zeros((0, 3), np.float32),
        "global_step": np.array(7, np.int32),
        "half": np.array([1.5, -2], np.float16),
        "long": np.array([-1], np.int64),
        "name with spaces and é": np.array([True, False]).astype(np.uint8),
    }


@pytest.fixture
def prefix(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    return write_bundle(tmp_path / "model.ckpt-1", tensors)


def index_of(prefix: Path) -> Path:
    return Path(f"{prefix}.index")


def data_of(prefix: Path) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


# --- whole files


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(pairs_per_block=5, restart_interval=3),
        Options(pairs_per_block=1),
        Options(restart_interval=1),
        Options(snappy=True),
        Options(pairs_per_block=7, restart_interval=2, snappy=True, shards=3),
    ],
)
def test_whatever_the_layout_tensors_are_read_exactly(tmp_path, tensors, options):
    prefix = write_bundle(tmp_path / "model.ckpt", tensors, options=options)
    found = read_tensors(prefix)
    assert list(found) == sorted(tensors)
    for name, expected in tensors.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_index_states_where_each_tensor_lies(prefix, tensors):
    entries = read_index(prefix)
    step = entries["global_step"]
    raw = data_of(prefix).read_bytes()[step.offset : step.offset + step.size]
    assert (step.dtype, step.shape, step.shard, step.size) == (3, (), 0, 4)
    assert raw == b"\x07\0\0\0"
    assert step.masked_crc32c.to_bytes(4, "little") == masked_crc(raw)


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001", ".meta"])
def test_any_of_its_files_names_a_checkpoint(prefix, suffix):
    path = f"{prefix}{suffix}"
    assert bundle_prefix(path) == prefix
    assert is_bundle(path)
    assert len(read_index(path)) == 45


def test_only_named_tensors_are_read_in_the_order_asked_for(prefix):
    assert list(read_tensors(prefix, ["long", "half"])) == ["long", "half"]
    assert "'lung'" in refusal(read_tensors, prefix, ["lung"])


# --- the file that TensorFlow wrote


def test_golden_checkpoint(golden):
    entries = read_index(golden / GOLDEN)
    assert len(entries) == 381
    found = read_tensors(golden / GOLDEN)
    assert found["block_0_1/conv_filter/W"].shape == (1, 7, 128, 128)
    assert sum(a.nbytes for a in found.values()) == 29_816_036


def test_our_writer_makes_the_golden_index_byte_for_byte(golden):
    pairs = [(b"", header_proto())]
    for name, entry in read_index(golden / GOLDEN).items():
        crc = entry.masked_crc32c.to_bytes(4, "little")
        proto = entry_proto(
            dtype=entry.dtype, shape=entry.shape, offset=entry.offset, size=entry.size, crc=crc
        )
        pairs.append((name.encode(), proto))
    assert index_bytes(pairs) == index_of(golden / GOLDEN).read_bytes()


def test_golden_with_one_flipped_byte_names_the_tensor(golden, tmp_path):
    copy = tmp_path / GOLDEN
    for path in golden.glob(f"{GOLDEN}.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    flip(data_of(copy), 1_900_000)
    message = refusal(read_tensors, copy)
    assert "'block_0_1/conv_out/W' is damaged" in message
    assert data_of(copy).name in message


# --- damaged data files


@pytest.mark.parametrize("name", ["block_0/conv/W", "block_39/conv/W", "half", "global_step"])
def test_flipped_byte_names_the_tensor(prefix, name):
    flip(data_of(prefix), read_index(prefix)[name].offset + 1)
    message = refusal(read_tensors, prefix)
    assert f"{name!r} is damaged" in message
    assert str(data_of(prefix)) in message


def test_truncated_data_names_the_first_tensor_beyond_the_end_and_both_sizes(prefix):
    entry = read_index(prefix)["block_5/conv/W"]
    whole = data_of(prefix).read_bytes()
    data_of(prefix).write_bytes(whole[: entry.offset + 3])
    message = refusal(read_tensors, prefix, ["block_0/conv/W"])
    assert "truncated: tensor 'block_5/conv/W'" in message
    assert f"byte {entry.offset + entry.size}, the file has {entry.offset + 3} bytes" in message


def test_missing_data_file_is_named(prefix):
    data_of(prefix).unlink()
    message = refusal(read_tensors, prefix)
    assert f"{data_of(prefix)}: data file is missing" in message


def test_empty_data_file(prefix):
    data_of(prefix).write_bytes(b"")
    assert "the file has 0 bytes" in refusal(read_tensors, prefix)


# --- damaged indexes


def test_missing_index_says_what_to_give(tmp_path):
    assert not is_bundle(tmp_path / "none")
    message = refusal(read_index, tmp_path / "none")
    assert (
        "none.index: no such checkpoint index; give the path of the checkpoint without" in message
    )


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_paths(name):
    assert not is_bundle(name)
    with pytest.raises(CheckpointError):
        read_index(name)


def test_index_that_is_a_folder(tmp_path):
    (tmp_path / "model.index").mkdir()
    assert "cannot be read" in refusal(read_index, tmp_path / "model")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"model_checkpoint_path: x\n", "25 bytes"),
        (b"A text file that somebody called an index. " * 40, "no magic number"),
        (b"\0" * 500, "no magic number"),
        (b"\xff" * 40 + MAGIC, "longer than 64 bits"),
        (varint(0) * 2 + varint(1 << 62) * 2 + b"\0" * 20 + MAGIC, "does not lie in the file"),
    ],
)
def test_index_that_is_none(tmp_path, content, reason):
    path = tmp_path / "model.index"
    path.write_bytes(content.rjust(48, b"\0") if MAGIC in content else content)
    message = refusal(read_index, path)
    assert str(path) in message
    assert reason in message


def test_every_truncation_of_an_index_is_refused(prefix):
    whole = index_of(prefix).read_bytes()
    for length in range(len(whole)):
        index_of(prefix).write_bytes(whole[:length])
        refusal(read_index, prefix)


def test_flipped_byte_in_a_block(prefix):
    flip(index_of(prefix), 30)
    assert "block at byte 0 is damaged: its CRC32C does not match" in refusal(read_index, prefix)


def test_unknown_compression(tmp_path):
    path = tmp_path / "model.index"
    content = b"\0" * 8
    handle = varint(0) + varint(8)
    path.write_bytes(
        content + b"\7" + masked_crc(content + b"\7") + (handle * 2).ljust(40, b"\0") + MAGIC
    )
    assert "compression 7" in refusal(read_index, path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        b"\xff\xff\xff\xff",  # restart points
        varint(9) + b"\1\1kv" + b"\0\0\0\0\1\0\0\0",  # shares more than there is
        b"\0" + varint(1 << 60) + b"\1kv" + b"\0\0\0\0\1\0\0\0",  # key longer than the block
        b"\0\1" + varint(1 << 63) + b"kv" + b"\0\0\0\0\1\0\0\0",
        b"\0\xff" + b"\0\0\0\0\1\0\0\0",
    ],
)
def test_malformed_block_with_a_correct_crc(content):
    with pytest.raises(MalformedError):
        read_table(table([(b"z", content)]))


@pytest.mark.parametrize("claim", [varint(1 << 50), varint(0), b"\xff" * 10, varint(400), b""])
def test_snappy_with_a_false_length(tmp_path, claim):
    content = claim + b"\x08abc"
    data = content + b"\1" + masked_crc(content + b"\1")
    index = block([(b"z", varint(0) + varint(len(content)))])
    handle = varint(len(data)) + varint(len(index))
    data += index + b"\0" + masked_crc(index + b"\0")
    with pytest.raises(MalformedError):
        read_table(data + (b"\0\0" + handle).ljust(40, b"\0") + MAGIC)


def test_keys_must_ascend():
    pairs = [(b"b", b""), (b"a", b"")]
    with pytest.raises(MalformedError, match="out of order"):
        read_table(table([(b"z", block(pairs))]))


def test_a_table_of_something_else(tmp_path):
    path = tmp_path / "model.index"
    path.write_bytes(index_bytes([(b"a", b"1")]))
    assert "no tensor bundle" in refusal(read_index, path)
    path.write_bytes(index_bytes([]))
    assert "no tensor bundle" in refusal(read_index, path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (header_proto(endianness=1), "little-endian"),
        (header_proto(shards=0), "0 data files"),
        (header_proto(shards=10**6), "1000000 data files"),
        (number_field(1, -1), "where a number"),
        (bytes_field(1, b"text"), "where a number"),
        (b"\x0b", "wire type 3"),
        (b"\x1a\x7f", "beyond its message"),
    ],
)
def test_bad_header(tmp_path, tensors, header, reason):
    prefix = write_bundle(tmp_path / "model", tensors, replace={"": header})
    assert reason in refusal(read_index, prefix)


CRC = b"\x35\0\0\0\0"


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (b"", "no CRC32C"),
        (b"\x30\x01", "no CRC32C"),
        (number_field(3, 1) + CRC, "data file 1"),
        (number_field(4, -5) + CRC, "where a number"),
        (bytes_field(7, b"") + CRC, "slices"),
        (bytes_field(2, b"\x18\x01") + CRC, "unknown rank"),
        (number_field(2, 3) + CRC, "protobuf message"),
        (bytes_field(2, number_field(2, 3)) + CRC, "protobuf message"),
        (bytes_field(2, bytes_field(2, number_field(1, -1))) + CRC, "where a number"),
        (bytes_field(2, bytes_field(2, b"\x08\x01") * 65) + CRC, "65 axes"),
    ],
)
def test_bad_entry_names_the_tensor(tmp_path, tensors, proto, reason):
    prefix = write_bundle(tmp_path / "model", tensors, replace={"half": proto})
    message = refusal(read_index, prefix)
    assert "tensor 'half': " in message
    assert reason in message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": 7}, "dtype number 7; accepted: 1 (float32)"),
        ({"dtype": 0}, "dtype number 0"),
        ({"shape": (3,)}, "takes 6 bytes, the index says 4"),
        ({"shape": (1 << 62, 1 << 62)}, "the index says 4"),
        ({"shape": (1 << 62, 0), "size": 0}, "impossible shape"),
        ({"offset": 1 << 62}, "truncated: tensor 'half'"),
        ({"size": 1 << 62}, "truncated: tensor 'half'"),
        ({"offset": 0}, "overlaps"),
    ],
)
def test_entry_that_does_not_fit_the_data(tmp_path, tensors, changes, reason):
    prefix = write_bundle(tmp_path / "model", tensors)
    entry = read_index(prefix)["half"]
    fields = {"dtype": 19, "shape": (2,), "offset": entry.offset, "size": 4, "crc": masked_crc(b"")}
    write_bundle(prefix, tensors, replace={"half": entry_proto(**(fields | changes))})
    message = refusal(read_tensors, prefix)
    assert "'half'" in message or "overlaps" in reason
    assert reason in message


def test_name_that_is_no_text(tmp_path):
    path = tmp_path / "model.index"
    path.write_bytes(index_bytes([(b"", header_proto()), (b"\xc0\xfe", CRC)]))
    assert "not UTF-8" in refusal(read_index, path)


def test_name_with_a_line_break_keeps_the_error_in_one_line(tmp_path):
    prefix = write_bundle(tmp_path / "model", {"a\nb": np.zeros(3, np.float32)})
    flip(data_of(prefix), 2)
    assert r"'a\nb' is damaged" in refusal(read_tensors, prefix)
