"""ELF core: header, program headers directly behind it, notes, memory.

makedumpfile and crash look for the program headers there, whatever e_phoff says: makedumpfile 1.7.2
reads them at 64, crash 8 refuses an e_phoff beyond 192.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.formats.elf import (
    EHDR,
    ET_CORE,
    EV_CURRENT,
    PHDR,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    SHDR,
    XNUM_THRESHOLD,
    ElfClass,
    ident,
)
from vmdump.pipeline.chunks import fetched
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import Slice
from vmdump.sources.base import Source
from vmdump.units import align_up
from vmdump.writers.lanes import PlainFile
from vmdump.writers.output import Output
from vmdump.writers.tally import Tally

__all__ = ["ElfPlan", "plan_elf", "write_elf"]

_MEMORY_ALIGN = 4096
"""Memory begins on a file system block, so that holes of the guest are holes of the file."""
_LAST_32BIT = 0xFFFFFFFF


@dataclass(frozen=True)
class ElfPlan:
    """Everything in front of the memory, and where the memory goes.

    Attributes
    ----------
    elf_class : int
        32 or 64.
    head : bytes
        Headers, notes and padding up to the first byte of memory.
    size : int
        Bytes of the whole file.
    """

    elf_class: ElfClass
    head: bytes
    size: int


def plan_elf(source: Source, slices: Sequence[Slice]) -> ElfPlan:
    """Lay out an ELF core; the class is the guest's, unless an offset needs 64 bits.

    Parameters
    ----------
    source : Source
        Gives machine, byte order, class and notes.
    slices : sequence of Slice
        The memory to dump, one PT_LOAD each.
    """
    plan = _plan(source, slices, 64)
    if source.elf_class == 32 and plan.size <= _LAST_32BIT:
        return _plan(source, slices, 32)
    return plan


def _plan(source: Source, slices: Sequence[Slice], elf_class: ElfClass) -> ElfPlan:
    extended = len(slices) >= XNUM_THRESHOLD
    phnum = 1 + len(slices)
    phoff = EHDR[elf_class].size
    shoff = phoff + phnum * PHDR[elf_class].size
    notes_offset = shoff + (SHDR[elf_class].size if extended else 0)
    memory_offset = align_up(notes_offset + len(source.notes), _MEMORY_ALIGN)
    sizes = np.array([piece.size for piece in slices], np.uint64)
    ends = memory_offset + np.cumsum(sizes, dtype=np.uint64)
    header = EHDR[elf_class].pack(
        source.byteorder,
        e_ident=ident(elf_class, source.byteorder),
        e_type=ET_CORE,
        e_machine=source.arch.machine,
        e_version=EV_CURRENT,
        e_phoff=phoff,
        e_shoff=shoff if extended else 0,
        e_ehsize=EHDR[elf_class].size,
        e_phentsize=PHDR[elf_class].size,
        e_phnum=PN_XNUM if extended else phnum,
        e_shentsize=SHDR[elf_class].size if extended else 0,
        e_shnum=1 if extended else 0,
    )
    table: NDArray[np.void] = np.zeros(phnum, PHDR[elf_class].dtype(source.byteorder))
    table[0]["p_type"] = PT_NOTE
    table[0]["p_offset"] = notes_offset
    table[0]["p_filesz"] = table[0]["p_memsz"] = len(source.notes)
    loads = table[1:]
    loads["p_type"] = PT_LOAD
    loads["p_offset"] = ends - sizes
    loads["p_paddr"] = loads["p_vaddr"] = np.array([piece.start for piece in slices], np.uint64)
    loads["p_filesz"] = loads["p_memsz"] = sizes
    section = SHDR[elf_class].pack(source.byteorder, sh_info=phnum) if extended else b""
    head = header + table.tobytes() + section + source.notes
    return ElfPlan(elf_class, head.ljust(memory_offset, b"\0"), int(ends[-1]))


def write_elf(
    source: Source, slices: Sequence[Slice], output: Output, *, threads: int, control: Control
) -> Tally:
    """Write an ELF core.

    Parameters
    ----------
    source : Source
        The guest.
    slices : sequence of Slice
        The memory to dump.
    output : Output
        Seekable or not.
    threads : int
        Threads that fetch memory.
    control : Control
        Told of every chunk.

    Raises
    ------
    SourceError, SinkError, Cancelled
        And nothing is committed.
    """
    plan = plan_elf(source, slices)
    tally = Tally(size=plan.size)
    with PlainFile(output, control.cancelled) as file:
        lane = file.lane(0, direct=True)
        lane.write(plan.head)
        with closing(fetched(slices, unit=_MEMORY_ALIGN, threads=threads)) as runs:
            for run, data in runs:
                if data is None:
                    lane.skip(run.length)
                    tally.hole_bytes += run.length
                else:
                    lane.write(data)
                control.advance(run.length)
        source.release()
        lane.finish()
        file.finish()
    return tally
