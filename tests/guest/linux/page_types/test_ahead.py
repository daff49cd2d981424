"""Types told again only where struct pages have changed are those of a guest that is told once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.struct_pages import (
    BUDDY,
    HEAD,
    KEYS_6_12,
    LRU,
    OFFLINE,
    PAGE,
    POISON,
    compound,
    flat,
    structs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import vmdump.guest.linux.page_types.types as page_types
from vmdump.guest.linux.page_types.ahead import TypesAhead
from vmdump.guest.linux.page_types.types import tell_types
from vmdump.guest.views import view_of
from vmdump.kernels.hash import hash_pages
from vmdump.pipeline.ahead import new_key

COUNT, CHUNK = 2048, 256


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_types, "_CHUNK", CHUNK)


def ahead_of(guest: Any) -> TypesAhead:
    ahead = TypesAhead(new_key(), PAGE)
    tell_types(guest, ahead=ahead)
    assert ahead.told_again == COUNT // CHUNK
    return ahead


def mixed() -> np.ndarray:
    pages = structs(COUNT)
    pages["flags"][600:900] = LRU
    pages["mapcount"][1024], pages["private"][1024] = BUDDY, 9  # reaches over two chunks
    compound(pages, 1856, 6, flags=LRU)
    return pages


def test_nothing_is_told_again_of_what_holds_what_it_held() -> None:
    ahead = ahead_of(flat(mixed()))
    types = tell_types(flat(mixed()), ahead=ahead)
    assert np.array_equal(types.of(0, COUNT), tell_types(flat(mixed())).of(0, COUNT))
    # But the chunk into which the free block of another one goes on.
    assert ahead.told_again == 1


@pytest.mark.parametrize("page", [0, 255, 256, 2047])
def test_a_changed_struct_page_is_told(page: int) -> None:
    ahead, after = ahead_of(flat(mixed())), mixed()
    after["mapcount"][page] = OFFLINE
    types = tell_types(flat(after), threads=2, ahead=ahead)
    assert np.array_equal(types.of(0, COUNT), tell_types(flat(after)).of(0, COUNT))
    assert ahead.told_again == 2


CHANGES = st.lists(
    st.tuples(
        st.integers(0, COUNT - 1),
        st.sampled_from(["flags", "mapcount", "private", "compound", "mapping"]),
        st.sampled_from([0, 1, LRU, HEAD, HEAD | LRU, POISON, 9, 10, BUDDY, OFFLINE]),
    ),
    max_size=6,
)


@settings(max_examples=12, deadline=None)
@given(first=CHANGES, second=CHANGES)
def test_any_changes(first: list[tuple[int, str, int]], second: list[tuple[int, str, int]]) -> None:
    pages, ahead = mixed(), TypesAhead(new_key(), PAGE)
    for changes in ([], first, second):
        for page, field, value in changes:
            pages[field][page] = value if field == "mapcount" else abs(value)
        types = tell_types(flat(pages), ahead=ahead)
        assert np.array_equal(types.of(0, COUNT), tell_types(flat(pages)).of(0, COUNT))


def test_another_layout_is_told_anew() -> None:
    ahead = ahead_of(flat(mixed()))
    other = {**KEYS_6_12, "NUMBER(PG_lru)": 7}
    types = tell_types(flat(mixed(), other), ahead=ahead)
    assert ahead.told_again == COUNT // CHUNK
    assert np.array_equal(types.of(0, COUNT), tell_types(flat(mixed(), other)).of(0, COUNT))


@pytest.mark.parametrize("fewer", [True, False])
def test_memory_that_came_or_went(fewer: bool) -> None:
    whole = flat(mixed())
    arrays = page_types.find_arrays(whole, whole.vmcoreinfo, 64)

    def tell(count: int, ahead: TypesAhead | None) -> np.ndarray:
        cut = [array._replace(pages=min(array.pages, count)) for array in arrays]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page_types, "find_arrays", lambda *_: cut)
            return tell_types(whole, ahead=ahead).of(0, COUNT)

    ahead = TypesAhead(new_key(), PAGE)
    counts = (COUNT, COUNT // 2) if fewer else (COUNT // 2, COUNT)
    for count in counts:
        assert np.array_equal(tell(count, ahead), tell(count, None))


def test_struct_pages_that_are_missing_are_told_each_time() -> None:
    guest = flat(mixed())
    page = (1 << 20) // PAGE + 3

    def excluded_pages(pfn: int, count: int) -> np.ndarray:
        return np.arange(pfn, pfn + count) == page

    ahead = ahead_of(guest)
    view = view_of(guest, excluded_pages=excluded_pages, excluded_size=PAGE)
    for _ in range(2):
        assert np.array_equal(tell_types(view, ahead=ahead).of(0, COUNT), tell_types(view).of(0, COUNT))
    assert np.array_equal(tell_types(guest, ahead=ahead).of(0, COUNT), tell_types(guest).of(0, COUNT))


def test_hashes_are_those_of_the_pages_by_frame_number() -> None:
    guest = flat(mixed())
    ahead = ahead_of(guest)
    first = (1 << 20) // PAGE
    count = COUNT * 64 // PAGE
    found, wanted = ahead.hashes(first - 2, count + 4), np.empty(count, np.uint64)
    hash_pages(mixed().view(np.uint8), PAGE, ahead.key, wanted)
    assert not found[:2].any()
    assert not found[-2:].any()
    assert np.array_equal(found[2:-2], wanted)
