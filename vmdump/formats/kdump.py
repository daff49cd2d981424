"""The kdump-compressed format: headers, page descriptors and flags.

Sources: makedumpfile's ``diskdump_mod.h``, libkdumpfile's ``diskdump.c`` and
QEMU's ``dump.h``. A file is: header block, sub-header blocks (sub-header,
notes), first bitmap, second bitmap, page descriptors, page data.
"""

from __future__ import annotations

from typing import Literal

from vmdump.formats.layout import Field, Layout

__all__ = [
    "CODEC_FLAGS",
    "DUMP_LEVEL",
    "FLAG_CODECS",
    "HEADER",
    "HEADER_BLOCKS",
    "HEADER_VERSION",
    "PAGE_DESCRIPTOR",
    "PAGE_FLAGS_MASK",
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

CODEC_FLAGS = {"zlib": 0x1, "lzo": 0x2, "snappy": 0x4, "zstd": 0x20}
FLAG_CODECS = {flag: codec for codec, flag in CODEC_FLAGS.items()}
PAGE_FLAGS_MASK = 0x1 | 0x2 | 0x4 | 0x20
STATUS_INCOMPLETE = 0x8

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


SUB_HEADER: dict[SubHeaderForm, Layout] = {
    "64": Layout(
        "kdump sub-header",
        (
            Field("phys_base", "u8"),
            Field("dump_level", "i4"),
            Field("split", "i4", since=2),
            Field("start_pfn", "u8", since=2),
            Field("end_pfn", "u8", since=2),
            Field("offset_vmcoreinfo", "u8", since=3),
            Field("size_vmcoreinfo", "u8", since=3),
            Field("offset_note", "u8", since=4),
            Field("size_note", "u8", since=4),
            Field("offset_eraseinfo", "u8", since=5),
            Field("size_eraseinfo", "u8", since=5),
            Field("start_pfn_64", "u8", since=6),
            Field("end_pfn_64", "u8", since=6),
            Field("max_mapnr_64", "u8", since=6),
        ),
    ),
    # i386 aligns 64-bit members to 4 bytes.
    "32 packed": Layout(
        "kdump sub-header",
        (
            Field("phys_base", "u4"),
            Field("dump_level", "i4"),
            Field("split", "i4", since=2),
            Field("start_pfn", "u4", since=2),
            Field("end_pfn", "u4", since=2),
            Field("offset_vmcoreinfo", "u8", since=3),
            Field("size_vmcoreinfo", "u4", since=3),
            Field("offset_note", "u8", since=4),
            Field("size_note", "u4", since=4),
            Field("offset_eraseinfo", "u8", since=5),
            Field("size_eraseinfo", "u4", since=5),
            Field("start_pfn_64", "u8", since=6),
            Field("end_pfn_64", "u8", since=6),
            Field("max_mapnr_64", "u8", since=6),
        ),
    ),
    # ARM, MIPS and PowerPC align them to 8.
    "32 padded": Layout(
        "kdump sub-header",
        (
            Field("phys_base", "u4"),
            Field("dump_level", "i4"),
            Field("split", "i4", since=2),
            Field("start_pfn", "u4", since=2),
            Field("end_pfn", "u4", since=2),
            Field("pad_vmcoreinfo", "V4", since=3),
            Field("offset_vmcoreinfo", "u8", since=3),
            Field("size_vmcoreinfo", "u4", since=3),
            Field("pad_note", "V4", since=4),
            Field("offset_note", "u8", since=4),
            Field("size_note", "u4", since=4),
            Field("pad_eraseinfo", "V4", since=5),
            Field("offset_eraseinfo", "u8", since=5),
            Field("size_eraseinfo", "u4", since=5),
            Field("pad_pfn", "V4", since=6),
            Field("start_pfn_64", "u8", since=6),
            Field("end_pfn_64", "u8", since=6),
            Field("max_mapnr_64", "u8", since=6),
        ),
    ),
}

PAGE_DESCRIPTOR = Layout(
    "kdump page descriptor",
    (Field("offset", "u8"), Field("size", "u4"), Field("flags", "u4"), Field("page_flags", "u8")),
)
