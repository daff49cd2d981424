"""Where everything goes in a kdump file, or in one part of a split set."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vmdump.errors import CapabilityError, LayoutError, RequestError
from vmdump.formats import kdump
from vmdump.formats.notes import find_vmcoreinfo
from vmdump.guest.guest import Guest
from vmdump.guest.linux.utsname import UTS_FIELD
from vmdump.guest.whole import count_pages, page_runs
from vmdump.units import align_up
from vmdump.writers.excluded import nth_page

__all__ = ["KdumpPlan", "plan_kdump", "plan_split"]

_LAST_32BIT = 0xFFFFFFFF
_LAST_SIGNED_32BIT = 0x7FFFFFFF
_WORD = 64
"""Pages: crash counts the descriptors of a part by 64-bit words of the bitmap, from its first page's on."""


@dataclass(frozen=True)
class KdumpPlan:
    """Every offset of a kdump file that is known before the first page is packed.

    Attributes
    ----------
    head : bytes
        Header, sub-header and notes, padded to whole blocks; the first bitmap follows.
    bitmap_size : int
        Bytes of one of the two bitmaps.
    memory_size : int
        Bytes of the guest in whole pages.
    page_count : int
        Pages in the dump, a descriptor each; of a split set, in all its parts.
    descriptors_offset, data_offset : int
        File offsets of the first descriptor and of the first byte of page data.
    begin_pfn, end_pfn : int
        The pages whose data and descriptors are in this file: all, or a part of a split set.
    """

    head: bytes
    bitmap_size: int
    memory_size: int
    page_count: int
    descriptors_offset: int
    data_offset: int
    begin_pfn: int
    end_pfn: int


def plan_kdump(source: Guest, codec: str) -> KdumpPlan:
    """Lay out a kdump file.

    Raises
    ------
    LayoutError
        The guest ends at an address the format has no room for.
    """
    return _plan(source, codec, None)


def plan_split(source: Guest, codec: str, count: int) -> list[KdumpPlan]:
    """Lay out a split set: each part has about as many pages as any other.

    All parts have the same header and both bitmaps of the whole guest; each has the descriptors of its own
    pages only, and its page data begins where that of the whole dump would: makedumpfile knows the page of
    zeros by that place. Parts of 64 pages and more begin at a multiple of 64, as makedumpfile's do: of
    others, crash takes the wrong descriptors behind the first hole.

    Parameters
    ----------
    source, codec
        As for :func:`plan_kdump`.
    count : int
        Parts.

    Raises
    ------
    LayoutError
        As of :func:`plan_kdump`.
    RequestError
        There are fewer pages than parts.
    """
    pages = count_pages(source.blocks, source.page_size) - source.excluded_size // source.page_size
    if pages < count:
        raise RequestError(f"split: {pages} pages do not make {count} parts", parameter="split")
    ends = [nth_page(source, pages * part // count) for part in range(1, count)]
    if pages // count >= _WORD:  # then each part keeps a page
        ends = [end - end % _WORD for end in ends]
    ends.append(-(-source.blocks[-1].end // source.page_size))
    return [_plan(source, codec, part) for part in zip([0, *ends], ends, strict=False)]


def _plan(source: Guest, codec: str, part: tuple[int, int] | None) -> KdumpPlan:
    block_size = source.page_size
    if not source.arch.uts_machine:
        raise CapabilityError(f"{source.arch.name}: no kdump file of a machine without a name; dump to elf")
    runs = page_runs(source.blocks, block_size)
    max_mapnr = runs[-1][1]
    bitmap_size = align_up(-(-max_mapnr // 8), block_size)
    bitmap_blocks = 2 * bitmap_size // block_size
    if bitmap_blocks > _LAST_SIGNED_32BIT:
        raise LayoutError(
            f"memory ends at {source.blocks[-1].end:#x}: the bitmaps would need {bitmap_blocks} blocks, "
            "more than the format can count; dump to elf",
            address=source.blocks[-1].start,
        )
    head = _head(source, codec, max_mapnr, bitmap_blocks, part)
    descriptors_offset = len(head) + 2 * bitmap_size
    memory_pages = sum(end - begin for begin, end in runs)
    page_count = memory_pages - source.excluded_size // block_size
    data_offset = descriptors_offset + page_count * kdump.PAGE_DESCRIPTOR.size
    begin, end = part or (0, max_mapnr)
    return KdumpPlan(
        head, bitmap_size, memory_pages * block_size, page_count, descriptors_offset, data_offset, begin, end
    )


def _sub_header_form(source: Guest) -> kdump.SubHeaderForm:
    if source.elf_class == 64:
        return "64"
    # libkdumpfile tells the 32-bit forms apart by offset_vmcoreinfo, and takes 0 for packed.
    return source.arch.sub_header_32 if source.vmcoreinfo else "32 packed"


def _head(
    source: Guest, codec: str, max_mapnr: int, bitmap_blocks: int, part: tuple[int, int] | None
) -> bytes:
    block_size = source.page_size
    word_mask = (1 << source.elf_class) - 1
    sub_header = kdump.SUB_HEADER[_sub_header_form(source)]
    notes_offset = kdump.HEADER_BLOCKS * block_size + sub_header.size
    sub_hdr_size = -(-(sub_header.size + len(source.notes) + len(source.eraseinfo)) // block_size)
    uts = source.utsname
    header = kdump.HEADER[source.elf_class].pack(
        source.byteorder,
        signature=kdump.SIGNATURE,
        header_version=kdump.HEADER_VERSION,
        **{field.name: getattr(uts, field.name)[: UTS_FIELD - 1] for field in fields(uts)},
        status=kdump.CODEC_FLAGS[codec] | (kdump.STATUS_INCOMPLETE if source.incomplete else 0),
        block_size=block_size,
        sub_hdr_size=sub_hdr_size,
        bitmap_blocks=bitmap_blocks,
        max_mapnr=min(max_mapnr, _LAST_32BIT),
        nr_cpus=source.nr_cpus,
    )
    vmcoreinfo = find_vmcoreinfo(source.notes, source.byteorder)
    if vmcoreinfo and not vmcoreinfo.size:
        vmcoreinfo = None  # a place without bytes is taken for the padding of another form
    begin, end = part or (0, 0)
    # makedumpfile --reassemble joins what all parts say was erased: the first says it for all.
    erased = source.eraseinfo if begin == 0 else b""
    second = sub_header.pack(
        source.byteorder,
        phys_base=source.phys_base & word_mask,
        dump_level=source.dump_level | kdump.DUMP_LEVEL,
        split=int(part is not None),
        start_pfn=min(begin, word_mask),
        end_pfn=min(end, word_mask),
        offset_vmcoreinfo=notes_offset + vmcoreinfo.offset if vmcoreinfo else 0,
        size_vmcoreinfo=vmcoreinfo.size if vmcoreinfo else 0,
        offset_note=notes_offset,
        size_note=len(source.notes),
        offset_eraseinfo=notes_offset + len(source.notes) if erased else 0,
        size_eraseinfo=len(erased),
        start_pfn_64=begin,
        end_pfn_64=end,
        max_mapnr_64=max_mapnr,
    )
    # Joined once: notes may have hundreds of megabytes.
    parts = [header.ljust(kdump.HEADER_BLOCKS * block_size, b"\0"), second, source.notes, erased]
    size = (kdump.HEADER_BLOCKS + sub_hdr_size) * block_size
    return b"".join([*parts, bytes(size - sum(map(len, parts)))])
