"""Memory in Python buffers: numpy arrays, bytes, mmaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from vmdump.errors import LayoutError
from vmdump.guest.blocks import Block, Memory, Pages

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BufferMemory", "as_blocks"]


class BufferMemory:
    """A block over any C-contiguous buffer, which stays the caller's and is never copied."""

    copies = False

    def __init__(self, buffer: Buffer) -> None:
        view = memoryview(buffer)
        if not view.c_contiguous:
            raise LayoutError("a block's buffer must be C-contiguous")
        if "O" in view.format:
            raise LayoutError("a block's buffer holds Python objects, not memory")
        self._bytes: Pages = np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._bytes.size

    def extents(self) -> Iterator[tuple[int, int]]:
        """Give the whole buffer: nothing is known of its contents."""
        yield 0, self.size

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        """Give a slice of the buffer itself."""
        return self._bytes[offset : offset + length]


def as_blocks(blocks: Buffer | Sequence[Block | tuple[int, Buffer | Memory]]) -> list[Block]:
    """Take what a caller calls a guest: one buffer at address 0, or blocks, or (address, buffer) pairs."""
    if not isinstance(blocks, list | tuple):
        return [Block(0, BufferMemory(cast("Buffer", blocks)))]
    return [item if isinstance(item, Block) else Block(item[0], _as_memory(item[1])) for item in blocks]


def _as_memory(memory: Buffer | Memory) -> Memory:
    if hasattr(memory, "extents"):
        return cast("Memory", memory)
    return BufferMemory(memory)
