"""Bytes of a dump file by offset: as they lie in the file, or put in place from flattened records."""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import Protocol

import numpy as np

from vmdump.errors import FormatError, SourceError
from vmdump.formats import flattened
from vmdump.sources.base import Pages
from vmdump.sources.files import open_for_reading

__all__ = ["ByteFile", "FlattenedBytes", "PlainBytes"]


class ByteFile(Protocol):
    """A dump in its standard layout, wherever its bytes are. Reads may come from several threads."""

    path: str
    size: int

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset`; FormatError where that is not inside the file."""

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes; FormatError where they are not inside the file."""

    def close(self) -> None:
        """Close the file; closing twice does nothing."""


class PlainBytes:
    """A file as it is.

    Parameters
    ----------
    path : str or path
        A regular file or block device.

    Attributes
    ----------
    fd : int
        Open for reading until :meth:`close`.
    size : int
        Bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.fd = open_for_reading(self.path)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def read_into(self, offset: int, out: Pages) -> None:
        """Fill `out` from `offset`."""
        if offset < 0 or offset + out.size > self.size:
            raise FormatError(
                f"{out.size} bytes end behind the end of the file at {self.size:#x}",
                path=self.path,
                offset=offset,
            )
        done = 0
        while done < out.size:
            try:
                count = os.preadv(self.fd, [out[done:].data], offset + done)
            except OSError as error:
                raise SourceError("cannot read the dump", path=self.path, errno=error.errno) from error
            if count == 0:
                raise SourceError("the dump became shorter while it was read", path=self.path)
            done += count

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset`."""
        if length < 0 or length > self.size:
            raise FormatError(f"{length} bytes are more than the file has", path=self.path, offset=offset)
        out = np.empty(length, np.uint8)
        self.read_into(offset, out)
        return out.tobytes()

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


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
        self._plain = plain
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
            raw = self._plain.read(position, flattened.RECORD.size)
            if raw == flattened.END_MARK:
                return records
            record = flattened.RECORD.unpack(raw, 0, flattened.BYTEORDER)
            begin, length = record["offset"], record["size"]
            if begin < 0 or length <= 0 or position + flattened.RECORD.size + length > self._plain.size:
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
                self._plain.read_into(
                    self._places[index] + low - self._begins[index], out[low - offset : high - offset]
                )
            index += 1

    def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset` of the standard layout."""
        if length < 0 or length > self.size:
            raise FormatError(f"{length} bytes are more than the dump has", path=self.path, offset=offset)
        out = np.empty(length, np.uint8)
        self.read_into(offset, out)
        return out.tobytes()

    def close(self) -> None:
        """Close the file."""
        self._plain.close()
