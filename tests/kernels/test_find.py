"""Places of a pattern: those that bytes.find() gives, and no time beyond what is linear."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.kernels.find import find_all, period_of

FEW = st.lists(st.sampled_from(b"ab\0"), min_size=1, max_size=12).map(bytes)


def places(data: bytes, pattern: bytes) -> Iterator[int]:
    at = data.find(pattern)
    while at >= 0:
        yield at
        at = data.find(pattern, at + 1)


@given(data=st.lists(st.sampled_from(b"ab\0"), max_size=400).map(bytes), pattern=FEW)
def test_finds_what_bytes_find(data: bytes, pattern: bytes) -> None:
    assert find_all(data, pattern, period_of(pattern)).tolist() == list(places(data, pattern))


@given(pattern=FEW)
def test_period(pattern: bytes) -> None:
    size = len(pattern)
    expected = next(by for by in range(1, size + 1) if pattern[by:] == pattern[: size - by])
    assert period_of(pattern) == expected


@pytest.mark.parametrize("pattern", [b"\0", b"\0" * 8, b"\0" * 300])
def test_more_places_than_are_handed_over_at_once(pattern: bytes) -> None:
    found = find_all(bytes(20_000), pattern, 1)
    np.testing.assert_array_equal(found, np.arange(20_000 - len(pattern) + 1))


@pytest.mark.parametrize("begin", range(4))
def test_any_alignment_and_both_ends(begin: int) -> None:
    data = b"needle" + bytes(4096) + b"needle"
    assert find_all(memoryview(bytes(begin) + data)[begin:], b"needle", 6).tolist() == [0, 4102]
    assert find_all(data[1:-1], b"needle", 6).tolist() == []


def test_a_pattern_that_overlaps_itself_everywhere() -> None:
    """Half a million places of a pattern of half a MiB: by memmem() alone, an hour."""
    pattern = b"ab" * (1 << 18)
    found = find_all(pattern * 3, pattern, 2)
    np.testing.assert_array_equal(found, np.arange(0, 2 * len(pattern) + 1, 2))


def test_refuses_what_would_not_end() -> None:
    for pattern, period in ((b"", 1), (b"ab", 0), (b"ab", 3)):
        with pytest.raises(ValueError, match="period"):
            find_all(b"data", pattern, period)
    with pytest.raises(ValueError, match="empty"):
        period_of(b"")
    assert find_all(b"", b"a", 1).tolist() == []
