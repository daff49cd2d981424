"""LiME files, and AVML files of version 1, which are the same: ranges of memory, not packed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from vmdump.errors import FormatError, LayoutError
from vmdump.formats import lime
from vmdump.guest.blocks import MAX_BLOCKS, BlockList
from vmdump.readers.bytes.file import ByteFile
from vmdump.readers.contents import Contents
from vmdump.readers.dump import Dump

__all__ = ["LimeDump", "blocks_in_file", "read_range"]


class LimeDump(Dump):
    """A LiME file.

    Parameters
    ----------
    contents : Contents
        One file.

    Raises
    ------
    FormatError
        A header is wrong, or a range is not inside the file.
    LayoutError
        Ranges overlap, or there are more than any machine has.
    """

    format = "lime"

    def __init__(self, contents: Contents) -> None:
        self._take(contents.files)
        blocks = blocks_in_file(contents.file, _ranges(contents.file))
        super().__init__(blocks, contents.arch, byteorder=lime.BYTEORDER)


def blocks_in_file(file: ByteFile, ranges: Iterable[tuple[int, int, int]]) -> BlockList:
    """Make blocks of ranges of memory that lie in a file: first address, bytes, and file offset of each.

    Raises
    ------
    LayoutError
        Ranges overlap, or there is none.
    """
    starts, sizes, offsets = np.array(sorted(ranges), np.uint64).reshape(-1, 3).T
    return BlockList(starts, sizes, lambda at: file.memory(int(offsets[at]), int(sizes[at]), int(sizes[at])))


def read_range(file: ByteFile, offset: int, signature: bytes, version: int) -> tuple[int, int]:
    """Read the header at an offset: the first address of its range, and its size in bytes.

    Raises
    ------
    FormatError
        It is not such a header, or its range is invalid.
    """
    header = lime.HEADER.unpack(file.read(offset, lime.HEADER.size), 0, lime.BYTEORDER, path=file.path)
    start, last = header["s_addr"], header["e_addr"]
    if header["signature"] != signature or header["version"] != version:
        raise FormatError(
            f"there is no header of {signature.decode()} version {version}",
            path=file.path,
            offset=offset,
        )
    if last < start or last - start + 1 >= 1 << 64:
        raise FormatError(f"invalid range: {start:#x} to {last:#x}", path=file.path, offset=offset)
    return start, last - start + 1


def _ranges(file: ByteFile) -> Iterator[tuple[int, int, int]]:
    offset = count = 0
    while offset < file.size:
        start, size = read_range(file, offset, lime.LIME_SIGNATURE, lime.LIME_VERSION)
        offset += lime.HEADER.size
        if size > file.size - offset:
            raise FormatError(
                f"the memory at {start:#x} ends behind the end of the file: it is cut short, "
                "see 'vmdump repair'",
                path=file.path,
                offset=offset,
            )
        yield start, size, offset
        offset += size
        count += 1
        if count > MAX_BLOCKS:
            raise LayoutError(f"{file.path}: more than {MAX_BLOCKS} ranges of memory")
