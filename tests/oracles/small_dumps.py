"""Small dumps of every kind, byte by byte with struct, and where each field of their headers lies.

All hold the same guest: four pages from 0 on, two pages from 8 on. In a kdump file page 5 exists, excluded.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from oracles.elf_builder import EM_386, EM_PPC, EM_PPC64, EM_X86_64, Load, build_elf, note

PAGE = 4096
BLOCKS = ((0, 4), (8, 10))
EXCLUDED = 5
MAX_PFN = 10
VMCOREINFO = (
    b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff81000100\nOFFSET(uts_namespace.name)=0\n"
    b"SYMBOL(swapper_pg_dir)=ffffffff81002000\nSYMBOL(_stext)=ffffffff81000000\nNUMBER(phys_base)=-16777216\n"
    b"KERNELOFFSET=0\nSYMBOL(log_buf)=ffffffff81000200\nSYMBOL(log_buf_len)=ffffffff81000208\n"
)


@dataclass(frozen=True)
class HeaderField:
    """`width` bytes at `offset` are the number `name`."""

    name: str
    offset: int
    width: int


@dataclass
class SmallDump:
    """A dump and what its headers are.

    Attributes
    ----------
    order : str
        struct's mark of the byte order.
    headers_end : int
        All headers lie below this.
    """

    name: str
    order: str = "<"
    data: bytearray = field(default_factory=bytearray)
    fields: list[HeaderField] = field(default_factory=list)
    headers_end: int = 0

    def put(self, offset: int, data: bytes) -> int:
        """Put bytes somewhere, filling up with zeros; gives the end."""
        end = offset + len(data)
        self.data.extend(bytes(max(end - len(self.data), 0)))
        self.data[offset:end] = data
        return end

    def table(self, offset: int, layout: str, /, **values: int | bytes) -> int:
        """Put a structure of "name:code" words; those without a value are zero. Gives the end."""
        for word in layout.split():
            name, _, code = word.partition(":")
            width = struct.calcsize(f"={code}")
            if code.endswith("s"):
                raw = values.get(name, b"")
                assert isinstance(raw, bytes)
                self.put(offset, raw.ljust(width, b"\0"))
            else:
                self.put(offset, struct.pack(f"{self.order}{code}", values.get(name, 0)))
                self.fields.append(HeaderField(name, offset, width))
            offset += width
        self.headers_end = max(self.headers_end, offset)
        return offset

    def changed(self, where: HeaderField, value: int) -> bytes:
        """Give the dump with another value in one field."""
        data = bytearray(self.data)
        codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
        struct.pack_into(self.order + codes[where.width], data, where.offset, value)
        return bytes(data)


def content(pfn: int) -> bytes:
    """Give the page; 1 and 9 are zero, 2 and up are one byte repeated."""
    if pfn in (1, 9):
        return bytes(PAGE)
    return bytes(range(256)) * 16 if pfn == 0 else bytes([pfn]) * PAGE


# Streams of a page of one byte, by hand.


def snappy_stream(byte: int, size: int = PAGE) -> bytes:
    """One literal byte, then copies from one byte before, 64 at a time."""
    length = struct.pack("B", size) if size < 128 else bytes((size & 127 | 128, size >> 7))
    copies = b"".join(struct.pack("<BH", (min(64, size - at) - 1) << 2 | 2, 1) for at in range(1, size, 64))
    return length + bytes((0, byte)) + copies


def lzo_stream(byte: int, size: int = PAGE) -> bytes:
    """Four literal bytes, then one match of distance 1 (length in units of 255 and a rest), and the end."""
    zeros, rest = divmod(size - 4 - 33, 255)
    return bytes((17 + 4, *[byte] * 4, 0x20, *[0] * zeros, rest, 0, 0, 0x11, 0, 0))


def zstd_stream(byte: int, size: int = PAGE) -> bytes:
    """A frame of one RLE block, with the content size in two bytes."""
    return (
        struct.pack("<IBH", 0xFD2FB528, 0x60, size - 256)
        + (1 | 1 << 1 | size << 3).to_bytes(3, "little")
        + bytes([byte])
    )


# kdump

_UTS = "sysname:65s nodename:65s release:65s version:65s machine:65s domainname:65s"
_NUMBERS = (
    "status:I block_size:i sub_hdr_size:i bitmap_blocks:I max_mapnr:I total_ram_blocks:I device_blocks:I "
    "written_blocks:I current_cpu:I nr_cpus:i"
)
_HEADER = {
    64: f"signature:8s header_version:i {_UTS} pad:6s tv_sec:Q tv_usec:Q {_NUMBERS}",
    32: f"signature:8s header_version:i {_UTS} pad:2s tv_sec:I tv_usec:I {_NUMBERS}",
}
_SUB_HEADER = {
    64: "phys_base:Q dump_level:i split:i start_pfn:Q end_pfn:Q offset_vmcoreinfo:Q size_vmcoreinfo:Q "
    "offset_note:Q size_note:Q offset_eraseinfo:Q size_eraseinfo:Q "
    "start_pfn_64:Q end_pfn_64:Q max_mapnr_64:Q",
    32: "phys_base:I dump_level:i split:i start_pfn:I end_pfn:I offset_vmcoreinfo:Q size_vmcoreinfo:I "
    "offset_note:Q size_note:I offset_eraseinfo:Q size_eraseinfo:I "
    "start_pfn_64:Q end_pfn_64:Q max_mapnr_64:Q",
}
_SUB_HEADER_MEMBERS = {1: 2, 2: 5, 3: 7, 4: 9, 5: 11, 6: 14}
"""How many members the sub-header has, by header version."""
DESCRIPTOR = "offset:Q size:I flags:I page_flags:Q"
MACHINES = {(64, "<"): b"x86_64", (32, "<"): b"i686", (64, ">"): b"ppc64", (32, ">"): b"ppc"}


def guest_notes(bits: int, order: str, *, vmcoreinfo: bytes = VMCOREINFO) -> bytes:
    """Build the notes of two vCPUs and VMCOREINFO."""
    byteorder = "little" if order == "<" else "big"
    sizes = {(64, "<"): 336, (32, "<"): 144, (64, ">"): 504, (32, ">"): 268}
    registers = note(b"CORE", 1, bytes(range(1, 129)).ljust(sizes[bits, order], b"\x11"), byteorder)
    return 2 * registers + note(b"VMCOREINFO", 0, vmcoreinfo, byteorder)


def kdump(
    bits: int = 64,
    order: str = "<",
    *,
    version: int = 6,
    part: tuple[int, int] | None = None,
    notes: bytes | None = None,
    zstd: bool = False,
) -> SmallDump:
    """Build a kdump file; `part`: as the part of a split set with these pfns; `zstd`: page 8, else snappy."""
    dump = SmallDump(f"kdump{bits}{'le' if order == '<' else 'be'}v{version}{'zstd' if zstd else ''}", order)
    if notes is None:
        notes = guest_notes(bits, order)
    dump.table(
        0, _HEADER[bits], signature=b"KDUMP   ", header_version=version, sysname=b"Linux", nodename=b"guest",
        release=b"6.1.0-test", version=b"#1 SMP", machine=MACHINES[bits, order], tv_sec=1, status=1,
        block_size=PAGE, sub_hdr_size=1, bitmap_blocks=2, max_mapnr=MAX_PFN, nr_cpus=2,
    )  # fmt: skip
    layout = " ".join(_SUB_HEADER[bits].split()[: _SUB_HEADER_MEMBERS[version]])
    notes_at = PAGE + 128
    desc_at = notes_at + notes.index(b"OSRELEASE") if b"OSRELEASE" in notes else 0
    begin, end = part or (0, 0)
    dump.table(
        PAGE, layout, dump_level=1, split=int(part is not None), start_pfn=begin, end_pfn=end,
        start_pfn_64=begin, end_pfn_64=end, max_mapnr_64=MAX_PFN, offset_note=notes_at, size_note=len(notes),
        offset_vmcoreinfo=desc_at, size_vmcoreinfo=len(VMCOREINFO) if desc_at else 0,
    )  # fmt: skip
    position = 0
    while position + 12 <= len(notes):
        dump.table(notes_at + position, "namesz:I descsz:I type:I", **_note_header(notes, position, order))
        namesz, descsz = struct.unpack_from(f"{order}II", notes, position)
        position += 12 + -(-namesz // 4) * 4 + -(-descsz // 4) * 4
    dump.put(notes_at, notes)
    dump.put(2 * PAGE, _bitmap([pfn for low, high in BLOCKS for pfn in range(low, high)] + [EXCLUDED]))
    present = [pfn for low, high in BLOCKS for pfn in range(low, high)]
    dump.put(3 * PAGE, _bitmap(present))
    _pages(dump, 4 * PAGE, [pfn for pfn in present if part is None or begin <= pfn < end], len(present), zstd)
    return dump


def _note_header(notes: bytes, position: int, order: str) -> dict[str, int]:
    return dict(
        zip(("namesz", "descsz", "type"), struct.unpack_from(f"{order}3I", notes, position), strict=True)
    )


def _bitmap(pfns: Iterable[int]) -> bytes:
    return sum(1 << pfn for pfn in pfns).to_bytes(PAGE, "little")


def _pages(dump: SmallDump, table: int, pfns: list[int], all_pages: int, zstd: bool) -> None:
    zero = table + 24 * all_pages
    place = dump.put(zero, bytes(PAGE))
    codecs = {2: (1, zlib.compress(content(2))), 3: (2, lzo_stream(3)), 8: (4, snappy_stream(8))}
    if zstd:
        codecs[8] = (0x20, zstd_stream(8))
    for pfn in pfns:
        flags, data = codecs.get(pfn, (0, content(pfn)))
        at = place if any(data) else zero
        if at == place:
            place = dump.put(place, data)
        table = dump.table(table, DESCRIPTOR, offset=at, size=len(data), flags=flags)


# The others


def elf(bits: int = 64, order: str = "<", *, xnum: bool = False) -> SmallDump:
    """Build an ELF core; the second block is half in the file."""
    machine = {(64, "<"): EM_X86_64, (32, "<"): EM_386, (64, ">"): EM_PPC64, (32, ">"): EM_PPC}[bits, order]
    loads = [
        Load(low * PAGE, b"".join(map(content, range(low, high))), memsz=(high - low) * PAGE)
        for low, high in BLOCKS
    ]
    loads[1] = replace(loads[1], data=content(8))
    data = build_elf(
        loads, notes=guest_notes(bits, order), bits=bits, byteorder="little" if order == "<" else "big",
        machine=machine, xnum=xnum,
    )  # fmt: skip
    dump = SmallDump(
        f"elf{bits}{'le' if order == '<' else 'be'}{'x' if xnum else ''}", order, bytearray(data)
    )
    wide = bits == 64
    word = 8 if wide else 4
    ehdr = [("e_type", 2), ("e_machine", 2), ("e_version", 4), ("e_entry", word), ("e_phoff", word),
            ("e_shoff", word), ("e_flags", 4), ("e_ehsize", 2), ("e_phentsize", 2), ("e_phnum", 2),
            ("e_shentsize", 2), ("e_shnum", 2), ("e_shstrndx", 2)]  # fmt: skip
    names = ("p_type p_flags p_offset p_vaddr p_paddr p_filesz p_memsz p_align" if wide
             else "p_type p_offset p_vaddr p_paddr p_filesz p_memsz p_flags p_align").split()  # fmt: skip
    phdr = [(name, 4 if name in ("p_type", "p_flags") else word) for name in names]
    shdr = [("sh_name", 4), ("sh_type", 4), ("sh_flags", word), ("sh_addr", word), ("sh_offset", word),
            ("sh_size", word), ("sh_link", 4), ("sh_info", 4)] if xnum else []  # fmt: skip
    position = 16
    dump.fields += [HeaderField("ei_class", 4, 1), HeaderField("ei_data", 5, 1)]
    for name, width in [*ehdr, *3 * phdr, *shdr]:
        dump.fields.append(HeaderField(name, position, width))
        position += width
    notes_at = (64 if wide else 52) + 3 * (56 if wide else 32) + ((64 if wide else 40) if xnum else 0)
    for name in ("namesz", "descsz", "n_type"):
        dump.fields.append(HeaderField(name, notes_at, 4))
        notes_at += 4
    dump.headers_end = notes_at
    return dump


def flattened(standard: SmallDump, record_size: int = 3000) -> SmallDump:
    """Cut a dump into records, the first one last, as a writer does that knows its header at the end only."""
    dump = SmallDump(f"flattened {standard.name}", ">")
    records = [
        (at, bytes(standard.data[at : at + record_size])) for at in range(0, len(standard.data), record_size)
    ]
    dump.table(0, "signature:16s type:q version:q", signature=b"makedumpfile", type=1, version=1)
    position = PAGE
    for offset, data in [*records[1:], records[0]]:
        position = dump.table(position, "offset:q size:q", offset=offset, size=len(data))
        position = dump.put(position, data)
    dump.put(position, b"\xff" * 16)
    dump.headers_end = PAGE + 32
    return dump


_RANGE = "magic:I version:I start:Q last:Q reserved:Q"


def lime() -> SmallDump:
    """Build a LiME file: a header and the bytes of each block."""
    return _ranges("lime", 0x4C694D45, 1)


def avml() -> SmallDump:
    """Build an AVML file of version 2: the bytes of each block are framed snappy, then comes their length."""
    return _ranges("avml", 0x4C4D5641, 2)


def _ranges(name: str, magic: int, version: int) -> SmallDump:
    dump = SmallDump(name)
    position = 0
    for low, high in BLOCKS:
        position = dump.table(
            position, _RANGE, magic=magic, version=version, start=low * PAGE, last=high * PAGE - 1
        )
        data = b"".join(map(content, range(low, high)))
        if version == 1:
            position = dump.put(position, data)
            continue
        frames = snappy_frames(data)
        ends = itertools.accumulate(map(len, frames), initial=position)
        dump.fields += [HeaderField("chunk", at, 4) for at, _ in zip(ends, frames, strict=False)]
        position = dump.put(position, b"".join(frames))
        position = dump.table(position, "length:Q", length=sum(map(len, frames)))
    dump.headers_end = 64
    return dump


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def snappy_frames(data: bytes) -> list[bytes]:
    """Give the chunks of the framing format: its name, then a page each, plain unless it is one byte."""
    frames = [b"\xff\x06\0\0sNaPpY"]
    for at in range(0, len(data), PAGE):
        page = data[at : at + PAGE]
        crc = _crc32c(page)
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        kind, body = (0, snappy_stream(page[0])) if page.count(page[0]) == PAGE else (1, page)
        frames.append(
            bytes([kind]) + (len(body) + 4).to_bytes(3, "little") + struct.pack("<I", masked) + body
        )
    return frames


def split_set() -> list[SmallDump]:
    """Build the two parts of a split kdump file."""
    return [kdump(part=(0, 3)), kdump(part=(3, MAX_PFN))]


def all_kinds() -> list[SmallDump]:
    """Give one dump of every kind that is a single file."""
    orders = [(bits, order) for bits in (64, 32) for order in "<>"]
    return [
        *(elf(bits, order) for bits, order in orders),
        elf(xnum=True),
        *(kdump(bits, order) for bits, order in orders),
        *(kdump(version=version) for version in (1, 3, 5)),
        kdump(zstd=True),
        flattened(kdump()),
        lime(),
        avml(),
    ]
