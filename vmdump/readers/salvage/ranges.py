"""What LiME and AVML files have in common when they are damaged: ranges of memory behind headers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError
from vmdump.formats import lime
from vmdump.guest.blocks import BlockList
from vmdump.readers.bytes.file import ByteFile
from vmdump.readers.lime import read_range
from vmdump.readers.pieces import PieceList, PiecesDump
from vmdump.units import ADDRESS_LIMIT, merge_runs

__all__ = ["MAX_CLAIMED", "RangeHeaders", "SalvagedRanges", "merged"]

MAX_CLAIMED = 1 << 44
"""Bytes: of a longer range that is cut, only what is left is taken for the guest's."""
_SCANNED = 1 << 20
_MAX_TRIED = 1 << 16
"""Places in a file that are tried as headers."""
_STREAM = 10
"""Bytes of the frame that begins a snappy stream."""


class SalvagedRanges(PiecesDump):
    """Intact pieces, and the ranges that the headers name; what is missing of these is excluded.

    Behind damage that hides where the next range begins, the next header is looked for by its signature.
    """

    def _join(self, pieces: BlockList, ranges: list[tuple[int, int]]) -> BlockList:
        """Give the blocks of the guest, by the ranges ``[begin, end)`` that the headers name."""
        self._pieces = PieceList(pieces, merged(ranges, self.path), self.path)
        return self._pieces.blocks

    @property
    def lost_pages(self) -> int:
        """Pages of ranges whose headers are there. Nothing tells of others."""
        return self.excluded_size // self.page_size


def merged(ranges: list[tuple[int, int]], path: str) -> NDArray[np.uint64]:
    """Give ``[begin, end)`` of ranges that touch as one; FormatError where one ends at 2^64."""
    if max((end for _, end in ranges), default=0) >= ADDRESS_LIMIT:
        raise FormatError("memory up to the end of the address space is not repaired", path=path)
    return np.array(list(merge_runs(sorted(ranges))), np.uint64).reshape(-1, 2)


class RangeHeaders:
    """The headers of a file's ranges, also those behind damage.

    Memory may hold anything: what looks like a header is one only if another one or the end of the file is
    behind its range, or, in AVML, if a snappy stream begins behind it.
    """

    def __init__(self, file: ByteFile, signature: bytes, version: int) -> None:
        self._file = file
        self._signature, self._version = signature, version
        self._left = _MAX_TRIED

    def read(self, offset: int) -> tuple[int, int]:
        """Read a header: address and size of its range; FormatError if it is not one."""
        return read_range(self._file, offset, self._signature, self._version)

    def next(self, offset: int, after: int) -> int:
        """Look for a header of memory at `after` or above; give its offset, or the end of the file."""
        file, step = self._file, 4 << 10
        wanted = self._signature + self._version.to_bytes(4, lime.BYTEORDER)
        while offset < file.size:
            window = file.read(offset, min(step + len(wanted), file.size - offset))
            at = window.find(wanted)
            while at >= 0:
                self._left -= 1
                if self._left < 0:
                    return file.size
                if self._is_header(offset + at, after):
                    return offset + at
                at = window.find(wanted, at + 1)
            offset += step
            step = min(2 * step, _SCANNED)
        return file.size

    def _is_header(self, place: int, after: int) -> bool:
        try:
            start, size = self.read(place)
            begin = place + lime.HEADER.size
            if start < after:
                return False
            if self._signature == lime.AVML_SIGNATURE:
                return self._file.read(begin, _STREAM)[4:] == lime.SNAPPY_STREAM
            return begin + size == self._file.size or bool(self.read(begin + size))
        except FormatError:
            return False
