"""What memory is used for, against what makedumpfile counts, and of every kind of source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.filter_goldens import KERNELS, bitmaps, expected, memory, opened
from helpers.running import RunningGuest
from helpers.struct_pages import LRU, PAGE, flat, structs

import vmdump
from vmdump import PageType, errors
from vmdump.guest.guest import Guest
from vmdump.guest.linux.page_types.usage import excluding_bits
from vmdump.guest.views import view_of

FIRMWARE = 64
"""Pages without a struct page, which makedumpfile does not have."""
FIRMWARE_DATA = 46


@pytest.fixture(scope="module", params=KERNELS)
def used(request: pytest.FixtureRequest) -> tuple[str, vmdump.PageUsage]:
    with opened(request.param) as guest:
        return request.param, vmdump.page_types(guest, threads=2)


def test_bytes_of_levels_are_makedumpfiles(used: tuple[str, vmdump.PageUsage]) -> None:
    kernel, usage = used
    for level in expected(kernel)["levels"]:
        number = level["dump_level"]
        wanted = level["pages_bitmap2"] - level["pages_stored_as_zero_page"]
        wanted += FIRMWARE_DATA if number & 1 else FIRMWARE
        if number < 2 and (poisoned := usage.counts[PageType.POISONED]).pages:
            # makedumpfile leaves out these at every level, if the kernel tells of broken pages.
            offline = usage.counts[PageType.OFFLINE]
            for each in (poisoned, offline):
                wanted += each.pages - (each.zero_pages if number & 1 else 0)
        assert usage.bytes_at(number) == wanted * PAGE, f"level {number}"


def test_pages_by_type_are_makedumpfiles(used: tuple[str, vmdump.PageUsage]) -> None:
    kernel, usage = used
    by_class = expected(kernel)["prototype_class_counts_d31"]
    counts = {kind: each.pages for kind, each in usage.counts.items()}
    wanted = {kind: by_class[kind]["pages"] for kind in ("free", "cache", "cache_private", "offline")}
    assert {kind: counts[PageType[kind.upper()]] for kind in wanted} == wanted
    # There hugetlbfs' pages and others that somebody has mapped are user pages.
    assert counts[PageType.USER] + counts[PageType.HUGE] >= by_class["user"]["pages"] - 1024
    left_out = bitmaps(kernel)["bitmap1"] & ~bitmaps(kernel)["d31"]
    kept = [kind for kind in PageType if not excluding_bits(kind) & ~1]
    types = usage.types[: left_out.size]
    assert np.array_equal((types != PageType.MISSING) & ~np.isin(types, kept), left_out)
    zero = bitmaps(kernel)["zero"] & ~left_out & bitmaps(kernel)["bitmap1"]
    assert np.array_equal(types == PageType.ZERO, zero)


def test_page_tables_where_they_are_known(used: tuple[str, vmdump.PageUsage]) -> None:
    """The root is marked as one since 6.14; before 6.12 none is known."""
    kernel, usage = used
    assert bool(usage.counts[PageType.PAGE_TABLE].pages) == (kernel != "6.1")
    with opened(kernel) as guest:
        root = guest.cpus[0]["cr3"] // PAGE
    assert usage.types[root] == (PageType.PAGE_TABLE if kernel == "7.3" else PageType.KERNEL)


@pytest.mark.parametrize("format_name", ["kdump-lzo", "elf"])
def test_a_dump_says_what_it_lacks(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "dump"
    vmdump.convert(memory("6.12"), path, format=format_name, exclude=31)
    with opened("6.12") as guest:
        whole = vmdump.page_types(guest)
    with vmdump.open(path) as dump:
        usage = vmdump.page_types(dump)
        assert np.array_equal(usage.types, whole.types)
        assert usage.bytes_at(31) == whole.bytes_at(31)
        lacking = sum(each.excluded_pages for each in usage.counts.values())
        assert lacking * PAGE == dump.excluded_size
        for kind in (PageType.FREE, PageType.USER, PageType.HUGE, PageType.CACHE):
            pfns = np.flatnonzero(whole.types == kind)
            pfn = next(pfn for pfn in pfns.tolist() if pfn * PAGE not in dump)
            found = vmdump.page_at(dump, pfn * PAGE)
            assert (found.type, found.in_dump) == (kind.name.lower(), False)
            assert found.leaves_out
            assert found.excluded_by == (found.leaves_out if format_name != "elf" else 0)
            with pytest.raises(errors.ExcludedPage) as caught:
                dump.read(pfn * PAGE, 1)
            assert caught.value.page_type == kind.label
        with pytest.raises(errors.ExcludedPage) as late:
            dump.read(pfn * PAGE, 1)
    assert late.value.page_type == ""
    assert str(late.value).endswith("was excluded when the dump was made")


def test_raw_memory(tmp_path: Path) -> None:
    path = tmp_path / "memory.raw"
    with opened("6.12") as guest:
        block, whole = guest.blocks[0], vmdump.page_types(guest)
        path.write_bytes(block.memory.view(0, block.size, np.empty(0, np.uint8)).tobytes())
        lines = "".join(f"{key}={value}\n" for key, value in guest.vmcoreinfo.items()).encode()
    name = f"raw:{path}?base=0"
    with pytest.raises(errors.CapabilityError, match="VMCOREINFO"):
        vmdump.page_types(name, search=False)
    usage = vmdump.page_types(name, vmcoreinfo=lines)
    assert np.array_equal(usage.types, whole.types[: block.size // PAGE])
    with pytest.raises(errors.RequestError, match="threads"):
        vmdump.page_types(name, threads=0)


class RunsOn(RunningGuest):
    """A guest that says so when nobody pauses it."""

    @contextmanager
    def held(self, *, pause: bool, **options: Any) -> Iterator[Guest]:
        assert not pause
        yield view_of(self.guest, fuzzy=True, changes=True)


def test_a_guest_that_runs_on() -> None:
    pages = structs(4096)
    pages["flags"][2048:] = LRU
    made = flat(pages)
    memory = np.array(made.blocks[0].memory.view(0, 4096 * PAGE, np.empty(0, np.uint8)))
    guest = RunsOn([(0, memory)], [], running_notes=made.notes)
    usage = vmdump.page_types(guest)
    assert usage.running
    assert usage.counts[PageType.CACHE].pages == 2048
    assert guest.released == 0
