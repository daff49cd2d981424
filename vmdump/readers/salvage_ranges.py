"""What is whole of a LiME or AVML file that was cut short or is damaged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmdump.arch import Arch
from vmdump.errors import CodecError, FormatError
from vmdump.formats import lime
from vmdump.guest.blocks import MAX_BLOCKS, BlockList
from vmdump.guest.guest import MIN_PAGE_SIZE
from vmdump.readers.avml import AvmlDump, Frames
from vmdump.readers.bytes.file import ByteFile
from vmdump.readers.crc32c import masked_crc32c
from vmdump.readers.dump import Dump
from vmdump.readers.elf_excluded import PieceList
from vmdump.readers.lime import read_range
from vmdump.units import ADDRESS_LIMIT, merge_runs

__all__ = ["SalvagedAvml", "SalvagedLime"]

_MAX_CLAIMED = 1 << 44
"""Bytes: of a longer range that is cut, only what is there is taken for the guest's."""
_SCANNED = 1 << 20
_MAX_TRIED = 1 << 16
"""Places of a file that are taken for headers and looked at."""
_STREAM = 10
"""Bytes of the frame that begins a snappy stream."""
_CHECKED = 16
"""Frames whose checksums are computed at once."""

_Table = NDArray[np.uint64]


class _Salvaged(Dump):
    """Pieces that are whole, and the ranges that the headers tell."""

    _pieces: PieceList

    def _set_pieces(self, pieces: BlockList, ranges: list[tuple[int, int]]) -> None:
        self._pieces = PieceList(pieces, _merged(ranges, self.path), self.path)

    def _set_vmcoreinfo(self, text: bytes | None) -> None:
        super()._set_vmcoreinfo(text)
        self.excluded_size = self._pieces.leave_out(self.page_size)
        self.lost_pages = self.excluded_size // self.page_size

    def _natural_page_size(self) -> int:
        return self._pieces.page_size(super()._natural_page_size(), MIN_PAGE_SIZE)

    def excluded_pages(self, pfn: int, count: int) -> NDArray[np.bool_] | None:
        """Tell which pages of the ranges are not whole."""
        return self._pieces.excluded(pfn, count, self.page_size)

    def _runs(self) -> Iterator[tuple[int, int]]:
        yield from self._pieces.runs(self.page_size)


class SalvagedLime(_Salvaged):
    """The memory of a damaged LiME file, in whole pages; what its headers tell and is not there is excluded.

    Behind damage that hides where the next range begins, the next header is looked for by its signature.

    Parameters
    ----------
    file : ByteFile
        Owned from now on.
    arch : Arch
        The guest's; the file does not tell.

    Attributes
    ----------
    lost_pages : int
        Pages of ranges whose headers are there. Nothing tells of others.

    Raises
    ------
    FormatError
        No memory is there.
    LayoutError
        Ranges overlap.
    """

    format = "lime"

    def __init__(self, file: ByteFile, arch: Arch) -> None:
        self._file = file
        self.files = file.files
        self.path = file.path
        ranges: list[tuple[int, int]] = []
        pieces: list[tuple[int, int, int]] = []
        told = 0
        for start, size, offset in _lime_ranges(file):
            there = min(size, file.size - offset)
            if there < size:
                there = max(there - (start + there) % MIN_PAGE_SIZE, 0)
            if there:
                pieces.append((start, there, offset))
            claimed = size if size <= _MAX_CLAIMED else there
            if claimed:
                ranges.append((start, start + claimed))
            told += lime.HEADER.size + size
        starts, sizes, offsets = np.array(sorted(pieces), np.uint64).reshape(-1, 3).T
        if not len(starts):
            raise FormatError("it ends before any memory", path=file.path)
        blocks = BlockList(
            starts, sizes, lambda at: file.memory(int(offsets[at]), int(sizes[at]), int(sizes[at]))
        )
        self._set_pieces(blocks, ranges)
        super().__init__(self._pieces.blocks, arch, byteorder=lime.BYTEORDER)
        self.incomplete = told != file.size or self.lost_pages > 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SalvagedAvml(_Salvaged, AvmlDump):
    """The memory of a damaged AVML file of version 2 whose frames are whole; all else is excluded.

    A frame is whole if it is there, unpacks, and has its checksum; one that is zero was not computed. Behind
    damage that hides where the next frame begins, the next header is looked for.

    Parameters
    ----------
    file : ByteFile
        Owned from now on.
    arch : Arch
        The guest's; the file does not tell.
    unpack : bool
        Find out which frames unpack and have their checksums; without, only which are there.

    Attributes
    ----------
    lost_pages : int
        Pages of ranges whose headers are there. Nothing tells of others.

    Raises
    ------
    FormatError
        No memory is there.
    LayoutError
        Ranges overlap.
    """

    def __init__(self, file: ByteFile, arch: Arch, *, unpack: bool = True) -> None:
        self._torn = False
        self._unpacked = unpack
        super().__init__(file, arch)
        self.incomplete = self._torn or self.lost_pages > 0

    def _find(self, file: ByteFile, ranges: list[tuple[int, int]]) -> Frames:
        frames = Frames(file)
        headers = _Headers(file, lime.AVML_SIGNATURE, lime.AVML_VERSION)
        offset = 0
        while offset < file.size:
            try:
                start, size = headers.read(offset)
                if size > _MAX_CLAIMED:
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
        if self._unpacked:
            whole = self._whole_frames()
            self._torn = self._torn or not whole.all()
            self._keep(whole)
        starts, ends = self._addresses, self._addresses + self._lengths
        if not len(starts):
            raise FormatError("it has no memory that is whole", path=self.path)
        firsts = np.flatnonzero(np.append(True, starts[1:] != ends[:-1]))
        lasts = np.append(firsts[1:], len(starts)) - 1
        starts, ends = starts[firsts], ends[lasts]
        claimed = [(start, start + size) for start, size in ranges]
        edges = _merged(claimed, self.path)
        # Inside a page the memory that was lost would be zero.
        page = np.uint64(MIN_PAGE_SIZE)
        starts = np.where(np.isin(starts, edges[:, 0]), starts, -(-starts // page) * page)
        ends = np.where(np.isin(ends, edges[:, 1]), ends, ends // page * page)
        starts, ends = starts[starts < ends], ends[starts < ends]
        sizes = ends - starts
        self._set_pieces(BlockList(starts, sizes, self._memory_of(starts, sizes)), claimed)
        blocks = self._pieces.blocks
        assert isinstance(blocks, BlockList)
        return blocks

    def _whole_frames(self) -> NDArray[np.bool_]:
        """Unpack all frames; tell which are whole."""
        count = len(self._addresses)
        whole = np.zeros(count, np.bool_)
        for begin in range(0, count, _CHECKED):
            end = min(begin + _CHECKED, count)
            out = np.empty((end - begin, lime.SNAPPY_MAX), np.uint8)
            for index in range(begin, end):
                length = int(self._lengths[index])
                try:
                    self._decode(index, out[index - begin, :length])
                    whole[index] = True
                except CodecError:
                    continue
            for length in np.unique(self._lengths[begin:end]).tolist():
                rows = np.flatnonzero(self._lengths[begin:end] == length)
                told = np.array([self._checksum(begin + row) for row in rows.tolist()], np.uint32)
                right = masked_crc32c(out[rows, :length]) == told
                whole[begin + rows] &= right | (told == 0)
        return whole

    def _checksum(self, index: int) -> int:
        return int.from_bytes(self._file.read(int(self._places[index]) - 4, 4), lime.BYTEORDER)


def _merged(ranges: list[tuple[int, int]], path: str) -> _Table:
    """Give ``[begin, end)`` of ranges that touch as one; FormatError where one ends at 2^64."""
    if max((end for _, end in ranges), default=0) >= ADDRESS_LIMIT:
        raise FormatError("memory up to the end of the address space is not repaired", path=path)
    return np.array(list(merge_runs(sorted(ranges))), np.uint64).reshape(-1, 2)


def _lime_ranges(file: ByteFile) -> Iterator[tuple[int, int, int]]:
    """Give address, size and place of the ranges whose headers are there; the last one may be cut."""
    headers = _Headers(file, lime.LIME_SIGNATURE, lime.LIME_VERSION)
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


class _Headers:
    """The headers of a file's ranges, also those behind damage.

    Memory may hold anything: what looks like a header is one only if another one or the end of the file is
    behind its range, or, in AVML, if a snappy stream begins behind it.
    """

    def __init__(self, file: ByteFile, signature: bytes, version: int) -> None:
        self._file = file
        self._signature, self._version = signature, version
        self._left = _MAX_TRIED

    def read(self, offset: int) -> tuple[int, int]:
        """Read the header there: address and size of its range; FormatError where there is none."""
        return read_range(self._file, offset, self._signature, self._version)

    def next(self, offset: int, after: int) -> int:
        """Look for a header of memory at `after` or above; the end of the file where there is none."""
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
