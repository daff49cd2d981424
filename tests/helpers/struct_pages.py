"""Guests of struct pages that a test has made up: addresses of the kernel are guest-physical ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import vmdump

PAGE = 4096

KEYS_6_12: Mapping[str, int] = {
    "SIZE(page)": 64,
    "OFFSET(page.flags)": 0,
    "OFFSET(page.compound_head)": 8,
    "OFFSET(page.mapping)": 24,
    "OFFSET(page.private)": 40,
    "OFFSET(page._mapcount)": 48,
    "LENGTH(zone.free_area)": 11,
    "NUMBER(PG_lru)": 5,
    "NUMBER(PG_private)": 14,
    "NUMBER(PG_swapcache)": 10,
    "NUMBER(PG_swapbacked)": 17,
    "NUMBER(PG_hwpoison)": 20,
    "NUMBER(PG_head_mask)": 1 << 6,
    "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)": -0xB000000,
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": -0x10000000,
    "NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)": -0xC000000,
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)": -0xF000000,
    "NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)": -0x9000000,
}
"""The values are the kernel's own; those of 7.3 are laid out alike."""

LRU, PRIVATE, SWAPCACHE, SWAPBACKED, POISON, HEAD = 1 << 5, 1 << 14, 1 << 10, 1 << 17, 1 << 20, 1 << 6
BUDDY, OFFLINE, HUGETLB, SLAB, UNACCEPTED = -0x10000000, -0xF000000, -0xC000000, -0xB000000, -0x9000000
TABLE = -0xE000000

STRUCT = np.dtype(
    {
        "names": ["flags", "compound", "mapping", "private", "mapcount"],
        "formats": ["u8", "u8", "u8", "u8", "i4"],
        "offsets": [0, 8, 24, 40, 48],
        "itemsize": 64,
    }
)


def structs(count: int) -> np.ndarray:
    """Make struct pages that the kernel uses for itself."""
    pages = np.zeros(count, STRUCT)
    pages["mapcount"] = -1
    return pages


def compound(pages: np.ndarray, head: int, order: int, **fields: int) -> None:
    """Make a compound page; fields are those of its head."""
    for name, value in fields.items():
        pages[name][head] = value
    pages["flags"][head] |= HEAD
    pages["compound"][head + 1 : head + (1 << order)] = 1
    pages["flags"][head + 1] = order


def text(keys: Mapping[str, int], *, release: str = "6.12.0-test") -> bytes:
    """Write VMCOREINFO; symbols in hexadecimal."""
    lines = [f"OSRELEASE={release}", f"PAGESIZE={PAGE}", "SYMBOL(_stext)=1000"]
    lines += [
        f"{key}={value:x}" if key.startswith("SYMBOL") else f"{key}={value}" for key, value in keys.items()
    ]
    return "\n".join(lines).encode() + b"\n"


def flat(pages: np.ndarray, keys: Mapping[str, int] = KEYS_6_12, *, release: str = "6.12.0-test") -> Any:
    """Make a guest with FLATMEM, whose struct pages lie at 1 MiB; other pages are random."""
    memory = np.random.RandomState(5).randint(1, 256, pages.size * PAGE, np.uint8)
    raw = pages.view(np.uint8)
    begin = 1 << 20
    memory[begin : begin + raw.size] = raw
    memory[0x2000:0x2008].view("<u8")[0] = begin
    return guest_of(memory, {**keys, "SYMBOL(mem_map)": 0x2000}, release=release)


def guest_of(memory: Any, keys: Mapping[str, int], *, release: str = "6.12.0-test") -> Any:
    """Make a guest of memory whose vCPU has paging off: what is virtual is guest-physical."""
    return vmdump.BlockSource(
        memory, cpus=[{"cr0": 0, "cr3": 0, "cr4": 0}], vmcoreinfo=text(keys, release=release)
    )
