"""ELF notes: the CPU registers and VMCOREINFO that a dump carries.

A note is three 32-bit words (namesz, descsz, type) in both ELF classes,
followed by the name and the descriptor, each padded to 4 bytes; Linux and
QEMU use 4 in 64-bit files too, whatever the gABI says of 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError
from vmdump.formats.layout import ByteOrder, Field, Layout
from vmdump.units import align_up

__all__ = [
    "ERASEINFO_NAME",
    "NHDR",
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
_ALIGN = 4
_MAX_NOTES = 1 << 17
"""32 for each of 4096 vCPUs. An empty note takes 12 bytes of a file, and each pass over it 3 us."""
_VMDUMP_NAME = b"VMDUMP"
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
    desc : bytes
        The descriptor, without padding.
    offset : int
        Of the descriptor, from the start of all notes.
    """

    name: bytes
    type: int
    desc: bytes
    offset: int


def iter_notes(data: bytes, byteorder: ByteOrder, *, path: str = "") -> Iterator[Note]:
    """Walk the notes in `data`.

    Raises
    ------
    FormatError
        A note claims more bytes than there are, or they are more than any guest has.
    """
    position = count = 0
    while position + NHDR.size <= len(data):
        count += 1
        if count > _MAX_NOTES:
            raise FormatError(f"more than {_MAX_NOTES} notes cannot be", path=path)
        header = NHDR.unpack(data, position, byteorder, path=path)
        name_begin = position + NHDR.size
        desc_begin = name_begin + align_up(header["n_namesz"], _ALIGN)
        desc_end = desc_begin + header["n_descsz"]
        if desc_end > len(data):
            raise FormatError(
                f"the note at byte {position} of {len(data)} bytes of notes claims to end at {desc_end}",
                path=path,
            )
        name = data[name_begin : name_begin + header["n_namesz"]].split(b"\0", 1)[0]
        yield Note(name, header["n_type"], data[desc_begin:desc_end], desc_begin)
        position = align_up(desc_end, _ALIGN)


def build_note(name: bytes, note_type: int, desc: bytes, byteorder: ByteOrder) -> bytes:
    """Encode one note; `name` is given without its terminating zero."""
    header = NHDR.pack(byteorder, n_namesz=len(name) + 1, n_descsz=len(desc), n_type=note_type)
    padded_name = (name + b"\0").ljust(align_up(len(name) + 1, _ALIGN), b"\0")
    return header + padded_name + desc.ljust(align_up(len(desc), _ALIGN), b"\0")


def count_cpus(data: bytes, byteorder: ByteOrder) -> int:
    """Count the vCPUs: one NT_PRSTATUS of the name CORE each."""
    return sum(note.name == b"CORE" and note.type == NT_PRSTATUS for note in iter_notes(data, byteorder))


def find_vmcoreinfo(data: bytes, byteorder: ByteOrder) -> Note | None:
    """Find the VMCOREINFO note; None where there is none."""
    return next((note for note in iter_notes(data, byteorder) if note.name == VMCOREINFO_NAME), None)


def without_notes(data: bytes, name: bytes, byteorder: ByteOrder) -> bytes:
    """Give the notes again, without those of one name."""
    kept = [note for note in iter_notes(data, byteorder) if note.name != name]
    return b"".join(build_note(note.name, note.type, note.desc, byteorder) for note in kept)


def fuzzy_note(byteorder: ByteOrder) -> bytes:
    """Build the note that marks memory read while the guest ran: name VMDUMP, type 1, text FUZZY=1.

    Readers pass over notes whose name they do not know.
    """
    return build_note(_VMDUMP_NAME, _FUZZY_TYPE, b"FUZZY=1\n", byteorder)


def is_fuzzy(data: bytes, byteorder: ByteOrder) -> bool:
    """Tell whether the notes have the mark of :func:`fuzzy_note`."""
    return any(
        note.name == _VMDUMP_NAME and note.type == _FUZZY_TYPE and note.desc.startswith(b"FUZZY=1")
        for note in iter_notes(data, byteorder)
    )


def blocks_note(blocks: Sequence[tuple[int, int]], byteorder: ByteOrder) -> bytes:
    """Build the note that tells excluded memory from missing memory: name VMDUMP, type 2, the guest's blocks.

    Only a core from which pages were left out has it. The descriptor is a pair of 64-bit numbers for each
    block, ``[begin, end)`` in guest-physical bytes, ascending: what is in a block and in no PT_LOAD is
    excluded.
    """
    table = np.array(blocks, np.uint64).astype("<u8" if byteorder == "little" else ">u8")
    return build_note(_VMDUMP_NAME, _BLOCKS_TYPE, table.tobytes(), byteorder)


def read_blocks(note: Note, byteorder: ByteOrder) -> NDArray[np.uint64]:
    """Decode the note of :func:`blocks_note`.

    Returns
    -------
    (n, 2) uint64
        Whatever it says; nothing is checked.

    Raises
    ------
    FormatError
        It holds no whole number of pairs, or none.
    """
    if not note.desc or len(note.desc) % 16:
        raise FormatError(f"the note of the guest's blocks has {len(note.desc)} bytes, no pairs of numbers")
    table = np.frombuffer(note.desc, "<u8" if byteorder == "little" else ">u8").astype(np.uint64)
    return table.reshape(-1, 2)


def split_notes(data: bytes, byteorder: ByteOrder) -> tuple[bytes, Note | None, Note | None]:
    """Take out of a core's notes what describes the core and not the guest.

    Returns
    -------
    notes : bytes
        The others, as they were.
    blocks : Note or None
        That of :func:`blocks_note`.
    erased : Note or None
        makedumpfile's ERASEINFO.
    """
    kept, blocks, erased = [], None, None
    begin = 0
    for note in iter_notes(data, byteorder):
        end = align_up(note.offset + len(note.desc), _ALIGN)
        if note.name == _VMDUMP_NAME and note.type == _BLOCKS_TYPE:
            blocks = note
        elif note.name == ERASEINFO_NAME:
            erased = note
        else:
            kept.append(data[begin:end])
        begin = end
    return b"".join(kept), blocks, erased
