"""Page tables made entry by entry, and QEMU's list of mappings made page by page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

PAGE = 4096


@dataclass(frozen=True)
class Shape:
    """How tables are laid out, from the architecture's manual.

    shifts          of each level, the top first: the bit from which on the index is taken
    bits            of a virtual address that are translated
    table, page     (address, level) -> entry
    size            bytes of an entry
    byteorder       of an entry
    empty           level -> entry that is not in use
    above           bits of a kernel's addresses above the translated ones; None: copies of the highest one
    """

    bits: int
    shifts: tuple[int, ...]
    table: Callable[[int, int], int]
    page: Callable[[int, int], int]
    size: int = 8
    byteorder: Literal["little", "big"] = "little"
    empty: Callable[[int], int] = lambda level: 0
    above: int | None = None

    def address(self, virtual: int) -> int:
        """What a program calls the translated bits of an address."""
        if self.above is not None:
            return virtual | self.above
        high = virtual >> (self.bits - 1)
        return virtual | -(1 << self.bits) & (1 << 64) - 1 if high else virtual

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
    above=0,
)


def _legacy_page(address: int, level: int) -> int:
    if level == 1:
        return address | 0x63
    return (address & 0xFFC00000) | (address >> 32 & 0xFF) << 13 | 0xE3


LEGACY = Shape(32, (22, 12), lambda address, level: address | 0x67, _legacy_page, size=4, above=0)


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


def arm_short() -> Shape:
    """Sections of 1 MiB and pages of 4 KiB, whose bits look like those of smaller addresses."""
    return Shape(
        32,
        (20, 12),
        lambda address, level: address | 0x1E1,
        lambda address, level: address | (0x5C1E if level == 0 else 0x45F),
        size=4,
        above=0,
    )


def arm_long() -> Shape:
    """LPAE: the tables of AArch64, of which the top one has four entries."""
    return replace(aarch64(12, 39), bits=32, above=0)


def radix(page_shift: int) -> Shape:
    """The radix tree of Power 9: each entry that names a table has the bits of its index."""
    shifts = (39, 30, 21, page_shift)
    return Shape(
        52,
        shifts,
        lambda address, level: address | 1 << 63 | (shifts[level] - shifts[level + 1]),
        # Leaf, dirty, accessed, and what it may be used for.
        lambda address, level: address | 3 << 62 | 0x18F,
        byteorder="big",
        above=0xC000 << 48,
    )


def hashed(page_shift: int) -> Shape:
    """Linux' own tables beside a hash table: those above the last ones are plain addresses."""
    bits, shifts = (52, (44, 34, 24, 16)) if page_shift == 16 else (46, (37, 28, 21, 12))
    return Shape(
        bits,
        shifts,
        lambda address, level: address,
        # Where it is in the hash table is in bits 59:55.
        lambda address, level: address | 3 << 62 | 0x0B << 55 | 0x18F,
        byteorder="big",
        above=0xC000 << 48,
    )


def z_architecture(levels: int) -> Shape:
    """Of 2 to 5 levels; every entry of a region or segment table has the type of its table."""
    shifts = (53, 42, 31, 20, 12)[5 - levels :]

    def kind(level: int) -> int:
        return max(levels - level - 2, 0) << 2

    def table(address: int, level: int) -> int:
        # All four quarters of the table below, which is protected in case it has pages.
        return address | kind(level) | (3 if level < levels - 2 else 0x200)

    def page(address: int, level: int) -> int:
        return address | 0x215 if level == levels - 1 else address | kind(level) | 0xC600

    return Shape(
        64 if levels == 5 else (53, 42, 31, 20, 12)[4 - levels],
        shifts,
        table,
        page,
        byteorder="big",
        empty=lambda level: 0x400 if level == levels - 1 else kind(level) | 0x20,
        above=0,
    )


def loongarch(page_shift: int) -> Shape:
    """Linux' tables of three levels: each entry is an address in the window of cached memory."""
    shifts = tuple(page_shift + (page_shift - 3) * above for above in (2, 1, 0))
    bits = shifts[0] + page_shift - 3
    window = 0x9000 << 48
    return Shape(
        bits,
        shifts,
        lambda address, level: address | window,
        # Present and valid; a large page's bit is what the others have for a global one.
        lambda address, level: address | (0x1 << 62) | 0xDF | (0 if level == 2 else 0x1000),
        above=0xFFFF8 << 44 & -(1 << bits) & (1 << 64) - 1,
    )


def mips(page_shift: int, below: int, frame_shift: int, byteorder: Literal["little", "big"]) -> Shape:
    """Linux' tables for 64 bits, of three levels; `below`: its own bits in an entry of a page of the kernel.

    Then come global, valid and dirty, three bits about caches, and the page frame number at `frame_shift`.
    """
    shifts = (30, 21, 12) if page_shift == 12 else (36, 25, 14)
    window = 0x9800 << 48
    return Shape(
        40 if page_shift == 12 else 47,
        shifts,
        lambda address, level: address | window,
        lambda address, level: (
            address >> page_shift << frame_shift | 0x1F << (frame_shift - page_shift + 6) | below
        ),
        byteorder=byteorder,
        above=0xC000 << 48,
    )


def riscv32() -> Shape:
    return replace(
        riscv64(32), shifts=(22, 12), size=4, above=0, page=lambda address, level: address >> 2 | 0xE7
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
        # Tables below the top one may be parts of pages.
        size = self.shape.table_bytes(level) if level else max(self.shape.table_bytes(level), PAGE)
        address = -(-self.free // size) * size
        self.free = address + size
        assert self.free <= len(self.memory), "no room for tables"
        if self.shape.empty(level):
            count = self.shape.table_bytes(level) // self.shape.size
            for place in range(address, address + count * self.shape.size, self.shape.size):
                self.put(place, self.shape.empty(level))
        return address

    def _place(self, table: int, virtual: int, level: int) -> int:
        index = (virtual >> self.shape.shifts[level]) * self.shape.size % self.shape.table_bytes(level)
        return table + index

    def get(self, place: int) -> int:
        data = self.memory[place : place + self.shape.size]
        return int.from_bytes(data, self.shape.byteorder)

    def put(self, place: int, entry: int) -> None:
        self.memory[place : place + self.shape.size] = entry.to_bytes(self.shape.size, self.shape.byteorder)

    def map(self, virtual: int, physical: int, level: int, *, root: int | None = None) -> bool:
        """Map one page of the size of a level; False if something is mapped there."""
        table = self.root if root is None else root
        virtual &= (1 << self.shape.bits) - 1
        for above in range(level):
            place = self._place(table, virtual, above)
            if place not in self.below:
                if self.get(place) != self.shape.empty(above):
                    return False
                self.below[place] = self._allocate(above + 1)
                self.put(place, self.shape.table(self.below[place], above))
            table = self.below[place]
        place = self._place(table, virtual, level)
        if self.get(place) != self.shape.empty(level):
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
