"""The flattened form: a stream of (offset, size, data) records that a reader puts in place.

Source: makedumpfile's IMPLEMENTATION file. All numbers are big-endian on every host.
"""

from __future__ import annotations

from vmdump.formats.layout import ByteOrder, Field, Layout

__all__ = [
    "BYTEORDER",
    "END_MARK",
    "FILE_HEADER",
    "FILE_HEADER_SIZE",
    "RECORD",
    "SIGNATURE",
    "file_header",
    "record",
]

SIGNATURE = b"makedumpfile"
BYTEORDER: ByteOrder = "big"
FILE_HEADER_SIZE = 4096
_TYPE_FLAT = 1
_VERSION_FLAT = 1

FILE_HEADER = Layout(
    "flattened header", (Field("signature", "S16"), Field("type", "i8"), Field("version", "i8"))
)
RECORD = Layout("flattened record", (Field("offset", "i8"), Field("size", "i8")))


def file_header() -> bytes:
    """Build the 4096 bytes that start a flattened file."""
    header = FILE_HEADER.pack(BYTEORDER, signature=SIGNATURE, type=_TYPE_FLAT, version=_VERSION_FLAT)
    return header.ljust(FILE_HEADER_SIZE, b"\0")


def record(offset: int, size: int) -> bytes:
    """Build the 16 bytes before `size` bytes that belong at `offset` of the standard file."""
    return RECORD.pack(BYTEORDER, offset=offset, size=size)


END_MARK = RECORD.pack(BYTEORDER, offset=-1, size=-1)
