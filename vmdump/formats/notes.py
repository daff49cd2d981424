"""ELF notes: the CPU registers and VMCOREINFO that a dump carries.

A note is three 32-bit words (namesz, descsz, type) in both ELF classes,
followed by the name and the descriptor, each padded to 4 bytes; Linux and
QEMU use 4 in 64-bit files too, whatever the gABI says of 8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError
from vmdump.formats.layout import ByteOrder, Field, Layout
from vmdump.units import align_up, merge_runs

__all__ = [
    "ERASEINFO_NAME",
    "NHDR",
    "NOTE_ALIGN",
    "NT_PRSTATUS",
    "VMCOREINFO_NAME",
    "Note",
    "blocks_note",
    "build_note",
    "count_cpus",
    "find_vmcoreinfo",
    "fuzzy_note",
    "is_fuzzy",
    "iter_notes",
    "read_blocks",
    "split_notes",
    "without_notes",
]

NHDR = Layout("ELF note header", (Field("n_namesz", "u4"), Field("n_descsz", "u4"), Field("n_type", "u4")))
NT_PRSTATUS = 1
VMCOREINFO_NAME = b"VMCOREINFO"
ERASEINFO_NAME = b"ERASEINFO"
NOTE_ALIGN = 4
"""Bytes to which names and descriptors are padded, from the start of the notes on."""
_MAX_NOTES = 1 << 17
"""32 for each of 4096 vCPUs. An empty note takes 12 bytes of a file, and each pass over it 3 us."""
_MAX_NAME = 256
"""Bytes of a name that are read: a file may claim any length, and known names are shorter."""
_ZEROS = re.compile(rb"\0*")
VMDUMP_NAME = b"VMDUMP"
_FUZZY_TYPE = 1
_BLOCKS_TYPE = 2


@dataclass(frozen=True)
class Note:
    """One note.

    Attributes
    ----------
    name : bytes
        Without the terminating zero.
    type : int
        Its meaning depends on the name.
    begin, end : int
        The whole note with its header and padding, in bytes from the start of all notes.
    offset, size : int
        The descriptor, without padding, in the same way.
    """

    name: bytes
    type: int
    begin: int
    end: int
    offset: int
    size: int
    _notes: bytes = field(repr=False)

    @property
    def desc(self) -> bytes:
        """The descriptor, a copy: a driver's own dump in a note may have gigabytes."""
        return self._notes[self.offset : self.offset + self.size]


def iter_notes(data: bytes, byteorder: ByteOrder, *, path: str = "") -> Iterator[Note]:
    """Walk the notes in `data`.

    Zeros where a note would begin are skipped: a CPU that is off leaves room for its notes so.

    Raises
    ------
    FormatError
        A note claims more bytes than `data` has, or there are more notes than any guest has.
    """
    position = count = 0
    while position + NHDR.size <= len(data):
        header = NHDR.unpack(data, position, byteorder, path=path)
        if not any(header.values()):
            zeros = _ZEROS.match(data, position)
            position = zeros.end() // NOTE_ALIGN * NOTE_ALIGN if zeros else len(data)
            continue
        count += 1
        if count > _MAX_NOTES:
            raise FormatError(f"more than {_MAX_NOTES} notes, and no guest has so many", path=path)
        name_begin = position + NHDR.size
        offset = name_begin + align_up(header["n_namesz"], NOTE_ALIGN)
        size = header["n_descsz"]
        if size > len(data) - offset:
            raise FormatError(
                f"the note at byte {position} of {len(data)} bytes of notes claims to end at {offset + size}",
                path=path,
            )
        name = data[name_begin : name_begin + min(header["n_namesz"], _MAX_NAME)].split(b"\0", 1)[0]
        end = align_up(offset + size, NOTE_ALIGN)
        yield Note(name, header["n_type"], position, min(end, len(data)), offset, size, data)
        position = end


def build_note(name: bytes, note_type: int, desc: bytes, byteorder: ByteOrder) -> bytes:
    """Encode one note; `name` is given without its terminating zero."""
    header = NHDR.pack(byteorder, n_namesz=len(name) + 1, n_descsz=len(desc), n_type=note_type)
    padded_name = (name + b"\0").ljust(align_up(len(name) + 1, NOTE_ALIGN), b"\0")
    return header + padded_name + desc.ljust(align_up(len(desc), NOTE_ALIGN), b"\0")


def count_cpus(data: bytes, byteorder: ByteOrder) -> int:
    """Count the vCPUs: one NT_PRSTATUS of the name CORE each."""
    return sum(note.name == b"CORE" and note.type == NT_PRSTATUS for note in iter_notes(data, byteorder))


def find_vmcoreinfo(data: bytes, byteorder: ByteOrder) -> Note | None:
    """Find the VMCOREINFO note, or give None."""
    return next((note for note in iter_notes(data, byteorder) if note.name == VMCOREINFO_NAME), None)


def without_notes(data: bytes, name: bytes, byteorder: ByteOrder) -> bytes:
    """Give the notes again, without those of one name."""
    kept = [note for note in iter_notes(data, byteorder) if note.name != name]
    return b"".join(build_note(note.name, note.type, note.desc, byteorder) for note in kept)


def fuzzy_note(byteorder: ByteOrder) -> bytes:
    """Build the note that marks memory read while the guest ran: name VMDUMP, type 1, text FUZZY=1.

    Readers pass over notes whose name they do not know.
    """
    return build_note(VMDUMP_NAME, _FUZZY_TYPE, b"FUZZY=1\n", byteorder)


def is_fuzzy(data: bytes, byteorder: ByteOrder) -> bool:
    """Tell whether the notes have the mark of :func:`fuzzy_note`."""
    return any(
        note.name == VMDUMP_NAME and note.type == _FUZZY_TYPE and data.startswith(b"FUZZY=1", note.offset)
        for note in iter_notes(data, byteorder)
    )


def blocks_note(blocks: Sequence[tuple[int, int]], byteorder: ByteOrder) -> bytes:
    """Build the note that tells excluded memory from missing memory: name VMDUMP, type 2, the guest's blocks.

    Only a core from which pages were excluded has it. The descriptor is a pair of 64-bit numbers for each
    block, ``[begin, end)`` in guest-physical bytes, ascending: what is in a block and of which no PT_LOAD has
    bytes in the file is excluded.
    """
    table = np.array(blocks, np.uint64).astype("<u8" if byteorder == "little" else ">u8")
    return build_note(VMDUMP_NAME, _BLOCKS_TYPE, table.tobytes(), byteorder)


def read_blocks(note: Note, byteorder: ByteOrder) -> NDArray[np.uint64]:
    """Decode the note of :func:`blocks_note`.

    Returns
    -------
    (n, 2) uint64
        As they are stored; nothing is checked.

    Raises
    ------
    FormatError
        It does not hold pairs, or is empty.
    """
    if not note.desc or len(note.desc) % 16:
        raise FormatError(f"the note of the guest's blocks has {len(note.desc)} bytes, not pairs of numbers")
    table = np.frombuffer(note.desc, "<u8" if byteorder == "little" else ">u8").astype(np.uint64)
    return table.reshape(-1, 2)


def split_notes(data: bytes, byteorder: ByteOrder) -> tuple[bytes, Note | None, Note | None]:
    """Part the notes that describe a core from those that describe its guest.

    Returns
    -------
    notes : bytes
        The others, as they were.
    blocks : Note or None
        That of :func:`blocks_note`.
    erased : Note or None
        makedumpfile's ERASEINFO.
    """
    blocks = erased = None
    kept: list[tuple[int, int]] = []
    for note in iter_notes(data, byteorder):
        if note.name == VMDUMP_NAME and note.type == _BLOCKS_TYPE:
            blocks = note
        elif note.name == ERASEINFO_NAME:
            erased = note
        else:
            kept.append((note.begin, note.end))
    runs = list(merge_runs(kept))
    return (
        (data if runs == [(0, len(data))] else b"".join(data[begin:end] for begin, end in runs)),
        blocks,
        erased,
    )
