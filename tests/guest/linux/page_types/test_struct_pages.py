"""Struct pages that no kernel has at rest: whatever they say, pages in doubt are kept."""

from __future__ import annotations

import os

import numpy as np
import pytest
from helpers.struct_pages import (
    BUDDY,
    HEAD,
    HUGETLB,
    KEYS_6_12,
    LRU,
    OFFLINE,
    POISON,
    PRIVATE,
    SLAB,
    SWAPBACKED,
    SWAPCACHE,
    UNACCEPTED,
    compound,
    flat,
    guest_of,
    structs,
)

from vmdump.guest.linux.page_types.levels import excluded_types
from vmdump.guest.linux.page_types.types import tell_types
from vmdump.kernels import page_types as kernel

COUNT = 4096


def types_of(pages: np.ndarray) -> np.ndarray:
    return tell_types(flat(pages)).of(0, pages.size)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, kernel.KERNEL),
        ({"flags": LRU}, kernel.CACHE),
        ({"flags": LRU | PRIVATE}, kernel.CACHE_PRIVATE),
        ({"flags": LRU, "mapping": 0x1001}, kernel.USER),
        ({"flags": SWAPBACKED | SWAPCACHE}, kernel.CACHE),
        ({"flags": SWAPBACKED}, kernel.KERNEL),
        ({"flags": SWAPCACHE}, kernel.KERNEL),
        ({"mapping": 0x1001}, kernel.USER),
        ({"mapping": 0x1001, "mapcount": SLAB}, kernel.SLAB),
        ({"mapping": 0x1001, "flags": 1 << 7}, kernel.USER),  # PG_waiters, and not a slab
        ({"mapcount": OFFLINE}, kernel.OFFLINE),
        ({"mapcount": BUDDY}, kernel.FREE),
        ({"mapcount": BUDDY, "private": 11}, kernel.DOUBTFUL),
        ({"mapcount": UNACCEPTED}, kernel.UNACCEPTED),
        ({"flags": POISON}, kernel.KERNEL | kernel.POISONED),
        ({"flags": POISON | LRU}, kernel.CACHE | kernel.POISONED),
        ({"compound": 0x1001, "flags": LRU}, kernel.TAIL),
    ],
)
def test_each_type(fields: dict[str, int], kind: int) -> None:
    pages = structs(COUNT)
    for name, value in fields.items():
        pages[name][1024] = value
    types = types_of(pages)
    assert types[1024] == kind
    alone = np.delete(types, np.arange(1024, 2048) if kind == kernel.UNACCEPTED else 1024)
    assert (alone == kernel.KERNEL).all()


def test_runs_of_free_and_compound_pages() -> None:
    pages = structs(COUNT)
    pages["mapcount"][1024], pages["private"][1024] = BUDDY, 10
    compound(pages, 512, 9, mapcount=HUGETLB)
    compound(pages, 256, 3, flags=LRU)
    compound(pages, 264, 2, mapcount=SLAB)
    types = types_of(pages)
    assert (types[1024:2048] == kernel.FREE).all()
    assert (types[512:1024] == kernel.HUGE).all()
    assert (types[256:264] == kernel.CACHE).all()
    assert (types[264:268] == kernel.SLAB).all()
    assert np.count_nonzero(types == kernel.KERNEL) == COUNT - 1024 - 512 - 8 - 4


def test_a_head_that_is_not_aligned_is_kept() -> None:
    pages = structs(COUNT)
    compound(pages, 513, 9, mapping=0x1001)
    pages["mapcount"][2049], pages["private"][2049] = BUDDY, 4
    types = types_of(pages)
    assert types[513] == types[2049] == kernel.DOUBTFUL
    assert not excluded_types(31)[types].any()


def test_fake_heads_in_a_huge_page_are_part_of_it() -> None:
    """Where tails share one page of struct pages, each 64th of them looks like a head."""
    pages = structs(COUNT)
    compound(pages, 512, 9, mapcount=HUGETLB)
    for fake in range(512 + 64, 1024, 64):
        pages[fake : fake + 64] = pages[512 : 512 + 64]
    types = types_of(pages)
    assert (types[512:1024] == kernel.HUGE).all()
    assert np.count_nonzero(types == kernel.DOUBTFUL) == 0


@pytest.mark.parametrize("order", [22, 63, 64, 255])
def test_an_impossible_order_is_kept(order: int) -> None:
    pages = structs(COUNT)
    pages["flags"][0], pages["mapping"][0] = HEAD, 0x1001
    pages["flags"][1], pages["compound"][1] = order, 1
    types = types_of(pages)
    assert types[0] == kernel.DOUBTFUL
    assert not excluded_types(31)[types].any()


def test_a_head_at_511_has_no_order() -> None:
    """makedumpfile looks up 512 struct pages together, and not across them."""
    pages = structs(COUNT)
    pages["flags"][511] = HEAD | LRU
    pages["flags"][512] = 9
    types = types_of(pages)
    assert types[511] == kernel.CACHE
    assert (types[512:] == kernel.KERNEL).all()


@pytest.mark.parametrize("byte", [0, 255])
def test_nothing_but_zeros_or_ones_is_kept(byte: int) -> None:
    pages = structs(COUNT)
    pages.view(np.uint8)[:] = byte
    assert not excluded_types(31)[types_of(pages)].any()


def test_a_run_goes_on_in_the_next_sections() -> None:
    """A gigantic page begins in one array and ends in another, with other pages told at the same time."""
    size, word = 64, 8
    section = 1 << 15
    pages = structs(3 * section)
    compound(pages, 0, 16, mapcount=HUGETLB)
    pages["flags"][(1 << 16) + 5] = LRU
    raw = pages.view(np.uint8)
    memory = np.zeros(3 * section * 4096, np.uint8)
    # Arrays in reverse order, far from each other, so that no two of them are one.
    table = 0x10000
    for number in range(3):
        place = (64 + 8 * (2 - number)) << 20
        memory[place : place + section * size] = raw[number * section * size : (number + 1) * section * size]
        entry = (place - number * section * size) | 1 | 2 | 1 << 5
        memory[table + 16 * number : table + 16 * number + word].view("<u8")[0] = entry % (1 << 64)
    memory[0x3000:0x3008].view("<u8")[0] = table
    keys = {
        **KEYS_6_12,
        "SYMBOL(mem_section)": 0x3000,
        "LENGTH(mem_section)": 2048,
        "SIZE(mem_section)": 16,
        "OFFSET(mem_section.section_mem_map)": 0,
        "NUMBER(SECTION_SIZE_BITS)": 27,
        "NUMBER(MAX_PHYSMEM_BITS)": 46,
    }
    types = tell_types(guest_of(memory, keys), threads=3)
    assert types.arrays == [(0, 3 * section)]
    kinds = types.of(0, 3 * section)
    assert (kinds[: 1 << 16] == kernel.HUGE).all()
    assert np.flatnonzero(kinds == kernel.CACHE).tolist() == [(1 << 16) + 5]


def test_random_struct_pages_end_and_stay_inside() -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    random = np.random.RandomState(seed)
    pages = structs(COUNT)
    for name, values in {
        "flags": [0, LRU, HEAD, HEAD | LRU, 9, 63, 255, POISON | HEAD, (1 << 64) - 1],
        "compound": [0, 0, 0, 1, 0x1001],
        "mapping": [0, 1, 0x1001, 0x1000],
        "private": [0, 3, 10, 11, 63, (1 << 64) - 1],
        "mapcount": [-1, 0, BUDDY, OFFLINE, HUGETLB, SLAB, UNACCEPTED],
    }.items():
        pages[name] = np.array(values, STRUCT_TYPES[name])[random.randint(0, len(values), COUNT)]
    types = types_of(pages)
    base = types & ~np.uint8(kernel.POISONED)
    assert ((base > kernel.UNREADABLE) & (base < kernel.TYPE_COUNT)).all()
    assert (types[pages["flags"] == (1 << 64) - 1] != kernel.KERNEL).all()


STRUCT_TYPES = {"flags": "u8", "compound": "u8", "mapping": "u8", "private": "u8", "mapcount": "i4"}


def test_a_type_that_is_spread_leaves_broken_pages_broken() -> None:
    types = np.array([kernel.KERNEL, kernel.KERNEL | kernel.POISONED, kernel.TAIL], np.uint8)
    kernel.spread_type(types, kernel.FREE)
    assert types.tolist() == [kernel.FREE, kernel.FREE | kernel.POISONED, kernel.FREE]
    types = np.array([kernel.USER, kernel.TAIL], np.uint8)
    kernel.spread_type(types, kernel.SLAB)
    assert types.tolist() == [kernel.USER, kernel.SLAB]
