"""Types of pages of a dump by drgn: by its kernel's debugging information, and nothing of vmdump's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vmdump
from live.kernels import Kernel, unpacked
from vmdump.guest.linux.page_types.types import PageTypes
from vmdump.kernels import page_types as kinds

SAMPLE = 500
"""Pages that drgn's own helpers are asked about."""
GROUP = 512
"""A head at the end of a group of pages has no order: so it is in makedumpfile."""
CHUNK = 1 << 14

BASE = kinds.POISONED - 1
"""The bits of a type without POISONED."""

Types = NDArray[np.uint8]


class Definitions:
    """Where fields of struct page are, and what values in them mean, by the debugging information."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self.page = program.type("struct page")
        self.size = self.page.size
        self.word = program.type("unsigned long").size
        self.order = "<" if program.platform.flags & self._little() else ">"
        self.info = "compound_info" if self.page.has_member("compound_info") else "compound_head"

    def _little(self) -> Any:
        from drgn import PlatformFlags

        return PlatformFlags.IS_LITTLE_ENDIAN

    def _value(self, name: str) -> int | None:
        try:
            return int(self._program.constant(name).value_())
        except LookupError:
            return None

    def _offset(self, name: str) -> int:
        from drgn import offsetof

        return int(offsetof(self.page, name))

    def fields(self, raw: NDArray[np.uint8], offset: int, width: int) -> NDArray[np.uint64]:
        """Give a field of each struct page."""
        rows = raw.reshape(-1, self.size)[:, offset : offset + width]
        return np.ascontiguousarray(rows).view(f"{self.order}u{width}").reshape(-1).astype(np.uint64)

    def bit(self, flags: NDArray[np.uint64], name: str) -> NDArray[np.bool_]:
        bit = self._value(f"PG_{name}")
        if bit is None:
            return np.zeros(flags.size, np.bool_)
        return flags >> np.uint64(bit) & np.uint64(1) != 0

    def typed(self, mapcount: NDArray[np.uint64], name: str, old: int | None) -> NDArray[np.bool_]:
        """Tell which pages are of a type: a number in the highest byte since 6.12; `old` is a bit of 6.1."""
        number = self._value(f"PGTY_{name}")
        if number is not None:
            return mapcount >> np.uint64(24) == number
        if old is None:
            return np.zeros(mapcount.size, np.bool_)
        return mapcount == 0xFFFFFFFF & ~old

    def tell(self, raw: NDArray[np.uint8]) -> tuple[Types, NDArray[np.uint64], NDArray[np.bool_]]:
        """Tell of each page by itself its type, the order of the run that it begins, and if it is a tail."""
        word = self.word
        flags = self.fields(raw, self._offset("flags"), word)
        mapping = self.fields(raw, self._offset("mapping"), word)
        private = self.fields(raw, self._offset("private"), word)
        mapcount = self.fields(raw, self._offset("_mapcount"), 4)
        tail = self.fields(raw, self._offset(self.info), word) & np.uint64(1) != 0
        following = np.append(raw[self.size :], np.zeros(self.size, np.uint8))
        head = self.bit(flags, "head") & ~tail
        if self._program.type("struct page").has_member("compound_order"):
            order = self.fields(following, self._offset("compound_order"), 1)
            dtor = self.fields(following, self._offset("compound_dtor"), 1)
            huge = dtor == np.uint64(self._value("HUGETLB_PAGE_DTOR") or 0)
        else:
            order = self.fields(following, self._offset("flags"), word) & np.uint64(0xFF)
            huge = self.typed(mapcount, "hugetlb", None)
        huge &= head
        order[~head] = 0
        order[GROUP - 1 :: GROUP] = 0
        slab = self.bit(flags, "slab") | self.typed(mapcount, "slab", None)
        anon = (mapping & np.uint64(1) != 0) & ~slab
        swap = self.bit(flags, "swapbacked") & self.bit(flags, "swapcache")
        cache = (self.bit(flags, "lru") | swap) & ~anon
        free = self.typed(mapcount, "buddy", 0x80) & ~slab
        types = np.full(flags.size, kinds.KERNEL, np.uint8)
        # The later ones take precedence.
        types[self.typed(mapcount, "table", None)] = kinds.TABLE
        types[slab] = kinds.SLAB
        types[self.typed(mapcount, "offline", 0x100)] = kinds.OFFLINE
        types[anon] = kinds.USER
        types[huge] = kinds.HUGE
        types[cache] = kinds.CACHE
        types[cache & self.bit(flags, "private")] = kinds.CACHE_PRIVATE
        types[free] = kinds.FREE
        order[free] = private[free]
        types[self.bit(flags, "hwpoison")] |= kinds.POISONED
        # What was taken away, or never set up.
        types[flags == np.uint64((1 << 8 * word) - 1)] = kinds.DOUBTFUL
        types[tail] = kinds.TAIL
        return types, order, tail


def types_by_drgn(program: Any) -> Iterator[tuple[int, Types]]:
    """Give the types of the pages of each array of struct pages, and the first one's frame number."""
    from drgn.helpers.linux.mm import for_each_valid_page_range

    definitions = Definitions(program)
    for begin, end, mem_map in for_each_valid_page_range(program):
        address, size = mem_map.value_(), definitions.size
        parts = []
        for pfn in range(begin, end, CHUNK):
            count = min(CHUNK, end - pfn)
            parts.append(program.read((address + pfn * size) % (1 << 64), count * size))
        types, order, tail = definitions.tell(np.frombuffer(b"".join(parts), np.uint8))
        # A page of a run that somebody leaves out is what the head is, and a tail too.
        poisoned = types & np.uint8(kinds.POISONED)
        for at in np.flatnonzero(order).tolist():
            kind = int(types[at]) & BASE
            run = slice(at + 1, at + (1 << int(order[at])))
            if kind == kinds.FREE:
                types[run] = kind
            else:
                types[run][tail[run]] = kind
        types[:] = types & np.uint8(BASE) | poisoned
        yield begin, types


def checks(
    kernel: Kernel, path: Path, dump: vmdump.Source, types: PageTypes, seed: int
) -> Iterator[tuple[str, bool, str]]:
    """Yield checks of the types of a dump."""
    import drgn
    from drgn.helpers.linux import mm

    tree = unpacked(kernel.suite, kernel.arch, f"linux-image-{kernel.package}-dbg", "usr/lib/debug/boot")
    program = drgn.Program()
    program.set_core_dump(path)
    if kernel.arch == "ppc64el":
        # Its tables are read through the kernel's own mapping of all memory, of which a dump without paging
        # says nothing, and drgn does not know it.
        size = max(block.end for block in dump.blocks)
        program.add_memory_segment(
            0xC << 60, size, lambda address, count, offset, _: program.read(offset, count, True)
        )
    release = dump.vmcoreinfo["OSRELEASE"]
    program.load_debug_info([str(tree / "usr/lib/debug/boot" / f"vmlinux-{release}")])
    pages = wrong = 0
    places, told = [], []
    for begin, theirs in types_by_drgn(program):
        mine = types.of(begin, theirs.size)
        there = np.zeros(theirs.size, np.bool_)
        for block in dump.blocks:
            low, high = (at // types.page_size - begin for at in (block.start, block.end))
            there[max(low, 0) : max(high, 0)] = True
        differ = np.flatnonzero(there & (mine != theirs))
        pages += int(np.count_nonzero(there))
        wrong += differ.size
        told += [(begin + int(at), int(mine[at]), int(theirs[at])) for at in differ[:8]]
        places += (np.flatnonzero(there) + begin).tolist()
    yield "drgn: every page", pages > 0 and not wrong, f"{pages} pages, {wrong} differ; {told[:8]}"
    odd = []
    rng = random.Random(seed)
    for pfn in rng.sample(places, min(SAMPLE, len(places))):
        page = mm.pfn_to_page(program, pfn)
        head = mm.compound_head(page)
        kind = int(types.of(pfn, 1)[0])
        base = kind & BASE
        right = [
            (base == kinds.SLAB) == mm.PageSlab(head),
            bool(kind & kinds.POISONED) == mm.PageHWPoison(page),
            base != kinds.USER or bool(head.mapping.value_() & 1),
            base != kinds.CACHE or mm.PageLRU(head),
            base != kinds.TAIL or mm.PageTail(page),
        ]
        if not all(right):
            odd.append((pfn, kind))
    yield "drgn: its helpers", not odd, f"{min(SAMPLE, len(places))} pages; not: {odd[:5]}"
