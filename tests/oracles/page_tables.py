"""Page tables made entry by entry, and QEMU's list of mappings made page by page."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PAGE = 4096


@dataclass(frozen=True)
class Shape:
    """How tables are laid out, from the architecture's manual.

    shifts          of each level, the top first: the bit from which on the index is taken
    bits            of a virtual address that are translated
    table, page     (address, level) -> entry
    size            bytes of an entry
    """

    bits: int
    shifts: tuple[int, ...]
    table: Callable[[int, int], int]
    page: Callable[[int, int], int]
    size: int = 8

    def table_bytes(self, level: int) -> int:
        above = self.shifts[level - 1] if level else self.bits
        return self.size << (above - self.shifts[level])


def long_mode(levels: int, *, noise: int = 0) -> Shape:
    """x86_64; `noise`: bits 52 to 62, which are no part of an address."""
    shifts = (48, 39, 30, 21, 12)[5 - levels :]
    return Shape(
        levels * 9 + 12,
        shifts,
        lambda address, level: address | 0x67 | noise,
        lambda address, level: address | 1 | noise | (0x80 if level < levels - 1 else 0) | (1 << 63),
    )


PAE = Shape(
    32,
    (30, 21, 12),
    lambda address, level: address | (1 if level == 0 else 0x67),
    lambda address, level: address | 0x63 | (0x80 if level == 1 else 0),
)


def _legacy_page(address: int, level: int) -> int:
    if level == 1:
        return address | 0x63
    return (address & 0xFFC00000) | (address >> 32 & 0xFF) << 13 | 0xE3


LEGACY = Shape(32, (22, 12), lambda address, level: address | 0x67, _legacy_page, size=4)


def aarch64(page_shift: int, bits: int) -> Shape:
    """Bits 51:48 of an address are at 15:12 with 64 KiB; with less, and 52 bits, 51:50 are at 9:8."""
    per_level = page_shift - 3
    shifts = tuple(reversed(range(page_shift, bits, per_level)))

    def placed(address: int) -> int:
        if page_shift == 16:
            return (address & (1 << 48) - 1) | (address >> 48) << 12
        if bits > 48:
            return (address & (1 << 50) - 1) | (address >> 50) << 8
        return address

    attributes = 0x60 << 48 | 0x400
    return Shape(
        bits,
        shifts,
        lambda address, level: placed(address) | 3 | 1 << 59,
        lambda address, level: placed(address) | attributes | (3 if level == len(shifts) - 1 else 1),
    )


def riscv64(bits: int) -> Shape:
    shifts = tuple(reversed(range(12, bits, 9)))
    return Shape(
        bits,
        shifts,
        lambda address, level: address >> 2 | 1,
        # Accessed, dirty, global, writable and readable; bits 61 and 62 say what kind of memory it is.
        lambda address, level: address >> 2 | 0xE7 | 1 << 61,
    )


class Tables:
    """Page tables in a piece of guest memory.

    memory      the guest's, from address 0
    shape       of the tables
    free        guest-physical address of the first byte for tables
    """

    def __init__(self, memory: bytearray, shape: Shape, free: int) -> None:
        self.memory = memory
        self.shape = shape
        self.free = free
        self.below: dict[int, int] = {}
        self.root = self._allocate(0)

    def new_root(self) -> int:
        """Another top table, empty."""
        return self._allocate(0)

    def _allocate(self, level: int) -> int:
        size = max(self.shape.table_bytes(level), PAGE)
        address = -(-self.free // size) * size
        self.free = address + size
        assert self.free <= len(self.memory), "no room for tables"
        return address

    def _place(self, table: int, virtual: int, level: int) -> int:
        index = (virtual >> self.shape.shifts[level]) * self.shape.size % self.shape.table_bytes(level)
        return table + index

    def get(self, place: int) -> int:
        data = self.memory[place : place + self.shape.size]
        return int.from_bytes(data, "little")

    def put(self, place: int, entry: int) -> None:
        struct.pack_into("<Q" if self.shape.size == 8 else "<I", self.memory, place, entry)

    def map(self, virtual: int, physical: int, level: int, *, root: int | None = None) -> bool:
        """Map one page of the size of a level; False if something is mapped there."""
        table = self.root if root is None else root
        virtual &= (1 << self.shape.bits) - 1
        for above in range(level):
            place = self._place(table, virtual, above)
            if place not in self.below:
                if self.get(place):
                    return False
                self.below[place] = self._allocate(above + 1)
                self.put(place, self.shape.table(self.below[place], above))
            table = self.below[place]
        place = self._place(table, virtual, level)
        if self.get(place):
            return False
        self.put(place, self.shape.page(physical, level))
        return True


@dataclass
class _Mapping:
    physical: int
    virtual: int
    size: int
    number: int


def merged_as_qemu(
    pages: Sequence[tuple[int, int, int]], *, mistaken: bool = False
) -> list[tuple[int, int, int]]:
    """QEMU's list of mappings for pages (virtual, physical, size) in the order in which it finds them.

    Ascending physical addresses, a new one before those equal to it. What a page precedes grows downwards in
    both kinds of addresses; QEMU leaves the physical one as it was, which is wrong (`mistaken`).
    """
    mappings: list[_Mapping] = []
    for number, (virtual, physical, size) in enumerate(pages):
        for mapping in mappings:
            near = mapping.physical <= physical + size and physical <= mapping.physical + mapping.size
            if near and virtual - physical == mapping.virtual - mapping.physical:
                end = max(virtual + size, mapping.virtual + mapping.size)
                down = max(mapping.virtual - virtual, 0)
                mapping.virtual -= down
                mapping.size = end - mapping.virtual
                mapping.physical -= 0 if mistaken else down
                break
        else:
            mappings.append(_Mapping(physical, virtual, size, number))
        mappings.sort(key=lambda mapping: (mapping.physical, -mapping.number))
    return [(mapping.virtual, mapping.physical, mapping.size) for mapping in mappings]
