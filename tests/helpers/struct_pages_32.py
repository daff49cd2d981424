"""Guests with words of 32 bits: a Linux 5.10 for i386 without PAE, of each memory model."""

from __future__ import annotations

from typing import Any

import numpy as np

import vmdump

PAGE = 4096
COUNT = 1 << 14
"""Pages: a section of a kernel without PAE."""
LRU, HEAD, ANON = 1 << 4, 1 << 16, 0x1001
STRUCTS = 1 << 20
DIRECT = 0xC0000000
MODELS = ("flat", "nodes", "sections", "sections of a told size")
STRUCT = np.dtype(
    {
        "names": ["flags", "mapping", "compound", "dtor", "order", "private", "mapcount"],
        "formats": ["<u4", "<u4", "<u4", "u1", "u1", "<u4", "<i4"],
        "offsets": [0, 12, 4, 8, 9, 20, 24],
        "itemsize": 32,
    }
)
KEYS = {
    "SIZE(page)": "32",
    "OFFSET(page.flags)": "0",
    "OFFSET(page.mapping)": "12",
    "OFFSET(page.compound_head)": "4",
    "OFFSET(page.compound_dtor)": "8",
    "OFFSET(page.compound_order)": "9",
    "OFFSET(page.private)": "20",
    "OFFSET(page._mapcount)": "24",
    "LENGTH(zone.free_area)": "11",
    "NUMBER(PG_lru)": "4",
    "NUMBER(PG_private)": "13",
    "NUMBER(PG_swapcache)": "10",
    "NUMBER(PG_swapbacked)": "19",
    "NUMBER(PG_slab)": "9",
    "NUMBER(PG_head_mask)": str(HEAD),
    "NUMBER(HUGETLB_PAGE_DTOR)": "2",
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": "-129",
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)": "-257",
}
NODES = {
    "OFFSET(pglist_data.node_start_pfn)": "0",
    "OFFSET(pglist_data.node_spanned_pages)": "4",
}


def words(memory: np.ndarray, address: int, *values: int) -> None:
    """Write words."""
    memory[address : address + 4 * len(values)] = np.array(values, "<u4").view(np.uint8)


def map_memory(memory: np.ndarray) -> None:
    """Write a page directory at 0x1000 that maps all memory at DIRECT, in large pages."""
    directory = np.zeros(1024, "<u4")
    large = memory.size >> 22
    directory[768 : 768 + large] = (np.arange(large) << 22) | 0x1E3
    memory[0x1000:0x2000] = directory.view(np.uint8)


def guest_of_model(model: str, pages: np.ndarray) -> Any:
    """Make a guest of one of MODELS."""
    memory = np.zeros(pages.size * PAGE, np.uint8)
    map_memory(memory)
    memory[STRUCTS : STRUCTS + pages.nbytes] = pages.view(np.uint8)
    at = DIRECT + STRUCTS
    if model == "flat":
        words(memory, 0x4000, at)
        keys = {"SYMBOL(mem_map)": "c0004000"}
    elif model == "nodes":
        half = pages.size // 2
        words(memory, 0x4000, DIRECT + 0x5000, DIRECT + 0x6000, 0)
        words(memory, 0x5000, 0, half, at)
        words(memory, 0x6000, half, half, at + 32 * half)
        keys = {
            "SYMBOL(node_data)": "c0004000",
            "LENGTH(node_data)": "3",
            "OFFSET(pglist_data.node_mem_map)": "8",
            **NODES,
        }
    else:
        # One entry after the other in mem_section itself; what the lowest bits say is no address.
        sections = pages.size // COUNT
        for section in range(sections):
            words(memory, 0x4000 + 8 * section, at + 0x1F)
        keys = {
            "SYMBOL(mem_section)": "c0004000",
            "LENGTH(mem_section)": "64",
            "SIZE(mem_section)": "8",
            "OFFSET(mem_section.section_mem_map)": "0",
            "NUMBER(MAX_PHYSMEM_BITS)": "32",
        }
        if model == "sections of a told size":
            keys["NUMBER(SECTION_SIZE_BITS)"] = "26"
    text = {
        "OSRELEASE": "5.10.0-test",
        "PAGESIZE": str(PAGE),
        "SYMBOL(_stext)": "c0100000",
        "SYMBOL(swapper_pg_dir)": "c0001000",
        **KEYS,
        **keys,
    }
    return vmdump.BlockSource(
        memory,
        arch="i386",
        cpus=[{"cr0": 0x80000001, "cr3": 0x1000, "cr4": 0x10}],
        vmcoreinfo="".join(f"{key}={value}\n" for key, value in text.items()).encode(),
    )


def some_pages(count: int) -> np.ndarray:
    """Make struct pages of most types, and some in doubt."""
    pages = np.zeros(count, STRUCT)
    pages["mapcount"] = -1
    pages["flags"][5000:5100] = LRU
    pages["mapping"][6000] = ANON
    pages["mapcount"][8192], pages["private"][8192] = -129, 10
    pages["mapcount"][9217], pages["private"][9217] = -129, 1  # not aligned
    pages["mapcount"][9300], pages["private"][9300] = -129, 11  # no kernel has that order
    pages["mapcount"][9400:9410] = -257
    pages["flags"][10240], pages["compound"][10241:11264] = HEAD, 0xC0150001
    pages["order"][10241], pages["dtor"][10241] = 10, 2
    pages["flags"][12000:12003] = 0xFFFFFFFF
    return pages
