"""Takes a flattened kdump file apart: a header and a stream of (offset, size, data) records."""

from __future__ import annotations

import itertools
import mmap
import os
import struct
from typing import NamedTuple

HEADER_SIZE = 4096
SMALLEST_RECORD = 1 << 20
_MAGIC = b"makedumpfile\0\0\0\0"
_RECORD = struct.Struct(">qq")


class Record(NamedTuple):
    """`size` bytes at `position` of the flattened file belong at `offset` of the standard one."""

    offset: int
    size: int
    position: int

    @property
    def end(self) -> int:
        """Where the record ends in the standard file."""
        return self.offset + self.size


class Flattened:
    """A flattened file, whose magic, record headers and end marker have been checked."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = self._data
        assert data[:16] == _MAGIC, f"signature {data[:16]!r}"
        assert struct.unpack_from(">qq", data, 16) == (1, 1), "type and version"
        assert not any(data[32:HEADER_SIZE])
        self.records: list[Record] = []
        position = HEADER_SIZE
        while True:
            assert position + _RECORD.size <= len(data), "no end marker"
            offset, size = _RECORD.unpack_from(data, position)
            position += _RECORD.size
            if (offset, size) == (-1, -1):
                break
            assert min(offset, size - 1) >= 0, f"record ({offset}, {size})"
            assert position + size <= len(data), "a record is cut off"
            self.records.append(Record(offset, size, position))
            position += size
        assert position == len(data), "bytes behind the end marker"

    def check(self) -> Flattened:
        """Assert what keeps a file quick to open: big ascending records, few of them out of order.

        Readers sort the records by insertion. A record below 1 MiB may only end a run of records that join;
        the last record of all may join a small one where it ends the second bitmap, whose checkpoint was
        written behind the last page data. Descriptors and bitmap come behind the data, twice in 1 MiB of
        these at most.
        """
        by_offset = sorted(self.records)
        for left, right in itertools.pairwise(by_offset):
            assert left.end <= right.offset, f"records overlap at offset {right.offset:#x}"
        descents = 0
        for left, right in zip(self.records, self.records[1:], strict=False):
            descents += right.offset < left.offset
            if right.offset == left.end and not self._ends_bitmap(right):
                assert left.size >= SMALLEST_RECORD, f"record of {left.size} bytes at offset {left.offset:#x}"
        assert descents <= 2 + 2 * (len(self._data) >> 20), f"the records descend {descents} times"
        return self

    def _ends_bitmap(self, record: Record) -> bool:
        """Tell whether it is the last record, and descriptors begin where it ends."""
        return record is self.records[-1] and any(other.offset == record.end for other in self.records)

    def rearrange(self, path: str | os.PathLike[str]) -> None:
        """Write the standard-layout file; what no record covers stays a hole."""
        with open(path, "wb") as file, memoryview(self._data) as view:
            for offset, size, position in self.records:
                file.seek(offset)
                file.write(view[position : position + size])
            file.truncate(max(record.end for record in self.records))


def flatten(standard: bytes, record_size: int = 3000) -> bytes:
    """Lay a dump out as makedumpfile's stream, its records back to front."""
    head = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    records = [
        struct.pack(">qq", at, len(standard[at : at + record_size])) + standard[at : at + record_size]
        for at in range(0, len(standard), record_size)
    ]
    return b"".join([head.ljust(4096, b"\0"), *records[::-1], struct.pack(">qq", -1, -1)])
