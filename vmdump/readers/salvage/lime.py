"""What is left of a LiME file that was cut short or is damaged."""

from __future__ import annotations

from collections.abc import Iterator

from vmdump.errors import FormatError
from vmdump.formats import lime
from vmdump.guest.blocks import MAX_BLOCKS, MIN_PAGE_SIZE
from vmdump.readers.bytes.file import ByteFile
from vmdump.readers.contents import Contents
from vmdump.readers.lime import blocks_in_file
from vmdump.readers.salvage.ranges import MAX_CLAIMED, RangeHeaders, SalvagedRanges

__all__ = ["SalvagedLime"]


class SalvagedLime(SalvagedRanges):
    """The memory of a damaged LiME file, in whole pages; what its headers name but it lacks is excluded.

    Parameters
    ----------
    contents : Contents
        One file.

    Raises
    ------
    FormatError
        None of its memory is left.
    LayoutError
        Ranges overlap.
    """

    format = "lime"

    def __init__(self, contents: Contents) -> None:
        self._take(contents.files)
        file = contents.file
        ranges: list[tuple[int, int]] = []
        pieces: list[tuple[int, int, int]] = []
        told = 0
        for start, size, offset in _ranges(file):
            there = min(size, file.size - offset)
            if there < size:
                there = max(there - (start + there) % MIN_PAGE_SIZE, 0)
            if there:
                pieces.append((start, there, offset))
            claimed = size if size <= MAX_CLAIMED else there
            if claimed:
                ranges.append((start, start + claimed))
            told += lime.HEADER.size + size
        if not pieces:
            raise FormatError("it ends before any memory", path=file.path)
        blocks = self._join(blocks_in_file(file, pieces), ranges)
        super().__init__(blocks, contents.arch, byteorder=lime.BYTEORDER)
        self.incomplete = told != file.size or self.lost_pages > 0


def _ranges(file: ByteFile) -> Iterator[tuple[int, int, int]]:
    """Give address, size and place of the ranges whose headers are left; the last one may be cut."""
    headers = RangeHeaders(file, lime.LIME_SIGNATURE, lime.LIME_VERSION)
    offset = count = after = 0
    while offset < file.size and count < MAX_BLOCKS:
        try:
            start, size = headers.read(offset)
        except FormatError:
            offset = headers.next(offset + 1, after)
            continue
        offset += lime.HEADER.size
        yield start, size, offset
        offset += size
        after = start + size
        count += 1
