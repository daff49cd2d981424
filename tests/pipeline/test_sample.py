"""The sample of a guest: of its data only, each page once, and from everywhere, as far as one reads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from helpers.fragments import Fragments
from hypothesis import given
from hypothesis import strategies as st

import vmdump
from vmdump.pipeline.sample import fair_order, spread, take_sample

PAGE = 4096


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 5000))
def test_pieces_are_spread(count: int, length: int, more: int) -> None:
    total = count * length + more
    starts = spread(total, count, length)
    assert len(starts) == count
    for index, start in enumerate(starts):
        assert index * total // count <= start <= (index + 1) * total // count - length
    assert all(first + length <= second for first, second in pairwise(starts))


@given(st.integers(1, 600), st.data())
def test_every_beginning_of_the_order_is_fair(count: int, data: st.DataObject) -> None:
    order = fair_order(count)
    assert sorted(order) == list(range(count))
    taken = data.draw(st.integers(1, count))
    edge = data.draw(st.integers(0, count))
    below = sum(number < edge for number in order[:taken])
    # What any part of the range gets differs from its share by a few pieces, not by a part of them.
    assert abs(below - taken * edge / count) <= 2 + np.log2(count)


def numbered_pages(count: int) -> np.ndarray:
    """Pages that hold their own number plus one: (count, 4096) uint8."""
    pages = np.zeros((count, PAGE), np.uint8)
    pages.view(np.uint64)[:, 0] = np.arange(1, count + 1)
    return pages


@given(st.lists(st.integers(1, 9), min_size=2, max_size=60), st.integers(1, 200))
def test_sample_is_of_data_pages_each_once(lengths: list[int], wanted: int) -> None:
    """Runs of data and holes take turns; whatever is asked for, the sample is of different data pages."""
    edges = np.cumsum([0, *lengths])
    runs = [(int(a) * PAGE, int(b) * PAGE) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    pages = numbered_pages(int(edges[-1]))
    memory = Fragments(pages.reshape(-1), runs)
    taken = take_sample([vmdump.Block(0, memory)], page_size=PAGE, size=wanted * PAGE)
    assert taken.data_bytes == sum(end - begin for begin, end in runs)
    numbers = taken.pages.view(np.uint64)[:, 0].tolist()
    assert len(set(numbers)) == len(numbers)
    data = {page + 1 for begin, end in runs for page in range(begin // PAGE, end // PAGE)}
    assert set(numbers) <= data
    assert min(wanted, len(data)) <= len(numbers) <= wanted + 3
    again = take_sample([vmdump.Block(0, memory)], page_size=PAGE, size=wanted * PAGE)
    assert (again.pages == taken.pages).all()


def test_sample_and_its_beginnings_are_from_everywhere() -> None:
    pages = numbered_pages(40000)
    blocks = [
        vmdump.Block(0, vmdump.BufferMemory(pages[:30000])),
        vmdump.Block(1 << 32, vmdump.BufferMemory(pages[30000:])),
    ]
    taken = take_sample(blocks, page_size=PAGE, size=4000 * PAGE).pages.view(np.uint64)[:, 0]
    for share in (1 / 16, 1 / 4, 0.6, 1):
        part = taken[: int(len(taken) * share)]
        spots = np.histogram(part, bins=10, range=(0, 40000))[0]
        assert spots.min() >= 0.8 * len(part) / 10
        assert spots.max() <= 1.2 * len(part) / 10
