"""VMCOREINFO that lies: one line, and nothing that takes long or much memory."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
from helpers.filter_goldens import opened
from helpers.struct_pages import KEYS_6_12, flat, guest_of, structs
from helpers.struct_pages_32 import COUNT, MODELS, guest_of_model, some_pages

import vmdump
from vmdump.errors import CapabilityError, VmdumpError
from vmdump.guest.linux.page_types.types import PageTypes, tell_types

MOST_MEMORY = 128 << 20


def lying(guest: Any, *changes: tuple[str, str | None]) -> Any:
    lines = dict(guest.vmcoreinfo)
    for key, value in changes:
        if value is None:
            del lines[key]
        else:
            lines[key] = value
    return guest.with_vmcoreinfo("".join(f"{key}={value}\n" for key, value in lines.items()).encode())


def told(guest: Any) -> PageTypes | str:
    """Tell types, or give the error's line."""
    tracemalloc.start()
    try:
        return tell_types(guest, threads=2)
    except VmdumpError as error:
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_MEMORY


def test_none() -> None:
    with pytest.raises(CapabilityError, match=r"has no VMCOREINFO to tell"):
        tell_types(vmdump.BlockSource(bytes(1 << 20)).without_search())


def test_that_of_another_kernel() -> None:
    with opened("6.1") as guest, opened("7.3") as other:
        stale = guest.with_vmcoreinfo(other.vmcoreinfo.text)
        with pytest.raises(CapabilityError, match=r"not that of the kernel in its memory"):
            tell_types(stale)


@pytest.mark.parametrize("size", ["0", "1", "-64", "16", "66", "4096", "1000000000000", "9" * 5000, "x"])
def test_size_of_a_struct_page(size: str) -> None:
    with opened("7.3") as guest:
        line = told(lying(guest, ("SIZE(page)", size)))
    assert isinstance(line, str)
    assert line.startswith("VMCOREINFO: SIZE(page)")
    assert "\n" not in line


@pytest.mark.parametrize("field", ["flags", "mapping", "private", "_mapcount", "compound_info"])
@pytest.mark.parametrize("offset", ["57", "64", "-1", "-9", "1000000000000000000000", str(1 << 63)])
def test_offsets_outside_the_struct_page(field: str, offset: str) -> None:
    with opened("7.3") as guest:
        line = told(lying(guest, (f"OFFSET(page.{field})", offset)))
    if (field, offset) == ("_mapcount", "57"):
        # Inside, though no kernel has it there.
        assert isinstance(line, PageTypes)
    else:
        assert isinstance(line, str)
        assert line.startswith("VMCOREINFO: ")
        assert "\n" not in line


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("LENGTH(zone.free_area)", ["0", "-1", "64", str(1 << 70)]),
        ("NUMBER(PG_lru)", ["-1", "63", "64", str(1 << 70)]),
        ("NUMBER(PG_head_mask)", ["-1", str(1 << 63), str(1 << 70)]),
        ("NUMBER(SECTION_SIZE_BITS)", ["-1", "0", "12", "40", str(1 << 70)]),
        ("SIZE(mem_section)", ["0", "-16", "4", "24", "8192", str(1 << 70)]),
        ("OFFSET(mem_section.section_mem_map)", ["-1", "9", "16", str(1 << 70)]),
    ],
)
def test_numbers_that_nothing_has(key: str, values: list[str]) -> None:
    for value in values:
        with opened("7.3") as guest:
            line = told(lying(guest, (key, value)))
        assert isinstance(line, str), value
        assert line.startswith("VMCOREINFO: "), value
        assert "\n" not in line


@pytest.mark.parametrize("key", ["mem_section", "vmemmap", "swapper_pg_dir", "_stext"])
@pytest.mark.parametrize("address", ["0", "1", "ffffffffffffffff", "ffff800000000000", "f" * 40, "-1"])
def test_addresses_anywhere(key: str, address: str) -> None:
    with opened("7.3") as guest:
        found = told(lying(guest, (f"SYMBOL({key})", address)))
        if isinstance(found, PageTypes):
            # Nothing is mapped there: all is kept.
            assert key == "vmemmap" or len(address) == 16
        else:
            assert "\n" not in found


@pytest.mark.parametrize("length", ["0", "-5", "1", "1000000000", str(1 << 70), "x"])
def test_lengths_of_mem_section(length: str) -> None:
    for bits in ("46", "64", "0", "-3"):
        with opened("7.3") as guest:
            changes = (("LENGTH(mem_section)", length), ("NUMBER(MAX_PHYSMEM_BITS)", bits))
            found = told(lying(guest, *changes))
            assert isinstance(found, PageTypes) or "\n" not in found


def test_nodes_that_overlap_and_have_no_end() -> None:
    pages = structs(4096)
    memory = np.array(flat(pages).blocks[0].memory.view(0, 4096 * 4096, np.empty(0, np.uint8)))
    memory[0x2000 : 0x2000 + 8 * 64].view("<u8")[:] = 0x3000
    memory[0x3000:0x3018].view("<u8")[:] = 0, (1 << 64) - 1, 1 << 20
    keys = {
        **KEYS_6_12,
        "SYMBOL(node_data)": 0x2000,
        "LENGTH(node_data)": 1 << 40,
        "OFFSET(pglist_data.node_start_pfn)": 0,
        "OFFSET(pglist_data.node_spanned_pages)": 8,
        "OFFSET(pglist_data.node_mem_map)": 16,
    }
    found = told(guest_of(memory, keys))
    assert isinstance(found, PageTypes) or "\n" not in found
    found = told(guest_of(memory, {**keys, "LENGTH(node_data)": 64}))
    assert isinstance(found, PageTypes)
    assert found.arrays == [(0, 4096)]


VALUES = (
    *("0", "1", "-1", "-9", "7", "31", "32", "63", "64", "255", "4096", "1000000000", str(1 << 31)),
    *(
        str((1 << 63) - 1),
        str(1 << 63),
        str((1 << 64) - 1),
        str(-(1 << 63)),
        "1" + 30 * "0",
        "9" * 5000,
        "x",
        "",
    ),
    *("0x10", "f" * 16, "ffff888000000000", "ffffffff81000000", "c0000000", "3.2.0", "9" * 5000 + ".1"),
)
OTHERS = (
    *(
        "SYMBOL(node_data)",
        "SYMBOL(node_online_map)",
        "SYMBOL(mem_map)",
        "SYMBOL(mem_section)",
        "SYMBOL(vmemmap)",
    ),
    *("SYMBOL(contig_page_data)", "SYMBOL(free_huge_page)", "LENGTH(node_data)", "LENGTH(mem_section)"),
    *("OFFSET(folio._folio_order)", "OFFSET(folio._folio_dtor)", "NUMBER(PG_hugetlb)", "NUMBER(PG_hwpoison)"),
    *(
        "OFFSET(page.lru)",
        "OFFSET(list_head.prev)",
        "OFFSET(list_head.next)",
        "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)",
    ),
)
"""Keys that other kernels have."""


def check_any_value(guest: Any, rng: random.Random, times: int) -> None:
    """Give some keys, one or two at a time, a value that no kernel has."""
    keys = [*guest.vmcoreinfo, *(key for key in OTHERS if key not in guest.vmcoreinfo)]
    for _ in range(times):
        changes = [(rng.choice(keys), rng.choice(VALUES)) for _ in range(rng.choice([1, 1, 2]))]
        found = told(lying(guest, *changes))
        if isinstance(found, str):
            assert "\n" not in found, changes
            assert len(found) < 400, changes


def test_any_key_with_any_value() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with opened("6.12") as guest:
        check_any_value(guest, random.Random(seed), 40)


@pytest.mark.parametrize("model", MODELS)
def test_any_key_of_a_memory_model_with_any_value(model: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    check_any_value(guest_of_model(model, some_pages(COUNT)), random.Random(seed), 60)


@pytest.mark.parametrize("length", ["-5", "0", "1000000000", str(1 << 70)])
def test_lengths_of_node_data(length: str) -> None:
    found = told(lying(guest_of_model("nodes", some_pages(COUNT)), ("LENGTH(node_data)", length)))
    assert isinstance(found, PageTypes) or "\n" not in found
