"""What is left of an ELF core that was cut short, or whose notes are damaged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError
from vmdump.formats.elf_headers import ElfHeaders
from vmdump.guest.blocks import MIN_PAGE_SIZE
from vmdump.readers.contents import Contents
from vmdump.readers.elf import ElfDump, extents

__all__ = ["SalvagedElf"]


class SalvagedElf(ElfDump):
    """The memory of a core in front of its end, and the notes in front of one that is damaged.

    The rest of the memory is excluded.

    Parameters
    ----------
    contents : Contents
        One file.

    Raises
    ------
    FormatError
        None of its memory is left; and as of :class:`vmdump.readers.elf.ElfDump`.
    """

    _damaged = True

    def __init__(self, contents: Contents) -> None:
        self._lost_bytes, self._lost_notes = 0, False
        super().__init__(contents)
        self.incomplete = self.incomplete or self._lost_bytes > 0 or self._lost_notes

    @property
    def lost_pages(self) -> int:
        """Pages that the core does not have any more."""
        return -(-self._lost_bytes // self.page_size)

    def _usable(self, headers: ElfHeaders, file_size: int) -> NDArray[np.void]:
        loads = _cut_short(headers.loads, file_size)
        if not len(loads):
            raise FormatError("it ends before any memory", path=self.path)
        before, after = (extents(table) for table in (headers.loads, loads))
        self._lost_bytes = int(np.sum(before[:, 1] - before[:, 0]) - np.sum(after[:, 1] - after[:, 0]))
        self._lost_notes = headers.lost_notes
        return loads


def _cut_short(loads: NDArray[np.void], size: int) -> NDArray[np.void]:
    """Cut PT_LOADs where the file ends, in whole pages; the zeros behind their bytes are kept."""
    offset, filesz, memsz = (loads[name].astype(np.uint64) for name in ("p_offset", "p_filesz", "p_memsz"))
    paddr = loads["p_paddr"].astype(np.uint64)
    there = np.minimum(np.uint64(size) - np.minimum(offset, np.uint64(size)), filesz)
    cut = there < filesz
    there = np.where(cut, there - np.minimum((paddr + there) % np.uint64(MIN_PAGE_SIZE), there), there)
    kept, zeros = loads.copy(), loads[cut & (memsz > filesz)]
    kept["p_filesz"] = there
    kept["p_memsz"] = np.where(cut, there, memsz)
    kept["p_offset"] = np.where(there, offset, np.uint64(0))
    zeros["p_paddr"] += zeros["p_filesz"]
    zeros["p_memsz"] -= zeros["p_filesz"]
    zeros["p_offset"] = zeros["p_filesz"] = 0
    return np.concatenate((kept[kept["p_memsz"] != 0], zeros))
