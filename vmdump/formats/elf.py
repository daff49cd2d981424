"""ELF core files: headers in both classes.

Source of every width and constant: the System V ABI, chapters 4 and 5, and
for PN_XNUM its 2009 extension ("the real count is in sh_info of section 0").
"""

from __future__ import annotations

from typing import Literal

from vmdump.formats.layout import ByteOrder, Field, Layout

__all__ = [
    "EF_INCOMPLETE",
    "EHDR",
    "EI_CLASS",
    "EI_DATA",
    "ELFCLASS",
    "ELFDATA",
    "ELFMAG",
    "ET_CORE",
    "EV_CURRENT",
    "PHDR",
    "PN_XNUM",
    "PT_LOAD",
    "PT_NOTE",
    "SHDR",
    "SHT_STRTAB",
    "XNUM_THRESHOLD",
    "ElfClass",
    "ident",
]

ElfClass = Literal[32, 64]

ELFMAG = b"\x7fELF"
ELFCLASS: dict[int, int] = {32: 1, 64: 2}
ELFDATA: dict[ByteOrder, int] = {"little": 1, "big": 2}
EI_CLASS, EI_DATA = 4, 5
EV_CURRENT = 1
ET_CORE = 4
EF_INCOMPLETE = 1
"""Bit of e_flags, as makedumpfile has it: memory is missing that should be there."""
PT_LOAD = 1
PT_NOTE = 4
SHT_STRTAB = 3
PN_XNUM = 0xFFFF
XNUM_THRESHOLD = 0xFFFD
"""From this many PT_LOADs on, QEMU counts in a section header instead of e_phnum."""


def _ehdr(word: str) -> tuple[Field, ...]:
    return (
        Field("e_ident", "S16"),
        Field("e_type", "u2"),
        Field("e_machine", "u2"),
        Field("e_version", "u4"),
        Field("e_entry", word),
        Field("e_phoff", word),
        Field("e_shoff", word),
        Field("e_flags", "u4"),
        Field("e_ehsize", "u2"),
        Field("e_phentsize", "u2"),
        Field("e_phnum", "u2"),
        Field("e_shentsize", "u2"),
        Field("e_shnum", "u2"),
        Field("e_shstrndx", "u2"),
    )


EHDR: dict[int, Layout] = {32: Layout("ELF header", _ehdr("u4")), 64: Layout("ELF header", _ehdr("u8"))}

PHDR: dict[int, Layout] = {
    32: Layout(
        "ELF program header",
        (
            Field("p_type", "u4"),
            Field("p_offset", "u4"),
            Field("p_vaddr", "u4"),
            Field("p_paddr", "u4"),
            Field("p_filesz", "u4"),
            Field("p_memsz", "u4"),
            Field("p_flags", "u4"),
            Field("p_align", "u4"),
        ),
    ),
    64: Layout(
        "ELF program header",
        (
            Field("p_type", "u4"),
            Field("p_flags", "u4"),
            Field("p_offset", "u8"),
            Field("p_vaddr", "u8"),
            Field("p_paddr", "u8"),
            Field("p_filesz", "u8"),
            Field("p_memsz", "u8"),
            Field("p_align", "u8"),
        ),
    ),
}


def _shdr(word: str) -> tuple[Field, ...]:
    return (
        Field("sh_name", "u4"),
        Field("sh_type", "u4"),
        Field("sh_flags", word),
        Field("sh_addr", word),
        Field("sh_offset", word),
        Field("sh_size", word),
        Field("sh_link", "u4"),
        Field("sh_info", "u4"),
        Field("sh_addralign", word),
        Field("sh_entsize", word),
    )


SHDR: dict[int, Layout] = {
    32: Layout("ELF section header", _shdr("u4")),
    64: Layout("ELF section header", _shdr("u8")),
}


def ident(elf_class: ElfClass, byteorder: ByteOrder) -> bytes:
    """Build the 16 bytes of e_ident."""
    return ELFMAG + bytes((ELFCLASS[elf_class], ELFDATA[byteorder], EV_CURRENT)) + bytes(9)
