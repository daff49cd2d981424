"""The kdump-compressed format: headers, page descriptors and flags.

Sources: makedumpfile's ``diskdump_mod.h``, libkdumpfile's ``diskdump.c`` and
QEMU's ``dump.h``. A file is: header block, sub-header blocks (sub-header,
notes), first bitmap, second bitmap, page descriptors, page data.
"""

from __future__ import annotations

from typing import Literal

from vmdump.formats.layout import Field, Layout
from vmdump.units import align_up

__all__ = [
    "CODEC_FLAGS",
    "DUMP_LEVEL",
    "FLAG_CODECS",
    "HEADER",
    "HEADER_BLOCKS",
    "HEADER_VERSION",
    "MAX_DUMP_LEVEL",
    "PAGE_DESCRIPTOR",
    "SIGNATURE",
    "STATUS_INCOMPLETE",
    "SUB_HEADER",
    "SubHeaderForm",
]

SIGNATURE = b"KDUMP   "
HEADER_VERSION = 6
HEADER_BLOCKS = 1
DUMP_LEVEL = 1
"""The level QEMU and vmdump write: zero pages share one page of data."""

MAX_DUMP_LEVEL = 31
"""makedumpfile's: all five kinds of pages."""

CODEC_FLAGS = {"zlib": 0x1, "lzo": 0x2, "snappy": 0x4, "zstd": 0x20}
FLAG_CODECS = {flag: codec for codec, flag in CODEC_FLAGS.items()}

STATUS_INCOMPLETE = 0x8
"""Bit of the header's status, beside those of the codec: pages are missing that should be there."""

SubHeaderForm = Literal["64", "32 packed", "32 padded"]


def _header(word: str, after_utsname: int) -> tuple[Field, ...]:
    return (
        Field("signature", "S8"),
        Field("header_version", "i4"),
        Field("sysname", "S65"),
        Field("nodename", "S65"),
        Field("release", "S65"),
        Field("version", "S65"),
        Field("machine", "S65"),
        Field("domainname", "S65"),
        Field("pad_timestamp", f"V{after_utsname}"),
        Field("tv_sec", word),
        Field("tv_usec", word),
        Field("status", "u4"),
        Field("block_size", "i4"),
        Field("sub_hdr_size", "i4"),
        Field("bitmap_blocks", "u4"),
        Field("max_mapnr", "u4"),
        Field("total_ram_blocks", "u4"),
        Field("device_blocks", "u4"),
        Field("written_blocks", "u4"),
        Field("current_cpu", "u4"),
        Field("nr_cpus", "i4"),
    )


# The utsname ends at 402: two bytes align a 32-bit timeval, six a 64-bit one.
HEADER: dict[int, Layout] = {
    32: Layout("kdump header", _header("u4", 2)),
    64: Layout("kdump header", _header("u8", 6)),
}


def _sub_header(word: str, alignment: int) -> Layout:
    """Declare the sub-header for words of type `word`, where a C compiler aligns u8 to `alignment` bytes."""
    fields: list[Field] = []
    size = 0
    for field in (
        Field("phys_base", word),
        Field("dump_level", "i4"),
        Field("split", "i4", since=2),
        Field("start_pfn", word, since=2),
        Field("end_pfn", word, since=2),
        Field("offset_vmcoreinfo", "u8", since=3),
        Field("size_vmcoreinfo", word, since=3),
        Field("offset_note", "u8", since=4),
        Field("size_note", word, since=4),
        Field("offset_eraseinfo", "u8", since=5),
        Field("size_eraseinfo", word, since=5),
        Field("start_pfn_64", "u8", since=6),
        Field("end_pfn_64", "u8", since=6),
        Field("max_mapnr_64", "u8", since=6),
    ):
        if field.code == "u8" and size % alignment:
            fields.append(Field(f"pad_{field.name}", f"V{alignment - size % alignment}", field.since))
            size = align_up(size, alignment)
        fields.append(field)
        size += int(field.code[1:])
    return Layout("kdump sub-header", tuple(fields))


# i386 aligns 64-bit members to 4 bytes; ARM, MIPS and PowerPC to 8, as all 64-bit machines do.
SUB_HEADER: dict[SubHeaderForm, Layout] = {
    "64": _sub_header("u8", 8),
    "32 packed": _sub_header("u4", 4),
    "32 padded": _sub_header("u4", 8),
}

PAGE_DESCRIPTOR = Layout(
    "kdump page descriptor",
    (Field("offset", "u8"), Field("size", "u4"), Field("flags", "u4"), Field("page_flags", "u8")),
)
