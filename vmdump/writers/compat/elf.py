"""The ELF core that QEMU 7.2 writes, byte for byte.

Section headers stand before the program headers, e_ehsize is 8, memory begins where the notes end, and the
names of the sections are behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vmdump.arch.paging import Runs
from vmdump.formats.elf import (
    EHDR,
    ET_CORE,
    EV_CURRENT,
    PHDR,
    PN_XNUM,
    SHDR,
    SHT_STRTAB,
    ident,
)
from vmdump.guest.guest import Guest
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import Slice
from vmdump.sinks.base import Sink
from vmdump.writers.base import Plan, Writer
from vmdump.writers.compat.target import notes_of_qemu, qemu_target
from vmdump.writers.elf_memory import write_memory
from vmdump.writers.lanes import PlainFile
from vmdump.writers.loads import Selection, program_headers
from vmdump.writers.tally import Tally

__all__ = ["CompatElfWriter"]

_E_EHSIZE = 8
"""The size of a pointer to the header, not of the header."""
_SECTION_NAMES = b"\0.shstrtab\0"
_SECTIONS = 2


class CompatElfWriter(Writer):
    """The ELF core of QEMU 7.2.

    Parameters
    ----------
    selection : Selection
        What of a guest is in it.
    """

    takes_found_vmcoreinfo = False

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def check(self, guest: Guest) -> None:
        """Refuse a guest that QEMU does not dump, or without memory in the range."""
        qemu_target(guest)
        self._selection.slices(guest)

    def plan(self, guest: Guest) -> CompatElfPlan:
        """Lay a guest out; by page tables where QEMU walks them."""
        target, slices = qemu_target(guest), self._selection.slices(guest)
        mappings = self._selection.mappings(guest, as_qemu=True) if target.page_tables else None
        size = sum(piece.size for piece in slices)
        return CompatElfPlan(guest, size, size, slices, _head(guest, slices, mappings))


@dataclass(frozen=True)
class CompatElfPlan(Plan):
    """A guest laid out in QEMU's core.

    Attributes
    ----------
    slices : list of Slice
        The memory that is dumped.
    head : bytes
        What stands in front of it.
    """

    slices: list[Slice]
    head: bytes

    def write(self, sink: Sink, *, threads: int, control: Control, release: Callable[[], None]) -> Tally:
        """Write the core."""
        tally = Tally(output_bytes=len(self.head) + self.guest_size + len(_SECTION_NAMES))
        file = PlainFile(sink, control.cancelled)
        lane = file.lane(0)
        lane.write(self.head)
        write_memory(self.guest, lane, self.slices, tally, threads=threads, control=control)
        release()
        lane.write(_SECTION_NAMES)
        lane.finish()
        file.finish()
        return tally


def _head(guest: Guest, slices: Sequence[Slice], mappings: Runs | None) -> bytes:
    elf_class = guest.elf_class
    notes, byteorder = notes_of_qemu(guest)
    mask = (1 << elf_class) - 1
    phnum = 1 + (len(slices) if mappings is None else len(mappings.size))
    shoff = EHDR[elf_class].size
    phoff = shoff + _SECTIONS * SHDR[elf_class].size
    notes_offset = phoff + phnum * PHDR[elf_class].size
    memory_offset = notes_offset + len(notes)
    sizes = np.array([piece.size for piece in slices], np.uint64)
    ends = memory_offset + np.cumsum(sizes, dtype=np.uint64)
    header = EHDR[elf_class].pack(
        byteorder,
        e_ident=ident(elf_class, byteorder),
        e_type=ET_CORE,
        e_machine=guest.arch.machine,
        e_version=EV_CURRENT,
        e_phoff=phoff,
        e_shoff=shoff,
        e_ehsize=_E_EHSIZE,
        e_phentsize=PHDR[elf_class].size,
        e_phnum=min(phnum, PN_XNUM),
        e_shentsize=SHDR[elf_class].size,
        e_shnum=_SECTIONS,
        e_shstrndx=_SECTIONS - 1,
    )
    first_section = SHDR[elf_class].pack(byteorder, sh_info=phnum if phnum >= PN_XNUM else 0)
    # In the byte order of the machine that QEMU runs on, whatever the guest's.
    names_section = SHDR[elf_class].pack(
        "little",
        sh_name=_SECTION_NAMES.index(b"."),
        sh_type=SHT_STRTAB,
        sh_offset=int(ends[-1]) & mask,
        sh_size=len(_SECTION_NAMES),
    )
    starts = np.array([piece.start for piece in slices], np.uint64)
    table = program_headers(
        elf_class, byteorder, (notes_offset, len(notes)), starts, sizes, sizes, ends - sizes, mappings
    )
    loads = table[1:]
    # QEMU knows no virtual address 0: that is memory without one.
    loads["p_vaddr"] = np.where(loads["p_vaddr"] == 0, loads["p_paddr"], loads["p_vaddr"])
    return header + first_section + names_section + table.tobytes() + notes
