"""The head of the kdump-zlib file that QEMU 7.2 writes, and where everything else goes.

Its pages are those of the target architecture, and each block has its own: where blocks begin or end inside a
page, the rest of the page is zeros, and a page with two blocks in it has two descriptors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmdump.formats import kdump
from vmdump.formats.layout import ByteOrder
from vmdump.formats.notes import find_vmcoreinfo
from vmdump.guest.blocks import Block, Memory, Pages, read_into
from vmdump.guest.guest import Guest
from vmdump.units import align_up
from vmdump.writers.compat.target import notes_of_qemu, qemu_target

__all__ = ["CompatHead", "compat_head"]

_LAST_32BIT = 0xFFFFFFFF


@dataclass(frozen=True)
class CompatHead:
    """All that is known before the first page is packed.

    Attributes
    ----------
    page_size : int
        Block size, in bytes.
    blocks : tuple of Block
        The guest's, made of whole pages; they overlap where two had a part of one page.
    byteorder : str
        Of the guest.
    records : tuple of (int, bytes)
        Header, sub-header and notes, each with its file offset.
    bitmap_offset, bitmap_size : int
        File offset of the first bitmap, and bytes that each has.
    page_count : int
        Descriptors.
    descriptors_offset, data_offset : int
        File offsets of the first descriptor and of the first byte of page data.
    """

    page_size: int
    blocks: tuple[Block, ...]
    byteorder: ByteOrder
    records: tuple[tuple[int, bytes], ...]
    bitmap_offset: int
    bitmap_size: int
    page_count: int
    descriptors_offset: int
    data_offset: int


class _PaddedMemory:
    """A block between zeros, which make whole pages of it."""

    copies = True

    def __init__(self, memory: Memory, before: int, after: int) -> None:
        self._memory = memory
        self._before = before
        self.size = before + memory.size + after

    def extents(self) -> Iterator[tuple[int, int]]:
        return ((self._before + begin, self._before + end) for begin, end in self._memory.extents())

    def view(self, offset: int, length: int, scratch: Pages) -> Pages:
        out = scratch[:length]
        begin = max(offset - self._before, 0)
        end = min(offset - self._before + length, self._memory.size)
        low = begin + self._before - offset
        high = low + end - begin
        read_into(self._memory, begin, out[low:high])
        out[:low] = 0
        out[high:] = 0
        return out


def _padded(block: Block, page_size: int) -> Block:
    before, after = block.start % page_size, -block.end % page_size
    if not before and not after:
        return block
    return Block(block.start - before, _PaddedMemory(block.memory, before, after))


def compat_head(guest: Guest) -> CompatHead:
    """Lay out the kdump file that QEMU 7.2 would write.

    Raises
    ------
    CapabilityError
        QEMU 7.2 does not dump such guests.
    """
    target = qemu_target(guest)
    page_size, elf_class = target.page_size, guest.elf_class
    notes, byteorder = notes_of_qemu(guest)
    word_mask = (1 << elf_class) - 1
    blocks = tuple(_padded(block, page_size) for block in guest.blocks)
    # Rounded down: a last page that memory does not fill is behind the end.
    max_mapnr = guest.blocks[-1].end // page_size
    bitmap_size = align_up(-(-max_mapnr // 8), page_size)
    bitmap_blocks = 2 * bitmap_size // page_size
    sub_header = kdump.SUB_HEADER["64" if elf_class == 64 else "32 packed"]
    sub_header_offset = kdump.HEADER_BLOCKS * page_size
    notes_offset = sub_header_offset + sub_header.size
    sub_hdr_size = -(-(sub_header.size + len(notes)) // page_size)
    vmcoreinfo = find_vmcoreinfo(notes, byteorder)
    header = kdump.HEADER[elf_class].pack(
        byteorder,
        signature=kdump.SIGNATURE,
        header_version=kdump.HEADER_VERSION,
        machine=target.uts_machine,
        status=kdump.CODEC_FLAGS["zlib"],
        block_size=page_size,
        sub_hdr_size=sub_hdr_size,
        bitmap_blocks=bitmap_blocks & _LAST_32BIT,
        max_mapnr=min(max_mapnr, _LAST_32BIT),
        nr_cpus=guest.nr_cpus,
    )
    second = sub_header.pack(
        byteorder,
        phys_base=target.phys_base(guest.vmcoreinfo, guest.blocks[0].start) & word_mask,
        dump_level=kdump.DUMP_LEVEL,
        offset_vmcoreinfo=notes_offset + vmcoreinfo.offset if vmcoreinfo else 0,
        size_vmcoreinfo=vmcoreinfo.size if vmcoreinfo else 0,
        offset_note=notes_offset,
        size_note=len(notes),
        max_mapnr_64=max_mapnr,
    )
    records = [(0, header), (sub_header_offset, second)]
    if notes:
        records.append((notes_offset, notes))
    bitmap_offset = (kdump.HEADER_BLOCKS + sub_hdr_size) * page_size
    descriptors_offset = bitmap_offset + 2 * bitmap_size
    page_count = sum(block.size for block in blocks) // page_size
    return CompatHead(
        page_size=page_size,
        blocks=blocks,
        byteorder=byteorder,
        records=tuple(records),
        bitmap_offset=bitmap_offset,
        bitmap_size=bitmap_size,
        page_count=page_count,
        descriptors_offset=descriptors_offset,
        data_offset=descriptors_offset + page_count * kdump.PAGE_DESCRIPTOR.size,
    )
