"""Types of pages against makedumpfile's bitmaps, bit for bit."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from helpers.filter_goldens import KERNELS, bitmaps, expected, opened

from vmdump.guest.linux.page_types.levels import excluded_types
from vmdump.guest.linux.page_types.types import PageTypes, tell_types
from vmdump.kernels.page_types import OFFLINE, POISONED, UNKNOWN


@pytest.fixture(scope="module", params=KERNELS)
def told(request: pytest.FixtureRequest) -> tuple[str, PageTypes, bool]:
    kernel: str = request.param
    with opened(kernel) as guest:
        return kernel, tell_types(guest, threads=2), "NUMBER(PG_hwpoison)" in guest.vmcoreinfo


def test_all_levels_are_makedumpfiles(told: tuple[str, PageTypes, bool]) -> None:
    kernel, types, knows_poison = told
    want = expected(kernel)
    assert [level["dump_level"] for level in want["levels"]] == list(range(32))
    kinds = types.of(0, want["max_mapnr"])
    exists = bitmaps(kernel)["bitmap1"]
    for level in want["levels"]:
        excluded = excluded_types(level["dump_level"])[kinds]
        if level["dump_level"] < 2:
            # vmdump drops nothing then; makedumpfile these, if the kernel tells of broken pages.
            assert not excluded.any()
            if knows_poison:
                excluded = (kinds == OFFLINE) | (kinds >= POISONED)
        kept = exists & ~excluded
        assert np.count_nonzero(kept) == level["pages_bitmap2"]
        digest = hashlib.sha256(np.packbits(kept, bitorder="little").tobytes()).hexdigest()
        assert digest == level["sha256_bitmap2"], f"level {level['dump_level']}"


def test_firmware_without_struct_pages_is_kept(told: tuple[str, PageTypes, bool]) -> None:
    """All above the last struct page is missing in makedumpfile's dumps."""
    _, types, _ = told
    assert (types.of(0xFFFC0, 64) == UNKNOWN).all()
    assert not excluded_types(31)[UNKNOWN]


@pytest.mark.parametrize("kernel", KERNELS)
def test_types_do_not_depend_on_threads(kernel: str) -> None:
    with opened(kernel) as guest:
        one, many = (tell_types(guest, threads=threads) for threads in (1, 5))
    assert one.arrays == many.arrays
    begin, end = one.arrays[0][0], one.arrays[-1][1]
    assert np.array_equal(one.of(begin, end - begin), many.of(begin, end - begin))
