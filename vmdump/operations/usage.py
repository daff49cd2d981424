"""What a guest's memory is used for, and why a page is not in a dump."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import CapabilityError, ReadError, RequestError, naming_shortages
from vmdump.guest.blocks import Block, Pages, find_block, read_into
from vmdump.guest.excluded import partly_excluded
from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import VmcoreinfoChoice
from vmdump.guest.linux.page_types.types import kernel_page_size, tell_types
from vmdump.guest.linux.page_types.usage import PageType, PageUsage, excluding_bits, type_of
from vmdump.guest.linux.page_types.way_out import naming_way_out
from vmdump.guest.whole import page_runs, whole_pages
from vmdump.kernels.zero import zero_pages
from vmdump.opening import opened, session
from vmdump.pipeline.control import Control
from vmdump.pipeline.workers import SLOTS_BEYOND_THREADS, check_threads, in_order
from vmdump.units import ADDRESS_LIMIT, align_up

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["PageState", "page_at", "page_types"]

_CHUNK = 4 << 20
"""Bytes that one thread looks at at once."""
_WINDOW = 1 << 20
"""Pages whose types are noted at once."""


@naming_shortages()
def page_types(
    source: AnySource,
    *,
    vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
    search: bool = True,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PageUsage:
    """Tell what each page of a guest is used for, by its Linux kernel's struct pages.

    All data is read to find zeros. A live guest runs on: what it says of some page may be over already.

    Parameters
    ----------
    source : str, path, sequence of paths, Source, buffer, or list of blocks
        A dump, raw memory, or a live guest, as for :func:`vmdump.dump`.
    vmcoreinfo, search, threads
        As for :func:`vmdump.dump`.
    progress : callable, optional
        Called with (done, total) in bytes of guest memory.

    Returns
    -------
    PageUsage
        The types by frame number, and how many there are of each.

    Raises
    ------
    RequestError
        `threads` are not from 1 to 1024, or there is no such VMCOREINFO.
    CapabilityError
        The guest's VMCOREINFO is missing, of another kernel, or tells too little; what tells where struct
        pages are is not in memory, or not in the dump.
    VmdumpError
        The guest cannot be opened or read, as for :func:`vmdump.dump`.
    """
    threads = check_threads(threads)
    control = Control(progress)
    choice = VmcoreinfoChoice.read(vmcoreinfo, search=search, progress=control.side_work())
    with (
        session(source) as it,
        it.held(pause=False, cancelled=control.cancelled, vmcoreinfo=choice) as guest,
    ):
        with naming_way_out("give its own with --vmcoreinfo FILE"):
            types = tell_types(guest, threads=threads, check=control.check)
        size = types.page_size
        usage = PageUsage(size, page_runs(guest.blocks, size), running=guest.fuzzy)
        _look_for_data(guest, usage, threads, control)
        for begin, end in usage.runs:
            for pfn in range(begin, end, _WINDOW):
                control.check()
                count = min(_WINDOW, end - pfn)
                usage.mark_types(pfn, types.of(pfn, count), partly_excluded(guest, pfn, count, size))
        return usage


def _look_for_data(guest: Guest, usage: PageUsage, threads: int, control: Control) -> None:
    """Read what may not be zero, and note which pages are not."""
    size = usage.page_size
    blocks = whole_pages(guest.blocks, size)

    def chunks() -> Iterator[tuple[Block, int, int]]:
        for block in blocks:
            for begin, end in block.memory.extents():
                first, last = begin // size * size, align_up(end, size)
                yield from ((block, at, min(_CHUNK, last - at)) for at in range(first, last, _CHUNK))

    def look(scratch: Pages, chunk: tuple[Block, int, int]) -> NDArray[np.bool_]:
        block, offset, length = chunk
        read_into(block.memory, offset, scratch[:length])
        return ~zero_pages(scratch[:length], size)

    control.start(guest.size)
    slots = [np.empty(_CHUNK, np.uint8) for _ in range(threads + SLOTS_BEYOND_THREADS)]
    for chunk, data in in_order(chunks(), look, slots, threads=threads, idle=lambda _: False):
        block, offset, length = chunk
        if data is not None:
            usage.mark_data((block.start + offset) // size, data)
        control.advance(length)


@dataclass(frozen=True)
class PageState:
    """What :func:`page_at` found.

    Attributes
    ----------
    address : int
        Guest-physical, of the page's first byte.
    page_size : int
        Bytes, as the guest's kernel has them.
    type : str
        What the page is used for: the name of a `PageType` in lower case; ``missing`` where the guest has no
        memory; empty where it cannot be told.
    why_no_type : str
        Why not.
    in_dump : bool
        Whether all of it can be read.
    zero : bool or None
        Whether it holds zeros only; None where it is not in the dump.
    dump_level : int
        Which kinds of pages the dump excludes, in makedumpfile's bits, as far as it tells.
    leaves_out : int
        The bits of a level of which each leaves out pages of this type.
    excluded_by : int
        Those of them that the dump has, if the page is not in it. 0 where the dump does not tell its level,
        as ELF files do not, or the page was left out for another reason.
    running : bool
        The guest runs: all of this may be over already.
    """

    address: int
    page_size: int
    type: str
    why_no_type: str
    in_dump: bool
    zero: bool | None
    dump_level: int
    leaves_out: int
    excluded_by: int
    running: bool

    def as_dict(self) -> dict[str, Any]:
        """Give all attributes by name, for JSON."""
        return asdict(self)


@naming_shortages()
def page_at(
    source: AnySource,
    address: int,
    *,
    vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
    search: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> PageState:
    """Tell what the page at an address is used for, whether it is in the dump, and if not, why.

    Parameters
    ----------
    source : str, path, sequence of paths, Source, buffer, or list of blocks
        As for :func:`page_types`.
    address : int
        Guest-physical, of any byte of the page.
    vmcoreinfo, search
        As for :func:`vmdump.dump`.
    progress : callable, optional
        Told (done, total) of a search for VMCOREINFO that takes longer than a second.

    Raises
    ------
    RequestError
        There is no such address, or no such VMCOREINFO.
    VmdumpError
        The guest cannot be opened, or its page cannot be read though it is there.
    """
    if not 0 <= address < ADDRESS_LIMIT:
        raise RequestError(f"address: {address:#x} is not within 64 bits", parameter="address")
    with opened(source, vmcoreinfo=vmcoreinfo, search=search, progress=progress) as guest:
        kind, why = _type_of(guest, address)
        size = kernel_page_size(guest)
        begin = address // size * size
        blocks = whole_pages(guest.blocks, size)
        index = find_block(blocks, begin)
        there = index >= 0 and begin < blocks[index].end
        in_dump = there and not partly_excluded(guest, begin // size, 1, size)[0]
        zero = None
        if in_dump:
            page = np.empty(size, np.uint8)
            read_into(blocks[index].memory, begin - blocks[index].start, page)
            zero = not page.any()
        if not there:
            kind, why = PageType.MISSING, ""
        bits = 0 if kind is None else excluding_bits(kind)
        if zero and kind is not None and not bits:
            kind, bits = PageType.ZERO, excluding_bits(PageType.ZERO)
        return PageState(
            address=begin,
            page_size=size,
            type="" if kind is None else kind.name.lower(),
            why_no_type=why,
            in_dump=in_dump,
            zero=zero,
            dump_level=guest.dump_level,
            leaves_out=bits,
            excluded_by=bits & guest.dump_level if there and not in_dump else 0,
            running=guest.changes or guest.fuzzy,
        )


def _type_of(guest: Guest, address: int) -> tuple[PageType | None, str]:
    """Give the type of a page, or why there is none."""
    try:
        return type_of(guest, address), ""
    except (CapabilityError, ReadError) as error:
        return None, str(error)
