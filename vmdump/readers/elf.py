"""ELF cores of both classes and byte orders as guests: PT_LOADs are the blocks, notes are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import arch_of_elf
from vmdump.errors import FormatError, LayoutError
from vmdump.formats.elf_headers import read_headers
from vmdump.formats.notes import read_blocks, split_notes
from vmdump.readers.dump import Dump
from vmdump.readers.elf_excluded import PieceList
from vmdump.readers.file import ByteFile
from vmdump.sources.base import MIN_PAGE_SIZE
from vmdump.sources.blocks import BlockList
from vmdump.units import ADDRESS_LIMIT

__all__ = ["ElfDump"]


class ElfDump(Dump):
    """An ELF core file.

    Blocks are the PT_LOADs by physical address; PT_LOADs that show the same bytes of the file at the same
    address, as a dump with virtual mappings has them, become one. Where a note of vmdump tells the guest's
    blocks, pages were left out: what no PT_LOAD has of these blocks is excluded.

    Parameters
    ----------
    file : ByteFile
        Owned from now on.

    Raises
    ------
    FormatError
        A header, note or segment is not inside the file, or it is no core.
    LayoutError
        Two PT_LOADs hold different bytes for one address, or there is none.
    CapabilityError
        The machine is not known.
    """

    format = "elf"

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self.files = file.files
        self.path = file.path
        headers = read_headers(file.read, path=file.path, max_notes=file.size)
        notes, told, erased = split_notes(headers.notes, headers.byteorder)
        self._eraseinfo = erased.desc if erased else b""
        self._pieces: PieceList | None = None
        blocks = _blocks(file, headers.loads)
        if told is not None:
            self._pieces = PieceList(blocks, read_blocks(told, headers.byteorder), file.path)
            blocks = self._pieces.blocks
        super().__init__(
            blocks,
            arch_of_elf(headers.machine, headers.elf_class, headers.byteorder),
            byteorder=headers.byteorder,
            elf_class=headers.elf_class,
            notes=notes,
        )
        if self._pieces is not None:
            self.excluded_size = self._pieces.leave_out(self.page_size)

    def _natural_page_size(self) -> int:
        size = super()._natural_page_size()
        return size if self._pieces is None else self._pieces.page_size(size, MIN_PAGE_SIZE)

    def excluded_pages(self, pfn: int, count: int) -> NDArray[np.bool_] | None:
        """Tell which pages of the guest's blocks are in no PT_LOAD; None if all are."""
        return None if self._pieces is None else self._pieces.excluded(pfn, count)

    @property
    def eraseinfo(self) -> bytes:
        """The text of makedumpfile's note ERASEINFO."""
        return self._eraseinfo

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _blocks(file: ByteFile, loads: NDArray[np.void]) -> BlockList:
    """Make blocks of PT_LOADs, without an object for each: a file of 64 MiB can have a million of them."""
    names = ("p_paddr", "p_offset", "p_filesz", "p_memsz")
    table = np.stack([loads[name].astype(np.uint64) for name in names])[:, loads["p_memsz"] != 0]
    paddr, offset, filesz, memsz = table = table[:, np.lexsort(table[::-1])]
    _check(file, paddr, offset, filesz, memsz)
    if (filesz < memsz).any():
        paddr, offset, filesz, memsz = table = _without_shadowed(table)
    reach = np.maximum.accumulate(paddr + (memsz - np.uint64(1)))  # inclusive: nothing wraps at 2^64
    overlapping = paddr[1:] <= reach[:-1]
    firsts = np.arange(len(paddr))
    if overlapping.any():
        firsts = _join(file, table, overlapping)
        lasts = np.append(firsts[1:], len(paddr)) - 1
        filled = np.maximum.accumulate(paddr + filesz)[lasts] - paddr[firsts]
        sizes = np.maximum.accumulate(paddr + memsz)[lasts] - paddr[firsts]
    else:
        filled, sizes = filesz, memsz
    return BlockList(
        paddr[firsts],
        sizes,
        lambda index: file.memory(int(offset[firsts[index]]), int(sizes[index]), int(filled[index])),
    )


def _without_shadowed(table: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Cut what a PT_LOAD has beyond its bytes in the file off where another one begins that has bytes.

    A mapping that begins in one piece of memory and ends in another one has the bytes of the first only.
    """
    paddr, _, filesz, memsz = table
    filled = np.flatnonzero(filesz)
    # The first one with bytes that begins at or behind the end of each one's own bytes.
    after = np.searchsorted(paddr[filled], paddr + filesz)
    begins = np.append(paddr[filled], np.uint64(ADDRESS_LIMIT - 1))[after]
    table = np.stack([*table[:3], np.minimum(memsz, begins - paddr)])
    return table[:, table[3] != 0]


def _check(
    file: ByteFile,
    paddr: NDArray[np.uint64],
    offset: NDArray[np.uint64],
    filesz: NDArray[np.uint64],
    memsz: NDArray[np.uint64],
) -> None:
    size = np.uint64(file.size)
    # Of memory that is not in the file, QEMU says that it is at -1.
    outside = (filesz > size) | ((offset > size - np.minimum(filesz, size)) & (filesz > 0))
    if outside.any():
        at = int(outside.argmax())
        raise FormatError(
            f"the memory at {int(paddr[at]):#x} ends at {int(offset[at]) + int(filesz[at]):#x}, the file at "
            f"{file.size:#x}: it is cut short",
            path=file.path,
            offset=int(offset[at]),
        )
    wrong = (filesz > memsz) | (memsz - np.uint64(1) > ~paddr)
    if wrong.any():
        raise FormatError(
            f"the PT_LOAD of {int(paddr[wrong.argmax()]):#x} contradicts itself", path=file.path
        )


def _join(file: ByteFile, table: NDArray[np.uint64], overlapping: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Join PT_LOADs that show the same bytes at the same address; give the index of the first of each block.

    In a dump with virtual mappings a block is also cut where virtual addresses jump: those pieces are joined.
    """
    paddr, offset, filesz, memsz = table
    ends = np.maximum.accumulate(paddr + memsz)
    filled = np.maximum.accumulate(paddr + filesz)
    if ends[-1] < memsz[-1]:
        raise FormatError("PT_LOADs overlap, and one ends at 2^64", path=file.path)
    whole = filled[:-1] == ends[:-1]
    touching = whole & (paddr[1:] == ends[:-1]) & (offset[1:] - offset[:-1] == paddr[1:] - paddr[:-1])
    firsts = np.flatnonzero(np.append(True, ~(overlapping | touching)))
    first = np.repeat(firsts, np.diff(np.append(firsts, len(paddr))))
    same = offset - offset[first] == paddr - paddr[first]
    wrong = ~same
    wrong[1:] |= overlapping & ~whole & ((paddr + filesz)[1:] > filled[:-1])
    if wrong.any():
        address = int(paddr[wrong.argmax()])
        raise LayoutError(
            f"{file.path}: two PT_LOADs hold the address {address:#x}, with different bytes", address=address
        )
    return firsts
