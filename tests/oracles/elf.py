"""Takes an ELF core apart: pyelftools reads the headers, raw program headers must agree with it."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from elftools.elf.elffile import ELFFile

PT_LOAD, PT_NOTE = 1, 4
PN_XNUM = 0xFFFF
EHDR_SIZE = {32: 52, 64: 64}
PHDR_SIZE = {32: 32, 64: 56}
SHDR_SIZE = {32: 40, 64: 64}

# Names in file order; a word is 4 bytes, an address 4 or 8 by the class. 64-bit headers have p_flags second.
_PHDR_NAMES = {
    32: ("type", "offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align"),
    64: ("type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align"),
}
_WORDS = ("type", "flags")


class Segment(NamedTuple):
    """One program header."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    flags: int
    align: int


class Note(NamedTuple):
    """One ELF note; `name` without its NUL."""

    name: bytes
    type: int
    desc: bytes


class ElfCore:
    """An ELF core file.

    Attributes
    ----------
    bits : 32 or 64
    byteorder : "little" or "big"
    ehdr : the ELF header, as pyelftools parsed it
    shnum_info : int, sh_info of the first section header (0 where there is none)
    segments, loads : list of Segment
    notes : bytes
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = ELFFile(file)
            self.ehdr: dict[str, Any] = dict(reader.header)
            self.bits: int = reader.elfclass
            self.byteorder = "little" if reader.little_endian else "big"
            self.phnum: int = reader.num_segments()
            self.size = os.fstat(file.fileno()).st_size
            self.segments = self._read_segments()
            assert len(self.segments) == self.phnum, "pyelftools counts another number of program headers"
            # pyelftools takes 20 us per segment: the first and last thousand show a wrong layout.
            for index in {*range(min(1000, self.phnum)), *range(max(0, self.phnum - 1000), self.phnum)}:
                self._compare(index, reader.get_segment(index).header)
        assert self.ehdr["e_type"] == "ET_CORE"
        self.loads = [segment for segment in self.segments if segment.type == PT_LOAD]
        self.notes = b"".join(
            self._data[s.offset : s.offset + s.filesz] for s in self.segments if s.type == PT_NOTE
        )

    @property
    def prefix(self) -> str:
        """The prefix of struct formats and numpy types."""
        return "<" if self.byteorder == "little" else ">"

    @property
    def machine(self) -> int:
        """e_machine as a number."""
        return int(struct.unpack_from(self.prefix + "H", self._data, 18)[0])

    @property
    def raw_phnum(self) -> int:
        """e_phnum as it stands in the file."""
        return int(struct.unpack_from(self.prefix + "H", self._data, {32: 44, 64: 56}[self.bits])[0])

    def _read_segments(self) -> list[Segment]:
        address = f"{self.prefix}u{self.bits // 8}"
        dtype = np.dtype(
            [(name, self.prefix + "u4" if name in _WORDS else address) for name in _PHDR_NAMES[self.bits]]
        )
        assert dtype.itemsize == PHDR_SIZE[self.bits]
        count, begin = self.raw_phnum, self.ehdr["e_phoff"]
        if count == PN_XNUM:
            position = self.ehdr["e_shoff"] + {32: 28, 64: 44}[self.bits]
            count = struct.unpack_from(self.prefix + "I", self._data, position)[0]
        assert begin + count * dtype.itemsize <= self.size, "program headers behind the file's end"
        table = np.frombuffer(self._data[begin : begin + count * dtype.itemsize], dtype)
        return [
            Segment(*row) for row in zip(*(table[name].tolist() for name in Segment._fields), strict=True)
        ]

    def _compare(self, index: int, header: Any) -> None:
        mine = self.segments[index]
        for name in ("offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align"):
            assert getattr(mine, name) == header[f"p_{name}"], f"pyelftools disagrees on p_{name} of {index}"

    def note_list(self) -> list[Note]:
        """The notes one by one."""
        return split_notes(self.notes, self.prefix)

    def load_bytes(self, load: Segment) -> bytes:
        """What a loader puts at the segment's address: file bytes, then zeros up to memsz."""
        data = self._data[load.offset : load.offset + load.filesz]
        assert len(data) == load.filesz, "segment behind the file's end"
        return data + bytes(load.memsz - load.filesz)

    def load_view(self, load: Segment) -> memoryview:
        """The segment's bytes in the file, without a copy."""
        return memoryview(self._data)[load.offset : load.offset + load.filesz]

    def read(self, address: int, size: int) -> bytes:
        """Guest-physical memory out of one segment; KeyError where no segment has it all."""
        for load in self.loads:
            if load.paddr <= address and address + size <= load.paddr + load.memsz:
                begin = address - load.paddr
                stored = max(0, min(size, load.filesz - begin))
                data = self._data[load.offset + begin : load.offset + begin + stored]
                return data + bytes(size - stored)
        raise KeyError(address)

    def check_vmdump_layout(self) -> ElfCore:
        """Assert the layout that every reader opens: program headers first, then memory, 4096-aligned."""
        ehdr = self.ehdr
        assert ehdr["e_ehsize"] == EHDR_SIZE[self.bits]
        assert ehdr["e_phentsize"] == PHDR_SIZE[self.bits]
        assert ehdr["e_phoff"] == EHDR_SIZE[self.bits], "the program headers are not behind the ELF header"
        assert self.segments[0].type == PT_NOTE
        assert len(self.loads) == self.phnum - 1
        end = ehdr["e_phoff"] + self.phnum * PHDR_SIZE[self.bits]
        if self.raw_phnum == PN_XNUM:
            assert ehdr["e_shoff"] == end, "the section header is not behind the program headers"
            assert ehdr["e_shnum"] == 1
            assert ehdr["e_shentsize"] == SHDR_SIZE[self.bits]
            assert len(self.loads) >= PN_XNUM - 2, "PN_XNUM without need"
            end += SHDR_SIZE[self.bits]
        else:
            assert ehdr["e_shoff"] == ehdr["e_shnum"] == 0
        assert self.segments[0].offset == end, "the notes do not follow the headers"
        assert self.segments[0].filesz == self.segments[0].memsz
        end += self.segments[0].filesz
        memory = -(-end // 4096) * 4096
        assert not any(self._data[end : min(memory, self.size)]), "the padding before the memory is not zero"
        for load in self.loads:
            assert load.vaddr == load.paddr
            assert load.flags == load.align == 0
            assert load.filesz <= load.memsz
            if load.filesz:
                assert load.offset == memory, f"segment at {load.offset:#x}, its place is {memory:#x}"
                memory += load.filesz
        assert memory == self.size or not any(load.filesz for load in self.loads)
        return self


def put_headers_first(core: Path, output: Path) -> None:
    """Write a 64-bit, little-endian core with its program headers right behind the ELF header.

    makedumpfile looks for them there, whatever the header says; QEMU writes section headers in between.
    """
    with core.open("rb") as source, output.open("wb") as target:
        header = bytearray(source.read(64))
        begin, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
        source.seek(begin)
        table = np.frombuffer(source.read(56 * count), "<u8").reshape(-1, 7).copy()
        ahead = -(-(64 + table.nbytes) // 4096) * 4096
        table[:, 1] += ahead
        struct.pack_into("<QQ", header, 32, 64, 0)
        struct.pack_into("<HH", header, 60, 0, 0)
        target.write((header + table.tobytes()).ljust(ahead, b"\0"))
        source.seek(0)
        shutil.copyfileobj(source, target, 1 << 22)


def split_notes(data: bytes, prefix: str) -> list[Note]:
    """Split concatenated ELF notes; names and descriptors are padded to 4 bytes in core files."""
    notes, position = [], 0
    while position < len(data):
        assert position + 12 <= len(data), "a note header is cut off"
        namesz, descsz, kind = struct.unpack_from(prefix + "III", data, position)
        name_at = position + 12
        desc_at = name_at + -(-namesz // 4) * 4
        assert desc_at + descsz <= len(data), "a note is cut off"
        name = data[name_at : name_at + namesz].rstrip(b"\0")
        notes.append(Note(name, kind, data[desc_at : desc_at + descsz]))
        position = desc_at + -(-descsz // 4) * 4
    return notes
