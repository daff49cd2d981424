"""The walk of page tables, level by level: all tables of a level at once, as one array."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import TranslationError
from vmdump.formats.vmcoreinfo import Vmcoreinfo

__all__ = [
    "MAX_RUNS",
    "MAX_TABLES",
    "AddressSpace",
    "AddressSpaces",
    "Decode",
    "FindSpaces",
    "ReadTables",
    "Runs",
    "TableFormat",
    "Words",
    "walk",
]

Words = NDArray[np.uint64]

MAX_TABLES = 1 << 20
"""Tables in one walk: 4 GiB of them, which map 2 TiB page by page. Tables that name each other stand for
512 times as many on every level, and a guest can be made to have such tables."""

MAX_RUNS = 1 << 20
"""Mappings: 32 MiB here, and 56 MiB of program headers."""

_CHUNK = 256
"""Tables that are read at once: 1 MiB of them, and 131072 entries."""

_MASK64 = (1 << 64) - 1

ReadTables = Callable[[Words, int], NDArray[np.uint8]]
"""``(guest-physical addresses (n,), bytes of each) -> (n, bytes) uint8``; zeros outside the memory."""

Decode = Callable[[Words, int, Words], tuple[NDArray[np.bool_], NDArray[np.bool_], Words]]
"""``(entries, level, place of each in its table) -> (names a table, maps a page, address)``, all (n,)."""


class Runs(NamedTuple):
    """Virtual memory that is contiguous in guest-physical memory too: uint64 arrays of one length.

    Attributes
    ----------
    virtual : (n,) uint64
        The first address.
    physical : (n,) uint64
        The guest-physical address of its byte.
    size : (n,) uint64
        Bytes.
    page : (n,) uint64
        Bytes of the first page.
    """

    virtual: Words
    physical: Words
    size: Words
    page: Words

    @classmethod
    def identity(cls, starts: Words, sizes: Words) -> Runs:
        """Give the mappings of a guest without paging: each block at its own address."""
        return cls(starts, starts, sizes, sizes)

    @classmethod
    def joined(cls, parts: Sequence[Runs]) -> Runs:
        """Put several lists one behind the other."""
        nothing = np.empty(0, np.uint64)
        columns = range(len(cls._fields))
        return cls(*(np.concatenate([nothing, *(part[column] for part in parts)]) for column in columns))

    def take(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Runs:
        """Give some of the runs."""
        return Runs(*(column[index] for column in self))

    def clipped(self, begin: int, end: int) -> Runs:
        """Give what lies in guest-physical memory ``[begin, end)``."""
        low: Words = np.maximum(self.physical, np.uint64(begin))
        # The last byte and not the end: 2**64 does not fit into 64 bits.
        high: Words = np.minimum(self.physical + (self.size - np.uint64(1)), np.uint64(end - 1))
        size = high - low + np.uint64(1)
        inside = (low <= high) & (self.size > 0)
        return Runs(self.virtual + (low - self.physical), low, size, self.page).take(inside)

    def compressed(self) -> Runs:
        """Make one of neighbours in the list of which the second continues the first."""
        if self.virtual.size < 2:
            return self
        virtual_ends, physical_ends = self.virtual + self.size, self.physical + self.size
        breaks = (self.virtual[1:] != virtual_ends[:-1]) | (self.physical[1:] != physical_ends[:-1])
        first = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        return self.take(first)._replace(size=np.add.reduceat(self.size, first))


@dataclass(frozen=True)
class TableFormat:
    """How an architecture, in one of its modes, lays out page tables.

    Bit 0 of an entry says that it is valid, on every architecture here.

    Attributes
    ----------
    bits : int
        Bits of a virtual address that are translated.
    shifts : tuple of int
        For each level, the top first, the bit from which on an address chooses the entry.
    decode : Decode
        What a valid entry means. A page is as large as what the entry stands for, and its address a multiple
        of that.
    entry_size : int
        Bytes.
    attributes : int
        Bits of an entry above the address, which are attributes of the page; 0 where they are not needed.
    """

    bits: int
    shifts: tuple[int, ...]
    decode: Decode
    entry_size: int = 8
    attributes: int = 0

    def entries(self, level: int) -> int:
        """Count the entries of a table."""
        above = self.shifts[level - 1] if level else self.bits
        return 1 << (above - self.shifts[level])


@dataclass(frozen=True)
class AddressSpace:
    """A root of page tables, and what the hardware makes of the addresses above the translated bits.

    Attributes
    ----------
    format : TableFormat
        Of the tables.
    root : int
        Guest-physical address of the top table.
    extension : {"sign", "ones", "zeros"}
        The bits above the translated ones: copies of the highest of them, all ones, or all zeros.
    listed_with_ones : bool
        In a list of mappings they are ones on all addresses, as QEMU has them for x86_64.
    """

    format: TableFormat
    root: int
    extension: str
    listed_with_ones: bool = False

    @property
    def _above(self) -> int:
        return _MASK64 & -(1 << self.format.bits)

    def offset(self, address: int) -> int | None:
        """Give the translated bits of a virtual address; None if the others are invalid."""
        offset = address & ~self._above
        ones = self.extension == "ones" or (self.extension == "sign" and offset >> (self.format.bits - 1))
        return offset if address == (offset | self._above if ones else offset) else None

    def listed(self, runs: Runs) -> Runs:
        """Turn the offsets of runs into addresses, as a list of mappings has them."""
        offsets = runs.virtual
        if self.extension == "ones" or self.listed_with_ones:
            return runs._replace(virtual=offsets | np.uint64(self._above))
        if self.extension == "sign":
            negative = (offsets >> np.uint64(self.format.bits - 1)) != 0
            return runs._replace(virtual=np.where(negative, offsets | np.uint64(self._above), offsets))
        return runs


@dataclass(frozen=True)
class AddressSpaces:
    """The page tables that a guest is known to have.

    Attributes
    ----------
    kernel : AddressSpace or None
        The kernel's own, by VMCOREINFO.
    cpus : tuple of (AddressSpace or None)
        Those in use, by the vCPUs' registers; None for one whose paging is off. Empty if no registers tell.
    """

    kernel: AddressSpace | None = None
    cpus: tuple[AddressSpace | None, ...] = ()


FindSpaces = Callable[[Sequence[Mapping[str, int]], Vmcoreinfo, int | None], AddressSpaces]
"""``(registers of each vCPU, VMCOREINFO, guest-physical address of swapper_pg_dir or None)``: the page tables
that a guest is known to have."""


def walk(
    space: AddressSpace,
    read: ReadTables,
    *,
    begin: int = 0,
    end: int | None = None,
    top: Words | None = None,
    keep: Callable[[Words], NDArray[np.bool_]] | None = None,
    max_tables: int = MAX_TABLES,
    visited: int = 0,
) -> Runs:
    """Find what page tables map.

    A table is read as often as tables name it, so their number is bounded: where tables name themselves, it
    multiplies with every level.

    Parameters
    ----------
    space : AddressSpace
        Whose tables.
    read : ReadTables
        Reads them.
    begin, end : int
        Offsets (addresses without the bits that are not translated): no entry outside ``[begin, end)`` is
        followed. Pages on its border are given whole.
    top : (n,) uint64, optional
        Entries of the top table, instead of those that are there.
    keep : callable, optional
        ``(guest-physical addresses of pages) -> bool``: which pages count.
    max_tables : int
        Tables that are read at most.
    visited : int
        How many of them were read for other roots.

    Returns
    -------
    Runs
        With offsets as virtual addresses, ascending, as few as possible.

    Raises
    ------
    TranslationError
        There are more tables, or more runs, than any guest needs.
    """
    form = space.format
    limited = begin > 0 or end is not None
    end = 1 << form.bits if end is None else end
    tables, bases = np.array([space.root], np.uint64), np.zeros(1, np.uint64)
    found: list[Runs] = []
    runs = 0
    for level, shift in enumerate(form.shifts):
        visited += tables.size
        below: list[tuple[Words, Words]] = []
        named = 0
        for first in range(0, tables.size, _CHUNK):
            part, base = tables[first : first + _CHUNK], bases[first : first + _CHUNK]
            if level == 0 and top is not None:
                entries = top.reshape(1, -1)
            else:
                size = form.entries(level) * form.entry_size
                entries = read(part, size).view(f"<u{form.entry_size}").astype(np.uint64, copy=False)
            rows, columns = np.nonzero(entries & np.uint64(1))
            places = columns.astype(np.uint64)
            offsets = base[rows] + (places << np.uint64(shift))
            valid = entries[rows, columns]
            if limited:
                inside = (offsets < end) & (offsets + np.uint64((1 << shift) - 1) >= begin)
                valid, places, offsets = valid[inside], places[inside], offsets[inside]
            is_table, is_page, address = form.decode(valid, level, places)
            pages = is_page if keep is None else is_page & keep(address)
            if pages.any():
                sizes = np.full(np.count_nonzero(pages), 1 << shift, np.uint64)
                found.append(Runs(offsets[pages], address[pages], sizes, sizes).compressed())
                runs += found[-1].size.size
            below.append((address[is_table], offsets[is_table]))
            named += below[-1][0].size
            if visited + named > max_tables or runs > MAX_RUNS:
                what = f"{max_tables} tables" if runs <= MAX_RUNS else f"{MAX_RUNS} mappings"
                raise TranslationError(
                    f"the page tables at {space.root:#x} stand for more than {what}: they are damaged, or "
                    "share tables with each other more than can be listed",
                    address=space.root,
                )
        if not named:
            break
        tables, bases = (np.concatenate(column) for column in zip(*below, strict=True))
    everything = Runs.joined(found)
    return everything.take(np.argsort(everything.virtual, kind="stable")).compressed()
