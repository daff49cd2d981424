"""Bytes of a dump file by offset: as they lie in the file, or put in place from flattened records."""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import Protocol

import numpy as np

from vmdump.errors import FormatError
from vmdump.formats import flattened
from vmdump.sources.base import Pages
from vmdump.sources.files import GuestFile

__all__ = ["ByteFile", "FlattenedBytes", "PlainBytes"]


class ByteFile(Protocol):
    """A dump in its standard layout, wherever its bytes are. Reads may come from several threads."""

    path: str
    size: int

    @property
    def allocated(self) -> int:
        """Bytes that the file occupies: fewer than its size where it has holes."""

    @property
    def plain(self) -> PlainBytes:
        """The file that holds the bytes."""

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset`; FormatError where that is not inside the file."""

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes; FormatError where they are not inside the file."""

    def close(self) -> None:
        """Close the file; closing twice does nothing."""


class PlainBytes(GuestFile):
    """A file as it is; see :class:`vmdump.sources.files.GuestFile`."""

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset`; FormatError where that is not inside the file."""
        if offset < 0 or offset + out.size > self.size:
            raise FormatError(
                f"{out.size} bytes end behind the end of the file at {self.size:#x}",
                path=self.path,
                offset=offset,
            )
        super().read_into(offset, out)

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset`."""
        return _read(self, offset, length)

    @property
    def allocated(self) -> int:
        """Bytes that the file occupies on its file system."""
        return os.fstat(self.fd).st_blocks * 512

    @property
    def plain(self) -> PlainBytes:
        """The file itself."""
        return self


def _read(file: ByteFile, offset: int, length: int) -> bytes:
    if length < 0 or length > file.size:
        raise FormatError(f"{length} bytes are more than the file has", path=file.path, offset=offset)
    out = np.empty(length, np.uint8)
    file.read_into(offset, out)
    return out.tobytes()


class FlattenedBytes:
    """The standard layout of a flattened file, without writing it out.

    Parameters
    ----------
    plain : PlainBytes
        The flattened file; owned from now on.

    Raises
    ------
    FormatError
        A record is outside the file, overlaps another, or the end mark is missing.
    """

    def __init__(self, plain: PlainBytes) -> None:
        self.plain = plain
        self.path = plain.path
        records = sorted(self._scan())
        self._begins = [begin for begin, _, _ in records]
        self._ends = [end for _, end, _ in records]
        self._places = [place for _, _, place in records]
        for end, begin, place in zip(self._ends, self._begins[1:], self._places[1:], strict=False):
            if begin < end:
                raise FormatError("a flattened record overlaps another", path=self.path, offset=place)
        self.size = self._ends[-1] if records else 0

    def _scan(self) -> list[tuple[int, int, int]]:
        records: list[tuple[int, int, int]] = []
        position = flattened.FILE_HEADER_SIZE
        while True:
            raw = self.plain.read(position, flattened.RECORD.size)
            if raw == flattened.END_MARK:
                return records
            record = flattened.RECORD.unpack(raw, 0, flattened.BYTEORDER)
            begin, length = record["offset"], record["size"]
            if begin < 0 or length <= 0 or position + flattened.RECORD.size + length > self.plain.size:
                raise FormatError(
                    "a flattened record is not inside the file", path=self.path, offset=position
                )
            records.append((begin, begin + length, position + flattened.RECORD.size))
            position += flattened.RECORD.size + length

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset` of the standard layout; what no record holds is zero."""
        if offset < 0 or offset + out.size > self.size:
            raise FormatError(
                f"{out.size} bytes end behind the last record at {self.size:#x}",
                path=self.path,
                offset=offset,
            )
        out[:] = 0
        end = offset + out.size
        index = max(bisect_right(self._begins, offset) - 1, 0)
        while index < len(self._begins) and self._begins[index] < end:
            low, high = max(self._begins[index], offset), min(self._ends[index], end)
            if low < high:
                self.plain.read_into(
                    self._places[index] + low - self._begins[index], out[low - offset : high - offset]
                )
            index += 1

    @property
    def allocated(self) -> int:
        """Bytes that the flattened file occupies."""
        return self.plain.allocated

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset` of the standard layout."""
        return _read(self, offset, length)

    def close(self) -> None:
        """Close the file."""
        self.plain.close()
