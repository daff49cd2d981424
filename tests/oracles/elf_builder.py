"""Builds ELF cores, sane and otherwise, from a list of segments; with struct and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

PT_LOAD, PT_NOTE, PN_XNUM = 1, 4, 0xFFFF
EM_386, EM_PPC, EM_PPC64, EM_ARM, EM_X86_64, EM_AARCH64, EM_RISCV = 3, 20, 21, 40, 62, 183, 243


@dataclass(frozen=True)
class Load:
    """A PT_LOAD.

    `memsz`, `filesz`, `offset` and `vaddr` default to what `data` and the layout give; another value goes
    into the program header as it is, true or not. `alias` makes the segment share the data of the segment
    with that index, as the views of one page by several virtual addresses do.
    """

    paddr: int
    data: bytes = b""
    memsz: int | None = None
    filesz: int | None = None
    offset: int | None = None
    vaddr: int | None = None
    alias: int | None = None


def note(name: bytes, kind: int, desc: bytes, byteorder: str = "little") -> bytes:
    """One ELF note with its padding; `name` without NUL."""
    prefix = "<" if byteorder == "little" else ">"
    name += b"\0"
    header = struct.pack(prefix + "III", len(name), len(desc), kind)
    return header + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)


def build_elf(
    loads: Sequence[Load],
    *,
    notes: bytes = b"",
    bits: int = 64,
    byteorder: str = "little",
    machine: int = EM_X86_64,
    sections_first: bool = False,
    xnum: bool = False,
    align: int = 1,
    phnum: int | None = None,
    phoff: int | None = None,
    e_type: int = 4,
) -> bytes:
    """Build the file.

    Parameters
    ----------
    sections_first : bool
        QEMU's order: two section headers between the ELF header and the program headers, e_ehsize 8.
    xnum : bool
        Say PN_XNUM and put the number of program headers into a section header, whatever that number is.
    align : int
        File alignment of each segment's data.
    phnum, phoff : int or None
        What e_phnum (or sh_info) and e_phoff claim, if not the truth.
    """
    wide = bits == 64
    prefix = "<" if byteorder == "little" else ">"
    ehdr_size, phdr_size, shdr_size = (64, 56, 64) if wide else (52, 32, 40)
    sections = 2 if sections_first else int(xnum)
    count = len(loads) + 1
    table = ehdr_size + (sections * shdr_size if sections_first else 0)
    sections_at = ehdr_size if sections_first else ehdr_size + count * phdr_size
    notes_at = table + count * phdr_size + (0 if sections_first else sections * shdr_size)

    position = notes_at + len(notes)
    places: list[int] = []
    for load in loads:
        position = -(-position // align) * align
        places.append(position if load.alias is None else places[load.alias])
        position += len(load.data)

    claimed = count if phnum is None else phnum
    code = "Q" if wide else "I"
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1 if byteorder == "little" else 2, 1)) + bytes(9)
    head = ident + struct.pack(
        prefix + "HHI" + 3 * code + "I6H",
        e_type, machine, 1, 0, table if phoff is None else phoff, sections_at if sections else 0, 0,
        8 if sections_first else ehdr_size, phdr_size, PN_XNUM if xnum else claimed,
        shdr_size if sections else 0, sections, 0,
    )  # fmt: skip
    # sh_name, type, flags, addr, offset, size, link, info, addralign, entsize: only info counts.
    shdr_format = prefix + "II" + 4 * code + "II" + 2 * code
    section_headers = struct.pack(shdr_format, 0, 0, 0, 0, 0, 0, 0, claimed if xnum else 0, 0, 0)
    section_headers += bytes(shdr_size * (sections - 1)) if sections > 1 else b""
    section_headers = section_headers[: sections * shdr_size]

    def phdr(kind: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int) -> bytes:
        if wide:
            return struct.pack(prefix + "IIQQQQQQ", kind, 0, offset, vaddr, paddr, filesz, memsz, 0)
        return struct.pack(prefix + "8I", kind, offset, vaddr, paddr, filesz, memsz, 0, 0)

    headers = [phdr(PT_NOTE, notes_at, 0, 0, len(notes), len(notes))]
    for load, place in zip(loads, places, strict=True):
        size = len(load.data if load.alias is None else loads[load.alias].data)
        filesz = size if load.filesz is None else load.filesz
        headers.append(
            phdr(
                PT_LOAD,
                place if load.offset is None else load.offset,
                load.paddr if load.vaddr is None else load.vaddr,
                load.paddr,
                filesz,
                filesz if load.memsz is None else load.memsz,
            )
        )
    parts = [head, section_headers, *headers] if sections_first else [head, *headers, section_headers]
    image = bytearray(b"".join([*parts, notes]))
    for load, place in zip(loads, places, strict=True):
        if load.data:
            image.extend(bytes(place - len(image)))
            image.extend(load.data)
    return bytes(image)
