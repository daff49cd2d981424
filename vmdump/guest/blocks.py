"""A guest's memory as a sorted list of blocks, and what each block can be asked."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import LayoutError, ReadError
from vmdump.units import ADDRESS_LIMIT

__all__ = [
    "MAX_BLOCKS",
    "MAX_PAGE_SIZE",
    "MIN_PAGE_SIZE",
    "Block",
    "BlockList",
    "FileRuns",
    "HasDescriptor",
    "Memory",
    "Pages",
    "block_bounds",
    "check_blocks",
    "file_runs",
    "find_block",
    "find_pieces",
    "read_into",
]

MAX_BLOCKS = 1 << 18
"""That a file may claim: whoever lists them holds an object for each, some 500 bytes."""

MIN_PAGE_SIZE = 4096
MAX_PAGE_SIZE = 65536
"""Of any guest, in bytes."""

Pages = NDArray[np.uint8]
FileRuns = list[tuple[int, int, int, int]]


class HasDescriptor(Protocol):
    """Something with an open file descriptor."""

    @property
    def fd(self) -> int:
        """The descriptor."""


class Memory(Protocol):
    """The bytes of one block, wherever they are.

    Offsets count from the start of the block. Methods may be called from several threads at once.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def copies(self) -> bool:
        """True if `view` fills the scratch buffer, False if it points into memory that is there anyway."""

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the runs ``[begin, end)`` that may hold data, ascending; all else is known to be zero."""

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Give `length` bytes from `offset`.

        Parameters
        ----------
        offset, length : int
            Inside ``[0, size)``.
        scratch : (>= length,) uint8
            Owned by the caller; used where `copies` is true.

        Returns
        -------
        (length,) uint8
            Valid until `scratch` is used again; may be read-only.

        Raises
        ------
        SourceError
            The bytes cannot be read.
        """


def file_runs(memory: Memory, offset: int, length: int) -> FileRuns | None:
    """Tell where bytes of a block can be read without its help.

    A memory that lies in files has a method ``file_runs(offset, length)`` for it.

    Parameters
    ----------
    memory : Memory
        Of the block.
    offset, length : int
        Inside ``[0, memory.size)``.

    Returns
    -------
    list of (int, int, int, int) or None
        Begin and end counted from `offset`, a descriptor, and the file offset of the begin; ascending, and
        what they leave out is zero. None where only :meth:`Memory.view` has the bytes. Where reading
        there fails, `view` knows what to do.

    Raises
    ------
    SourceError
        The file systems do not tell.
    """
    find = getattr(memory, "file_runs", None)
    if find is None:
        return None
    runs: FileRuns | None = find(offset, length)
    return runs


def read_into(memory: Memory, offset: int, out: Pages) -> None:
    """Fill `out` with the bytes of a block from `offset` on.

    Parameters
    ----------
    memory : Memory
        Of the block.
    offset : int
        Inside ``[0, memory.size - out.size]``.
    out : (n,) uint8
        Contiguous.

    Raises
    ------
    SourceError
        The bytes cannot be read.
    """
    data = memory.view(offset, out.size, out)
    if not np.may_share_memory(data, out):
        out[:] = data


@dataclass(frozen=True)
class Block:
    """A run of guest-physical memory, ``[start, end)``.

    Attributes
    ----------
    start : int
        Guest-physical address of the first byte.
    memory : Memory
        Its bytes.
    """

    start: int
    memory: Memory

    def __post_init__(self) -> None:
        # A numpy integer would wrap where the sum of start and size does not fit it.
        object.__setattr__(self, "start", operator.index(self.start))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.memory.size

    @property
    def end(self) -> int:
        """Guest-physical address behind the last byte."""
        return self.start + self.memory.size


def check_blocks(blocks: Sequence[Block]) -> Sequence[Block]:
    """Demand a sorted list of non-empty blocks that do not overlap; a `BlockList` has been checked already.

    Raises
    ------
    LayoutError
        There are none, or they are empty, unsorted, overlapping, or end beyond 64 bits.
    """
    if isinstance(blocks, BlockList):
        return blocks
    if not blocks:
        raise LayoutError("the guest has no memory block")
    previous: Block | None = None
    for block in blocks:
        here = f"block {block.start:#x}-{block.end:#x}"
        if block.size == 0:
            raise LayoutError(f"{here} is empty", address=block.start)
        if block.start < 0 or block.end > ADDRESS_LIMIT:
            raise LayoutError(f"{here} is outside the 64-bit address space", address=block.start)
        if previous is not None:
            before = f"block {previous.start:#x}-{previous.end:#x}"
            if block.start < previous.start:
                raise LayoutError(
                    f"{here} stands behind {before}; sort the blocks by address", address=block.start
                )
            if block.start < previous.end:
                raise LayoutError(f"{here} overlaps {before}", address=block.start)
        previous = block
    return tuple(blocks)


class BlockList(Sequence[Block]):
    """Blocks that are made when they are asked for: a hostile file can claim hundreds of thousands.

    Parameters
    ----------
    starts, sizes : (n,) uint64
        Guest-physical address of the first byte of each block, and its bytes.
    make : callable
        ``(index) -> Memory`` of that block.

    Raises
    ------
    LayoutError
        As of :func:`check_blocks`, or they are more than `MAX_BLOCKS`.
    """

    def __init__(
        self, starts: NDArray[np.uint64], sizes: NDArray[np.uint64], make: Callable[[int], Memory]
    ) -> None:
        self.starts = starts
        self.sizes = sizes
        self._make = make
        if not len(starts):
            raise LayoutError("the guest has no memory block")
        if len(starts) > MAX_BLOCKS:
            raise LayoutError(f"the memory is in {len(starts)} pieces; at most {MAX_BLOCKS} are possible")
        # In inclusive ends nothing overflows: the last byte of the address space has a number in 64 bits.
        lasts = starts + (sizes - np.uint64(1))
        bad = (sizes == 0) | (lasts < starts)
        bad[1:] |= starts[1:] <= lasts[:-1]
        if bad.any():
            index = int(bad.argmax())
            start, size = int(starts[index]), int(sizes[index])
            raise LayoutError(
                f"block {start:#x}-{start + size:#x} is empty, overlaps another, or ends beyond 64 bits",
                address=start,
            )

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(self.sizes.tolist())

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Block, ...]: ...
    def __getitem__(self, index: int | slice) -> Block | tuple[Block, ...]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self))))
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"block {at} of {len(self)}")
        at %= len(self)
        return Block(int(self.starts[at]), self._make(at))


def block_bounds(blocks: Sequence[Block]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Give the guest-physical starts and the sizes of blocks, in bytes, as two arrays (n,)."""
    if isinstance(blocks, BlockList):
        return blocks.starts, blocks.sizes
    starts = np.array([block.start for block in blocks], np.uint64)
    return starts, np.array([block.size for block in blocks], np.uint64)


def find_block(blocks: Sequence[Block], address: int) -> int:
    """Give the index of the last block that starts at or below `address`; -1 if none does.

    Parameters
    ----------
    blocks : sequence of Block
        Sorted.
    address : int
        Guest-physical, ``0 <= address < ADDRESS_LIMIT``.
    """
    if isinstance(blocks, BlockList):
        return int(blocks.starts.searchsorted(np.uint64(address), side="right")) - 1
    return bisect_right(blocks, address, key=operator.attrgetter("start")) - 1


def find_pieces(blocks: Sequence[Block], begin: int, end: int) -> Iterator[tuple[Block, int, int]]:
    """Find the memory of guest-physical addresses ``[begin, end)``.

    Yields
    ------
    block, low, high
        Bytes ``[low, high)`` from the start of the block; ascending, without gaps.

    Raises
    ------
    ReadError
        An address is in no block.
    """
    address = begin
    index = find_block(blocks, address) if 0 <= address < ADDRESS_LIMIT else -1
    while address < end:
        block = blocks[index] if 0 <= index < len(blocks) else None
        if block is None or not block.start <= address < block.end:
            raise ReadError(f"no memory at guest-physical address {address:#x}", address=address)
        high = min(end, block.end)
        yield block, address - block.start, high - block.start
        address = high
        index += 1
