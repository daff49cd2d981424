"""Pieces one behind the other: what Python's slices give, and nothing outside the buffers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.kernels.gather import gather

PIECES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 80)), max_size=40)


@given(data=st.binary(min_size=380, max_size=400), pieces=PIECES, spare=st.integers(0, 3))
def test_gives_what_slices_give(data: bytes, pieces: list[tuple[int, int]], spare: int) -> None:
    expected = b"".join(data[offset : offset + size] for offset, size in pieces)
    offsets = np.array([offset for offset, _ in pieces], np.uint64)
    sizes = np.array([size for _, size in pieces], np.uint32)
    out = np.full(len(expected) + spare, 0xEE, np.uint8)
    assert gather(data, offsets, sizes, out) == len(expected)
    assert out.tobytes() == expected + b"\xee" * spare


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 101), (100, 1), (101, 1), (1 << 63, 1), ((1 << 64) - 1, 2), (1, 0xFFFFFFFF)]
)
def test_pieces_outside_the_data(offset: int, size: int) -> None:
    offsets, sizes = np.array([0, offset], np.uint64), np.array([1, size], np.uint32)
    with pytest.raises(ValueError, match=r"piece 1,.* leaves the 100 bytes"):
        gather(bytes(100), offsets, sizes, np.empty(1000, np.uint8))


def test_nothing_is_written_behind_the_end() -> None:
    guarded = np.zeros(30, np.uint8)
    offsets, sizes = np.array([0, 5], np.uint64), np.array([10, 10], np.uint32)
    with pytest.raises(ValueError, match=r"piece 1,.* does not fit into 19 bytes"):
        gather(b"\xff" * 100, offsets, sizes, guarded[:19])
    assert not guarded[19:].any()


def test_pieces_without_bytes_may_be_anywhere() -> None:
    offsets = np.array([1 << 63, 0], np.uint64)
    assert gather(b"", offsets, np.zeros(2, np.uint32), np.empty(0, np.uint8)) == 0
    assert gather(b"", offsets[:0], np.zeros(0, np.uint32), np.empty(0, np.uint8)) == 0


def test_lengths_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match="1 offsets and 2 sizes"):
        gather(b"abc", np.zeros(1, np.uint64), np.ones(2, np.uint32), np.empty(9, np.uint8))
