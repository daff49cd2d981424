"""Struct pages that cannot be read: their pages are kept and counted, and the others are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.filter_goldens import bitmaps, expected, opened
from helpers.struct_pages import KEYS_6_12, LRU, PAGE, guest_of, structs

from vmdump.errors import CodecError, SourceError
from vmdump.guest.blocks import Block
from vmdump.guest.linux.page_types.filter import filtered
from vmdump.guest.linux.page_types.levels import excluded_types
from vmdump.guest.linux.page_types.types import PageTypes, tell_types
from vmdump.guest.views import view_of
from vmdump.kernels.page_types import CACHE, UNREADABLE


def told(types: PageTypes) -> np.ndarray:
    """Give the types of all pages that have struct pages."""
    return np.concatenate([types.of(begin, end - begin) for begin, end in types.arrays])


@pytest.mark.parametrize("kernel", ["6.1", "7.3"])
def test_struct_pages_that_are_not_in_the_dump(kernel: str) -> None:
    """Of vmemmap in small pages and in large ones."""
    with opened(kernel) as guest:
        whole = tell_types(guest)
        first, second = (guest.translate(whole_address(guest) + 64 * pfn) // PAGE for pfn in (0x1040, 0x5040))

        def excluded_pages(pfn: int, count: int) -> np.ndarray:
            return np.isin(np.arange(pfn, pfn + count), (first, second))

        view = view_of(guest, excluded_pages=excluded_pages, excluded_size=2 * PAGE)
        types = tell_types(view)
        here, before = told(types), told(whole)
        lost = here == UNREADABLE
        assert lost[0x1040:0x1080].all()
        assert lost[0x5040:0x5080].all()
        # The tails of huge pages may share the struct pages that are missing.
        assert np.count_nonzero(lost) >= 128
        # A run whose head is told goes on over what is not, and without its head it is kept.
        assert (here[~lost] == before[~lost]).mean() > 0.9
        assert not (excluded_types(31)[here] & ~excluded_types(31)[before]).any()
        found = filtered(view, types, 31)
        assert found.filtered.doubtful_pages == np.count_nonzero(lost)
        pages = expected(kernel)["max_mapnr"]
        kept = ~found.excluded_pages(0, pages) | np.isin(np.arange(pages), (first, second))
        assert kept[bitmaps(kernel)["d31"]].all()


def whole_address(guest: Any) -> int:
    from vmdump.guest.linux.page_types.arrays import find_arrays

    return find_arrays(guest, guest.vmcoreinfo, 64)[0].address


def test_struct_pages_that_nothing_maps() -> None:
    with opened("7.3") as guest:
        lines = "".join(
            f"{key}={value}\n" for key, value in guest.vmcoreinfo.items() if key != "SYMBOL(vmemmap)"
        )
        elsewhere = guest.with_vmcoreinfo(f"{lines}SYMBOL(vmemmap)=ffff800000000000\n".encode())
        types = tell_types(elsewhere)
        assert (told(types) == UNREADABLE).all()
        view = filtered(elsewhere, types, 31)
        assert view.excluded_size == 0
        assert view.filtered.doubtful_pages == 57344


class Broken:
    """Memory of which one page cannot be read."""

    copies = True

    def __init__(self, content: np.ndarray, page: int, error: Exception) -> None:
        self._content, self._page, self._error = content, page, error
        self.size = content.size

    def extents(self) -> Any:
        return iter([(0, self.size)])

    def view(self, offset: int, length: int, scratch: np.ndarray) -> np.ndarray:
        if offset < (self._page + 1) * PAGE and offset + length > self._page * PAGE:
            raise self._error
        scratch[:length] = self._content[offset : offset + length]
        return scratch[:length]


def broken_guest(error: Exception) -> Any:
    pages = structs(4096)
    pages["flags"][:] = LRU
    memory = np.zeros(4096 * PAGE, np.uint8)
    memory[1 << 20 : (1 << 20) + pages.nbytes] = pages.view(np.uint8)
    memory[0x2000:0x2008].view("<u8")[0] = 1 << 20
    return guest_of([Block(0, Broken(memory, 257, error))], {**KEYS_6_12, "SYMBOL(mem_map)": 0x2000})


def test_a_damaged_page_of_struct_pages() -> None:
    types = tell_types(broken_guest(CodecError("damaged", engine="", page=0)))
    kinds = types.of(0, 4096)
    assert np.flatnonzero(kinds == UNREADABLE).tolist() == list(range(64, 128))
    assert (np.delete(kinds, np.arange(64, 128)) == CACHE).all()


def test_a_host_that_cannot_read_is_an_error() -> None:
    with pytest.raises(SourceError, match="broken disk"):
        tell_types(broken_guest(SourceError("broken disk", path="ram")))
