"""The walk of page tables, level by level: all tables of a level at once, as one array."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import TranslationError
from vmdump.formats.layout import ByteOrder
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.units import ADDRESS_LIMIT

__all__ = [
    "MAX_RUNS",
    "MAX_TABLES",
    "AddressSpace",
    "AddressSpaces",
    "Decode",
    "FindSpaces",
    "KernelFacts",
    "ReadTables",
    "Runs",
    "TableFormat",
    "Words",
    "differ",
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
_PREFIXED = 2 * 4096

ReadTables = Callable[[Words, int], NDArray[np.uint8]]
"""``(guest-physical addresses (n,), bytes of each) -> (n, bytes) uint8``; zeros outside the memory."""

Decode = Callable[[Words, int, Words], tuple[NDArray[np.bool_], NDArray[np.bool_], Words]]
"""``(entries, level, place of each in its table) -> (names a table, maps a page, address)``, all (n,)."""

IsValid = Callable[[Words, int], NDArray[np.bool_]]
"""``(entries, level) -> bool``: which say something at all; of whole tables, (entries,) or (n, entries)."""

Bounds = Callable[[Words, int], tuple[Words, Words]]
"""``(entries that name tables, level) -> (the first, the last entry that such a table has)``, all (n,)."""


def differ(entries: Words) -> NDArray[np.bool_]:
    """Tell which entries occur once in their table, (entries,) or (n, entries).

    Linux on MIPS and LoongArch has no entry that is not valid above the last level: those that are not in use
    all name one table, which is empty.
    """
    order = np.argsort(entries, axis=-1, kind="stable")
    ascending = np.take_along_axis(entries, order, -1)
    same = ascending[..., 1:] == ascending[..., :-1]
    once = np.ones(entries.shape, bool)
    once[..., 1:] &= ~same
    once[..., :-1] &= ~same
    result = np.empty_like(once)
    np.put_along_axis(result, order, once, -1)
    return result


def _has_bit_0(entries: Words, level: int) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = (entries & np.uint64(1)) != 0
    return valid


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

    def compressed(self, *, by_page: bool = False) -> Runs:
        """Make one of neighbours in the list of which the second continues the first.

        With `by_page`, only of those that begin with pages of the same size.
        """
        if self.virtual.size < 2:
            return self
        virtual_ends, physical_ends = self.virtual + self.size, self.physical + self.size
        breaks = (self.virtual[1:] != virtual_ends[:-1]) | (self.physical[1:] != physical_ends[:-1])
        if by_page:
            breaks |= self.page[1:] != self.page[:-1]
        first = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        return self.take(first)._replace(size=np.add.reduceat(self.size, first))


class TableFormat(NamedTuple):
    """How an architecture, in one of its modes, lays out page tables.

    An entry of zero is not valid: so reads what is not in memory.

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
    byteorder : {"little", "big"}
        Of the entries.
    valid : IsValid
        Which entries are valid.
    bounds : Bounds, optional
        Where entries say which part of the table below there is.
    """

    bits: int
    shifts: tuple[int, ...]
    decode: Decode
    entry_size: int = 8
    attributes: int = 0
    byteorder: ByteOrder = "little"
    valid: IsValid = _has_bit_0
    bounds: Bounds | None = None

    def entries(self, level: int) -> int:
        """Count the entries of a table."""
        above = self.shifts[level - 1] if level else self.bits
        return 1 << (above - self.shifts[level])

    def read(self, tables: Words, level: int, read: ReadTables) -> Words:
        """Read tables of a level: (n, entries)."""
        data = read(tables, self.entries(level) * self.entry_size)
        code = "<" if self.byteorder == "little" else ">"
        return data.view(f"{code}u{self.entry_size}").astype(np.uint64, copy=False)


class AddressSpace(NamedTuple):
    """A root of page tables, and what the hardware makes of the addresses above the translated bits.

    Attributes
    ----------
    format : TableFormat
        Of the tables.
    root : int
        Guest-physical address of the top table.
    extension : {"sign", "ones", "zeros"} or int
        The bits above the translated ones: copies of the highest of them, all ones, all zeros, or these.
    listed_with_ones : bool
        In a list of mappings they are ones on all addresses, as QEMU has them for x86_64.
    end : int, optional
        Offset from which on the top table has no entries; without it the table is whole.
    prefix : int
        What the tables have at 0 is here, two pages long, and what they have here is at 0: s390x's prefixing,
        which gives each processor pages of its own.
    """

    format: TableFormat
    root: int
    extension: str | int
    listed_with_ones: bool = False
    end: int | None = None
    prefix: int = 0

    @property
    def _above(self) -> int:
        return _MASK64 & -(1 << self.format.bits)

    def offset(self, address: int) -> int | None:
        """Give the translated bits of a virtual address; None if the others are invalid."""
        offset = address & ~self._above
        if isinstance(self.extension, int):
            return offset if address == offset | self.extension else None
        ones = self.extension == "ones" or (self.extension == "sign" and offset >> (self.format.bits - 1))
        return offset if address == (offset | self._above if ones else offset) else None

    def prefixed(self, runs: Runs) -> Runs:
        """Turn what the tables say of guest-physical memory into where it is on this processor."""
        if not self.prefix:
            return runs
        behind = self.prefix + _PREFIXED
        moves = (
            *((0, _PREFIXED, self.prefix), (_PREFIXED, self.prefix, 0)),
            *((self.prefix, behind, _MASK64 + 1 - self.prefix), (behind, _MASK64 + 1, 0)),
        )
        parts = [(runs.clipped(begin, end), move) for begin, end, move in moves]
        moved = Runs.joined([part._replace(physical=part.physical + np.uint64(move)) for part, move in parts])
        return moved.take(np.argsort(moved.virtual, kind="stable"))

    def listed(self, runs: Runs) -> Runs:
        """Turn the offsets of runs into addresses, as a list of mappings has them."""
        runs = self.prefixed(runs)
        offsets = runs.virtual
        if isinstance(self.extension, int):
            return runs._replace(virtual=offsets | np.uint64(self.extension))
        if self.extension == "ones" or self.listed_with_ones:
            return runs._replace(virtual=offsets | np.uint64(self._above))
        if self.extension == "sign":
            negative = (offsets >> np.uint64(self.format.bits - 1)) != 0
            return runs._replace(virtual=np.where(negative, offsets | np.uint64(self._above), offsets))
        return runs


class AddressSpaces(NamedTuple):
    """The page tables that a guest is known to have.

    Attributes
    ----------
    kernel : AddressSpace or None
        The kernel's own, by VMCOREINFO.
    cpus : tuple of (AddressSpace or None)
        Those in use, by the vCPUs' registers; None for one whose paging is off. Empty if no registers tell.
    direct : Runs
        What the kernel has at fixed addresses without page tables, memory or not.
    kernel_first : bool
        The kernel has an address space of its own: its addresses are not above those of processes.
    """

    kernel: AddressSpace | None = None
    cpus: tuple[AddressSpace | None, ...] = ()
    direct: Runs = Runs.joined(())
    kernel_first: bool = False


class KernelFacts(NamedTuple):
    """What leads to a guest's page tables.

    Attributes
    ----------
    cpus : sequence of mapping of str to int
        Registers of each vCPU by name.
    vmcoreinfo : Vmcoreinfo
        Of the guest.
    byteorder : {"little", "big"}
        Of the kernel's own data.
    to_phys : callable
        ``(virtual address) -> guest-physical address or None`` of the kernel's image.
    read : ReadTables
        Reads memory.
    """

    cpus: Sequence[Mapping[str, int]]
    vmcoreinfo: Vmcoreinfo
    byteorder: ByteOrder
    to_phys: Callable[[int], int | None]
    read: ReadTables

    @property
    def root(self) -> int | None:
        """Guest-physical address of the kernel's own page tables; None where that is not told."""
        for name in _ROOTS:
            symbol = self.vmcoreinfo.symbol(name)
            if symbol is not None:
                return self.at(symbol)
        return None

    def at(self, address: int) -> int | None:
        """Give the guest-physical address of what is in the kernel's image, as an unsigned number."""
        physical = self.to_phys(address)
        return None if physical is None else physical % ADDRESS_LIMIT

    def word(self, address: int | None, size: int = 8) -> int | None:
        """Read an unsigned number of `size` bytes of the kernel's data; None where no address is known."""
        if address is None:
            return None
        data = self.read(np.array([address % ADDRESS_LIMIT], np.uint64), size)
        return int.from_bytes(data.tobytes(), self.byteorder)


_ROOTS = ("swapper_pg_dir", "init_top_pgt", "init_level4_pgt")
"""The same on all architectures; x86_64 has the others as well, before Linux 4.13 the last one."""

FindSpaces = Callable[[KernelFacts], AddressSpaces]
"""Finds the page tables that a guest is known to have."""


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
    by_page: bool = False,
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
    by_page : bool
        Give runs of pages of one size.

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
    limited = begin > 0 or end is not None or space.end is not None
    end = min(1 << form.bits if end is None else end, space.end or 1 << form.bits)
    low, last = np.uint64(begin), np.uint64(end - 1)
    bounds: tuple[Words, Words] | None = None
    tables, bases = np.array([space.root], np.uint64), np.zeros(1, np.uint64)
    found: list[Runs] = []
    runs = 0
    for level, shift in enumerate(form.shifts):
        visited += tables.size
        below: list[tuple[Words, ...]] = []
        named = 0
        for first in range(0, tables.size, _CHUNK):
            part, base = tables[first : first + _CHUNK], bases[first : first + _CHUNK]
            if level == 0 and top is not None:
                entries = top.reshape(1, -1)
            else:
                entries = form.read(part, level, read)
            rows, columns = np.nonzero(form.valid(entries, level))
            places = columns.astype(np.uint64)
            offsets = base[rows] + (places << np.uint64(shift))
            valid = entries[rows, columns]
            if limited:
                inside = (offsets <= last) & (offsets + np.uint64((1 << shift) - 1) >= low)
                rows, valid, places, offsets = rows[inside], valid[inside], places[inside], offsets[inside]
            if bounds is not None:
                inside = (places >= bounds[0][first + rows]) & (places <= bounds[1][first + rows])
                valid, places, offsets = valid[inside], places[inside], offsets[inside]
            is_table, is_page, address = form.decode(valid, level, places)
            pages = is_page if keep is None else is_page & keep(address)
            if pages.any():
                sizes = np.full(np.count_nonzero(pages), 1 << shift, np.uint64)
                found.append(Runs(offsets[pages], address[pages], sizes, sizes).compressed())
                runs += found[-1].size.size
            limits = form.bounds(valid[is_table], level) if form.bounds else ()
            below.append((address[is_table], offsets[is_table], *limits))
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
        tables, bases, *parts = (np.concatenate(column) for column in zip(*below, strict=True))
        bounds = (parts[0], parts[1]) if parts else None
    everything = Runs.joined(found)
    return everything.take(np.argsort(everything.virtual, kind="stable")).compressed(by_page=by_page)
