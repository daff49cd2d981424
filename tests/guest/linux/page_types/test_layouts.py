"""Struct pages of older and other kernels, and where they are: chosen by keys."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from helpers.struct_pages import BUDDY, KEYS_6_12, LRU, PAGE, flat, guest_of, structs

from vmdump.errors import CapabilityError
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.guest.linux.page_types import free_lists
from vmdump.guest.linux.page_types.layout import PageLayout
from vmdump.guest.linux.page_types.types import tell_types
from vmdump.kernels import page_types as kernel

COMMON: Mapping[str, int] = {
    "SIZE(page)": 64,
    "OFFSET(page.flags)": 0,
    "OFFSET(page.mapping)": 8,
    "LENGTH(zone.free_area)": 11,
    "NUMBER(PG_lru)": 5,
    "NUMBER(PG_private)": 11,
    "NUMBER(PG_swapcache)": 16,
}
KEYS_3_10: Mapping[str, int] = {
    **COMMON,
    "OFFSET(page._mapcount)": 24,
    "OFFSET(page.private)": 48,
    "NUMBER(PG_slab)": 7,
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": -128,
}
KEYS_4_9: Mapping[str, int] = {
    **KEYS_3_10,
    "OFFSET(page.compound_head)": 32,
    "OFFSET(page.compound_dtor)": 40,
    "OFFSET(page.compound_order)": 42,
    "NUMBER(PG_head_mask)": 1 << 14,
    "NUMBER(PG_swapbacked)": 18,
    "NUMBER(HUGETLB_PAGE_DTOR)": 2,
}
KEYS_5_10: Mapping[str, int] = {
    **KEYS_4_9,
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": -129,
    "OFFSET(page.compound_order)": 41,
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)": -257,
    "NUMBER(PG_hwpoison)": 22,
}
KEYS_6_4: Mapping[str, int] = {
    **{key: value for key, value in KEYS_5_10.items() if "compound_order" not in key and "dtor" not in key},
    "OFFSET(folio._folio_order)": 64 + 17,
    "OFFSET(folio._folio_dtor)": 64 + 16,
}
KEYS_6_7: Mapping[str, int] = {
    **{key: value for key, value in KEYS_6_4.items() if "folio" not in key and "DTOR" not in key},
    "NUMBER(PG_hugetlb)": 8,
}


class Raw:
    """Struct pages by offset."""

    def __init__(self, count: int, mapcount: int = 24) -> None:
        self.bytes = np.zeros((count, 64), np.uint8)
        self.put(slice(None), mapcount, "<i4", -1)

    def put(self, page: int | slice, offset: int, code: str, value: int) -> None:
        width = int(code[-1])
        self.bytes[page, offset : offset + width] = np.frombuffer(np.array([value], code).tobytes(), np.uint8)


def types_of(raw: Raw, keys: Mapping[str, int], release: str) -> np.ndarray:
    guest = flat(raw.bytes.reshape(-1).view("V64"), keys, release=release)
    return tell_types(guest).of(0, len(raw.bytes))


def test_3_10() -> None:
    """Swapped pages by PG_swapcache and the swapbacked bit that nothing tells; no compound pages."""
    raw = Raw(2048)
    raw.put(16, 24, "<i4", -128)
    raw.put(16, 48, "<u8", 4)
    raw.put(100, 0, "<u8", 1 << 5 | 1 << 11)
    raw.put(101, 0, "<u8", 1 << 5)
    raw.put(102, 0, "<u8", 1 << 16 | 1 << 17)
    raw.put(103, 8, "<u8", 0x1001)
    raw.put(104, 0, "<u8", 1 << 7)
    raw.put(104, 8, "<u8", 0x1001)
    types = types_of(raw, KEYS_3_10, "3.10.0-test")
    assert (types[16:32] == kernel.FREE).all()
    assert types[100:105].tolist() == [
        kernel.CACHE_PRIVATE,
        kernel.CACHE,
        kernel.KERNEL,  # PG_swapbacked is told by its own bit only where PG_swapcache is below PG_private
        kernel.USER,
        kernel.SLAB,
    ]


def test_swapbacked_behind_private_where_it_is_not_told() -> None:
    raw = Raw(2048)
    raw.put(102, 0, "<u8", 1 << 9 | 1 << 17)
    types = types_of(raw, {**KEYS_3_10, "NUMBER(PG_swapcache)": 9}, "3.10.0-test")
    assert types[102] == kernel.CACHE


@pytest.mark.parametrize(
    ("keys", "release", "fields"),
    [
        (KEYS_4_9, "4.9.0-test", ((42, "<u2", 9), (40, "<u2", 2))),
        (KEYS_5_10, "5.10.0-test", ((41, "<u1", 9), (40, "<u1", 2))),
        (KEYS_6_4, "6.4.0-test", ((17, "<u1", 9), (16, "<u1", 2))),
        (KEYS_6_7, "6.7.0-test", ((0, "<u8", 9 | 1 << 8),)),
    ],
)
def test_hugetlb_pages(
    keys: Mapping[str, int], release: str, fields: tuple[tuple[int, str, int], ...]
) -> None:
    raw = Raw(2048)
    head = keys.get("NUMBER(PG_head_mask)", 0)
    raw.put(512, 0, "<u8", head)
    raw.put(slice(513, 1024), 32, "<u8", 0x1001)
    for offset, code, value in fields:
        raw.put(513, offset, code, value)
    types = types_of(raw, keys, release)
    assert (types[512:1024] == kernel.HUGE).all()
    assert (types[:512] == kernel.KERNEL).all()


KEYS_3_16: Mapping[str, int] = {
    **KEYS_3_10,
    "OFFSET(page.lru)": 32,
    "OFFSET(list_head.next)": 0,
    "OFFSET(list_head.prev)": 8,
    "NUMBER(PG_swapbacked)": 18,
}


@pytest.mark.parametrize("told", [True, False])
def test_compound_pages_before_4_4(told: bool) -> None:
    """What frees them, and their order, are in the list's entry of the second page; nothing tells tails."""
    free_huge_page = 0xFFFF_FFFF_8117_A2B0
    raw = Raw(2048)
    for head in (512, 1024, 1536, 1601):
        raw.put(head, 0, "<u8", 1 << 14)
        raw.put(head + 1, 32, "<u8", 0xFFFF_FFFF_8114_0000)
        raw.put(head + 1, 40, "<u8", 9)
    raw.put(513, 32, "<u8", free_huge_page)
    raw.put(1024, 8, "<u8", 0x1001)  # a transparent huge page
    raw.put(1601, 8, "<u8", 0x1001)  # not aligned
    keys = {**KEYS_3_16, "SYMBOL(free_huge_page)": free_huge_page} if told else KEYS_3_16
    types = types_of(raw, keys, "3.16.0-test")
    assert (types[512:1024] == (kernel.HUGE if told else kernel.KERNEL)).all()
    assert (types[1024:1536] == kernel.USER).all()
    assert types[1601] == kernel.DOUBTFUL
    assert (np.delete(types, np.r_[512:1536, 1601]) == kernel.KERNEL).all()


@pytest.mark.parametrize("release", ["4.4.0-test", "4.5.0-test", "unknown", "9" * 5000 + ".1"])
def test_compound_pages_of_which_nothing_tells(release: str) -> None:
    """4.4 and 4.5 have moved the order, and VMCOREINFO has it from 4.6 on: only the head is left out."""
    raw = Raw(2048)
    raw.put(1024, 0, "<u8", 1 << 14)
    raw.put(1024, 8, "<u8", 0x1001)
    raw.put(1025, 40, "<u8", 9)
    types = types_of(raw, KEYS_3_16, release)
    assert np.flatnonzero(types != kernel.KERNEL).tolist() == [1024]


LISTS: Mapping[str, int] = {
    "SYMBOL(contig_page_data)": 0x10000,
    "OFFSET(pglist_data.node_zones)": 0x100,
    "SIZE(zone)": 0x800,
    "OFFSET(zone.free_area)": 0x40,
    "SIZE(free_area)": 40,
    "LENGTH(free_area.free_list)": 2,
    "OFFSET(free_area.free_list)": 0,
    "SIZE(list_head)": 16,
    "OFFSET(page.lru)": 32,
}


def _listed(blocks: Mapping[tuple[int, int, int], list[int]], *, broken: int = 0) -> Any:
    """Make a guest with lists of pages, by zone, order and kind; `broken` names another one before it."""
    keys = {key: value for key, value in KEYS_3_10.items() if "mapcount" not in key and "BUDDY" not in key}
    raw = Raw(2048)
    raw.put(7, 0, "<u8", 1 << 5)
    guest = flat(raw.bytes.reshape(-1).view("V64"), {**keys, **LISTS}, release="3.2.0-test")
    memory = np.array(guest.blocks[0].memory.view(0, 2048 * PAGE, np.empty(0, np.uint8)))
    memory[0x10000:0x20000] = 0
    for zone in range(4):
        for order in range(11):
            for kind in range(2):
                head = 0x10140 + zone * 0x800 + order * 40 + kind * 16
                places = [(1 << 20) + 64 * page + 32 for page in blocks.get((zone, order, kind), [])]
                ring = [head, *places]
                for at, place in enumerate(ring):
                    before = ring[at - 1] if place != (1 << 20) + 64 * broken + 32 else 0x5000
                    _place(memory, place, ring[(at + 1) % len(ring)], before)
    return guest_of(memory, {**keys, **LISTS, "SYMBOL(mem_map)": 0x2000})


def test_lists_of_free_pages() -> None:
    """Before 3.8 nothing else tells which pages are free."""
    guest = _listed({(0, 0, 0): [9], (0, 4, 1): [64, 160], (1, 10, 0): [1024], (3, 1, 1): [20, 10, 300]})
    types = tell_types(guest).of(0, 2048)
    free = [9, 10, 11, 20, 21, *range(64, 80), *range(160, 176), 300, 301, *range(1024, 2048)]
    assert np.flatnonzero(types == kernel.FREE).tolist() == free
    assert types[7] == kernel.CACHE
    for pfn in (7, 8, 9, 64, 79, 80, 175, 301, 302, 1023, 1024, 2047):
        assert tell_types(guest, only=pfn).of(pfn, 1) == types[pfn]


def test_lists_are_not_followed_for_a_page_that_tells_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _listed({(0, 0, 0): [9, 11, 13], (0, 1, 0): [20]})
    followed: list[int] = []
    original = free_lists._Lists._run

    def run(self: Any, struct: int, order: int) -> Any:
        followed.append(order)
        return original(self, struct, order)

    monkeypatch.setattr(free_lists._Lists, "_run", run)
    assert tell_types(guest, only=7).of(7, 1) == kernel.CACHE
    assert followed == []
    assert tell_types(guest, only=11).of(11, 1) == kernel.FREE
    assert followed == [0, 0]
    assert tell_types(guest, only=30).of(30, 1) == kernel.KERNEL
    assert followed == [0, 0, 0, 0, 0, 1]


def test_a_list_ends_where_it_contradicts_itself() -> None:
    types = tell_types(_listed({(0, 0, 0): [9, 11, 13, 15]}, broken=13)).of(0, 2048)
    assert np.flatnonzero(types == kernel.FREE).tolist() == [9, 11]
    types = tell_types(_listed({(0, 3, 0): [64, 65, 72]})).of(0, 2048)
    assert np.flatnonzero(types == kernel.FREE).tolist() == list(range(64, 72))


def test_without_lists_free_pages_are_kept() -> None:
    keys = {key: value for key, value in KEYS_3_10.items() if "mapcount" not in key and "BUDDY" not in key}
    raw = Raw(2048)
    raw.put(7, 0, "<u8", 1 << 5)
    types = tell_types(flat(raw.bytes.reshape(-1).view("V64"), keys, release="3.2.0-test"))
    assert np.flatnonzero(types.of(0, 2048) != kernel.KERNEL).tolist() == [7]


def test_big_endian_words_and_those_of_32_bits() -> None:
    keys = {
        "SIZE(page)": 32,
        "OFFSET(page.flags)": 0,
        "OFFSET(page._mapcount)": 12,
        "OFFSET(page.private)": 20,
        "OFFSET(page.mapping)": 4,
        "OFFSET(page.compound_head)": 24,
        "LENGTH(zone.free_area)": 11,
        "NUMBER(PG_lru)": 5,
        "NUMBER(PG_private)": 11,
        "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": -129,
    }
    lines = Vmcoreinfo("\n".join(f"{key}={value}" for key, value in keys.items()).encode())
    for byteorder, mark in (("little", "<"), ("big", ">")):
        typer = PageLayout.of(lines, 4, byteorder).typer()  # type: ignore[arg-type]
        raw = b"".join(
            struct.pack(f"{mark}IIIiIIII", flags, mapping, 0, mapcount, 0, private, compound, 0)
            for flags, mapping, mapcount, private, compound in (
                (0, 0, -129, 1, 0),
                (0, 0, -1, 0, 0),
                (1 << 5, 0, -1, 0, 0),
                (1 << 5, 1, 0, 0, 0),
                (1 << 5, 0, 0, 0, 1),
                (0xFFFFFFFF, 0, 0, 0, 0),
            )
        )
        types = np.zeros(6, np.uint8)
        assert typer.tell(raw, 0, types) == []
        assert types.tolist() == [
            kernel.FREE,
            kernel.FREE,
            kernel.CACHE,
            kernel.USER,
            kernel.TAIL,
            kernel.DOUBTFUL,
        ]


def _marked(count: int) -> np.ndarray:
    pages = structs(count)
    pages["flags"][::7] = LRU
    return pages


def _place(memory: np.ndarray, address: int, *words: int) -> None:
    memory[address : address + 8 * len(words)] = np.array(words, "<u8").view(np.uint8)


def _memory(pages: np.ndarray, size: int) -> np.ndarray:
    memory = np.zeros(size, np.uint8)
    memory[1 << 20 : (1 << 20) + pages.nbytes] = pages.view(np.uint8)
    return memory


def _expect_marks(guest: object, count: int) -> None:
    types = tell_types(guest)  # type: ignore[arg-type]
    assert types.arrays == [(0, count)]
    kinds = types.of(0, count)
    assert (np.flatnonzero(kinds == kernel.CACHE) == np.arange(0, count, 7)).all()
    assert types.of(count, 3).tolist() == [kernel.UNKNOWN] * 3


def test_discontiguous_memory_of_two_nodes() -> None:
    count = 8192
    pages = _marked(count)
    memory = _memory(pages, count * PAGE)
    _place(memory, 0x2000, 0x4000, 0x5000, 0x6000)  # node_data; the third node is not online
    _place(memory, 0x3000, 0b011)
    _place(memory, 0x4000, 0, 5000, 1 << 20)
    _place(memory, 0x5000, 5000, count, (1 << 20) + 5000 * 64)  # spans more than there is
    _place(memory, 0x6000, 0, count, 0x10)
    keys = {
        **KEYS_6_12,
        "SYMBOL(node_data)": 0x2000,
        "LENGTH(node_data)": 64,
        "SYMBOL(node_online_map)": 0x3000,
        "OFFSET(pglist_data.node_start_pfn)": 0,
        "OFFSET(pglist_data.node_spanned_pages)": 8,
        "OFFSET(pglist_data.node_mem_map)": 16,
    }
    _expect_marks(guest_of(memory, keys), count)


def test_flat_memory_ends_where_its_node_does() -> None:
    """Firmware above has no struct page, and what lies behind the array is none."""
    count = 4096
    pages = _marked(count)
    memory = _memory(pages, count * PAGE)
    _place(memory, 0x2000, 1 << 20)
    _place(memory, 0x3000, 0, count - 96)
    keys = {
        **KEYS_6_12,
        "SYMBOL(mem_map)": 0x2000,
        "SYMBOL(contig_page_data)": 0x3000,
        "OFFSET(pglist_data.node_start_pfn)": 0,
        "OFFSET(pglist_data.node_spanned_pages)": 8,
    }
    _expect_marks(guest_of(memory, keys), count - 96)


@pytest.mark.parametrize("form", ["extreme", "pointer", "static", "vmemmap"])
def test_sections(form: str) -> None:
    count = 1 << 15
    pages = _marked(count)
    memory = _memory(pages, count * PAGE)
    length = {"static": 1 << 19}.get(form, 2048)
    # The map of page 0, and all bits that are no address.
    entry = (1 << 20) | 0x3F
    if form == "vmemmap":
        entry = 0x7000_0000 | 3
    _place(memory, 0x3000, 0x2000)
    _place(memory, 0x2000, *((entry, 0) if form == "static" else (0x4000, 0)))
    _place(memory, 0x4000, entry)
    keys = {
        **KEYS_6_12,
        "SYMBOL(mem_section)": 0x3000 if form == "pointer" else 0x2000,
        "LENGTH(mem_section)": length,
        "SIZE(mem_section)": 16,
        "OFFSET(mem_section.section_mem_map)": 0,
        "NUMBER(SECTION_SIZE_BITS)": 27,
        "NUMBER(MAX_PHYSMEM_BITS)": 46,
    }
    if form == "vmemmap":
        keys["SYMBOL(vmemmap)"] = 1 << 20
    _expect_marks(guest_of(memory, keys), count)


def test_sections_that_are_not_present_are_kept() -> None:
    """Kernels 5.3 to 5.5 leave the address of the struct pages of memory that was taken away."""
    memory = np.zeros(1 << 28, np.uint8)
    pages = structs(1 << 15)
    pages["mapcount"], pages["private"] = BUDDY, 0
    memory[1 << 20 : (1 << 20) + pages.nbytes] = pages.view(np.uint8)
    _place(memory, 0x2000, 0x4000)
    _place(memory, 0x4000, (1 << 20) | 3, 0, (1 << 20) - (1 << 21) + (1 << 64))
    keys = {
        **KEYS_6_12,
        "SYMBOL(mem_section)": 0x2000,
        "SIZE(mem_section)": 16,
        "OFFSET(mem_section.section_mem_map)": 0,
    }
    types = tell_types(guest_of(memory, keys, release="5.4.0-test"))
    assert types.arrays == [(0, 1 << 15)]
    assert (types.of(1 << 15, 1 << 15) == kernel.UNKNOWN).all()


def test_no_keys_of_struct_pages() -> None:
    with pytest.raises(CapabilityError, match=r"^VMCOREINFO: no key tells where struct pages are$"):
        tell_types(guest_of(np.zeros(1 << 20, np.uint8), KEYS_6_12))
