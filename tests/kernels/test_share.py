"""Packed pages that hold the same: every page is where it says, and hardly any is stored twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmdump.kernels.share import SharedPages


def store(shared: SharedPages, pages: list[bytes], start: int, file: dict[int, int]) -> list[int]:
    """Store pages and write what is left of them to `file`; their places. The hash is Python's."""
    data = np.frombuffer(b"".join(pages) + b"\xee" * 7, np.uint8).copy()
    sizes = np.array([len(page) for page in pages], np.uint32)
    hashes = np.array([hash(page) % (1 << 64) or 1 for page in pages], np.uint64)
    offsets = np.full(len(pages), 0xDEAD, np.uint64)
    used = shared.store(data, sizes, hashes, start, offsets)
    assert data[len(data) - 7 :].tobytes() == b"\xee" * 7
    for at, byte in enumerate(data[:used].tobytes()):
        file[start + at] = byte
    places: list[int] = offsets.tolist()
    return places


@settings(deadline=None, max_examples=60)
@given(
    chunks=st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.integers(1, 300)), max_size=40), min_size=1, max_size=5
    )
)
def test_each_page_is_where_it_says(chunks: list[list[tuple[int, int]]]) -> None:
    shared, start = SharedPages(), 1 << 40
    file: dict[int, int] = {}
    seen: dict[bytes, set[int]] = {}
    for chunk in chunks:
        pages = [np.random.default_rng(seed).bytes(size) for seed, size in chunk]
        offsets = store(shared, pages, start, file)
        for page, offset in zip(pages, offsets, strict=True):
            assert bytes(file[offset + at] for at in range(len(page))) == page
            seen.setdefault(page, set()).add(offset)
        start = max([start, *(at + 1 for at in file)]) + 5
    # So few pages hardly ever want the same entry: all copies have one place.
    assert sum(len(places) for places in seen.values()) <= len(seen) + 2


def test_pages_of_one_hash_and_other_sizes_are_two() -> None:
    shared = SharedPages()
    offsets = np.empty(2, np.uint64)
    data = np.zeros(7, np.uint8)
    used = shared.store(data, np.array([3, 4], np.uint32), np.array([5, 5], np.uint64), 100, offsets)
    assert (used, offsets.tolist()) == (7, [100, 103])


def test_what_is_found_does_not_depend_on_the_key() -> None:
    rng = np.random.default_rng(1)
    pages = [rng.bytes(int(size)) for size in rng.integers(1, 200, 3000)]
    order = rng.integers(0, len(pages), 20_000)
    sizes = np.array([len(pages[page]) for page in order], np.uint32)
    found = []
    for key in (3, 7):
        data = np.frombuffer(b"".join(pages[page] for page in order), np.uint8).copy()
        offsets = np.empty(order.size, np.uint64)
        hashes = (order.astype(np.uint64) + 1) * np.uint64(key)
        used = SharedPages().store(data, sizes, hashes, 0, offsets)
        found.append((used, offsets.tobytes(), data[:used].tobytes()))
    assert found[0] == found[1]
    distinct = sum(len(pages[page]) for page in set(order.tolist()))
    assert distinct <= found[0][0] < 1.2 * distinct


@pytest.mark.parametrize(
    ("sizes", "hashes", "offsets"),
    [((3, 3), (1,), 2), ((3, 3), (1, 2), 1), ((3, 0), (1, 2), 2), ((3, 6), (1, 2), 2)],
)
def test_arguments_must_belong_together(
    sizes: tuple[int, ...], hashes: tuple[int, ...], offsets: int
) -> None:
    with pytest.raises(ValueError, match=r"sizes|pages of"):
        SharedPages().store(
            np.zeros(8, np.uint8),
            np.array(sizes, np.uint32),
            np.array(hashes, np.uint64),
            0,
            np.empty(offsets, np.uint64),
        )


def test_no_pages() -> None:
    nothing = np.empty(0, np.uint64)
    assert SharedPages().store(np.empty(0, np.uint8), nothing.astype(np.uint32), nothing, 0, nothing) == 0
