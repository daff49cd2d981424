"""ELF cores of both classes and byte orders as guests: PT_LOADs are the blocks, notes are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import arch_of_elf
from vmdump.errors import FormatError
from vmdump.formats.elf import EF_INCOMPLETE
from vmdump.formats.elf_headers import ElfHeaders, read_headers
from vmdump.formats.notes import VMCOREINFO_NAME, VMDUMP_NAME, iter_notes, read_blocks, split_notes
from vmdump.guest.blocks import BlockList
from vmdump.readers.bytes.file import ByteFile, most_notes
from vmdump.readers.contents import Contents
from vmdump.readers.elf_guests import check_guest, check_segments
from vmdump.readers.elf_overlaps import blocks_of_copies
from vmdump.readers.pieces import PieceList, PiecesDump
from vmdump.units import ADDRESS_LIMIT, merge_runs

__all__ = ["ElfDump", "extents"]

_QEMU_HEADER_SIZE = 8
"""QEMU 7.2 and later write this for e_ehsize."""


class ElfDump(PiecesDump):
    """An ELF core file.

    Blocks are the PT_LOADs by physical address; PT_LOADs that show the same bytes of the file at the same
    address, as a dump with virtual mappings has them, become one, and so do those that hold the same bytes
    twice, as /proc/vmcore holds the kernel's text. PT_LOADs without a physical address are not memory. A note
    of vmdump lists the guest's blocks if pages are excluded: those of which no PT_LOAD has bytes in the file.

    Parameters
    ----------
    contents : Contents
        One file.

    Raises
    ------
    FormatError
        A header, note or segment is not inside the file, or it is not a core.
    LayoutError
        Two PT_LOADs hold different bytes for one address, or there is no PT_LOAD.
    CapabilityError
        The machine is not known, or it is the core of a process, or one of Xen.
    """

    format = "elf"
    _damaged = False

    def __init__(self, contents: Contents) -> None:
        self._take(contents.files)
        file = contents.file
        check_segments(file)
        headers = read_headers(file.read, path=file.path, max_notes=most_notes(file), damaged=self._damaged)
        check_guest(headers, file.path)
        if headers.unplaced and not len(headers.loads):
            raise FormatError(
                f"none of its {headers.unplaced} PT_LOADs has a physical address: not a guest's memory",
                path=file.path,
            )
        notes, told, erased = split_notes(headers.notes, headers.byteorder)
        self._eraseinfo = erased.desc if erased else b""
        self._header_size = headers.header_size
        loads = self._usable(headers, file.size)
        if told is not None:
            # What a PT_LOAD has of memory and not of the file is excluded, as what is in none.
            loads = loads.copy()
            loads["p_memsz"] = loads["p_filesz"]
        blocks = _blocks(file, loads)
        if told is not None or len(loads) != len(headers.loads) or (loads != headers.loads).any():
            table = extents(headers.loads) if told is None else read_blocks(told, headers.byteorder)
            self._pieces = PieceList(blocks, table, file.path)
            blocks = self._pieces.blocks
        super().__init__(
            blocks,
            arch_of_elf(headers.machine, headers.elf_class, headers.byteorder),
            byteorder=headers.byteorder,
            elf_class=headers.elf_class,
            notes=notes,
        )
        self.incomplete = bool(headers.flags & EF_INCOMPLETE)

    def _usable(self, headers: ElfHeaders, file_size: int) -> NDArray[np.void]:
        """Give the PT_LOADs whose bytes are taken."""
        return headers.loads

    @property
    def maker(self) -> str:
        """The program that wrote it, by its header and the names of its notes."""
        names = {note.name for note in iter_notes(self.notes, self.byteorder)}
        if VMDUMP_NAME in names:
            return "vmdump"
        if self._header_size == _QEMU_HEADER_SIZE:
            return "QEMU"
        if b"QEMU" in names:
            return "vmdump, makedumpfile -E, or QEMU before 7.2"
        return "Linux (kexec), makedumpfile or vmdump" if VMCOREINFO_NAME in names else ""

    @property
    def eraseinfo(self) -> bytes:
        """The text of makedumpfile's note ERASEINFO."""
        return self._eraseinfo


def extents(loads: NDArray[np.void]) -> NDArray[np.uint64]:
    """Give ``[begin, end)`` of the memory of all PT_LOADs, ascending; ranges that touch are one."""
    rows = zip(loads["p_paddr"].tolist(), loads["p_memsz"].tolist(), strict=True)
    runs = merge_runs(sorted((begin, min(begin + size, ADDRESS_LIMIT - 1)) for begin, size in rows if size))
    return np.array(list(runs), np.uint64).reshape(-1, 2)


def _covered(table: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Give ``[first, last]`` of all memory of a sorted table, ascending; what touches is one."""
    paddr, memsz = table[0], table[3]
    reach = np.maximum.accumulate(paddr + (memsz - np.uint64(1)))
    begins = np.flatnonzero(np.append(True, (paddr[1:] > reach[:-1]) & (paddr[1:] - reach[:-1] > 1)))
    return np.stack((paddr[begins], reach[np.append(begins[1:], len(paddr)) - 1]))


def _blocks(file: ByteFile, loads: NDArray[np.void]) -> BlockList:
    """Make blocks of PT_LOADs, without an object for each: a file of 64 MiB can have a million of them."""
    names = ("p_paddr", "p_offset", "p_filesz", "p_memsz")
    table = np.stack([loads[name].astype(np.uint64) for name in names])[:, loads["p_memsz"] != 0]
    paddr, offset, filesz, memsz = table = table[:, np.lexsort(table[::-1])]
    _check(file, paddr, offset, filesz, memsz)
    given = table
    if (filesz < memsz).any():
        paddr, offset, filesz, memsz = table = _without_shadowed(table)
        if not np.array_equal(_covered(given), _covered(table)):
            return blocks_of_copies(file, given)
    reach = np.maximum.accumulate(paddr + (memsz - np.uint64(1)))  # inclusive: nothing wraps at 2^64
    overlapping = paddr[1:] <= reach[:-1]
    firsts = np.arange(len(paddr))
    if overlapping.any():
        joined = _join(file, table, overlapping)
        if joined is None:
            return blocks_of_copies(file, given)
        firsts = joined
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
    """Cut the zeros behind a PT_LOAD's bytes in the file where another PT_LOAD has bytes.

    A mapping that begins in one piece of memory and ends in another one has the bytes of the first only.
    """
    paddr, offset, filesz, memsz = table
    filled = np.flatnonzero(filesz)
    # The first one with bytes that begins at or behind the end of each one's own bytes.
    after = np.searchsorted(paddr[filled], paddr + filesz)
    begins = np.append(paddr[filled], np.uint64(ADDRESS_LIMIT - 1))[after]
    ends = paddr + np.minimum(memsz, begins - paddr)
    # One without any bytes has nothing to add to those that began before it.
    reach = np.append(np.uint64(0), np.maximum.accumulate(paddr + filesz)[:-1])
    starts = np.where(filesz == 0, np.maximum(paddr, np.minimum(reach, ends)), paddr)
    table = np.stack([starts, offset, filesz, ends - starts])[:, ends != starts]
    return table[:, np.lexsort(table[::-1])]


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
            f"{file.size:#x}: it is cut short, see 'vmdump repair'",
            path=file.path,
            offset=int(offset[at]),
        )
    wrong = (filesz > memsz) | (memsz - np.uint64(1) > ~paddr)
    if wrong.any():
        raise FormatError(
            f"the PT_LOAD at {int(paddr[wrong.argmax()]):#x} contradicts itself", path=file.path
        )


def _join(
    file: ByteFile, table: NDArray[np.uint64], overlapping: NDArray[np.bool_]
) -> NDArray[np.intp] | None:
    """Join PT_LOADs that show the same bytes at the same address; give the index of the first of each block.

    In a dump with virtual mappings a block is also cut where virtual addresses jump: those pieces are joined.
    None where one address has bytes at two places of the file.
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
    return None if wrong.any() else firsts
