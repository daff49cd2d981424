"""Planning and ordered work: nothing lost, nothing twice, nothing out of order, no slot used by two."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdump.pipeline.plan import Slice, cut_runs
from vmdump.pipeline.workers import in_order
from vmdump.sources.base import Block, Pages


class Extents:
    """A memory of which only the extents matter."""

    copies = False

    def __init__(self, size: int, extents: list[tuple[int, int]]) -> None:
        self.size = size
        self._extents = extents

    def extents(self) -> Iterator[tuple[int, int]]:
        yield from self._extents

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        raise AssertionError("a plan reads nothing")


@st.composite
def extent_lists(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    size = draw(st.integers(1, 4000))
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=20)))
    return size, list(zip(cuts[::2], cuts[1::2], strict=False))


@given(
    extent_lists(),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([16, 64, 256]),
    st.sampled_from([0, 8, 100]),
    st.data(),
)
def test_runs_cover_the_slice_once_and_every_extent_is_read(
    memory: tuple[int, list[tuple[int, int]]], unit: int, chunk: int, join: int, data: st.DataObject
) -> None:
    size, extents = memory
    begin = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(begin + 1, size))
    block = Block(0x1000, Extents(size, extents))
    runs = list(cut_runs([Slice(block, begin, end)], unit=unit, chunk=chunk, join=join))
    position = begin
    must_read = np.zeros(size, bool)
    for low, high in extents:
        must_read[low:high] = True
    for run in runs:
        assert run.offset == position
        assert run.length > 0
        position += run.length
        if run.hole:
            assert not must_read[run.offset : run.offset + run.length].any()
        else:
            assert run.length <= chunk
            assert run.offset // chunk == (run.offset + run.length - 1) // chunk
    assert position == end
    holes = [run.length for run in runs[1:-1] if run.hole]
    assert all(length >= join for length in holes)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_the_order_of_tasks(threads: int) -> None:
    delays = np.random.RandomState(5).randint(0, 4, 60) / 1000
    slots = [threading.Lock() for _ in range(threads + 2)]

    def work(slot: threading.Lock, task: int) -> int:
        assert slot.acquire(blocking=False), "two tasks share a slot"
        time.sleep(delays[task])
        slot.release()
        return task * task

    found = list(in_order(range(60), work, slots, threads=threads, idle=lambda task: task % 7 == 3))
    assert found == [(task, None if task % 7 == 3 else task * task) for task in range(60)]


def test_tasks_are_taken_no_further_ahead_than_there_are_slots() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for task in range(100):
            taken.append(task)
            yield task

    results = in_order(tasks(), lambda slot, task: task, [0, 1, 2], threads=2, idle=lambda task: False)
    assert next(results) == (0, 0)
    assert len(taken) <= 5
    results.close()
    assert len(taken) <= 5


@pytest.mark.parametrize("bad", [0, 5, 19])
def test_first_error_in_task_order_reaches_the_caller_and_threads_end(bad: int) -> None:
    def work(slot: int, task: int) -> int:
        if task >= bad:
            raise ValueError(task)
        time.sleep(0.001)
        return task

    before = threading.active_count()
    found = []
    with pytest.raises(ValueError, match=f"^{bad}$"):
        for task, _ in in_order(range(20), work, [0, 1, 2, 3], threads=2, idle=lambda task: False):
            found.append(task)
    assert found == list(range(bad))
    assert threading.active_count() == before
