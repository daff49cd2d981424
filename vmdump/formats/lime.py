"""LiME and AVML: ranges of physical memory, each behind a header; in AVML's own form packed with snappy.

Sources: LiME's ``lime.h``, AVML's ``image.rs``, snappy's ``framing_format.txt``. All numbers are
little-endian. Version 1 of AVML is LiME's format. In version 2 a snappy framed stream follows the header, and
eight bytes with the stream's length follow that.
"""

from __future__ import annotations

from vmdump.formats.layout import ByteOrder, Field, Layout

__all__ = [
    "AVML_SIGNATURE",
    "AVML_TRAILER",
    "AVML_VERSION",
    "BYTEORDER",
    "HEADER",
    "LIME_SIGNATURE",
    "LIME_VERSION",
    "SNAPPY_FRAME",
    "SNAPPY_MAX",
    "SNAPPY_STREAM",
]

BYTEORDER: ByteOrder = "little"
LIME_SIGNATURE, LIME_VERSION = b"EMiL", 1
AVML_SIGNATURE, AVML_VERSION = b"AVML", 2
AVML_TRAILER = 8

HEADER = Layout(
    "LiME header",
    (
        Field("signature", "S4"),
        Field("version", "u4"),
        Field("s_addr", "u8"),
        Field("e_addr", "u8"),  # of the last byte
        Field("reserved", "u8"),
    ),
)

SNAPPY_STREAM = b"sNaPpY"
SNAPPY_MAX = 65536
"""Bytes that a frame holds at most, unpacked."""
SNAPPY_FRAME = {"packed": 0x00, "plain": 0x01, "first skippable": 0x80, "stream": 0xFF}
