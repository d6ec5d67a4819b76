from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.balancing.hashing import HashLayout, hash_function, vnode_points, vnodes_for_weight


@pytest.mark.parametrize(
    ("data", "expected"),
    # Published vectors of MurmurHash3_x86_32 with seed 0.
    [(b"", 0), (b"\0\0\0\0", 0x2362F9DE), (b"\xff\xff\xff\xff", 0x76293B50), (b"!Ce\x87", 0xF55B516B)],
)
def test_murmur3_is_the_unsigned_x86_32_variant_with_seed_0(data: bytes, expected: int) -> None:
    assert hash_function("murmur3")(data) == expected


def test_crc32_is_the_ieee_polynomial() -> None:
    assert hash_function("crc32")(b"123456789") == 0xCBF43926


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="md5"):
        hash_function("md5")  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["murmur3", "crc32"])
@given(data=st.binary())
def test_hashes_are_unsigned_32_bit_numbers(layout: HashLayout, data: bytes) -> None:
    assert 0 <= hash_function(layout)(data) < 2**32


def test_points_are_the_hashes_of_id_and_index_in_utf8() -> None:
    expected = [zlib.crc32(b"S\xc3\xa4#0"), zlib.crc32(b"S\xc3\xa4#1"), zlib.crc32(b"S\xc3\xa4#2")]
    assert vnode_points("Sä", 3, zlib.crc32) == expected


@pytest.mark.parametrize(
    ("weight", "per_unit", "expected"),
    [(1, 100, 100), (1.5, 100, 150), (0.014, 100, 1), (0.016, 100, 2), (0, 100, 1), (0.001, 100, 1), (0.025, 100, 2)],
)
def test_weight_becomes_the_nearest_number_of_vnodes_and_at_least_one(
    weight: float, per_unit: int, expected: int
) -> None:
    assert vnodes_for_weight(weight, per_unit) == expected
