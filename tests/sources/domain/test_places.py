"""Blocks found in a process by their contents, while nobody tells where they are."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence

import pytest
from scripted.fake_qemu import PAGE, Child

from vmdump.sources.domain.places import find_places
from vmdump.sources.process.memory import ProcessMemory
from vmdump.sources.process.process import Process

PAGES = 64
SIZE = PAGES * PAGE
HIGH = 4 << 30


class Guest:
    """Blocks of guest-physical memory in a process: start, size and address of each."""

    def __init__(self) -> None:
        self.child = Child()
        self.process = Process(self.child.pid, "QEMU")
        self.memory = ProcessMemory(self.process)
        self.blocks: list[tuple[int, int, int]] = []
        self.shown = 0
        self.on_show: Callable[[], object] = lambda: None
        self.after_show: Callable[[], object] = lambda: None

    def peek(self, address: int, size: int) -> bytes:
        self.shown += 1
        self.on_show()
        for start, length, begin in self.blocks:
            if start <= address < start + length:
                with open(f"/proc/{self.child.pid}/mem", "rb", buffering=0) as file:
                    shown = os.pread(file.fileno(), size, begin + address - start)
                self.after_show()
                return shown
        raise AssertionError(f"nothing is at {address:#x}")

    def find(self) -> list[int | None]:
        ranges = [(start, size) for start, size, _ in self.blocks]
        return find_places(ranges, self.process.mappings(), self.memory, self.peek, self.process.kept)

    def keep(self, pages: int, written: Sequence[int] = (), first: int = 0) -> int:
        """Map memory as QEMU maps a guest's: kept from its children, with a gap behind it."""
        address = self.child.map("anonymous", pages + 1)
        self.child.ask("munmap", address=address + pages * PAGE, size=PAGE)
        self.child.ask("madvise", address=address, size=pages * PAGE, advice=mmap.MADV_DONTFORK)
        self.child.write(address, written, first)
        return address

    def truth(self) -> list[int]:
        return [begin for _, _, begin in self.blocks]

    def close(self) -> None:
        self.memory.close()
        self.process.close()
        self.child.__exit__(None, None, None)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


@pytest.mark.parametrize("kind", ["anonymous", "memfd"])
def test_among_others_of_the_same_size(kind: str, guest: Guest) -> None:
    for first in (0, 1000, 2000):
        address = guest.child.map(kind, PAGES)
        guest.child.write(address, range(PAGES), first)
        if first == 1000:
            guest.blocks.append((0, SIZE, address))
    assert guest.find() == guest.truth()


def test_one_block_in_two_parts(guest: Guest) -> None:
    address = guest.child.map("anonymous", 2 * PAGES)
    guest.child.write(address, range(2 * PAGES))
    guest.blocks = [(0, SIZE, address), (HIGH, SIZE, address + SIZE)]
    assert guest.find() == guest.truth()


def test_a_hole_in_one_block(guest: Guest) -> None:
    address = guest.child.map("anonymous", 2 * PAGES)
    guest.child.write(address, range(2 * PAGES))
    hole = 8 * PAGE
    guest.blocks = [(0, SIZE, address), (SIZE + hole, SIZE - hole, address + SIZE + hole)]
    assert guest.find() == guest.truth()


def test_the_end_of_the_firmware_comes_twice(guest: Guest) -> None:
    address = guest.child.map("anonymous", PAGES)
    guest.child.write(address, range(PAGES))
    guest.blocks = [(0xE0000, SIZE // 2, address + SIZE // 2), (HIGH - SIZE, SIZE, address)]
    assert guest.find() == guest.truth()


def test_the_same_contents_twice_prove_nothing(guest: Guest) -> None:
    for _ in range(2):
        address = guest.child.map("anonymous", PAGES)
        guest.child.write(address, range(PAGES))
    guest.blocks = [(0, SIZE, address)]
    assert guest.find() == [None]


def test_one_page_that_differs_proves_it(guest: Guest) -> None:
    for number in range(2):
        address = guest.child.map("anonymous", PAGES)
        guest.child.write(address, range(PAGES))
        guest.child.write(address, [PAGES // 2], 500 + number)
    guest.blocks = [(0, SIZE, address)]
    assert guest.find() == guest.truth()


@pytest.mark.parametrize("written", [(), (3,)])
def test_without_contents_nothing_is_proved(written: tuple[int, ...], guest: Guest) -> None:
    address = guest.child.map("anonymous", PAGES)
    guest.child.write(address, written)
    guest.blocks = [(0, SIZE, address)]
    assert guest.find() == [None]


def test_pages_of_one_word_prove_nothing(guest: Guest) -> None:
    address = guest.child.map("anonymous", PAGES)
    guest.child.put(address, b"\xff" * SIZE)
    guest.blocks = [(0, SIZE, address)]
    assert guest.find() == [None]


def test_the_rest_of_a_mapping_is_what_is_missing(guest: Guest) -> None:
    address = guest.child.map("memfd", 3 * PAGES)
    guest.child.write(address, range(PAGES))
    guest.blocks = [(0, SIZE, address), (HIGH, 2 * SIZE, address + SIZE)]
    assert guest.find() == guest.truth()


def test_of_two_blocks_that_are_missing_none_is_the_rest(guest: Guest) -> None:
    address = guest.child.map("memfd", 3 * PAGES)
    guest.child.write(address, range(PAGES))
    other = guest.child.map("memfd", 2 * PAGES)
    guest.blocks = [(0, SIZE, address), (HIGH, 2 * SIZE, address + SIZE), (2 * HIGH, 2 * SIZE, other)]
    assert guest.find() == [address, None, None]


def test_a_page_that_is_written_meanwhile_refutes_nothing(guest: Guest) -> None:
    address = guest.child.map("anonymous", PAGES)
    guest.child.write(address, range(PAGES))
    guest.blocks = [(0, SIZE, address)]
    # There and back again: the same before and after a look, but another one in each second.
    guest.on_show = lambda: guest.child.write(address, [5], 100 if guest.shown % 2 == 0 else 0)
    guest.after_show = lambda: guest.child.write(address, [5])
    assert guest.find() == guest.truth()
    assert guest.shown >= 3


def test_what_is_not_there_is_not_found(guest: Guest) -> None:
    address = guest.child.map("anonymous", PAGES)
    guest.child.write(address, range(PAGES))
    guest.blocks = [(0, SIZE, address)]
    mappings = [each for each in guest.process.mappings() if not each.begin <= address < each.end]
    found = find_places([(0, SIZE)], mappings, guest.memory, guest.peek, guest.process.kept)
    assert found == [None]


LOW, VIDEO, OTHER = 0, 8 * HIGH, 9 * HIGH
"""Where blocks are that are found by their contents, and two that are not."""


def test_without_contents_its_size_tells(guest: Guest) -> None:
    low = guest.keep(2 * PAGES, range(2 * PAGES))
    video = guest.keep(PAGES)
    guest.child.map("anonymous", PAGES)  # a stack of a thread, for example
    guest.keep(PAGES // 2)
    guest.blocks = [(LOW, 2 * SIZE, low), (VIDEO, SIZE, video)]
    assert guest.find() == guest.truth()


def test_two_without_contents_are_not_told_apart(guest: Guest) -> None:
    low = guest.keep(2 * PAGES, range(2 * PAGES))
    video = guest.keep(PAGES)
    guest.keep(PAGES)
    guest.blocks = [(LOW, 2 * SIZE, low), (VIDEO, SIZE, video)]
    assert guest.find() == [low, None]


def test_one_page_tells_two_apart(guest: Guest) -> None:
    """As of QXL's two memories of the same size."""
    low = guest.keep(2 * PAGES, range(2 * PAGES))
    video, other = guest.keep(PAGES, [PAGES - 1], 700), guest.keep(PAGES)
    guest.blocks = [(LOW, 2 * SIZE, low), (VIDEO, SIZE, video), (OTHER, SIZE, other)]
    assert guest.find() == guest.truth()


def test_other_contents_are_not_taken_for_it(guest: Guest) -> None:
    low = guest.keep(2 * PAGES, range(2 * PAGES))
    guest.keep(PAGES, [PAGES // 2])
    video = guest.child.map("anonymous", PAGES)  # not as QEMU maps it
    guest.blocks = [(LOW, 2 * SIZE, low), (VIDEO, SIZE, video)]
    assert guest.find() == [low, None]


def test_a_page_beside_another_block_tells_it(guest: Guest) -> None:
    """As below 640 KiB, of which firmware uses a page."""
    hole = 8 * PAGE
    low = guest.keep(2 * PAGES, range(PAGES, 2 * PAGES))
    guest.child.write(low, [0], 700)
    guest.blocks = [(LOW, SIZE - hole, low), (SIZE, SIZE, low + SIZE)]
    assert guest.find() == guest.truth()


def test_without_a_page_nothing_beside_another_block_is_told(guest: Guest) -> None:
    hole = 8 * PAGE
    low = guest.keep(2 * PAGES, range(PAGES, 2 * PAGES))
    guest.blocks = [(HIGH, SIZE - hole, low), (HIGH + SIZE, SIZE, low + SIZE)]
    assert guest.find() == [None, low + SIZE]


def test_memory_from_address_0_on_is_one_part(guest: Guest) -> None:
    """Of a guest that has not run yet, with the hole behind 640 KiB; and then of one that has."""
    hole = 8 * PAGE
    firmware = guest.keep(2 * PAGES, range(2 * PAGES))
    low = guest.keep(4 * PAGES)
    guest.blocks = [(0, SIZE - hole, low), (SIZE, 3 * SIZE, low + SIZE), (HIGH, 2 * SIZE, firmware)]
    assert guest.find() == guest.truth()
    guest.child.write(low, range(PAGES, 2 * PAGES))
    assert guest.find() == guest.truth()


def test_marks_that_others_lack_tell_nothing(guest: Guest) -> None:
    low = guest.child.map("anonymous", 2 * PAGES)
    guest.child.write(low, range(2 * PAGES))
    video = guest.keep(PAGES)
    guest.blocks = [(LOW, 2 * SIZE, low), (VIDEO, SIZE, video)]
    assert guest.find() == [low, None]


def test_marked_parts_without_a_gap_are_one(guest: Guest) -> None:
    """mbind and madvise split what is one mapping."""
    address = guest.keep(4 * PAGES)
    guest.child.ask("madvise", address=address, size=2 * SIZE, advice=mmap.MADV_SEQUENTIAL)
    assert guest.process.kept() == [(address, address + 4 * SIZE)]
