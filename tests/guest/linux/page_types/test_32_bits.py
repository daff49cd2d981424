"""Kernels with words of 32 bits: each memory model."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.struct_pages_32 import COUNT, MODELS, PAGE, guest_of_model, some_pages, words

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
