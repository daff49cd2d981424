"""ELF cores of both classes and byte orders as guests: PT_LOADs are the blocks, notes are kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import arch_of_elf
from vmdump.errors import FormatError, LayoutError
from vmdump.formats.elf_headers import read_headers
from vmdump.readers.dump import Dump
from vmdump.readers.file import PlainBytes
from vmdump.sources.base import Block
from vmdump.sources.files import FileMemory
from vmdump.units import ADDRESS_LIMIT

__all__ = ["ElfDump"]


class ElfDump(Dump):
    """An ELF core file.

    Blocks are the PT_LOADs by physical address; PT_LOADs that show the same bytes of the file at the same
    address, as a dump with virtual mappings has them, become one.

    Parameters
    ----------
    file : PlainBytes
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

    def __init__(self, file: PlainBytes) -> None:
        self._file = file
        self.files = (file,)
        headers = read_headers(file.read, path=file.path, max_notes=file.size)
        super().__init__(
            list(_blocks(file, headers.loads)),
            arch_of_elf(headers.machine, headers.elf_class, headers.byteorder),
            byteorder=headers.byteorder,
            elf_class=headers.elf_class,
            notes=headers.notes,
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _blocks(file: PlainBytes, loads: NDArray[np.void]) -> Iterator[Block]:
    fields = ("p_paddr", "p_offset", "p_filesz", "p_memsz")
    segments = sorted(tuple(int(load[name]) for name in fields) for load in loads if load["p_memsz"])
    start = offset = filled = size = 0
    for paddr, p_offset, filesz, memsz in segments:
        if p_offset + filesz > file.size:
            raise FormatError(
                f"the memory at {paddr:#x} ends at {p_offset + filesz:#x}, the file at {file.size:#x}: "
                "it is cut short",
                path=file.path,
                offset=p_offset,
            )
        if filesz > memsz or paddr + memsz > ADDRESS_LIMIT:
            raise FormatError(f"the PT_LOAD of {paddr:#x} contradicts itself", path=file.path)
        if size and paddr < start + size:
            same_bytes = p_offset - offset == paddr - start
            whole = filled == size or paddr + filesz <= start + filled
            if not same_bytes or not whole:
                raise LayoutError(
                    f"{file.path}: two PT_LOADs hold the address {paddr:#x}, with different bytes",
                    address=paddr,
                )
            filled = max(filled, paddr + filesz - start)
            size = max(size, paddr + memsz - start)
            continue
        if size:
            yield Block(start, FileMemory(file, offset, size, filled))
        start, offset, filled, size = paddr, p_offset, filesz, memsz
    if size:
        yield Block(start, FileMemory(file, offset, size, filled))
