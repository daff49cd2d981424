"""The head of a kdump file, or of one part of a split set, and where everything else goes."""

from __future__ import annotations

from typing import NamedTuple

from vmdump.errors import CapabilityError, LayoutError, RequestError
from vmdump.formats import kdump
from vmdump.formats.notes import find_vmcoreinfo
from vmdump.guest.excluded import nth_page
from vmdump.guest.guest import Guest
from vmdump.guest.linux.utsname import UTS_FIELD
from vmdump.guest.whole import count_pages, page_runs
from vmdump.units import align_up

__all__ = ["KdumpHead", "kdump_head", "marked_incomplete", "split_heads"]

_LAST_32BIT = 0xFFFFFFFF
_LAST_SIGNED_32BIT = 0x7FFFFFFF
_WORD = 64
"""Pages: crash counts the descriptors of a part by 64-bit words of the bitmap, from its first page's on."""


class KdumpHead(NamedTuple):
    """All of a kdump file that is known before the first page is packed.

    Attributes
    ----------
    content : bytes
        Header, sub-header and notes, padded to whole blocks; the first bitmap follows.
    bitmap_size : int
        Bytes of one of the two bitmaps.
    page_count : int
        Pages in the dump, a descriptor each; of a split set, in all its parts.
    descriptors_offset, data_offset : int
        File offsets of the first descriptor and of the first byte of page data.
    begin_pfn, end_pfn : int
        The pages whose data and descriptors are in this file: all, or a part of a split set.
    memory_size : int
        Bytes of these pages.
    """

    content: bytes
    bitmap_size: int
    page_count: int
    descriptors_offset: int
    data_offset: int
    begin_pfn: int
    end_pfn: int
    memory_size: int


def kdump_head(guest: Guest, codec: str) -> KdumpHead:
    """Lay out a kdump file.

    Parameters
    ----------
    guest : Guest
        The guest.
    codec : str
        Named by the header.

    Raises
    ------
    LayoutError
        The guest ends at an address the format has no room for.
    """
    return _kdump_head(guest, codec, None)


def split_heads(guest: Guest, codec: str, count: int) -> list[KdumpHead]:
    """Lay out a split set: each part has about as many pages as any other.

    All parts have the same header and both bitmaps of the whole guest; each has the descriptors of its own
    pages only, and its page data begins where that of the whole dump would: makedumpfile knows the page of
    zeros by that place. Parts of 64 pages and more begin at a multiple of 64, as makedumpfile's do: of
    others, crash takes the wrong descriptors behind the first hole.

    Parameters
    ----------
    guest, codec
        As for :func:`kdump_head`.
    count : int
        Parts.

    Raises
    ------
    LayoutError
        As of :func:`kdump_head`.
    RequestError
        There are fewer pages than parts.
    """
    pages = count_pages(guest.blocks, guest.page_size) - guest.excluded_size // guest.page_size
    if pages < count:
        raise RequestError(f"split: {pages} pages do not make {count} parts", parameter="split")
    ends = [nth_page(guest, pages * part // count) for part in range(1, count)]
    if pages // count >= _WORD:  # then each part keeps a page
        ends = [end - end % _WORD for end in ends]
    ends.append(-(-guest.blocks[-1].end // guest.page_size))
    return [_kdump_head(guest, codec, part) for part in zip([0, *ends], ends, strict=False)]


def _kdump_head(guest: Guest, codec: str, part: tuple[int, int] | None) -> KdumpHead:
    block_size = guest.page_size
    if not guest.arch.uts_machine:
        raise CapabilityError(f"{guest.arch.name}: no kdump file of a machine without a name; dump to elf")
    runs = page_runs(guest.blocks, block_size)
    max_mapnr = runs[-1][1]
    bitmap_size = align_up(-(-max_mapnr // 8), block_size)
    bitmap_blocks = 2 * bitmap_size // block_size
    if bitmap_blocks > _LAST_SIGNED_32BIT:
        raise LayoutError(
            f"memory ends at {guest.blocks[-1].end:#x}: the bitmaps would need {bitmap_blocks} blocks, "
            "more than the format can count; dump to elf",
            address=guest.blocks[-1].start,
        )
    content = _content(guest, codec, max_mapnr, bitmap_blocks, part)
    descriptors_offset = len(content) + 2 * bitmap_size
    page_count = sum(end - begin for begin, end in runs) - guest.excluded_size // block_size
    data_offset = descriptors_offset + page_count * kdump.PAGE_DESCRIPTOR.size
    begin, end = part or (0, max_mapnr)
    pages = sum(max(min(high, end) - max(low, begin), 0) for low, high in runs)
    return KdumpHead(
        content, bitmap_size, page_count, descriptors_offset, data_offset, begin, end, pages * block_size
    )


def marked_incomplete(head: KdumpHead, guest: Guest) -> bytes:
    """Give the header of a file, its first bytes, with the mark of a dump that lacks pages."""
    form = kdump.HEADER[guest.elf_class]
    values = form.unpack(head.content, 0, guest.byteorder)
    values["status"] |= kdump.STATUS_INCOMPLETE
    return form.pack(guest.byteorder, **values)


def _sub_header_form(guest: Guest) -> kdump.SubHeaderForm:
    if guest.elf_class == 64:
        return "64"
    # libkdumpfile tells the 32-bit forms apart by offset_vmcoreinfo, and takes 0 for packed.
    return guest.arch.sub_header_32 if guest.vmcoreinfo else "32 packed"


def _content(
    guest: Guest, codec: str, max_mapnr: int, bitmap_blocks: int, part: tuple[int, int] | None
) -> bytes:
    block_size = guest.page_size
    word_mask = (1 << guest.elf_class) - 1
    sub_header = kdump.SUB_HEADER[_sub_header_form(guest)]
    notes_offset = kdump.HEADER_BLOCKS * block_size + sub_header.size
    sub_hdr_size = -(-(sub_header.size + len(guest.notes) + len(guest.eraseinfo)) // block_size)
    uts = guest.utsname
    header = kdump.HEADER[guest.elf_class].pack(
        guest.byteorder,
        signature=kdump.SIGNATURE,
        header_version=kdump.HEADER_VERSION,
        **{name: value[: UTS_FIELD - 1] for name, value in uts._asdict().items()},
        status=kdump.CODEC_FLAGS[codec] | (kdump.STATUS_INCOMPLETE if guest.incomplete else 0),
        block_size=block_size,
        sub_hdr_size=sub_hdr_size,
        bitmap_blocks=bitmap_blocks,
        max_mapnr=min(max_mapnr, _LAST_32BIT),
        nr_cpus=guest.nr_cpus,
    )
    vmcoreinfo = find_vmcoreinfo(guest.notes, guest.byteorder)
    if vmcoreinfo and not vmcoreinfo.size:
        vmcoreinfo = None  # a place without bytes is taken for the padding of another form
    begin, end = part or (0, 0)
    # makedumpfile --reassemble joins what all parts say was erased: the first says it for all.
    erased = guest.eraseinfo if begin == 0 else b""
    second = sub_header.pack(
        guest.byteorder,
        phys_base=guest.phys_base & word_mask,
        dump_level=guest.dump_level | kdump.DUMP_LEVEL,
        split=int(part is not None),
        start_pfn=min(begin, word_mask),
        end_pfn=min(end, word_mask),
        offset_vmcoreinfo=notes_offset + vmcoreinfo.offset if vmcoreinfo else 0,
        size_vmcoreinfo=vmcoreinfo.size if vmcoreinfo else 0,
        offset_note=notes_offset,
        size_note=len(guest.notes),
        offset_eraseinfo=notes_offset + len(guest.notes) if erased else 0,
        size_eraseinfo=len(erased),
        start_pfn_64=begin,
        end_pfn_64=end,
        max_mapnr_64=max_mapnr,
    )
    # Joined once: notes may have hundreds of megabytes.
    parts = [header.ljust(kdump.HEADER_BLOCKS * block_size, b"\0"), second, guest.notes, erased]
    size = (kdump.HEADER_BLOCKS + sub_hdr_size) * block_size
    return b"".join([*parts, bytes(size - sum(map(len, parts)))])
