"""Kernels with words of 32 bits: each memory model."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.struct_pages_32 import (
    COUNT,
    DIRECT,
    KEYS,
    MODELS,
    PAGE,
    STRUCTS,
    guest_of_model,
    some_pages,
    words,
)

import vmdump
from vmdump.guest.linux.page_types.levels import excluded_types
from vmdump.guest.linux.page_types.types import tell_types
from vmdump.kernels import page_types as kernel


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sections", [1, 2])
def test_each_memory_model(model: str, sections: int) -> None:
    types = tell_types(guest_of_model(model, some_pages(sections * COUNT)), threads=2)
    assert types.arrays == [(0, sections * COUNT)]
    kinds = types.of(0, sections * COUNT)
    expected = np.full(sections * COUNT, kernel.KERNEL, np.uint8)
    expected[5000:5100] = kernel.CACHE
    expected[6000] = kernel.USER
    expected[8192:9216] = kernel.FREE
    expected[[9217, 9300]] = kernel.DOUBTFUL
    expected[9400:9410] = kernel.OFFLINE
    expected[10240:11264] = kernel.HUGE
    expected[12000:12003] = kernel.DOUBTFUL
    assert kinds.tolist() == expected.tolist()
    assert not excluded_types(31)[kernel.DOUBTFUL]


def test_an_array_that_would_go_on_behind_the_last_address_is_none() -> None:
    pages = some_pages(COUNT)
    guest = guest_of_model("flat", pages)
    memory = np.array(guest.blocks[0].memory.view(0, COUNT * PAGE, np.empty(0, np.uint8)))
    words(memory, 0x4000, 0xFFFFF000)
    moved = vmdump.BlockSource(
        memory, arch="i386", cpus=[{"cr0": 0x80000001, "cr3": 0x1000, "cr4": 0x10}],
        vmcoreinfo=guest.vmcoreinfo.text,
    )  # fmt: skip
    types = tell_types(moved)
    assert types.arrays == []
    assert (types.of(0, COUNT) == kernel.UNKNOWN).all()


ARM_BASE = 1 << 30


def arm_guest(pages: np.ndarray, **lines: str) -> vmdump.BlockSource:
    """Make an Arm guest with FLATMEM, whose memory begins at 1 GiB and whose page 0 of mem_map is that."""
    memory = np.zeros(pages.size * PAGE, np.uint8)
    sections = memory.size >> 20
    words(memory, 0x8000 + 4 * (DIRECT >> 20), *(ARM_BASE + (at << 20) | 0x40E for at in range(sections)))
    memory[STRUCTS : STRUCTS + pages.nbytes] = pages.view(np.uint8)
    words(memory, 0x4000, DIRECT + STRUCTS)
    text = {
        "OSRELEASE": "5.10.0-test",
        "PAGESIZE": str(PAGE),
        "SYMBOL(_stext)": "c0100000",
        "SYMBOL(swapper_pg_dir)": "c0008000",
        "SYMBOL(mem_map)": "c0004000",
        **KEYS,
        **lines,
    }
    return vmdump.BlockSource(
        [(ARM_BASE, memory)],
        arch="arm",
        vmcoreinfo="".join(f"{key}={value}\n" for key, value in text.items()).encode(),
    )


@pytest.mark.parametrize("told", [None, str(ARM_BASE)])
def test_flat_memory_that_does_not_begin_at_0(told: str | None) -> None:
    pages = some_pages(COUNT)
    guest = arm_guest(pages, **({} if told is None else {"NUMBER(phys_ram_base)": told}))
    types = tell_types(guest)
    first = ARM_BASE // PAGE
    assert types.arrays == [(first, first + COUNT)]
    assert np.flatnonzero(types.of(first, COUNT) == kernel.CACHE).tolist() == list(range(5000, 5100))


@pytest.mark.parametrize("told", ["-1", "0", "1" + 30 * "0", str((1 << 64) - 1), str(1 << 63)])
def test_flat_memory_that_begins_nowhere(told: str) -> None:
    types = tell_types(arm_guest(some_pages(COUNT), **{"NUMBER(phys_ram_base)": told}))
    assert not excluded_types(31)[types.of(0, (ARM_BASE // PAGE) + COUNT)].any()
