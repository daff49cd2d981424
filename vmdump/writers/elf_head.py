"""What stands in front of the memory in an ELF core: header, program headers directly behind it, notes.

makedumpfile and crash look for the program headers there, whatever e_phoff says: makedumpfile 1.7.2
reads them at 64, crash 8 refuses an e_phoff beyond 192.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from vmdump.guest.excluded import excluded_ranges
from vmdump.guest.guest import Guest
from vmdump.pipeline.plan import Slice
from vmdump.units import align_up
from vmdump.writers.loads import cut_mappings, program_headers
from vmdump.writers.places import Pieces

__all__ = ["UNIT", "ElfHead", "elf_head"]

UNIT = 4096
"""Memory begins on a file system block, and is written or skipped in such units: holes of the file."""
_LAST_32BIT = 0xFFFFFFFF
_MAX_FILE = (1 << 63) - 1
"""Bytes: file offsets are signed."""


@dataclass(frozen=True)
class ElfHead:
    """Everything in front of the memory, and where the memory goes.

    Attributes
    ----------
    elf_class : int
        32 or 64.
    content : bytes
        Headers, notes and padding up to the first byte of memory.
    file_size : int
        Bytes of the whole file.
    starts, sizes, offsets : (n,) uint64
        Guest-physical address of each PT_LOAD's memory, its bytes in the file, and its file offset: one
        follows the other behind the head, unless places were given.
    """

    elf_class: ElfClass
    content: bytes
    file_size: int
    starts: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    offsets: NDArray[np.uint64]

    @property
    def pieces(self) -> Pieces:
        """Where the memory is that is in the file."""
        there = self.sizes != 0
        return Pieces(self.starts[there], self.sizes[there], self.offsets[there])

    def marked_incomplete(self, guest: Guest) -> bytes:
        """Give the content with the mark of a core that lacks memory."""
        form = EHDR[self.elf_class]
        values = form.unpack(self.content, 0, guest.byteorder)
        values["e_flags"] |= EF_INCOMPLETE
        return form.pack(guest.byteorder, **values) + self.content[form.size :]

    def same_places(self, other: ElfHead) -> bool:
        """Tell whether memory goes to the same places in both files."""
        same = np.array_equal(self.starts, other.starts) and np.array_equal(self.sizes, other.sizes)
        return same and len(self.content) == len(other.content)


def elf_head(
    guest: Guest,
    slices: Sequence[Slice],
    mappings: Runs | None = None,
    *,
    memory_offset: int = 0,
    before: Pieces | None = None,
) -> ElfHead:
    """Lay out an ELF core; the class is the guest's, unless an offset needs 64 bits.

    Parameters
    ----------
    guest : Guest
        Gives machine, byte order, class and notes.
    slices : sequence of Slice
        The memory to dump: a PT_LOAD each, or one for each piece of it that is not excluded. Those of a guest
        that was filtered go on up to the next one in memory, as makedumpfile's do.
    mappings : Runs, optional
        The PT_LOADs instead of that, with virtual addresses.
    memory_offset : int
        Memory begins at this file offset, a multiple of `UNIT`, or behind it.
    before : Pieces, optional
        What of the memory has a place already, and keeps it; the rest is behind all of that.
    """
    starts, sizes = _segments(guest, slices)
    placed = None if before is None else before.placing(starts, sizes)
    if placed is not None:
        starts, sizes = placed.starts, placed.sizes
    notes = _notes(guest, slices)
    spans = sizes
    if mappings is not None and guest.excluded_size:
        mappings = cut_mappings(mappings, starts, sizes)
    elif guest.filtered is not None:
        starts, sizes, spans = _reaching(slices, starts, sizes)

    def head(elf_class: ElfClass) -> ElfHead:
        return _head(guest, starts, sizes, spans, notes, mappings, memory_offset, elf_class, placed)

    wide = head(64)
    return head(32) if guest.elf_class == 32 and wide.file_size <= _LAST_32BIT else wide


def _segments(guest: Guest, slices: Sequence[Slice]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Cut slices into the ranges that are in the dump.

    Returns
    -------
    starts, sizes : (n,) uint64
        Guest-physical address of the first byte, and bytes, of each range; ascending.
    """
    if not guest.excluded_size:
        starts, sizes = [piece.start for piece in slices], [piece.size for piece in slices]
        return np.array(starts, np.uint64), np.array(sizes, np.uint64)
    all_starts, all_ends = [], []
    for piece in slices:
        excluded = excluded_ranges(guest, piece.start, piece.start + piece.size)
        begins = np.concatenate(([0], excluded[:, 1]))
        ends = np.concatenate((excluded[:, 0], [piece.size]))
        kept = begins < ends
        all_starts.append(begins[kept].astype(np.uint64) + np.uint64(piece.start))
        all_ends.append(ends[kept].astype(np.uint64) + np.uint64(piece.start))
    first, last = np.concatenate(all_starts), np.concatenate(all_ends)
    return first, last - first


def _reaching(
    slices: Sequence[Slice], starts: NDArray[np.uint64], sizes: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Let segments cover what is excluded behind them, and in front of the first of a slice.

    Returns
    -------
    starts, sizes, spans : (m,) uint64
        As of :func:`_segments`, and bytes up to the next segment, or to the end of the slice.
    """
    begins = np.array([piece.start for piece in slices], np.uint64)
    ends = begins + np.array([piece.size for piece in slices], np.uint64)
    uncovered = ~np.isin(begins, starts)
    places = np.searchsorted(starts, begins[uncovered])
    starts = np.insert(starts, places, begins[uncovered])
    sizes = np.insert(sizes, places, np.uint64(0))
    piece = np.searchsorted(begins, starts, side="right") - 1
    following = np.append(starts[1:], ends[-1])
    return starts, sizes, np.minimum(following, ends[piece]) - starts


def _notes(guest: Guest, slices: Sequence[Slice]) -> bytes:
    """Give the guest's notes, and those that only a core needs."""
    notes = guest.notes
    if guest.eraseinfo:
        notes += build_note(ERASEINFO_NAME, 0, guest.eraseinfo, guest.byteorder)
    if guest.excluded_size:
        blocks = [(piece.start, piece.start + piece.size) for piece in slices]
        notes += blocks_note(blocks, guest.byteorder)
    return notes


def _head(
    guest: Guest,
    starts: NDArray[np.uint64],
    sizes: NDArray[np.uint64],
    spans: NDArray[np.uint64],
    notes: bytes,
    mappings: Runs | None,
    memory_offset: int,
    elf_class: ElfClass,
    placed: Pieces | None,
) -> ElfHead:
    count = len(starts) if mappings is None else len(mappings.size)
    extended = count >= XNUM_THRESHOLD
    phnum = 1 + count
    phoff = EHDR[elf_class].size
    shoff = phoff + phnum * PHDR[elf_class].size
    notes_offset = shoff + (SHDR[elf_class].size if extended else 0)
    memory_offset = max(align_up(notes_offset + len(notes), UNIT), memory_offset)
    size = memory_offset + sum(sizes.tolist()) if placed is None else placed.end
    if size > _MAX_FILE:
        raise LayoutError(
            f"an ELF core of all {size - memory_offset} bytes of memory is larger than any file"
        )
    offsets = memory_offset + np.cumsum(sizes, dtype=np.uint64) - sizes
    if placed is not None:
        offsets[:] = memory_offset
        offsets[np.searchsorted(starts, placed.starts)] = placed.offsets
    header = EHDR[elf_class].pack(
        guest.byteorder,
        e_ident=ident(elf_class, guest.byteorder),
        e_type=ET_CORE,
        e_machine=guest.arch.machine,
        e_version=EV_CURRENT,
        e_phoff=phoff,
        e_shoff=shoff if extended else 0,
        e_flags=EF_INCOMPLETE if guest.incomplete else 0,
        e_ehsize=EHDR[elf_class].size,
        e_phentsize=PHDR[elf_class].size,
        e_phnum=PN_XNUM if extended else phnum,
        e_shentsize=SHDR[elf_class].size if extended else 0,
        e_shnum=1 if extended else 0,
    )
    table = program_headers(
        elf_class, guest.byteorder, (notes_offset, len(notes)), starts, sizes, spans, offsets, mappings
    )
    section = SHDR[elf_class].pack(guest.byteorder, sh_info=phnum) if extended else b""
    # Joined once: notes may have hundreds of megabytes.
    parts = [header, table.tobytes(), section, notes]
    content = b"".join([*parts, bytes(memory_offset - sum(map(len, parts)))])
    return ElfHead(elf_class, content, size, starts, sizes, offsets)
