"""What is left of an AVML file of version 2 that was cut short or is damaged."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import CodecError, FormatError
from vmdump.formats import lime
from vmdump.guest.blocks import MIN_PAGE_SIZE, BlockList, Pages
from vmdump.readers.avml import AvmlDump, Frames, join_touching
from vmdump.readers.bytes.file import ByteFile
from vmdump.readers.checking import Checking
from vmdump.readers.contents import Contents
from vmdump.readers.crc32c import masked_crc32c
from vmdump.readers.salvage.ranges import MAX_CLAIMED, RangeHeaders, SalvagedRanges, merged

__all__ = ["SalvagedAvml"]

_CHECKED = 16
"""Frames whose checksums are computed at once."""


class SalvagedAvml(SalvagedRanges, AvmlDump):
    """The memory of a damaged AVML file of version 2 whose frames are intact; all else is excluded.

    A frame is intact if all of it is in the file, it unpacks, and has its checksum, or one of zero. Behind
    damage that hides where the next frame begins, the next header is looked for.

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

    def __init__(self, contents: Contents) -> None:
        self._torn = False
        self._checking = contents.checking
        super().__init__(contents)
        self.incomplete = self._torn or self.lost_pages > 0

    def _find(self, file: ByteFile, ranges: list[tuple[int, int]]) -> Frames:
        frames = Frames(file)
        headers = RangeHeaders(file, lime.AVML_SIGNATURE, lime.AVML_VERSION)
        offset = 0
        while offset < file.size:
            try:
                start, size = headers.read(offset)
                if size > MAX_CLAIMED:
                    raise FormatError(f"a range of {size} bytes is too long", path=file.path, offset=offset)
                ranges.append((start, size))
                frames.add(offset + lime.HEADER.size, start, size)
                offset = frames.end + lime.AVML_TRAILER
                self._torn = self._torn or offset > file.size
            except FormatError:
                self._torn = True
                after = sum(ranges[-1]) if ranges else 0
                offset = headers.next(max(offset, frames.end) + 1, after)
        return frames

    def _blocks_of(self, ranges: list[tuple[int, int]]) -> BlockList:
        if self._checking is not None:
            whole = self._intact_frames(self._checking, sum(size for _, size in ranges))
            self._torn = self._torn or not whole.all()
            self._keep(whole)
        if not len(self._addresses):
            raise FormatError("none of its memory is intact", path=self.path)
        starts, ends = join_touching(self._addresses, self._addresses + self._lengths)
        claimed = [(start, start + size) for start, size in ranges]
        edges = merged(claimed, self.path)
        # A page of which a part is lost would have zeros there.
        page = np.uint64(MIN_PAGE_SIZE)
        starts = np.where(np.isin(starts, edges[:, 0]), starts, -(-starts // page) * page)
        ends = np.where(np.isin(ends, edges[:, 1]), ends, ends // page * page)
        starts, ends = starts[starts < ends], ends[starts < ends]
        sizes = ends - starts
        return self._join(BlockList(starts, sizes, self._memory_of(starts, sizes)), claimed)

    def _intact_frames(self, checking: Checking, guest_size: int) -> NDArray[np.bool_]:
        """Unpack all frames; tell which are intact."""
        count = len(self._addresses)
        whole = np.zeros(count, np.bool_)

        def work(out: Pages, begin: int) -> NDArray[np.bool_]:
            return self._intact_of(begin, min(begin + _CHECKED, count), out)

        def take(begin: int, found: NDArray[np.bool_]) -> int:
            whole[begin : begin + len(found)] = found
            return int(self._lengths[begin : begin + len(found)].sum())

        checking.run(
            range(0, count, _CHECKED),
            work,
            take,
            make_slot=lambda: np.empty((_CHECKED, lime.SNAPPY_MAX), np.uint8),
            size=int(self._lengths.sum()),
            guest_size=guest_size,
        )
        return whole

    def _intact_of(self, begin: int, end: int, out: Pages) -> NDArray[np.bool_]:
        """Unpack the frames ``[begin, end)`` into the rows of `out`; tell which are intact."""
        whole = np.zeros(end - begin, np.bool_)
        lengths = self._lengths[begin:end]
        for row, length in enumerate(lengths.tolist()):
            with suppress(CodecError):
                self._decode(begin + row, out[row, :length])
                whole[row] = True
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            told = np.array([self._checksum(begin + row) for row in rows.tolist()], np.uint32)
            whole[rows] &= (masked_crc32c(out[rows, :length]) == told) | (told == 0)
        return whole

    def _checksum(self, index: int) -> int:
        return int.from_bytes(self._file.read(int(self._places[index]) - 4, 4), lime.BYTEORDER)
