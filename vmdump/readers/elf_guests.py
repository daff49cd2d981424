"""Refuse ELF cores that hold no guest: those of a process, and those of Xen."""

from __future__ import annotations

import os
import shlex

import numpy as np

from vmdump.errors import CapabilityError
from vmdump.formats.elf import EHDR, EI_CLASS, EI_DATA, ELFCLASS, ELFDATA, ET_CORE
from vmdump.formats.elf_headers import ElfHeaders
from vmdump.formats.notes import VMCOREINFO_NAME, Note, iter_notes
from vmdump.readers.bytes.file import ByteFile

__all__ = ["check_guest", "check_segments"]

_PROCESS_NOTES = {6: "NT_AUXV", 0x46494C45: "NT_FILE", 0x53494749: "NT_SIGINFO"}
"""Notes of the name CORE that the kernel, or gcore, writes for processes only."""
_NT_PRPSINFO = 3
_FNAME = {32: (28, 44), 64: (40, 56)}
"""Where pr_fname, 16 bytes, and pr_psargs, 80 bytes, are in NT_PRPSINFO, by class."""


def check_segments(file: ByteFile) -> None:
    """Refuse a core that describes its memory by sections, as Xen's are.

    Raises
    ------
    CapabilityError
        It is such a core.
    """
    head = file.read(0, min(EHDR[64].size, file.size))
    elf_class = next(
        (key for key, code in ELFCLASS.items() if head[EI_CLASS : EI_CLASS + 1] == bytes([code])), 0
    )
    order = next((key for key, code in ELFDATA.items() if head[EI_DATA : EI_DATA + 1] == bytes([code])), None)
    if order is None or elf_class not in EHDR or len(head) < EHDR[elf_class].size:
        return
    header = EHDR[elf_class].unpack(head, 0, order)
    if header["e_type"] == ET_CORE and not header["e_phnum"] and header["e_shnum"]:
        raise CapabilityError(
            f"{file.path}: this is a core of sections without segments (xl dump-core of Xen), which vmdump "
            "does not read; volatility3 writes it as raw memory: vol -f "
            f"{shlex.quote(file.path)} layerwriter.LayerWriter"
        )


def check_guest(headers: ElfHeaders, path: str) -> None:
    """Refuse the core of a process: it has no guest-physical memory.

    Raises
    ------
    CapabilityError
        It is such a core.
    """
    notes = list(iter_notes(headers.notes, headers.byteorder))
    if any(note.name == VMCOREINFO_NAME for note in notes):
        return
    loads = headers.loads[headers.loads["p_filesz"] > 0]
    # Without physical addresses, all memory would be at 0: different bytes of the file at one address.
    unplaced = len(loads) > 1 and not loads["p_paddr"].any() and len(np.unique(loads["p_offset"])) > 1
    told = [name for kind, name in _PROCESS_NOTES.items() if _has(notes, kind)]
    if not told and not unplaced:
        return
    why = f"it has {told[0]}" if told else "all its memory is at the physical address 0"
    program = _program(notes, headers.elf_class)
    if not os.path.basename(program).startswith(("qemu", "kvm")):
        raise CapabilityError(f"{path}: this is the core of a process, not of a guest ({why})")
    arch = "X86_64" if program.endswith("x86_64") else "ARCH"
    script = shlex.quote(f"dump-guest-memory {shlex.quote(f'{path}.elf')} {arch}")
    raise CapabilityError(
        f"{path}: this is the core of the process {os.path.basename(program)}, not of its guest ({why}); "
        "QEMU's script for gdb extracts the guest: gdb --batch -ex 'source dump-guest-memory.py' "
        f"-ex {script} {shlex.quote(program)} {shlex.quote(path)}"
    )


def _program(notes: list[Note], elf_class: int) -> str:
    """Give the program of a process; the first word of its command line has the whole name, usually."""
    desc = next((note.desc for note in notes if note.name == b"CORE" and note.type == _NT_PRPSINFO), b"")
    name, words = (desc[at:].split(b"\0", 1)[0].decode("ascii", "replace") for at in _FNAME[elf_class])
    name, first = name[:15], words[:80].partition(" ")[0]  # the kernel's names have 15 characters
    return first if os.path.basename(first).startswith(name) else name


def _has(notes: list[Note], kind: int) -> bool:
    return any(note.name == b"CORE" and note.type == kind for note in notes)
