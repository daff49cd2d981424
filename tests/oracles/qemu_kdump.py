"""QEMU 7.2's kdump-zlib file, page by page, from what its own files show; little-endian, 64 bits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

Record = tuple[int, bytes]
DESCRIPTOR = struct.Struct("<QIIQ")


def pages(blocks: list[tuple[int, bytes]], page_size: int) -> Iterator[tuple[int, bytes]]:
    """(pfn, contents) of each descriptor: a block has its own for every page that it touches."""
    for start, memory in blocks:
        end = start + len(memory)
        for pfn in range(start // page_size, -(-end // page_size)):
            begin, stop = max(pfn * page_size, start), min((pfn + 1) * page_size, end)
            page = bytearray(page_size)
            at = begin - pfn * page_size
            page[at : at + stop - begin] = memory[begin - start : stop - start]
            yield pfn, bytes(page)


class Cache:
    """Gathers pieces for one area, and writes what it has before one that does not fit."""

    def __init__(self, records: list[Record], offset: int, size: int) -> None:
        self.records, self.offset, self.size, self.data = records, offset, size, b""

    def write(self, piece: bytes) -> None:
        if len(self.data) + len(piece) > self.size:
            self.flush()
        self.data += piece

    def flush(self) -> None:
        if self.data:
            self.records.append((self.offset, self.data))
            self.offset += len(self.data)
            self.data = b""


def page_records(blocks: list[tuple[int, bytes]], page_size: int, descriptors_offset: int) -> list[Record]:
    """The records of descriptors and page data, in QEMU's order."""
    every = list(pages(blocks, page_size))
    records: list[Record] = []
    zero_offset = data_offset = descriptors_offset + len(every) * DESCRIPTOR.size
    descriptors = Cache(records, descriptors_offset, 4 * page_size)
    data = Cache(records, data_offset, 4 * page_size)
    data.write(bytes(page_size))
    data_offset += page_size
    for _, page in every:
        if not any(page):
            descriptors.write(DESCRIPTOR.pack(zero_offset, page_size, 0, 0))
            continue
        packed = zlib.compress(page, 1)
        flags = int(len(packed) < page_size)
        stored = packed if flags else page
        data.write(stored)
        descriptors.write(DESCRIPTOR.pack(data_offset, len(stored), flags, 0))
        data_offset += len(stored)
    descriptors.flush()
    data.flush()
    return records


def bitmap_records(
    blocks: list[tuple[int, bytes]], page_size: int, bitmap_offset: int, bitmap_size: int
) -> list[Record]:
    """The records of the bitmaps: a page of the one, then the same of the other."""
    pfns = [pfn for pfn, _ in pages(blocks, page_size)]
    bits = bytearray((max(pfns) // (8 * page_size) + 1) * page_size)
    for pfn in pfns:
        bits[pfn // 8] |= 1 << pfn % 8
    return [
        (bitmap_offset + half * bitmap_size + at, bytes(bits[at : at + page_size]))
        for at in range(0, len(bits), page_size)
        for half in (0, 1)
    ]


def records_of(flattened: bytes) -> list[Record]:
    """The records of a flattened file, which must end with the end mark."""
    found = []
    position = 4096
    while flattened[position : position + 16] != b"\xff" * 16:
        offset, size = struct.unpack_from(">qq", flattened, position)
        found.append((offset, flattened[position + 16 : position + 16 + size]))
        assert len(found[-1][1]) == size > 0
        position += 16 + size
    assert position + 16 == len(flattened)
    return found
