"""What a dump of any format holds, taken apart without vmdump: pages, excluded pages, notes, VMCOREINFO."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oracles.elf import ElfCore, split_notes
from oracles.flattened import Flattened
from oracles.kdump import Kdump

BLOCKS_NOTE = (b"VMDUMP", 2)


@dataclass
class Holdings:
    """What is in a dump; `excluded` are pages that the guest has and the dump lacks."""

    pages: dict[int, bytes]
    excluded: set[int]
    notes: bytes
    vmcoreinfo: bytes
    erased: bytes = b""


def bits(bitmap: bytes) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")).tolist())


def of_elf(path: Path, page_size: int = 4096) -> Holdings:
    """An ELF core of vmdump: its PT_LOADs are whole pages."""
    core = ElfCore(path).check_vmdump_layout()
    pages = {}
    for load in core.loads:
        assert load.paddr % page_size == load.memsz % page_size == 0
        data = core.load_bytes(load)
        pages |= {
            (load.paddr + at) // page_size: data[at : at + page_size] for at in range(0, len(data), page_size)
        }
    kept, position, everything, erased = b"", 0, set(pages), b""
    for note in core.note_list():
        size = 12 + -(-(len(note.name) + 1) // 4) * 4 + -(-len(note.desc) // 4) * 4
        if (note.name, note.type) == BLOCKS_NOTE:
            numbers = struct.unpack(f"{core.prefix}{len(note.desc) // 8}Q", note.desc)
            for begin, end in zip(numbers[::2], numbers[1::2], strict=True):
                everything |= set(range(begin // page_size, end // page_size))
        elif note.name == b"ERASEINFO":
            erased = note.desc
        else:
            kept += core.notes[position : position + size]
        position += size
    return Holdings(pages, everything - set(pages), kept, _vmcoreinfo(kept, core.prefix), erased)


def of_kdump(path: Path) -> Holdings:
    """A kdump file of the standard layout."""
    dump = Kdump(path)
    pages = dict(dump.pages())
    return Holdings(
        pages, bits(dump.bitmap1) - set(pages), dump.notes, dump.vmcoreinfo, dump._area("eraseinfo")
    )


def of_flattened(path: Path, scratch: Path) -> Holdings:
    """A flattened kdump file; `scratch` names a file for its standard layout."""
    Flattened(path).check().rearrange(scratch)
    return of_kdump(scratch)


def of_split(paths: Sequence[Path]) -> Holdings:
    """A split set in order: identical headers and bitmaps, ranges without gaps, each with its descriptors."""
    parts = [Kdump(path) for path in paths]
    first = parts[0]
    pages: dict[int, bytes] = {}
    at = 0
    for part in parts:
        assert part.data_at(0, part.block_size) == first.data_at(0, part.block_size)
        assert (part.bitmap1, part.bitmap2) == (first.bitmap1, first.bitmap2)
        assert part.sub_header["split"] == 1
        begin, end = part.sub_header["start_pfn_64"], part.sub_header["end_pfn_64"]
        assert begin == at < end
        at = end
        own = part.pfns[(part.pfns >= begin) & (part.pfns < end)].tolist()
        assert len(own) > 0
        offsets = part.descriptors["offset"][: len(own)]
        assert (offsets >= part.data_offset).all(), "page data where the descriptors of all parts would be"
        pages |= {pfn: part.page_at(index) for index, pfn in enumerate(own)}
    assert at == first.max_mapnr
    assert set(pages) == set(first.pfns.tolist())
    erased = b"".join(part._area("eraseinfo") for part in parts)
    return Holdings(pages, bits(first.bitmap1) - set(pages), first.notes, first.vmcoreinfo, erased)


def _vmcoreinfo(notes: bytes, prefix: str) -> bytes:
    return next((note.desc for note in split_notes(notes, prefix) if note.name == b"VMCOREINFO"), b"")
