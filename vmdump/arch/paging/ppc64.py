"""Page tables of 64-bit PowerPC: the radix tree, and what Linux has beside a hash table.

A hash table forgets what nobody used of late, so it is not looked at. Linux has tables in memory of all that
it maps itself, in which the hash table is filled from, except what it maps directly and its struct pages.

Sources: Power ISA 3.0, book III, section 5.7 (radix tree translation); Linux'
arch/powerpc/include/asm/book3s/64.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging.tables import AddressSpace, AddressSpaces, KernelFacts, Runs, TableFormat, Words

__all__ = ["ppc64_spaces"]

_VALID = 1 << 63
_LEAF = 1 << 62
_PAGE_ADDRESS = (1 << 53) - (1 << 12)
"""Of the bits of an address that the hardware has, Linux uses those above for itself under a hash table."""
_TABLE_ADDRESS = (1 << 60) - (1 << 8)
_KERNEL = 0xC000000000000000
"""The quadrant of the kernel: the top two bits choose one, and ten below them are zeros."""
_RADIX_BITS = 52
_RADIX = {4096: (39, 30, 21, 12), 65536: (39, 30, 21, 16)}
_HASH = {4096: (46, (37, 28, 21, 12)), 65536: (52, (44, 34, 24, 16))}
_DIRECT_SIZES = {4096: 0x3D0000000000, 65536: 1 << 51}
"""Memory is mapped from the start of the quadrant on; vmalloc's addresses begin behind so much."""
_MAX_PIECES = 1 << 13
"""Of struct pages under a hash table: one of 16 MiB is for 16 GiB of memory. To follow them takes 0.5 s."""
_PAGE_SHIFTS = range(12, 35)


def _valid_radix(entries: Words, level: int) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = (entries & np.uint64(_VALID)) != 0
    return valid


def _valid_hash(entries: Words, level: int) -> NDArray[np.bool_]:
    # Under a hash table the hardware never sees entries that name tables, and they are plain addresses.
    leaf = (entries & np.uint64(_LEAF)) != 0
    valid: NDArray[np.bool_] = np.where(leaf, (entries & np.uint64(_VALID)) != 0, entries != 0)
    return valid


def _decode(
    entries: Words, level: int, places: Words, *, shifts: tuple[int, ...]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    page = (entries & np.uint64(_LEAF)) != 0
    whole = entries & np.uint64(_PAGE_ADDRESS & -(1 << shifts[level]))
    address = np.where(page, whole, entries & np.uint64(_TABLE_ADDRESS))
    table = np.zeros(entries.shape, bool) if level == len(shifts) - 1 else ~page
    return table, page, address


@cache
def _format(page_size: int, *, radix: bool) -> TableFormat:
    bits, shifts = (_RADIX_BITS, _RADIX[page_size]) if radix else _HASH[page_size]
    # Tables of Linux are big-endian in either byte order of the kernel.
    return TableFormat(
        bits,
        shifts,
        partial(_decode, shifts=shifts),
        byteorder="big",
        valid=_valid_radix if radix else _valid_hash,
    )


def _is_radix(facts: KernelFacts, root: int) -> bool:
    told = facts.vmcoreinfo.number("RADIX_MMU")
    if told is not None:
        return told != 0
    # Before Linux 6.9 only the tables tell: a radix tree maps memory directly, from the first entry on.
    first = facts.read(np.array([root], np.uint64), 8).tobytes()
    return bool(int.from_bytes(first, "big") & _VALID)


def _struct_pages(facts: KernelFacts) -> Runs:
    """Find the struct pages under a hash table: a linked list has them piece by piece."""
    size = _size_of_piece(facts)
    fields = [facts.vmcoreinfo.offset(f"vmemmap_backing.{name}") for name in ("virt_addr", "phys", "list")]
    head = facts.vmcoreinfo.symbol("vmemmap_list")
    pointer = None if head is None else facts.word(facts.at(head))
    found: dict[int, tuple[int, int]] = {}
    # The list may name itself.
    while size and pointer and pointer not in found and len(found) < _MAX_PIECES:
        virtual, physical, following = (
            facts.word(None if at is None else facts.at(pointer + at)) or 0 for at in fields
        )
        found[pointer] = virtual, physical
        pointer = following
    # Pieces do not overlap, and no address is at two places.
    pieces = {virtual: physical for virtual, physical in found.values() if size and virtual % size == 0}
    sizes = np.full(len(pieces), size or 0, np.uint64)
    return Runs(np.array([*pieces], np.uint64), np.array([*pieces.values()], np.uint64), sizes, sizes)


def _size_of_piece(facts: KernelFacts) -> int | None:
    told = facts.vmcoreinfo
    table, number = told.symbol("mmu_psize_defs"), told.symbol("mmu_vmemmap_psize")
    size, offset = told.struct_size("mmu_psize_def"), told.offset("mmu_psize_def.shift")
    if table is None or number is None or size is None or offset is None:
        return None
    place = table + (facts.word(facts.at(number), 4) or 0) * size + offset
    shift = facts.word(facts.at(place), 4)
    return 1 << shift if shift is not None and shift in _PAGE_SHIFTS else None


def ppc64_spaces(facts: KernelFacts) -> AddressSpaces:
    """Find the kernel's page tables by VMCOREINFO; no note has the registers that name those in use.

    Parameters
    ----------
    facts : KernelFacts
        VMCOREINFO says how large pages are, and, as memory does, which kind of tables there is.
    """
    page_size, root = facts.vmcoreinfo.page_size, facts.root
    if page_size not in _RADIX or root is None:
        return AddressSpaces()
    assert page_size is not None
    radix = _is_radix(facts, root)
    kernel = AddressSpace(_format(page_size, radix=radix), root, _KERNEL)
    if radix:
        return AddressSpaces(kernel)
    size = np.array([_DIRECT_SIZES[page_size]], np.uint64)
    linear = Runs(np.array([_KERNEL], np.uint64), np.zeros(1, np.uint64), size, size)
    return AddressSpaces(kernel, direct=Runs.joined((linear, _struct_pages(facts))))
