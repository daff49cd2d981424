"""ELF cores of both classes and byte orders as guests: PT_LOADs are the blocks, notes are kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import arch_of_elf
from vmdump.errors import FormatError, LayoutError
from vmdump.formats.elf import (
    EHDR,
    EI_DATA,
    ELFCLASS,
    ELFDATA,
    ELFMAG,
    ET_CORE,
    PHDR,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    SHDR,
    ElfClass,
)
from vmdump.formats.layout import ByteOrder
from vmdump.formats.notes import iter_notes
from vmdump.readers.dump import Dump
from vmdump.readers.file import PlainBytes
from vmdump.sources.base import Block
from vmdump.sources.files import FileMemory
from vmdump.units import ADDRESS_LIMIT

__all__ = ["ElfDump"]

_EI_CLASS = 4
_MAX_NOTES = 64 << 20
"""Bytes: 16 KiB for each of 4096 vCPUs."""
_CLASSES: dict[int, ElfClass] = {code: elf_class for elf_class, code in ELFCLASS.items()}  # type: ignore[misc]
_ORDERS: dict[int, ByteOrder] = {code: order for order, code in ELFDATA.items()}


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
        path = file.path
        ident = file.read(0, 16)
        elf_class, byteorder = _CLASSES.get(ident[_EI_CLASS]), _ORDERS.get(ident[EI_DATA])
        if not ident.startswith(ELFMAG) or elf_class is None or byteorder is None:
            raise FormatError("no ELF class or byte order that exists", path=path, offset=0)
        header = EHDR[elf_class].unpack(file.read(0, EHDR[elf_class].size), 0, byteorder, path=path)
        if header["e_type"] != ET_CORE:
            raise FormatError(f"ELF type {header['e_type']} is no core file", path=path, offset=16)
        table = _program_headers(file, elf_class, byteorder, header)
        notes = _notes(file, table[table["p_type"] == PT_NOTE])
        for _ in iter_notes(notes, byteorder, path=path):
            pass
        super().__init__(
            list(_blocks(file, table[table["p_type"] == PT_LOAD])),
            arch_of_elf(header["e_machine"], elf_class, byteorder),
            byteorder=byteorder,
            elf_class=elf_class,
            notes=notes,
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _notes(file: PlainBytes, segments: NDArray[np.void]) -> bytes:
    total = sum(int(segment["p_filesz"]) for segment in segments)
    if total > min(file.size, _MAX_NOTES):
        raise FormatError(f"notes of {total} bytes in all cannot be", path=file.path)
    return b"".join(file.read(int(segment["p_offset"]), int(segment["p_filesz"])) for segment in segments)


def _program_headers(
    file: PlainBytes, elf_class: ElfClass, byteorder: ByteOrder, header: dict[str, int]
) -> NDArray[np.void]:
    layout = PHDR[elf_class]
    count = header["e_phnum"]
    if count == PN_XNUM and header["e_shoff"]:
        section = file.read(header["e_shoff"], SHDR[elf_class].size)
        count = SHDR[elf_class].unpack(section, 0, byteorder)["sh_info"]
    if header["e_phentsize"] != layout.size:
        raise FormatError(
            f"program headers of {header['e_phentsize']} bytes, not {layout.size}", path=file.path, offset=0
        )
    raw = file.read(header["e_phoff"], count * layout.size)
    return np.frombuffer(raw, layout.dtype(byteorder))


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
