"""The byte order of a POWER guest, which QEMU before 8.1 takes from the wrong register.

On the machine pseries it looks at HID0, which is for kernels without a hypervisor above them, and takes
every guest for a big-endian one; crash does not open such a dump of a little-endian kernel.
"""

from __future__ import annotations

from vmdump.arch.ppc64 import BIG, LITTLE
from vmdump.formats.elf_headers import ElfHeaders
from vmdump.formats.notes import build_note, iter_notes

__all__ = ["in_guests_byte_order"]

_MSR_LE = 1
"""Bit of the machine state register: what this vCPU runs is little-endian."""
_MSR_PR = 1 << 14
"""That is a program, which may have another byte order than the kernel."""


def in_guests_byte_order(headers: ElfHeaders) -> ElfHeaders:
    """Turn the headers and notes of a little-endian POWER guest that are big-endian; others are as they are.

    Parameters
    ----------
    headers : ElfHeaders
        QEMU's.

    Raises
    ------
    FormatError
        A note is longer than the notes.
    """
    if headers.machine != BIG.machine or headers.byteorder != "big":
        return headers
    cpus = BIG.cpus(headers.notes)
    states = [cpu.get("msr", 0) for cpu in cpus]
    # One vCPU is enough: firmware, and one that was not started yet, are big-endian.
    if not any(state & _MSR_LE for state in [state for state in states if not state & _MSR_PR] or states):
        return headers
    registers = {(kind.name, kind.type) for kind in BIG.register_notes}
    others = (
        build_note(note.name, note.type, note.desc, "little")
        for note in iter_notes(headers.notes, "big")
        if (note.name, note.type) not in registers
    )
    return headers._replace(byteorder="little", notes=LITTLE.notes(cpus) + b"".join(others))
