"""ELF core: header, program headers directly behind it, notes, memory.

makedumpfile and crash look for the program headers there, whatever e_phoff says: makedumpfile 1.7.2
reads them at 64, crash 8 refuses an e_phoff beyond 192.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.paging import Runs
from vmdump.errors import LayoutError
from vmdump.formats.elf import (
    EF_INCOMPLETE,
    EHDR,
    ET_CORE,
    EV_CURRENT,
    PHDR,
    PN_XNUM,
    SHDR,
    XNUM_THRESHOLD,
    ElfClass,
    ident,
)
from vmdump.formats.notes import ERASEINFO_NAME, blocks_note, build_note
from vmdump.guest.guest import Guest, Pages
from vmdump.kernels.scan import CLEARED, NEW
from vmdump.pipeline.chunks import Scanned, scanned
from vmdump.pipeline.control import Control
from vmdump.pipeline.known import KnownPages
from vmdump.pipeline.plan import Slice
from vmdump.sinks.base import Sink
from vmdump.units import align_up
from vmdump.writers.excluded import left_out, segments
from vmdump.writers.lanes import Lane, PlainFile
from vmdump.writers.loads import cut_mappings, program_headers
from vmdump.writers.tally import Tally

__all__ = ["UNIT", "ElfPlan", "plan_elf", "write_elf", "write_elf_early", "write_memory"]

UNIT = 4096
"""Memory begins on a file system block, and is written or left out in such units: holes of the file."""
_LAST_32BIT = 0xFFFFFFFF
_MAX_FILE = (1 << 63) - 1
"""Bytes: file offsets are signed."""
_MORE_MAPPINGS = 64 << 10
"""Bytes: program headers of 1170 mappings that a guest may add while its memory is written ahead."""
_SHORT_GAP = 16
"""Units from which on skipping costs less than writing: a direct write of 64 KiB takes as long as the set-up
of another one."""


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
    starts, sizes : (n,) uint64
        Guest-physical address and bytes of each PT_LOAD's memory; one follows the other behind the head.
    """

    elf_class: ElfClass
    head: bytes
    size: int
    starts: NDArray[np.uint64]
    sizes: NDArray[np.uint64]

    def same_places(self, other: ElfPlan) -> bool:
        """Tell whether memory goes to the same places in both files."""
        same = np.array_equal(self.starts, other.starts) and np.array_equal(self.sizes, other.sizes)
        return same and len(self.head) == len(other.head)


def plan_elf(
    source: Guest, slices: Sequence[Slice], mappings: Runs | None = None, *, memory_offset: int = 0
) -> ElfPlan:
    """Lay out an ELF core; the class is the guest's, unless an offset needs 64 bits.

    Parameters
    ----------
    source : Guest
        Gives machine, byte order, class and notes.
    slices : sequence of Slice
        The memory to dump: a PT_LOAD each, or one for each piece of it that is not excluded.
    mappings : Runs, optional
        The PT_LOADs instead of that, with virtual addresses.
    memory_offset : int
        Memory begins at this file offset, a multiple of `UNIT`, or behind it.
    """
    starts, sizes = segments(source, slices)
    notes = _notes(source, slices)
    if mappings is not None and source.excluded_size:
        mappings = cut_mappings(mappings, starts, sizes)

    def plan(elf_class: ElfClass) -> ElfPlan:
        return _plan(source, starts, sizes, notes, mappings, memory_offset, elf_class)

    wide = plan(64)
    return plan(32) if source.elf_class == 32 and wide.size <= _LAST_32BIT else wide


def _notes(source: Guest, slices: Sequence[Slice]) -> bytes:
    """Give the guest's notes, and those that only a core needs."""
    notes = source.notes
    if source.eraseinfo:
        notes += build_note(ERASEINFO_NAME, 0, source.eraseinfo, source.byteorder)
    if source.excluded_size:
        blocks = [(piece.start, piece.start + piece.size) for piece in slices]
        notes += blocks_note(blocks, source.byteorder)
    return notes


def _plan(
    source: Guest,
    starts: NDArray[np.uint64],
    sizes: NDArray[np.uint64],
    notes: bytes,
    mappings: Runs | None,
    memory_offset: int,
    elf_class: ElfClass,
) -> ElfPlan:
    count = len(starts) if mappings is None else len(mappings.size)
    extended = count >= XNUM_THRESHOLD
    phnum = 1 + count
    phoff = EHDR[elf_class].size
    shoff = phoff + phnum * PHDR[elf_class].size
    notes_offset = shoff + (SHDR[elf_class].size if extended else 0)
    memory_offset = max(align_up(notes_offset + len(notes), UNIT), memory_offset)
    size = memory_offset + sum(sizes.tolist())
    if size > _MAX_FILE:
        raise LayoutError(
            f"an ELF core of all {size - memory_offset} bytes of memory is larger than any file"
        )
    ends = memory_offset + np.cumsum(sizes, dtype=np.uint64)
    header = EHDR[elf_class].pack(
        source.byteorder,
        e_ident=ident(elf_class, source.byteorder),
        e_type=ET_CORE,
        e_machine=source.arch.machine,
        e_version=EV_CURRENT,
        e_phoff=phoff,
        e_shoff=shoff if extended else 0,
        e_flags=EF_INCOMPLETE if source.incomplete else 0,
        e_ehsize=EHDR[elf_class].size,
        e_phentsize=PHDR[elf_class].size,
        e_phnum=PN_XNUM if extended else phnum,
        e_shentsize=SHDR[elf_class].size if extended else 0,
        e_shnum=1 if extended else 0,
    )
    table = program_headers(
        elf_class, source.byteorder, (notes_offset, len(notes)), starts, sizes, ends - sizes, mappings
    )
    section = SHDR[elf_class].pack(source.byteorder, sh_info=phnum) if extended else b""
    # Joined once: notes may have hundreds of megabytes.
    parts = [header, table.tobytes(), section, notes]
    head = b"".join([*parts, bytes(memory_offset - sum(map(len, parts)))])
    return ElfPlan(elf_class, head, size, starts, sizes)


def write_elf_early(
    source: Guest,
    slices: Sequence[Slice],
    output: Sink,
    known: KnownPages,
    *,
    threads: int,
    control: Control,
    mappings: Runs | None = None,
) -> ElfPlan | None:
    """Write the memory of a running guest ahead of :func:`write_elf`, which then writes what has changed.

    Parameters
    ----------
    source, slices, output, threads, control
        As for :func:`write_elf`; the output is sparse.
    known : KnownPages
        Of units of 4096 bytes; empty.
    mappings : Runs, optional
        As for :func:`plan_elf`. When the guest stands still they are others; there is room for more.

    Returns
    -------
    ElfPlan or None
        What these bytes are good for; None if none were written, because the slices are no whole units.

    Raises
    ------
    SourceError, SinkError, Cancelled
        And nothing is committed.
    """
    if any((piece.start | piece.size | piece.block.start) % UNIT for piece in slices):
        return None
    plan = plan_elf(source, slices, mappings)
    if mappings is not None:
        room = 2 * len(plan.head) + _MORE_MAPPINGS
        plan = plan_elf(source, slices, mappings, memory_offset=align_up(room, UNIT))
    with PlainFile(output, control.cancelled) as file:
        write_memory(
            source, file.lane(len(plan.head)), slices, Tally(), known, threads=threads, control=control
        )
    return plan


def write_elf(
    source: Guest,
    slices: Sequence[Slice],
    output: Sink,
    *,
    threads: int,
    control: Control,
    known: KnownPages | None = None,
    plan: ElfPlan | None = None,
    release: Callable[[], object] = lambda: None,
) -> Tally:
    """Write an ELF core.

    Parameters
    ----------
    source : Guest
        The guest.
    slices : sequence of Slice
        The memory to dump.
    output : Sink
        Seekable or not.
    threads : int
        Threads that read memory.
    control : Control
        Told of every chunk.
    known : KnownPages, optional
        Units that are in the output already, at the place of the same plan.
    plan : ElfPlan, optional
        Of this guest and these slices; without it, the one without mappings.
    release : callable
        Called when all memory has been read.

    Raises
    ------
    SourceError, SinkError, Cancelled
        And nothing is committed.
    """
    plan = plan or plan_elf(source, slices)
    tally = Tally(size=plan.size)
    with PlainFile(output, control.cancelled) as file:
        lane = file.lane(0)
        lane.write(plan.head)
        write_memory(source, lane, slices, tally, known, threads=threads, control=control, release=release)
        file.finish()
    return tally


def write_memory(
    source: Guest,
    lane: Lane,
    slices: Sequence[Slice],
    tally: Tally,
    known: KnownPages | None,
    *,
    threads: int,
    control: Control,
    release: Callable[[], object] | None = None,
) -> None:
    """Write the memory of slices, one behind the other.

    Parameters
    ----------
    source : Guest
        The guest; what it excludes is left out.
    lane : Lane
        Where it goes; what is zero is skipped.
    slices : sequence of Slice
        The memory.
    tally : Tally
        Its counts are raised.
    known : KnownPages or None
        With `release`, only what is not as it was is written; without, what is written is noted there.
    threads : int
        Threads that read memory.
    control : Control
        Told of every chunk.
    release : callable, optional
        Called when all memory has been read.

    Raises
    ------
    SourceError, SinkError, Cancelled
        And the lane is not finished.
    """
    changed = known if release else None
    with closing(scanned(slices, unit=UNIT, threads=threads, known=known)) as runs:
        for run, result in runs:
            pfn = (run.block.start + run.offset) // UNIT
            begin = run.block.start + run.offset
            gone = left_out(source, begin, begin + run.length)
            gone_size = int((gone[:, 1] - gone[:, 0]).sum())
            tally.excluded_pages += -(-gone_size // source.page_size)
            if result is None:
                tally.hole_bytes += run.length - gone_size
                _skip_hole(lane, pfn, run.length - gone_size, changed)
            elif gone_size:
                _write_kept(lane, result, gone)
            else:
                written = (result.kinds == NEW) | (result.kinds == CLEARED)
                tally.changed_pages += int(np.count_nonzero(written)) if changed else 0
                _write_units(lane, result.data, written)
                if known and not changed and result.hashes is not None and written.any():
                    known.record(pfn, result.hashes)
            control.advance(run.length)
    if release:
        release()
    lane.finish()


def _write_kept(lane: Lane, result: Scanned, gone: NDArray[np.int64]) -> None:
    """Write what is left of a run without the ranges that are gone."""
    begins = np.concatenate(([0], gone[:, 1])).tolist()
    ends = np.concatenate((gone[:, 0], [result.data.size])).tolist()
    pieces = [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]
    if not pieces:
        return
    data = np.concatenate([result.data[begin:end] for begin, end in pieces])
    if all(begin % UNIT == 0 for begin, _ in pieces):
        kinds = np.concatenate([result.kinds[begin // UNIT : -(-end // UNIT)] for begin, end in pieces])
        _write_units(lane, data, kinds == NEW)
    else:
        lane.write(data)


def _write_units(lane: Lane, data: Pages, written: NDArray[np.bool_]) -> None:
    """Write some units of a run, together with short gaps between them, and skip the others."""
    units = np.flatnonzero(written)
    position = 0
    if units.size:
        gaps = np.flatnonzero(np.diff(units) > _SHORT_GAP)
        begins = units[np.concatenate(([0], gaps + 1))] * UNIT
        ends = (units[np.concatenate((gaps, [-1]))] + 1) * UNIT
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            lane.skip(begin - position)
            lane.write(data[begin:end])
            position = min(end, data.size)
    lane.skip(data.size - position)


def _skip_hole(lane: Lane, pfn: int, length: int, changed: KnownPages | None) -> None:
    """Skip memory that is known to be zero; what was written of it earlier becomes zeros."""
    position = 0
    if changed:
        for begin, end in changed.recorded(pfn, length // UNIT):
            lane.skip((begin - pfn) * UNIT - position)
            position = (end - pfn) * UNIT
            lane.clear((end - begin) * UNIT)
    lane.skip(length - position)
