"""Read the headers and notes of an ELF core, wherever its bytes come from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError
from vmdump.formats.elf import (
    EHDR,
    EI_CLASS,
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
from vmdump.formats.notes import NOTE_ALIGN, iter_notes
from vmdump.units import align_up

__all__ = ["ElfHeaders", "read_headers"]

_IDENT_SIZE = 16
_MAX_NOTES = 64 << 20
"""Bytes where the size of the core is not known: 16 KiB for each of 4096 vCPUs."""
_MAX_HEADERS = 1 << 20
"""56 MiB of them. A dump with virtual mappings has one for each run of addresses, a guest of 128 MiB 162."""
_NOWHERE: dict[ElfClass, int] = {32: (1 << 32) - 1, 64: (1 << 64) - 1}
"""p_paddr, by class, of what has no physical address: in /proc/kcore that is vmalloc, say, with 32 TiB at an
offset far behind the end of any file."""
_PAGE_OFFSET = 0xFFF
_NO_CORES = {
    1: "an object file or a kernel module",
    2: "a program or a kernel image (vmlinux)",
    3: "a program, a library or a kernel image (vmlinux)",
}
"""What ELF files of other types are, by e_type."""
_CLASSES: dict[int, ElfClass] = {code: elf_class for elf_class, code in ELFCLASS.items()}  # type: ignore[misc]
_ORDERS: dict[int, ByteOrder] = {code: order for order, code in ELFDATA.items()}


class ElfHeaders(NamedTuple):
    """What an ELF core says in front of its memory.

    Attributes
    ----------
    elf_class : int
        32 or 64.
    byteorder : str
        ``little`` or ``big``.
    machine : int
        e_machine.
    loads : structured array
        The PT_LOADs that have a physical address, in the order of the file, with the fields of `PHDR`.
    notes : bytes
        The contents of all PT_NOTEs, each note checked to lie inside.
    flags : int
        e_flags.
    header_size : int
        e_ehsize.
    unplaced : int
        PT_LOADs without a physical address.
    lost_notes : bool
        Notes are damaged or missing; `notes` are those in front of them.
    """

    elf_class: ElfClass
    byteorder: ByteOrder
    machine: int
    loads: NDArray[np.void]
    notes: bytes
    flags: int = 0
    header_size: int = 0
    unplaced: int = 0
    lost_notes: bool = False


def read_headers(
    read: Callable[[int, int], bytes], *, path: str, max_notes: int = _MAX_NOTES, damaged: bool = False
) -> ElfHeaders:
    """Read and check the headers and notes of an ELF core.

    Parameters
    ----------
    read : callable
        ``(offset, length) -> bytes``; raises FormatError where the core does not hold that many.
    path : str
        Named in errors.
    max_notes : int
        Bytes that all notes together may have; the size of the core, where that is known.
    damaged : bool
        Take the notes in front of one that is damaged or missing.

    Raises
    ------
    FormatError
        It is not an ELF core, or a header or note contradicts itself.
    """
    magic = read(0, _IDENT_SIZE)
    elf_class, byteorder = _CLASSES.get(magic[EI_CLASS]), _ORDERS.get(magic[EI_DATA])
    if not magic.startswith(ELFMAG) or elf_class is None or byteorder is None:
        raise FormatError("invalid ELF class or byte order", path=path, offset=0)
    header = EHDR[elf_class].unpack(read(0, EHDR[elf_class].size), 0, byteorder, path=path)
    if header["e_type"] != ET_CORE:
        what = _NO_CORES.get(header["e_type"])
        is_one = f"; this is {what}, which has no memory of a guest" if what else ""
        raise FormatError(f"ELF type {header['e_type']} is not a core file{is_one}", path=path, offset=16)
    layout = PHDR[elf_class]
    count = header["e_phnum"]
    if count == PN_XNUM and header["e_shoff"]:
        section = read(header["e_shoff"], SHDR[elf_class].size)
        count = SHDR[elf_class].unpack(section, 0, byteorder)["sh_info"]
    if header["e_phentsize"] != layout.size:
        raise FormatError(
            f"program headers of {header['e_phentsize']} bytes, not {layout.size}", path=path, offset=0
        )
    if count > _MAX_HEADERS:
        raise FormatError(
            f"{count} program headers, more than {_MAX_HEADERS}", path=path, offset=header["e_phoff"]
        )
    table = np.frombuffer(read(header["e_phoff"], count * layout.size), layout.dtype(byteorder))
    noted = table[table["p_type"] == PT_NOTE]
    noted = noted[noted["p_filesz"] != 0]
    segments = list(zip(noted["p_offset"].tolist(), noted["p_filesz"].tolist(), strict=True))
    notes, lost_notes = b"", False
    try:
        total = sum(size for _, size in segments)
        if total > max_notes:
            raise FormatError(f"notes of {total} bytes in all are more than the file holds", path=path)
        notes = b"".join(
            [read(offset, size).ljust(align_up(size, NOTE_ALIGN), b"\0") for offset, size in segments]
        )
        for _ in iter_notes(notes, byteorder, path=path):
            pass
    except FormatError:
        if not damaged:
            raise
        notes, lost_notes = _whole_notes(notes, byteorder), True
    loads = table[table["p_type"] == PT_LOAD]
    placed = _placed(loads, elf_class)
    return ElfHeaders(
        elf_class,
        byteorder,
        header["e_machine"],
        loads[placed],
        notes,
        header["e_flags"],
        header["e_ehsize"],
        int(np.count_nonzero(~placed)),
        lost_notes,
    )


def _placed(loads: NDArray[np.void], elf_class: ElfClass) -> NDArray[np.bool_]:
    """Tell which PT_LOADs have a physical address."""
    paddr = loads["p_paddr"]
    nowhere = paddr == np.array(_NOWHERE[elf_class], paddr.dtype)
    if elf_class == 64:
        # A 32-bit one in a 64-bit core. A range of memory may begin there; its virtual address would, too.
        vaddr = loads["p_vaddr"]
        moved = (vaddr != 0) & (vaddr & np.array(_PAGE_OFFSET, vaddr.dtype) != _PAGE_OFFSET)
        nowhere |= (paddr == np.array(_NOWHERE[32], paddr.dtype)) & moved
    # The last byte of all addresses, which a range of LiME may be.
    placed: NDArray[np.bool_] = ~nowhere | (loads["p_memsz"] == 1)
    return placed


def _whole_notes(notes: bytes, byteorder: ByteOrder) -> bytes:
    """Give the notes in front of the first one that is damaged."""
    end = 0
    with suppress(FormatError):
        for note in iter_notes(notes, byteorder):
            end = note.end
    return notes[:end]
