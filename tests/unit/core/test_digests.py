"""Digests against their definition, spelt out with BLAKE3 on slices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.core.digests import (
    TensorHasher,
    bytes_digest,
    canonical_json,
    digest_file,
    extent_digest,
    tensor_digest,
    weight_file_digest,
)

MIB = 1 << 20
DATA = numpy.random.default_rng(7).bytes(3 * MIB + 17)


def by_definition(data: bytes) -> str:
    regions = [data[start : start + MIB] for start in range(0, len(data), MIB)]
    return blake3(b"".join(blake3(region).digest() for region in regions)).hexdigest()


@pytest.mark.parametrize("length", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 17])
def test_a_tensor_digest_is_the_digest_of_its_region_digests(length: int) -> None:
    assert tensor_digest(DATA[:length]) == by_definition(DATA[:length])


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=8).map(sorted))
def test_pieces_of_any_size_give_the_same_digest(cuts: list[int]) -> None:
    hasher = TensorHasher()
    for start, stop in zip([0, *cuts], [*cuts, len(DATA)], strict=True):
        hasher.update(memoryview(DATA)[start:stop])
        hasher.digest()  # asking in between changes nothing
    assert hasher.position == len(DATA)
    assert hasher.hexdigest() == by_definition(DATA)


def test_arrays_of_any_shape_are_taken_as_their_bytes() -> None:
    array = numpy.arange(24, dtype=numpy.float32).reshape(2, 3, 4)
    assert tensor_digest(array.data) == by_definition(array.tobytes())
    assert tensor_digest(numpy.empty((0, 4)).data) == by_definition(b"")


def test_an_extent_is_read_in_regions_and_must_be_whole() -> None:
    def read(count: int, offset: int) -> bytes:
        assert count <= MIB
        return DATA[offset : offset + min(count, 100_000)]  # short reads are allowed

    assert extent_digest(read, 5, 2 * MIB) == by_definition(DATA[5 : 5 + 2 * MIB])
    assert extent_digest(read, len(DATA) - 4, 4) == by_definition(DATA[-4:])
    assert extent_digest(read, len(DATA) - 4, 5) is None


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    assert digest_file(path) == bytes_digest(DATA) == blake3(DATA).hexdigest()
    one, two = blake3(b"1"), blake3(b"2")
    joined = blake3(b"h").digest() + one.digest() + two.digest()
    expected = blake3(joined).hexdigest()
    assert weight_file_digest(bytes_digest(b"h"), [one.hexdigest(), two.hexdigest()]) == expected
    assert weight_file_digest(bytes_digest(b"h"), [two.hexdigest(), one.hexdigest()]) != expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=json_values)
def test_canonical_json_is_one_encoding_of_the_value(value: object) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data
    assert data.isascii()


def test_canonical_json_by_example() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é\ud800"}) == b'{"a":"\\u00e9\\ud800","b":[1,2.5,null]}'
    assert canonical_json({"x": 1, "y": 2}) == canonical_json({"y": 2, "x": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
