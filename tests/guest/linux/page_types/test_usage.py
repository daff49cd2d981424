"""What memory is used for: a guest of hand-made struct pages, and what is asked of its types."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from helpers.struct_pages import (
    BUDDY,
    HUGETLB,
    LRU,
    OFFLINE,
    PAGE,
    POISON,
    PRIVATE,
    SLAB,
    TABLE,
    UNACCEPTED,
    compound,
    flat,
    structs,
)

import vmdump
from vmdump import PageType, errors
from vmdump.guest.linux.page_types.filter import filtered
from vmdump.guest.linux.page_types.types import tell_types
from vmdump.guest.linux.page_types.usage import TypeCount, excluding_bits, name_bits

COUNT = 4096
ANON = 0x1001
ALL_ONES = (1 << 64) - 1

BITS = {
    PageType.MISSING: 0,
    PageType.UNDESCRIBED: 0,
    PageType.DOUBTFUL: 0,
    PageType.ZERO: 1,
    PageType.FREE: 16,
    PageType.CACHE: 2 | 4,
    PageType.CACHE_PRIVATE: 4,
    PageType.USER: 8,
    PageType.HUGE: 8,
    PageType.SLAB: 0,
    PageType.PAGE_TABLE: 0,
    PageType.OFFLINE: 2 | 4 | 8 | 16,
    PageType.POISONED: 2 | 4 | 8 | 16,
    PageType.KERNEL: 0,
}


def guest() -> vmdump.BlockSource:
    """Make pages of each type from 1024 on; every other one of most holds zeros only."""
    pages = structs(COUNT)
    pages["mapcount"][1024] = BUDDY
    pages["private"][1024] = 4  # 1024 to 1039
    pages["mapcount"][2048] = UNACCEPTED
    pages["flags"][1100:1110] = LRU
    pages["flags"][1110:1120] = LRU | PRIVATE
    pages["mapping"][1120:1130] = ANON
    compound(pages, 1536, 9, mapcount=HUGETLB)
    compound(pages, 1152, 2, mapcount=SLAB)
    pages["mapcount"][1160:1170] = OFFLINE
    pages["mapcount"][1200:1204] = TABLE
    pages["flags"][1170:1172] = POISON
    pages["flags"][1180:1183] = ALL_ONES
    made = flat(pages)
    memory = made.blocks[0].memory.view(0, COUNT * PAGE, np.empty(0, np.uint8)).copy()
    memory.reshape(COUNT, PAGE)[1025:4000:2] = 0
    firmware = np.ones(2 * PAGE, np.uint8)
    firmware[PAGE:] = 0
    return vmdump.BlockSource(
        [(0, memory), (0x80000000, firmware)],
        cpus=[{"cr0": 0, "cr3": 0, "cr4": 0}],
        vmcoreinfo="".join(f"{key}={value}\n" for key, value in made.vmcoreinfo.items()).encode(),
    )


EXPECTED = {
    PageType.UNDESCRIBED: (0, 0),
    # One is beyond the struct pages; one that is zero counts as such.
    PageType.DOUBTFUL: (3, 0),
    PageType.FREE: (16 + 1024, 8 + 512),
    PageType.CACHE: (10, 5),
    PageType.CACHE_PRIVATE: (10, 5),
    PageType.USER: (10, 5),
    PageType.HUGE: (512, 256),
    PageType.SLAB: (2, 0),
    PageType.PAGE_TABLE: (2, 0),
    PageType.OFFLINE: (10, 5),
    PageType.POISONED: (2, 1),
}
"""Pages, and those of zeros among them."""


def test_every_type_is_counted() -> None:
    usage = vmdump.page_types(guest(), threads=2)
    found = {kind: (each.pages, each.zero_pages) for kind, each in usage.counts.items()}
    rest = {kind: found.pop(kind) for kind in (PageType.ZERO, PageType.KERNEL)}
    assert found == EXPECTED
    zero = sum(1 for pfn in range(1025, 4000, 2)) + 1
    assert rest[PageType.ZERO] == (zero - sum(zeros for _, zeros in EXPECTED.values()),) * 2
    assert sum(each.pages for each in usage.counts.values()) == COUNT + 2
    assert all(each.bytes == each.pages * PAGE for each in usage.counts.values())
    assert not usage.running


def test_types_are_by_frame_number() -> None:
    usage = vmdump.page_types(guest())
    assert usage.types.dtype == np.uint8
    assert usage.types.size == 0x80002
    assert usage.types[1024:1041].tolist() == [PageType.FREE] * 16 + [PageType.KERNEL]
    assert usage.types[1152:1156].tolist() == [PageType.SLAB, PageType.ZERO] * 2
    assert usage.types[COUNT] == PageType.MISSING
    assert usage.types[0x80000:].tolist() == [PageType.DOUBTFUL, PageType.ZERO]
    for pfn, count in ((0, 100), (1000, 300), (COUNT - 5, 20), (0x7FFFF, 3)):
        assert usage.of(pfn, count)[: usage.types.size - pfn].tolist() == usage.types[pfn:][:count].tolist()
    assert usage.of(0x80000, 5).tolist()[2:] == [0, 0, 0]


def test_levels_keep_what_no_bit_leaves_out() -> None:
    usage = vmdump.page_types(guest())
    plain = guest()
    for level in range(32):
        kept = filtered(plain, tell_types(plain), level)
        pages = [
            bytes(kept.blocks[index].memory.view(at, PAGE, np.empty(PAGE, np.uint8)))
            for index in range(2)
            for at in range(0, kept.blocks[index].size, PAGE)
        ]
        mask = np.concatenate([kept.excluded_pages(0, COUNT), kept.excluded_pages(0x80000, 2)])
        left = [page for page, gone in zip(pages, mask, strict=True) if not gone]
        assert usage.bytes_at(level) == PAGE * sum(not level & 1 or any(page) for page in left)


def test_bits_that_leave_out_a_type() -> None:
    assert {kind: excluding_bits(kind) for kind in PageType} == BITS
    assert name_bits(6) == "2 (cache), 4 (cache-private)"
    assert name_bits(0) == ""


@pytest.mark.parametrize(
    ("pfn", "kind"),
    [
        (1030, "free"),
        (1101, "cache"),
        (1115, "cache_private"),
        (1800, "huge"),
        (1170, "poisoned"),
        (0, "kernel"),
    ],
)
def test_one_page(pfn: int, kind: str) -> None:
    found = vmdump.page_at(guest(), pfn * PAGE + 17)
    assert (found.address, found.page_size, found.type) == (pfn * PAGE, PAGE, kind)
    assert found.in_dump
    assert found.zero == (1024 < pfn < 4000 and pfn % 2 == 1)
    assert found.excluded_by == 0
    assert found.leaves_out == BITS[PageType[kind.upper()]]


def test_a_page_of_zeros_and_one_that_is_not_there() -> None:
    zero = vmdump.page_at(guest(), 1051 * PAGE)
    assert (zero.type, zero.zero, zero.leaves_out) == ("zero", True, 1)
    missing = vmdump.page_at(guest(), COUNT * PAGE)
    assert (missing.type, missing.in_dump, missing.zero) == ("missing", False, None)
    with pytest.raises(errors.RequestError, match="64 bits"):
        vmdump.page_at(guest(), 1 << 64)


def test_no_page_has_a_type_without_vmcoreinfo() -> None:
    made = vmdump.BlockSource(np.ones(16 * PAGE, np.uint8), arch="x86_64")
    with pytest.raises(errors.CapabilityError, match="VMCOREINFO"):
        vmdump.page_types(made)
    found = vmdump.page_at(made, 0)
    assert (found.type, found.in_dump) == ("", True)
    assert "VMCOREINFO" in found.why_no_type


def test_what_is_excluded_says_what_it_was() -> None:
    plain = guest()
    view = filtered(plain, tell_types(plain), 24)
    with pytest.raises(errors.ExcludedPage) as caught:
        view.read(1030 * PAGE, 8)
    assert caught.value.page_type == "free"
    assert str(caught.value).endswith("was excluded when the dump was made (its type: free)")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.page_type, again.address) == (str(caught.value), "free", 1030 * PAGE)
    found = vmdump.page_at(view, 1121 * PAGE)
    assert (found.type, found.in_dump, found.zero, found.excluded_by) == ("user", False, None, 8)
    usage = vmdump.page_types(view)
    assert usage.counts[PageType.USER] == TypeCount(10, 10 * PAGE, 0, 10)
    assert usage.bytes_at(0) == (COUNT + 2 - 1040 - 522 - 10 - 2) * PAGE
