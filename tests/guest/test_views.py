"""Views of a guest: they share its memory, and nothing of what was derived before is stale in them."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import numpy as np
import pytest

import vmdump
from vmdump.errors import ExcludedPage
from vmdump.guest.views import view_of

TEXT = b"OSRELEASE=%s\nPAGESIZE=%d\nNUMBER(phys_base)=%d\n"


def test_another_vmcoreinfo_changes_all_that_follows_from_it() -> None:
    memory = np.zeros(1 << 20, np.uint8)
    guest = vmdump.BlockSource(memory, arch="aarch64", vmcoreinfo=TEXT % (b"6.1.0", 4096, 0))
    asked = guest.utsname, guest.notes, guest.page_size, guest.virtual, guest.vmcoreinfo
    view = guest.with_vmcoreinfo(TEXT % (b"6.2.0-other", 65536, 0))
    assert view.utsname.release == b"6.2.0-other"
    assert view.page_size == 65536
    assert b"6.2.0-other" in view.notes
    assert b"6.1.0" not in view.notes
    assert view.virtual is not guest.virtual
    assert view.blocks is guest.blocks
    assert (guest.utsname, guest.notes, guest.page_size, guest.virtual, guest.vmcoreinfo) == asked
    back = view.with_vmcoreinfo(TEXT % (b"6.1.0", 4096, 0))
    assert (back.utsname, back.notes, back.page_size) == asked[:3]


def test_a_view_of_a_view_keeps_what_was_said_before() -> None:
    guest = vmdump.BlockSource(bytes(1 << 20))
    told: list[tuple[int, int]] = []
    view = guest.without_search().telling_progress(lambda *done: told.append(done))
    assert not view.told.search
    assert view.told.progress is not None
    assert guest.told.search
    assert guest.told.progress is None
    other = view.with_vmcoreinfo(TEXT % (b"6.1.0", 4096, 0))
    assert not other.told.search
    assert other.told.progress is view.told.progress
    # They are views of one memory, which need not be looked through twice.
    assert other.searched is guest.searched


def test_a_filter_is_a_view(tmp_path: Path) -> None:
    """Writers ask a guest what is excluded from it, whoever has excluded it."""
    memory = np.random.RandomState(1).randint(0, 256, 16 * 4096).astype(np.uint8)
    guest = vmdump.BlockSource(memory)

    def excluded_pages(pfn: int, count: int) -> np.ndarray:
        return np.arange(pfn, pfn + count) % 4 == 1

    view = view_of(guest, excluded_pages=excluded_pages, excluded_size=4 * 4096)
    for form in ("elf", "kdump-zlib"):
        vmdump.dump(view, tmp_path / form, format=form)
        with vmdump.open(tmp_path / form) as dump:
            assert dump.excluded_size == 4 * 4096
            assert [address in dump for address in range(0, 16 * 4096, 4096)] == [True, False, True, True] * 4
            assert dump.read(2 * 4096, 2 * 4096) == memory[2 * 4096 : 4 * 4096].tobytes()
    with pytest.raises(ExcludedPage):
        view.read(0, 2 * 4096)
    assert guest.read(0, 2 * 4096) == memory[: 2 * 4096].tobytes()


def test_what_a_view_excludes_stays_excluded_in_a_view_of_it(tmp_path: Path) -> None:
    memory = np.random.RandomState(1).randint(0, 256, 16 * 4096).astype(np.uint8)

    def excluded_pages(pfn: int, count: int) -> np.ndarray:
        return np.arange(pfn, pfn + count) % 4 == 1

    view = view_of(vmdump.BlockSource(memory), excluded_pages=excluded_pages, excluded_size=4 * 4096)
    text = TEXT % (b"6.1.0", 4096, 0)
    assert view.without_search().with_vmcoreinfo(text).excluded_size == 4 * 4096
    for form in ("elf", "kdump-zlib"):
        vmdump.dump(view, tmp_path / form, format=form, vmcoreinfo=text)
        with vmdump.open(tmp_path / form) as dump:
            assert dump.excluded_size == 4 * 4096
            assert [address in dump for address in range(0, 16 * 4096, 4096)] == [True, False, True, True] * 4


def test_no_guest_outlives_its_last_user() -> None:
    """A caller may unmap the memory at once, whatever the guest was asked."""
    gc.disable()
    try:
        with mmap.mmap(-1, 1 << 20) as memory:
            guest = vmdump.BlockSource(memory, cpus=[{"cr3": 0x1000, "cr0": 1 << 31, "cr4": 1 << 5}])
            view = guest.with_vmcoreinfo(TEXT % (b"6.1.0", 4096, 0))
            for each in (guest, view):
                assert each.mappings().size.size == 0
                assert each.utsname.machine == b"x86_64"
                assert each.cpus[0]["cr3"] == 0x1000
            del each, guest, view
    finally:
        gc.enable()
