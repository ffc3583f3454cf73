"""Any garbage: an index reads identically or is refused, and nothing else ever happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_writer import MAGIC, Options, block, header_proto, table, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import CheckpointError
from featurestore.leveldb_table import read_table
from featurestore.tfbundle import BundleEntry, read_index


@pytest.fixture(scope="module")
def small_index(tmp_path_factory) -> tuple[bytes, Path]:
    """A whole index of several blocks, and a place for broken ones."""
    folder = tmp_path_factory.mktemp("fuzz")
    values = {f"layer_{i}/W": np.full((i, 2), i, np.float32) for i in range(30)}
    prefix = write_bundle(folder / "whole", values, options=Options(pairs_per_block=8))
    return Path(f"{prefix}.index").read_bytes(), folder / "broken.index"


@pytest.fixture(scope="module")
def golden_index(golden, tmp_path_factory) -> tuple[bytes, Path]:
    whole = (golden / "model.ckpt-205919.index").read_bytes()
    return whole, tmp_path_factory.mktemp("fuzz") / "broken.index"


def read_or_refuse(path: Path, content: bytes) -> dict[str, BundleEntry] | None:
    path.write_bytes(content)
    try:
        return read_index(path)
    except CheckpointError as error:
        if "\n" in str(error):
            pytest.fail(f"more than one line: {error}")
        return None


def damaged(whole: bytes, data: st.DataObject) -> bytes:
    broken = bytearray(whole)
    # Half of the flips hit the end, where the footer is: a random one would almost never.
    place = st.one_of(
        st.integers(0, len(whole) - 1), st.integers(max(0, len(whole) - 120), len(whole) - 1)
    )
    for position, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)):
        broken[position] = value
    return bytes(broken[: data.draw(st.one_of(st.just(len(broken)), st.integers(0, len(broken))))])


fuzz = settings(max_examples=150, deadline=None)


@fuzz
@given(data=st.data())
def test_damaged_index_reads_identically_or_is_refused(small_index, data):
    whole, path = small_index
    found = read_or_refuse(path, damaged(whole, data))
    assert found is None or found == read_or_refuse(path, whole)


@fuzz
@given(data=st.data())
def test_damaged_golden_index_reads_identically_or_is_refused(golden_index, data):
    whole, path = golden_index
    found = read_or_refuse(path, damaged(whole, data))
    assert found is None or found == read_or_refuse(path, whole)


@fuzz
@given(data=st.data(), snappy=st.booleans())
def test_damage_below_correct_crcs_never_escapes_as_another_error(small_index, data, snappy):
    whole, path = small_index
    content = damaged(block(read_table(whole)), data)
    read_or_refuse(path, table([(b"z", content)], snappy=snappy))


@fuzz
@given(
    protos=st.dictionaries(st.binary(max_size=4), st.binary(max_size=30), max_size=4),
    header=st.one_of(st.just(header_proto()), st.binary(max_size=12)),
)
def test_random_messages_never_escape_as_another_error(small_index, protos, header):
    _, path = small_index
    pairs = sorted({**protos, b"": header}.items())
    read_or_refuse(path, table([(b"z", block(pairs))]))


@fuzz
@given(content=st.binary(max_size=200), footer=st.binary(min_size=40, max_size=40))
def test_random_files_are_refused(small_index, content, footer):
    _, path = small_index
    assert read_or_refuse(path, content) is None
    assert read_or_refuse(path, content + footer + MAGIC) is None
