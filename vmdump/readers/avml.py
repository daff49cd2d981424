"""AVML files of version 2: ranges of memory in snappy frames of 64 KiB, found once and unpacked when read."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from vmdump.codecs.registry import PageUnpacker, make_unpacker
from vmdump.errors import CodecError, FormatError
from vmdump.formats import lime
from vmdump.guest.blocks import MIN_PAGE_SIZE, BlockList, Memory, Pages
from vmdump.readers.bytes.file import ByteFile
from vmdump.readers.contents import Contents
from vmdump.readers.dump import Dump
from vmdump.readers.lime import read_range

__all__ = ["AvmlDump", "Frames", "join_touching"]

_FRAME_HEADER, _CHECKSUM, _VARINT = 4, 4, 5
_CACHED = 32
"""Frames that are kept: 2 MiB."""
_MOST_PER_BYTE = 22
"""Bytes of memory that a packed byte can give: snappy copies at most 64 with 3. Without it, five million
frames in a file of 64 MiB could claim 64 KiB each, and verify would try to unpack every page of them."""
_MIN_FRAMES = 1 << 16
"""Frames that every file may have; more only with 4 KiB of memory each. Writers put 64 KiB into one."""


class AvmlDump(Dump):
    """An AVML file of version 2. The checksums of its frames are not checked.

    Parameters
    ----------
    contents : Contents
        One file.

    Raises
    ------
    FormatError
        A header or frame is wrong, or not inside the file.
    LayoutError
        Ranges overlap, or there are more than any machine has.
    """

    format = "avml"

    def __init__(self, contents: Contents) -> None:
        self._take(contents.files)
        self._file = contents.file
        ranges: list[tuple[int, int]] = []
        found = self._find(self._file, ranges).table()
        found = found[np.argsort(found[:, 0], kind="stable")]
        self._addresses, self._lengths, self._places, self._sizes = (column.copy() for column in found.T)
        self._cache: OrderedDict[int, Pages] = OrderedDict()
        self._lock = Lock()
        self._spare: list[PageUnpacker] = []
        super().__init__(self._blocks_of(ranges), contents.arch, byteorder=lime.BYTEORDER)

    def _find(self, file: ByteFile, ranges: list[tuple[int, int]]) -> Frames:
        return _frames(file, ranges)

    def _blocks_of(self, ranges: list[tuple[int, int]]) -> BlockList:
        starts, sizes = np.array(sorted(ranges), np.uint64).reshape(-1, 2).T
        checked = BlockList(starts, sizes, self._memory_of(starts, sizes))
        # AVML cuts memory into pieces of 16 MiB; the guest's memory is not cut there.
        starts, ends = join_touching(checked.starts, checked.starts + checked.sizes)
        sizes = ends - starts
        return BlockList(starts, sizes, self._memory_of(starts, sizes))

    def _keep(self, frames: NDArray[np.bool_]) -> None:
        """Drop all other frames."""
        self._addresses, self._lengths = self._addresses[frames], self._lengths[frames]
        self._places, self._sizes = self._places[frames], self._sizes[frames]

    def _memory_of(self, starts: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> Callable[[int], Memory]:
        return lambda index: _AvmlMemory(self, int(starts[index]), int(sizes[index]))

    def read_into(self, address: int, out: Pages) -> None:
        """Fill `out` with memory from a guest-physical address on, all of one block."""
        index = int(self._addresses.searchsorted(np.uint64(address), side="right")) - 1
        done = 0
        while done < out.size:
            begin = address + done - int(self._addresses[index])
            length = int(self._lengths[index])
            target = out[done : done + length - begin]
            if target.size == length:
                self._unpack(index, target)
            else:
                target[:] = self._frame(index)[begin : begin + target.size]
            done += target.size
            index += 1

    def _frame(self, index: int) -> Pages:
        with self._lock:
            frame = self._cache.get(index)
            if frame is not None:
                self._cache.move_to_end(index)
                return frame
        frame = np.empty(int(self._lengths[index]), np.uint8)
        self._unpack(index, frame)
        with self._lock:
            self._cache[index] = frame
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return frame

    def _unpack(self, index: int, out: Pages) -> None:
        try:
            self._decode(index, out)
        except CodecError as error:
            address = int(self._addresses[index])
            raise CodecError(
                f"{self.path}: the memory at {address:#x} does not unpack: {error}; see 'vmdump repair'",
                engine=error.engine,
                page=address // self.page_size,
            ) from error

    def _decode(self, index: int, out: Pages) -> None:
        size = int(self._sizes[index])
        packed = size & 1
        data = np.empty(size >> 1, np.uint8)
        self._file.read_into(int(self._places[index]), data)
        if not packed:
            out[:] = data
            return
        usual = out.size == lime.SNAPPY_MAX
        try:
            unpacker = self._spare.pop() if usual else make_unpacker("snappy", out.size)
        except IndexError:
            unpacker = make_unpacker("snappy", out.size)
        sizes = np.array([data.size], np.uint32)
        try:
            unpacker.unpack(data, np.zeros(1, np.uint64), sizes, np.ones(1, np.uint8), out)
        finally:
            if usual:
                self._spare.append(unpacker)

    def close(self) -> None:
        """Close the file, and forget what was read."""
        super().close()
        with self._lock:
            self._cache.clear()


class _AvmlMemory:
    """A run of memory in frames."""

    copies = True

    def __init__(self, dump: AvmlDump, start: int, size: int) -> None:
        self._dump = dump
        self._start = start
        self.size = size

    def extents(self) -> Iterator[tuple[int, int]]:
        yield 0, self.size

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        out = scratch[:length]
        self._dump.read_into(self._start + offset, out)
        return out


class Frames:
    """Frames of a file: of each its address, length, place, and size.

    The size is that in the file, doubled, and 1 more if the frame is packed.

    Parameters
    ----------
    file : ByteFile
        Stays the caller's.

    Attributes
    ----------
    end : int
        Offset behind the last frame that was added or passed over.
    """

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._numbers = array("Q")
        self._memory = self._walked = 0
        self.end = 0

    def add(self, offset: int, start: int, size: int) -> None:
        """Add those of a range of memory, from a file offset on.

        Raises
        ------
        FormatError
            One is damaged, or there are too many for all memory so far; those in front of it are added.
        """
        path, done = self._file.path, 0
        self.end = offset
        self._memory += size
        while done < size:
            self._walked += 1
            if self._walked > max(_MIN_FRAMES, self._memory // MIN_PAGE_SIZE):
                raise FormatError("too many frames for so little memory", path=path, offset=self.end)
            length, place, packed, end = _read_frame(self._file, self.end)
            if length > size - done:
                raise FormatError(
                    f"the memory at {start:#x} is longer than its header says", path=path, offset=self.end
                )
            if length:
                self._numbers.extend((start + done, length, place, 2 * (end - place) + packed))
            done += length
            self.end = end

    def table(self) -> NDArray[np.uint64]:
        """Give all, ``(n, 4)``."""
        return np.array(self._numbers, np.uint64).reshape(-1, 4)


def join_touching(
    starts: NDArray[np.uint64], ends: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Make one of ranges ``[start, end)`` that touch; they are ascending, and there is one at least."""
    apart = starts[1:] != ends[:-1]
    return starts[np.append(True, apart)], ends[np.append(apart, True)]


def _frames(file: ByteFile, ranges: list[tuple[int, int]]) -> Frames:
    """Walk the file; add its ranges, and give its frames."""
    frames, offset = Frames(file), 0
    while offset < file.size:
        start, size = read_range(file, offset, lime.AVML_SIGNATURE, lime.AVML_VERSION)
        ranges.append((start, size))
        frames.add(offset + lime.HEADER.size, start, size)
        offset = frames.end + lime.AVML_TRAILER
        if offset > file.size:
            raise FormatError("the file is cut short, see 'vmdump repair'", path=file.path, offset=file.size)
    return frames


def _read_frame(file: ByteFile, offset: int) -> tuple[int, int, int, int]:
    """Read the header of a frame: its bytes of memory (or 0), their file offset, packed or not, its end."""
    head = file.read(offset, min(_FRAME_HEADER + _CHECKSUM + _VARINT, max(file.size - offset, 0)))
    if len(head) < _FRAME_HEADER + _CHECKSUM:
        raise FormatError("the file is cut short, see 'vmdump repair'", path=file.path, offset=offset)
    kind, end = head[0], offset + _FRAME_HEADER + int.from_bytes(head[1:_FRAME_HEADER], lime.BYTEORDER)
    place = offset + _FRAME_HEADER + _CHECKSUM
    known = kind in (lime.SNAPPY_FRAME["packed"], lime.SNAPPY_FRAME["plain"])
    if end > file.size or (known and end <= place):
        raise FormatError(
            "a snappy frame is not inside the file, see 'vmdump repair'", path=file.path, offset=offset
        )
    if kind == lime.SNAPPY_FRAME["packed"]:
        length = _varint(head[_FRAME_HEADER + _CHECKSUM :])
    elif kind == lime.SNAPPY_FRAME["plain"]:
        length = end - place
    elif kind >= lime.SNAPPY_FRAME["first skippable"]:
        stream = file.read(offset + _FRAME_HEADER, min(end - offset - _FRAME_HEADER, 6))
        if kind == lime.SNAPPY_FRAME["stream"] and stream != lime.SNAPPY_STREAM:
            raise FormatError("this is not the beginning of a snappy stream", path=file.path, offset=offset)
        return 0, place, 0, end
    else:
        raise FormatError(f"a snappy frame is of the unknown kind {kind:#x}", path=file.path, offset=offset)
    if not 0 < length <= min(lime.SNAPPY_MAX, _MOST_PER_BYTE * (end - place)):
        raise FormatError(
            f"a snappy frame has an invalid length, {length} bytes of memory", path=file.path, offset=offset
        )
    return length, place, int(kind == lime.SNAPPY_FRAME["packed"]), end


def _varint(data: bytes) -> int:
    """Read the length in front of a snappy block; 0 where it does not end."""
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value
    return 0
