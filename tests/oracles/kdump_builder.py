"""Builds kdump-compressed files of any header version, whole or split; with struct and codecs only."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

EXCLUDED = None
_CODES = {"none": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}


@dataclass(frozen=True)
class Build:
    """What to build; `pages` maps frame numbers to a page's bytes, or to EXCLUDED."""

    pages: Mapping[int, bytes | None]
    version: int = 6
    bits: int = 64
    byteorder: str = "little"
    padded: bool = False
    block_size: int = 4096
    codecs: Sequence[str] = ("zlib",)
    one_bitmap: bool = False
    max_mapnr: int = 0
    machine: bytes = b"x86_64"
    notes: bytes = b""
    vmcoreinfo: bytes = b""
    split: tuple[int, int] | None = None
    names: bytes = b""
    """The six names as they lie in the header, where they are not to be right."""
    head: Mapping[str, int] = field(default_factory=dict)
    sub: Mapping[str, int] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return "<" if self.byteorder == "little" else ">"

    @property
    def end(self) -> int:
        return self.max_mapnr or max(self.pages) + 1


def pack_page(codec: str, page: bytes) -> bytes:
    """One page as a file stores it; the codecs are other people's bindings."""
    if codec == "zlib":
        return zlib.compress(page)
    if codec == "lzo":
        import lzo

        packed: bytes = lzo.compress(page, 1, False)
        return packed
    if codec == "snappy":
        import snappy

        return bytes(snappy.compress(page))
    if codec == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(page)
    return page


def pack_names(*names: bytes) -> bytes:
    """Lay out utsname: 65 bytes a name."""
    return b"".join(name.ljust(65, b"\0") for name in names)


def _header(build: Build, sub_blocks: int, bitmap_blocks: int) -> bytes:
    words = "ii" if build.bits == 32 else "qq"
    head = struct.pack(build.prefix + "8si", b"KDUMP   ", build.version)
    head += build.names or pack_names(b"Linux", b"guest", b"6.1.0", b"#1", build.machine, b"(none)")
    head += bytes(2 if build.bits == 32 else 6)
    head += struct.pack(build.prefix + words, 1_700_000_000, 0)
    head += struct.pack(
        build.prefix + "IiiII",
        build.head.get("status", 1),
        build.block_size,
        sub_blocks,
        bitmap_blocks,
        build.head.get("max_mapnr", build.end),
    )
    return head + struct.pack(build.prefix + "IIIIi", 0, 0, 0, 0, build.head.get("nr_cpus", 1))


def _sub_header(build: Build, notes_at: int) -> bytes:
    """The fields in the order and width that makedumpfile's diskdump_mod.h gives them."""
    word = "I" if build.bits == 32 else "Q"
    pad = build.bits == 32 and build.padded
    begin, end = build.split or (0, 0)
    values: dict[str, tuple[str, int]] = {
        "phys_base": (word, 0x1000),
        "dump_level": ("i", 31),
    }
    if build.version >= 2:
        values |= {"split": ("i", int(build.split is not None))}
        values |= {"start_pfn": (word, begin), "end_pfn": (word, end)}
    if build.version >= 3:
        info_at = notes_at + len(build.notes)
        values |= {"pad1": ("I" if pad else "", 0)}
        values |= {"offset_vmcoreinfo": ("Q", info_at if build.vmcoreinfo else 0)}
        values |= {"size_vmcoreinfo": (word, len(build.vmcoreinfo))}
    if build.version >= 4:
        values |= {"pad2": ("I" if pad else "", 0)}
        values |= {
            "offset_note": ("Q", notes_at if build.notes else 0),
            "size_note": (word, len(build.notes)),
        }
    if build.version >= 5:
        values |= {"pad3": ("I" if pad else "", 0), "offset_eraseinfo": ("Q", 0), "size_eraseinfo": (word, 0)}
    if build.version >= 6:
        values |= {"pad4": ("I" if pad else "", 0)}
        values |= {"start_pfn_64": ("Q", begin), "end_pfn_64": ("Q", end), "max_mapnr_64": ("Q", build.end)}
    return b"".join(
        struct.pack(build.prefix + code, build.sub.get(name, value))
        for name, (code, value) in values.items()
        if code
    )


def _bitmap(pfns: Sequence[int], size: int) -> bytes:
    bits = bytearray(size)
    for pfn in pfns:
        bits[pfn // 8] |= 1 << pfn % 8
    return bytes(bits)


def build_kdump(build: Build) -> bytes:
    """Build the file: a header block, sub-header blocks, bitmaps, descriptors, the zero page, page data."""
    block = build.block_size
    sub_blocks = 2 + (len(build.notes) + len(build.vmcoreinfo)) // block
    notes_at = block + 256
    half = (build.end + 8 * block - 1) // (8 * block)
    bitmap_blocks = half if build.one_bitmap else 2 * half
    data = bytearray(_header(build, sub_blocks, bitmap_blocks).ljust(block, b"\0"))
    data += _sub_header(build, notes_at).ljust(256, b"\0") + build.notes + build.vmcoreinfo
    data = data.ljust((1 + sub_blocks) * block, b"\0")
    stored = sorted(pfn for pfn, page in build.pages.items() if page is not EXCLUDED)
    if not build.one_bitmap:
        data += _bitmap(sorted(build.pages), half * block)
    data += _bitmap(stored, half * block)

    begin, end = build.split or (0, build.end)
    position = len(data) + 24 * len(stored)
    zero_at = position
    position += block
    table, blob = bytearray(), bytearray(block)
    for index, pfn in enumerate(stored):
        page = build.pages[pfn]
        assert page is not None
        if not begin <= pfn < end:
            continue
        if not any(page):
            table += struct.pack(build.prefix + "QIIQ", zero_at, block, 0, 0)
            continue
        codec = build.codecs[index % len(build.codecs)]
        packed = pack_page(codec, page)
        if len(packed) >= block:
            codec, packed = "none", page
        table += struct.pack(build.prefix + "QIIQ", position, len(packed), _CODES[codec], 0)
        position += len(packed)
        blob += packed
    return bytes(data + table.ljust(24 * len(stored), b"\0") + blob)


def build_split(build: Build, cuts: Sequence[int]) -> list[bytes]:
    """Build a split set, cut at these frame numbers, as ``makedumpfile --split`` lays it out."""
    bounds = [0, *cuts, build.end]
    return [
        build_kdump(Build(**{**build.__dict__, "split": (begin, end)})) for begin, end in pairwise(bounds)
    ]
