"""Where the struct pages of a guest are: its kernel's memory model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import Arch
from vmdump.errors import CapabilityError
from vmdump.formats.layout import ByteOrder
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.blocks import Block
from vmdump.guest.virtual import VirtualMemory
from vmdump.guest.whole import page_runs
from vmdump.units import is_power_of_two

__all__ = ["PageArray", "Typed", "find_arrays"]

_MAX_TABLE = 8 << 20
"""Bytes of an array of sections, or of pointers to such: x86 with five levels has 1 MiB."""
_MAX_NODES = 4096
_MAX_PAGES = 1 << 28
"""Of any guest: their types take 256 MiB. A larger one has to hold data, too."""
_PAGES_PER_DATA = 256
"""A page of struct pages describes 64, and where the tails of huge pages share theirs, more."""
_MAX_ROOTS = 4096
"""Arrays of sections: on x86 each is for 32 GiB."""
_PRESENT = 1
_SECTION_FLAGS = 0x3F
"""Linux has five of them, and six from 6.15 on."""
_SECTION_BITS = {
    "x86_64": 27,
    "aarch64": 30,
    "riscv64": 27,
    "ppc64": 24,
    "s390x": 28,
    "loongarch64": 29,
    "arm": 28,
    "mips64": 28,
}
"""Of kernels before 5.13, whose VMCOREINFO does not tell."""


class PageArray(NamedTuple):
    """Struct pages one behind the other in virtual memory.

    Attributes
    ----------
    first, pages : int
        The pages that they describe, by frame number.
    address : int
        Virtual, of the first one.
    """

    first: int
    pages: int
    address: int


class Typed(Protocol):
    """What of a guest telling types asks; :class:`vmdump.guest.guest.Guest` tells of each."""

    @property
    def arch(self) -> Arch:
        """The guest's architecture."""

    @property
    def byteorder(self) -> ByteOrder:
        """Its byte order."""

    @property
    def blocks(self) -> Sequence[Block]:
        """Its memory."""

    @property
    def page_size(self) -> int:
        """Bytes of a page."""

    @property
    def excluded_size(self) -> int:
        """Bytes of the pages that are not in the dump that it comes from."""

    def excluded_pages(self, pfn: int, count: int) -> NDArray[np.bool_] | None:
        """Tell which pages these are."""

    @property
    def vmcoreinfo(self) -> Vmcoreinfo:
        """VMCOREINFO that it tells, or that is found."""

    @property
    def virtual(self) -> VirtualMemory:
        """What its page tables map where."""

    def read_virtual(self, address: int, length: int) -> bytes:
        """Read virtual memory."""


def find_arrays(guest: Typed, lines: Vmcoreinfo, struct_size: int) -> list[PageArray]:
    """Find the struct pages of a guest's memory.

    Parameters
    ----------
    guest : Typed
        The guest.
    lines : Vmcoreinfo
        Of its kernel.
    struct_size : int
        Bytes of a struct page.

    Returns
    -------
    list of PageArray
        Ascending, not overlapping.

    Raises
    ------
    CapabilityError
        The keys tell of no memory model, or what they tell is impossible.
    ReadError, SourceError
        What tells where they are cannot be read.
    """
    return _Model(guest, lines, struct_size).arrays()


class _Model:
    def __init__(self, guest: Typed, lines: Vmcoreinfo, struct_size: int) -> None:
        self._guest = guest
        self._lines = lines
        self._struct_size = struct_size
        self._word = 8 if guest.arch.elf_class == 64 else 4
        self._mask = (1 << 8 * self._word) - 1
        self._order = "<" if guest.byteorder == "little" else ">"
        told = lines.page_size
        self._page_size = told if told is not None and told in guest.arch.page_sizes else guest.page_size
        runs = page_runs(guest.blocks, self._page_size)
        self._begins, self._ends = np.array(runs, np.uint64).T

    def arrays(self) -> list[PageArray]:
        """Find them as the first model has them whose keys are there, in makedumpfile's order."""
        lines = self._lines
        if lines.symbol("node_data") is not None and lines.offset("pglist_data.node_mem_map") is not None:
            found = self._clipped(self._of_nodes())
        elif lines.symbol("mem_section") is not None:
            found = list(self._of_sections())
        elif lines.symbol("mem_map") is not None:
            found = self._clipped(self._flat())
        elif lines.symbol("vmemmap") is not None:
            found = self._clipped([PageArray(0, int(self._ends[-1]), self._demand_symbol("vmemmap"))])
        else:
            raise CapabilityError("VMCOREINFO: no key tells where struct pages are")
        # What would go on behind the last address is no array; its pages are kept.
        found = [
            array for array in found if array.address + array.pages * self._struct_size <= self._mask + 1
        ]
        self._check_size(sum(array.pages for array in found))
        return found

    def _check_size(self, pages: int) -> None:
        if pages <= _MAX_PAGES:
            return
        data = sum(end - begin for block in self._guest.blocks for begin, end in block.memory.extents())
        if pages > data // self._page_size * _PAGES_PER_DATA:
            raise CapabilityError(
                f"{pages} struct pages for {data} bytes of data: VMCOREINFO is of another kernel, or damaged"
            )

    def _of_nodes(self) -> list[PageArray]:
        """DISCONTIGMEM: each NUMA node has an array."""
        lines = self._lines
        begin, pages, mem_map = (
            self._demand_offset(f"pglist_data.{name}")
            for name in ("node_start_pfn", "node_spanned_pages", "node_mem_map")
        )
        count = min(lines.length("node_data") or 1, _MAX_NODES)
        nodes = self._words(self._demand_symbol("node_data"), count)
        online = lines.symbol("node_online_map")
        if online is not None:
            mask = self._words(online, -(-count // (8 * self._word)))
            bits = np.unpackbits(mask.astype(f"<u{self._word}").view(np.uint8), bitorder="little")[:count]
            nodes = nodes[bits != 0]
        found = []
        for node in nodes[nodes != 0].tolist():
            first, size, address = (self._word_at(node + offset) for offset in (begin, pages, mem_map))
            found.append(PageArray(first, size, address))
        return found

    def _flat(self) -> list[PageArray]:
        """FLATMEM: one array, from the first page of memory on where an architecture does not begin at 0."""
        address = self._word_at(self._demand_symbol("mem_map"))
        lines, arch = self._lines, self._guest.arch.name
        base, end = 0, int(self._ends[-1])
        if arch.startswith(("arm", "riscv")):
            base = int(self._begins[0])
            told = lines.number("phys_ram_base")
            base = base if told is None else min(max(told // self._page_size, 0), end)
        node = lines.symbol("contig_page_data")
        begin, pages = (
            lines.offset(f"pglist_data.{name}") for name in ("node_start_pfn", "node_spanned_pages")
        )
        if node is not None and begin is not None and pages is not None:
            # What lies above, as firmware does, has no struct page.
            end = min(end, self._word_at(node + begin) + self._word_at(node + pages))
        return [PageArray(base, max(end - base, 0), address)]

    def _clipped(self, found: list[PageArray]) -> list[PageArray]:
        """Give of arrays what describes memory, ascending."""
        clipped, reached = [], 0
        for array in sorted(found):
            low = np.maximum(self._begins, np.uint64(max(array.first, reached)))
            high = np.minimum(self._ends, np.uint64(min(array.first + array.pages, self._mask)))
            kept = low < high
            for begin, end in zip(low[kept].tolist(), high[kept].tolist(), strict=True):
                address = array.address + (begin - array.first) * self._struct_size
                clipped.append(PageArray(begin, end - begin, address & self._mask))
                reached = end
        return clipped

    def _of_sections(self) -> Iterator[PageArray]:
        """SPARSEMEM: each section of memory has an array, and those with vmemmap lie side by side."""
        pages = 1 << self._section_bits() - (self._page_size.bit_length() - 1)
        symbol = self._demand_symbol("mem_section")
        numbers, maps = self._sections(symbol, pages)
        if not numbers.size:
            # Kernels from 4.15 on have a pointer to the array there, and some tell the pointer's place.
            numbers, maps = self._sections(self._word_at(symbol), pages)
        if not numbers.size:
            raise CapabilityError("VMCOREINFO: mem_section tells of no section of this guest's memory")
        vmemmap = None if self._lines.symbol("vmemmap") is None else self._demand_symbol("vmemmap")
        pending: PageArray | None = None
        for number, address in zip(numbers.tolist(), maps.tolist(), strict=True):
            first = number * pages
            at = (vmemmap if vmemmap is not None else address) + first * self._struct_size & self._mask
            if pending is not None and self._continues(pending, first, at):
                pending = pending._replace(pages=pending.pages + pages)
                continue
            if pending is not None:
                yield pending
            pending = PageArray(first, pages, at)
        if pending is not None:
            yield pending

    def _continues(self, array: PageArray, first: int, address: int) -> bool:
        follows = array.address + array.pages * self._struct_size
        return array.first + array.pages == first and follows == address

    def _section_bits(self) -> int:
        arch = self._guest.arch.name
        bits = self._lines.number("SECTION_SIZE_BITS")
        if bits is None and arch == "i386":
            bits = 29 if self._lines.get("CONFIG_X86_PAE") == "y" else 26
        bits = _SECTION_BITS.get(arch) if bits is None else bits
        if bits is None or not self._page_size < 1 << min(max(bits, 0), 40) < 1 << 40:
            raise CapabilityError(f"VMCOREINFO: NUMBER(SECTION_SIZE_BITS)={bits} is the size of no section")
        return bits

    def _sections(self, address: int, pages: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Give the numbers of present sections that have memory, and where each would have page 0."""
        lines = self._lines
        size = lines.struct_size("mem_section") or 0
        offset = self._demand_offset("mem_section.section_mem_map")
        if (
            not is_power_of_two(size)
            or not self._word <= size <= self._page_size
            or offset > size - self._word
        ):
            raise CapabilityError(f"VMCOREINFO: SIZE(mem_section)={size} is the size of no section's entry")
        per_root = self._page_size // size
        numbers = np.empty(0, np.uint64)
        tables = np.empty((0, size), np.uint8)
        length = lines.length("mem_section")
        if self._is_extreme(length, pages, per_root):
            last = int(self._ends[-1] - np.uint64(1)) // pages // per_root
            count = last + 1 if length is None else min(last + 1, length)
            pointers = self._words(address, min(count, _MAX_TABLE // self._word))
            roots = np.flatnonzero(pointers)
            roots = roots[self._has_memory(roots.astype(np.uint64), pages * per_root)]
            if roots.size > _MAX_ROOTS:
                raise CapabilityError("VMCOREINFO: mem_section tells of more memory than this guest has")
            found = [self._read(int(pointers[root]), self._page_size) for root in roots]
            if found:
                tables = np.concatenate(found).reshape(-1, size)
                within = np.arange(per_root, dtype=np.uint64)
                numbers = (roots.astype(np.uint64)[:, None] * np.uint64(per_root) + within).reshape(-1)
        else:
            count = min(length or 1, int(self._ends[-1] - np.uint64(1)) // pages + 1, _MAX_TABLE // size)
            tables = self._read(address, count * size).reshape(-1, size)
            numbers = np.arange(count, dtype=np.uint64)
        column = np.ascontiguousarray(tables[:, offset : offset + self._word])
        values = column.view(f"{self._order}u{self._word}").reshape(-1).astype(np.uint64)
        maps = values & ~np.uint64(_SECTION_FLAGS)
        present = (values & np.uint64(_PRESENT) != 0) & (maps != 0) & self._has_memory(numbers, pages)
        return numbers[present], maps[present]

    def _is_extreme(self, length: int | None, pages: int, per_root: int) -> bool:
        """Tell whether mem_section is an array of pointers to arrays."""
        bits = self._lines.number("MAX_PHYSMEM_BITS")
        if length is None:
            return True
        if bits is None or not 0 < bits <= 64:
            return self._word == 8
        sections = -(-(1 << bits) // (pages * self._page_size))
        return length == -(-sections // per_root)

    def _has_memory(self, numbers: NDArray[np.uint64], pages: int) -> NDArray[np.bool_]:
        """Tell of pieces of so many pages, by number, whether memory is in them."""
        first = numbers * np.uint64(pages)
        run = np.searchsorted(self._ends, first, side="right")
        begins = np.append(self._begins, np.uint64((1 << 64) - 1))[run]
        inside: NDArray[np.bool_] = begins < first + np.uint64(pages)
        return inside

    def _read(self, address: int, length: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._guest.read_virtual(address & self._mask, length), np.uint8)

    def _words(self, address: int, count: int) -> NDArray[np.uint64]:
        raw = self._read(address, count * self._word)
        return raw.view(f"{self._order}u{self._word}").astype(np.uint64)

    def _word_at(self, address: int) -> int:
        return int(self._words(address, 1)[0])

    def _demand_symbol(self, name: str) -> int:
        address = self._lines.symbol(name)
        if address is None or not 0 <= address <= self._mask:
            raise CapabilityError(f"VMCOREINFO: SYMBOL({name}) is missing, or no address")
        return address

    def _demand_offset(self, name: str) -> int:
        offset = self._lines.offset(name)
        if offset is None or not 0 <= offset < _MAX_TABLE:
            raise CapabilityError(f"VMCOREINFO: OFFSET({name}) is missing, or impossible")
        return offset
