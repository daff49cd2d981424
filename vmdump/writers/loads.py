"""PT_LOADs of an ELF core: which memory lies where in the file, and under which virtual addresses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging import Runs
from vmdump.formats.elf import PHDR, PT_LOAD, PT_NOTE, ElfClass
from vmdump.formats.layout import ByteOrder
from vmdump.guest.guest import Guest
from vmdump.pipeline.plan import Slice, chosen_blocks

__all__ = ["Selection", "cut_mappings", "program_headers"]

_Column = NDArray[np.uint64]
_LOAD_FIELDS = ("p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz")
_Loads = tuple[_Column, _Column, _Column, _Column, _Column]
"""The columns of a program header table by `_LOAD_FIELDS`."""

_NOWHERE = np.uint64((1 << 64) - 1)
"""p_offset of memory that is not in the file, as QEMU has it."""


@dataclass(frozen=True)
class Selection:
    """Which memory a core has, and by what it is described.

    Attributes
    ----------
    within : (int, int) or None
        First guest-physical address that is dumped, and bytes; None for all.
    paging : bool
        By the guest's page tables.
    """

    within: tuple[int, int] | None = None
    paging: bool = False

    def slices(self, guest: Guest) -> list[Slice]:
        """Choose the memory of a guest.

        Raises
        ------
        RequestError
            The range has no memory in it.
        """
        return chosen_blocks(guest.blocks, self.within)

    def mappings(self, guest: Guest, *, as_qemu: bool = False) -> Runs | None:
        """List what the page tables map to that memory, as :meth:`Guest.mappings` does; None without paging.

        Raises
        ------
        CapabilityError, TranslationError, SourceError
            Walking the page tables failed.
        """
        if not self.paging:
            return None
        runs = guest.mappings(as_qemu=as_qemu)
        if self.within is None:
            return runs
        begin, length = self.within
        return runs.clipped(begin, begin + length)


def program_headers(
    elf_class: ElfClass,
    byteorder: ByteOrder,
    notes: tuple[int, int],
    starts: _Column,
    sizes: _Column,
    spans: _Column,
    offsets: _Column,
    mappings: Runs | None,
) -> NDArray[np.void]:
    """Make the program header table of a core: the notes, then memory.

    Parameters
    ----------
    elf_class, byteorder
        Of the file.
    notes : (int, int)
        File offset and bytes.
    starts, sizes, spans, offsets : (n,) uint64
        Guest-physical address of each piece of memory, ascending, its bytes in the file and in memory, and
        its file offset.
    mappings : Runs or None
        One PT_LOAD each; without them, one for each piece, by its guest-physical address.

    Returns
    -------
    (1 + loads,) of PHDR
    """
    columns: _Loads = (offsets, starts, starts, sizes, spans)
    if mappings is not None:
        columns = _virtual_loads(starts, sizes, offsets, mappings)
    table: NDArray[np.void] = np.zeros(1 + len(columns[0]), PHDR[elf_class].dtype(byteorder))
    table[0]["p_type"] = PT_NOTE
    table[0]["p_offset"], size = notes
    table[0]["p_filesz"] = table[0]["p_memsz"] = size
    table[1:]["p_type"] = PT_LOAD
    for name, column in zip(_LOAD_FIELDS, columns, strict=True):
        table[1:][name] = column
    return table


def _virtual_loads(starts: _Column, sizes: _Column, offsets: _Column, mappings: Runs) -> _Loads:
    """Describe memory by a list of mappings.

    A mapping may begin in one piece of memory and end beyond it: what is beyond is not in its PT_LOAD, which
    is then longer in memory than in the file.
    """
    physical, size = mappings.physical, mappings.size
    piece = np.searchsorted(starts, physical, side="right").astype(np.intp) - 1
    inside = piece >= 0
    piece = np.maximum(piece, 0)
    skipped = physical - starts[piece]
    inside &= skipped < sizes[piece]
    filled = np.where(inside, np.minimum(size, sizes[piece] - skipped), np.uint64(0))
    return np.where(inside, offsets[piece] + skipped, _NOWHERE), mappings.virtual, physical, filled, size


def cut_mappings(mappings: Runs, starts: _Column, sizes: _Column) -> Runs:
    """Cut mappings where memory is excluded: it would be read as zeros.

    Parameters
    ----------
    mappings : Runs
        In any order.
    starts, sizes : (n,) uint64
        What is in the file, ascending.
    """
    lasts = starts + (sizes - np.uint64(1))
    ends = mappings.physical + (mappings.size - np.uint64(1))
    first = np.searchsorted(lasts, mappings.physical).astype(np.intp)
    count = np.searchsorted(starts, ends, side="right").astype(np.intp) - first
    whole = mappings.take(np.repeat(np.arange(len(first)), count))
    piece = np.arange(len(whole.size)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    low = np.maximum(whole.physical, starts[piece])
    high = np.minimum(whole.physical + (whole.size - np.uint64(1)), lasts[piece])
    return Runs(whole.virtual + (low - whole.physical), low, high - low + np.uint64(1), whole.page)
