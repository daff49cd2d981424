"""Builds LiME and AVML files, by LiME's and AVML's sources; with struct and other people's snappy only."""

from __future__ import annotations

import struct
from collections.abc import Sequence

FRAME = 65536
STREAM = b"\xff\x06\x00\x00sNaPpY"


def header(magic: bytes, version: int, start: int, size: int) -> bytes:
    return magic + struct.pack("<IQQQ", version, start, start + size - 1, 0)


def build_lime(ranges: Sequence[tuple[int, bytes]]) -> bytes:
    return b"".join(header(b"EMiL", 1, start, len(data)) + data for start, data in ranges)


def frame(data: bytes, *, plain: bool = False) -> bytes:
    """One frame; its checksum is left zero."""
    import snappy

    body = bytes(4) + (data if plain else bytes(snappy.compress(data)))
    return struct.pack("<I", len(body) << 8 | int(plain)) + body


def build_avml(ranges: Sequence[tuple[int, bytes]], *, piece: int = 1 << 24) -> bytes:
    """Version 2: pieces of 16 MiB, each a snappy stream, then the stream's length."""
    import os

    out = bytearray()
    for start, data in ranges:
        for at in range(0, len(data), piece):
            part = data[at : at + piece]
            stream = bytearray(STREAM)
            for index in range(0, len(part), FRAME):
                memory = part[index : index + FRAME]
                if index == FRAME:  # chunks that a reader has to pass over
                    stream += struct.pack("<I", 5 << 8 | 0xFE) + os.urandom(5)
                stream += frame(memory, plain=index % (3 * FRAME) == 0)
            out += header(b"AVML", 2, start + at, len(part)) + stream + struct.pack("<Q", len(stream))
    return bytes(out)
