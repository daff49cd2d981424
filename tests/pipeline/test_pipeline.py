"""Planning and ordered work: nothing lost, nothing twice, nothing out of order, no slot used by two."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.running import FileRam, RunningGuest, noise
from hypothesis import given
from hypothesis import strategies as st
from oracles.elf import ElfCore
from oracles.kdump import Kdump

import vmdump
from vmdump.errors import SourceError
from vmdump.guest.blocks import Block, Pages
from vmdump.pipeline.plan import Slice, cut_runs
from vmdump.pipeline.workers import in_order


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


# --- memory that the kernels read themselves ----------------------------------------------------------------

PAGE = 4096
CHUNK = 8 << 20
Runs = list[tuple[int, int, int, int]]

each_format = pytest.mark.parametrize("name", ["elf", "kdump-zlib", "kdump-lzo"])


class LyingMemory(FileRam):
    """Memory that names wrong places for its bytes, and has the right ones when it is asked for them."""

    def __init__(self, memory: np.ndarray, lie: Callable[[int, Runs], Runs], fails: bool = False) -> None:
        super().__init__(memory)
        self._lie = lie
        self._fails = fails
        self.asked: list[int] = []

    def file_runs(self, offset: int, length: int) -> Runs:
        return self._lie(offset, super().file_runs(offset, length))

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        self.asked.append(offset)
        if self._fails:
            raise SourceError("this page is gone", path="guest.ram", errno=errno.EIO)
        return super().view(offset, length, scratch)


def no_descriptor(runs: Runs) -> Runs:
    return [(begin, end, -1, place) for begin, end, _, place in runs]


def behind_the_end(runs: Runs) -> Runs:
    return [(begin, end, fd, place + (1 << 30)) for begin, end, fd, place in runs]


def last_byte_missing(runs: Runs) -> Runs:
    *others, (begin, end, fd, _) = runs
    return [*others, (begin, end, fd, os.fstat(fd).st_size - (end - begin) + 1)]


def in_second_chunk(change: Callable[[Runs], Runs]) -> Callable[[int, Runs], Runs]:
    return lambda offset, runs: change(runs) if CHUNK <= offset < 2 * CHUNK else runs


def check_dump(path: Path, name: str, memory: np.ndarray) -> None:
    if name == "elf":
        assert ElfCore(path).check_vmdump_layout().read(0, len(memory)) == memory.tobytes()
    else:
        assert b"".join(page for _, page in Kdump(path).pages()) == memory.tobytes()


def guest_memory() -> np.ndarray:
    memory = noise(8, 3 * CHUNK // PAGE)
    memory[CHUNK + 20 * PAGE : CHUNK + 200 * PAGE] = 0
    return memory


def test_an_error_keeps_no_slot() -> None:
    """A slot is megabytes; they go with the error, and not when Python looks for cycles next time."""

    class Slot:
        pass

    def work(slot: Slot, task: int) -> None:
        raise SourceError("gone")

    slots = [Slot() for _ in range(3)]
    left = weakref.WeakSet(slots)
    gc.disable()
    try:
        with suppress(SourceError):
            list(in_order(range(9), work, slots, threads=2, idle=lambda task: False))
        slots.clear()
        assert not list(left)
    finally:
        gc.enable()


@each_format
@pytest.mark.parametrize("change", [no_descriptor, behind_the_end, last_byte_missing])
def test_memory_is_asked_where_its_file_cannot_be_read(
    name: str, change: Callable[[Runs], Runs], tmp_path: Path
) -> None:
    memory = guest_memory()
    lying = LyingMemory(memory, in_second_chunk(change))
    vmdump.dump([(0, lying)], tmp_path / "dump", format=name, threads=2, search=False)
    check_dump(tmp_path / "dump", name, memory)
    assert all(CHUNK <= offset < 2 * CHUNK for offset in lying.asked), "view was asked without need"
    assert lying.asked


@each_format
@pytest.mark.parametrize("change", [no_descriptor, behind_the_end, last_byte_missing])
def test_what_the_memory_says_is_the_error(name: str, change: Callable[[Runs], Runs], tmp_path: Path) -> None:
    lying = LyingMemory(guest_memory(), in_second_chunk(change), fails=True)
    with pytest.raises(SourceError, match="this page is gone") as error:
        vmdump.dump([(0, lying)], tmp_path / "dump", format=name, threads=2, search=False)
    assert (error.value.errno, error.value.filename) == (errno.EIO, "guest.ram")
    assert not list(tmp_path.iterdir())


@each_format
def test_places_that_cannot_be_told(name: str, tmp_path: Path) -> None:
    """An error of file_runs itself is no reason to ask view."""

    def lie(offset: int, runs: Runs) -> Runs:
        raise SourceError("cannot look for holes", path="guest.ram", errno=errno.EIO)

    lying = LyingMemory(guest_memory(), lie)
    with pytest.raises(SourceError, match="cannot look for holes"):
        vmdump.dump([(0, lying)], tmp_path / "dump", format=name, search=False)
    assert not lying.asked
    assert not list(tmp_path.iterdir())


@each_format
def test_memory_is_asked_early_and_late(name: str, tmp_path: Path) -> None:
    """The hashes of what `view` gave are those of what a file gives."""
    before = guest_memory()
    after = before.copy()
    changed = (5, 1030, 2000)
    for page in changed:
        after[page * PAGE] ^= 1
    turns: list[int] = []

    class Moody(LyingMemory):
        def __init__(self, memory: np.ndarray) -> None:
            turn = len(turns)
            turns.append(turn)
            super().__init__(memory, lambda at, runs: no_descriptor(runs) if at // CHUNK != turn else runs)

    guest = RunningGuest([(0, before)], [(0, after)], memory=Moody)
    report = vmdump.dump(guest, tmp_path / "dump", format=name, threads=2)
    check_dump(tmp_path / "dump", name, after)
    assert report.changed_pages == len(changed)


@each_format
@pytest.mark.parametrize("size", [0, CHUNK, 99 * CHUNK + 100])
@pytest.mark.parametrize("moment", [0, 10])
def test_file_that_shrinks_while_it_is_dumped(name: str, size: int, moment: int, tmp_path: Path) -> None:
    path, output = tmp_path / "guest.ram", tmp_path / "output"
    output.mkdir()
    # One page in each piece of work: no thread can be ahead by all of them.
    with path.open("wb") as file:
        for chunk in range(100):
            file.seek(chunk * CHUNK)
            file.write(b"\1" * PAGE)
        file.truncate(100 * CHUNK)
    calls = 0

    def shrink(done: int, total: int) -> None:
        nonlocal calls
        if calls == moment:
            os.truncate(path, size)
        calls += 1

    with pytest.raises(SourceError, match=r"guest\.ram: the file ends at"):
        vmdump.dump(f"raw:{path}", output / "dump", format=name, threads=2, progress=shrink)
    assert calls > moment
    assert not list(output.iterdir())


@each_format
def test_file_whose_data_are_gone(name: str, tmp_path: Path) -> None:
    """Where its data were is known from before, so that only reading them finds out."""
    path, output = tmp_path / "guest.ram", tmp_path / "output"
    output.mkdir()
    path.write_bytes(b"\1" * (12 * CHUNK))
    calls = 0

    def shrink(done: int, total: int) -> None:
        nonlocal calls
        if calls == 1:
            os.truncate(path, 0)
        calls += 1

    with pytest.raises(SourceError, match=r"guest\.ram: the file ends at 0x0"):
        vmdump.dump(f"raw:{path}", output / "dump", format=name, threads=1, progress=shrink)
    assert calls > 1
    assert not list(output.iterdir())
