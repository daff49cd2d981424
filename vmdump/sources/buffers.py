"""Guests over Python buffers, or over blocks of whatever memory the caller has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vmdump.arch import Arch, arch_by_name
from vmdump.formats.elf import ElfClass
from vmdump.formats.layout import ByteOrder
from vmdump.guest.blocks import Block, Memory
from vmdump.guest.buffers import as_blocks
from vmdump.sources.base import StillSource

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BlockSource"]


class BlockSource(StillSource):
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

    format = "buffers"
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
