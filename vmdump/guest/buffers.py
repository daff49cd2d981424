"""Guests over Python buffers: numpy arrays, bytes, mmaps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from vmdump.arch import Arch, arch_by_name
from vmdump.errors import LayoutError
from vmdump.formats.elf import ElfClass
from vmdump.formats.layout import ByteOrder
from vmdump.guest.guest import Block, Guest, Memory, Pages

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BlockSource", "BufferMemory", "as_blocks"]


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


class BlockSource(Guest):
    """A guest over buffers.

    Parameters
    ----------
    blocks : buffer, or list of Block or of (start, buffer)
        One buffer is a guest with a single block at 0. Buffers are read, never copied or written, and
        must not change their size while the source lives.
    arch : str or Arch
        By name, see ``vmdump.arch.ARCHES``.
    byteorder, elf_class, page_size, notes, vmcoreinfo, cpus
        As for :class:`vmdump.guest.guest.Guest`.

    Raises
    ------
    LayoutError
        The blocks overlap, are unsorted, empty or not contiguous.
    RequestError
        The architecture is not known, or `cpus` are wrong.

    Examples
    --------
    >>> import numpy as np
    >>> guest = BlockSource([(0x1000, np.zeros(8192, np.uint8))], cpus=[{"rip": 0x1000, "cr3": 0x2000}])
    >>> guest.size, guest.cpus[0]["cr3"]
    (8192, 8192)
    """

    changes = True

    def __init__(
        self,
        blocks: Buffer | Sequence[Block | tuple[int, Buffer | Memory]],
        *,
        arch: str | Arch = "x86_64",
        byteorder: ByteOrder | None = None,
        elf_class: ElfClass | None = None,
        page_size: int | None = None,
        notes: bytes = b"",
        vmcoreinfo: bytes | None = None,
        cpus: Sequence[Mapping[str, int]] | None = None,
    ) -> None:
        super().__init__(
            as_blocks(blocks),
            arch_by_name(arch) if isinstance(arch, str) else arch,
            byteorder=byteorder,
            elf_class=elf_class,
            page_size=page_size,
            notes=notes,
            vmcoreinfo=vmcoreinfo,
            cpus=cpus,
        )
