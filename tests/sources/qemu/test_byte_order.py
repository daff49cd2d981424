"""The byte order of POWER guests by what their vCPUs run, and the notes in it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from oracles.elf import split_notes
from oracles.elf_builder import EM_PPC64, EM_X86_64

from vmdump.arch import arch_by_name
from vmdump.formats.elf_headers import ElfHeaders
from vmdump.sources.qemu.byte_order import in_guests_byte_order

LITTLE, PROGRAM = 1, 1 << 14
MSR = 112 + 33 * 8
"""Its place in struct elf_prstatus."""
TEXT = b"PAGESIZE=65536\n\0"


def headers(states: tuple[int, ...], machine: int = EM_PPC64) -> ElfHeaders:
    notes = arch_by_name("ppc64").notes([{"msr": 1 << 63 | state, "vr3": 5} for state in states])
    notes += struct.pack(">III", 11, len(TEXT), 0) + b"VMCOREINFO\0\0" + TEXT
    return ElfHeaders(64, "big", machine, np.empty(0), notes)


@pytest.mark.parametrize(
    ("states", "order"),
    [
        ((LITTLE,), "little"),
        ((0,), "big"),
        ((0, LITTLE), "little"),  # the first one is in firmware, or was not started yet
        ((0, LITTLE | PROGRAM), "big"),  # a little-endian program under a big-endian kernel
        ((LITTLE | PROGRAM,), "little"),
        ((), "big"),
    ],
)
def test_what_the_kernel_runs_in(states: tuple[int, ...], order: str) -> None:
    found = in_guests_byte_order(headers(states))
    prefix = "<" if order == "little" else ">"
    assert found.byteorder == order
    notes = split_notes(found.notes, prefix)
    read = [struct.unpack_from(f"{prefix}Q", note.desc, MSR)[0] for note in notes if note.type == 1]
    assert read == [1 << 63 | state for state in states]
    assert (notes[-1].name, notes[-1].desc) == (b"VMCOREINFO", TEXT)
    assert len(notes) == len(split_notes(headers(states).notes, ">"))


def test_other_machines_are_left_alone() -> None:
    other = headers((LITTLE,), EM_X86_64)
    assert in_guests_byte_order(other) is other
