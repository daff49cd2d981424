"""Any struct pages of any layout: told as a plain reading of the rules tells them, and in doubt kept."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmdump.guest.linux.page_types.levels import excluded_types
from vmdump.kernels import page_types as kernel

LRU, PRIVATE, SWAPCACHE, SWAPBACKED, SLAB, POISON, HEAD, HUGE = (
    1 << bit for bit in (12, 13, 14, 15, 16, 17, 18, 8)
)
BUDDY, SLAB_TYPE, OFFLINE, UNACCEPTED, TABLE, HUGETLB = (0xF0000000 + (kind << 24) for kind in range(6))
FREE_ORDERS = 5
HUGE_DTOR = 2
KEPT = (
    kernel.UNKNOWN,
    kernel.UNREADABLE,
    kernel.DOUBTFUL,
    kernel.TAIL,
    kernel.KERNEL,
    kernel.SLAB,
    kernel.TABLE,
)


class Page(NamedTuple):
    """A struct page's fields; `order` and `dtor` are of the compound page in which it is the second one."""

    flags: int = 0
    mapping: int = 0
    private: int = 0
    mapcount: int = 0xFFFFFFFF
    compound: int = 0
    order: int = 0
    dtor: int = 0


class Form(NamedTuple):
    """How they are laid out."""

    word: int
    swapped: bool
    order: int
    huge: int

    @property
    def ones(self) -> int:
        """The highest value of a word."""
        return (1 << 8 * self.word) - 1

    def typer(self) -> kernel.PageTyper:
        word, huge_value = self.word, HUGE_DTOR
        if self.huge == kernel.HUGE_MAPCOUNT:
            huge_value = HUGETLB
        elif self.huge == kernel.HUGE_FLAG:
            huge_value = HUGE
        return kernel.PageTyper(
            size=8 * word, word=word, swapped=self.swapped,
            flags=0, mapping=word, private=2 * word, mapcount=3 * word, compound=4 * word,
            order=5 * word, order_form=self.order, huge=6 * word, huge_form=self.huge, huge_value=huge_value,
            free_orders=FREE_ORDERS, lru_mask=LRU, private_mask=PRIVATE, swapcache_mask=SWAPCACHE,
            swapbacked_mask=SWAPBACKED, slab_mask=SLAB, poison_mask=POISON, head_mask=HEAD,
            buddy_value=BUDDY, slab_value=SLAB_TYPE, offline_value=OFFLINE, unaccepted_value=UNACCEPTED,
            table_value=TABLE,
        )  # fmt: skip

    def flags(self, page: Page) -> int:
        """Give the flags; of some kernels the order of a compound page is in those of its second one."""
        if self.order == kernel.ORDER_IN_FLAGS:
            return page.flags & ~0xFF | page.order & 0xFF
        return page.flags

    def raw(self, pages: list[Page]) -> bytes:
        byteorder = sys.byteorder
        if self.swapped:
            byteorder = "big" if byteorder == "little" else "little"
        word = self.word
        out = bytearray(8 * word * len(pages))
        widths = {kernel.ORDER_U8: 1, kernel.ORDER_U16: 2, kernel.ORDER_WORD: word}
        dtors = {kernel.HUGE_U8: 1, kernel.HUGE_U16: 2, kernel.HUGE_WORD: word}
        for number, page in enumerate(pages):
            fields = [
                (0, word, self.flags(page)),
                (word, word, page.mapping),
                (2 * word, word, page.private),
                (3 * word, 4, page.mapcount),
                (4 * word, word, page.compound),
                (5 * word, widths.get(self.order, 0), page.order),
                (6 * word, dtors.get(self.huge, 0), page.dtor),
            ]
            for at, width, value in fields:
                place = number * 8 * word + at
                out[place : place + width] = (value & (1 << 8 * width) - 1).to_bytes(width, byteorder)
        return bytes(out)

    def told_order(self, page: Page) -> int:
        """Give the order that the second page of a compound page tells."""
        bits = {
            kernel.ORDER_IN_FLAGS: 8,
            kernel.ORDER_U8: 8,
            kernel.ORDER_U16: 16,
            kernel.ORDER_WORD: 8 * self.word,
        }
        return page.order & (1 << bits.get(self.order, 0)) - 1

    def is_huge(self, head: Page, second: Page) -> bool:
        """Tell whether a compound page is hugetlbfs'."""
        if self.huge == kernel.HUGE_MAPCOUNT:
            return head.mapcount == HUGETLB
        if self.huge == kernel.HUGE_FLAG:
            return self.flags(second) & HUGE != 0
        return self.huge != kernel.HUGE_NONE and second.dtor == HUGE_DTOR


def told_alone(form: Form, pages: list[Page], first: int, at: int) -> tuple[int, int]:
    """Give the type that a page has by itself, and the order of its run."""
    page, pfn = pages[at], first + at
    flags = form.flags(page)
    poison = kernel.POISONED if flags & POISON else 0
    slab = page.mapcount == SLAB_TYPE or flags & SLAB
    if flags == form.ones:
        return kernel.DOUBTFUL, 0
    if page.compound & 1:
        return kernel.TAIL, 0
    if page.mapcount == BUDDY and not slab:
        if page.private >= FREE_ORDERS or pfn % (1 << page.private):
            return kernel.DOUBTFUL, 0
        return kernel.FREE | poison, page.private
    if page.mapcount == UNACCEPTED:
        order = FREE_ORDERS - 1
        return (kernel.DOUBTFUL, 0) if pfn % (1 << order) else (kernel.UNACCEPTED | poison, order)
    order, huge, sure = 0, False, True
    if flags & HEAD and at + 1 < len(pages) and pfn % 512 != 511:
        order, huge = form.told_order(pages[at + 1]), form.is_huge(page, pages[at + 1])
        sure = order <= kernel.MAX_ORDER and pfn % (1 << order) == 0
    anon = page.mapping & 1 and not slab
    if (flags & LRU or (flags & SWAPBACKED and flags & SWAPCACHE)) and not anon:
        kind = kernel.CACHE_PRIVATE if flags & PRIVATE else kernel.CACHE
    elif huge:
        kind = kernel.HUGE
    elif anon:
        kind = kernel.USER
    elif page.mapcount == OFFLINE and not slab:
        kind = kernel.OFFLINE
    elif slab:
        kind = kernel.SLAB
    else:
        kind = kernel.TABLE if page.mapcount == TABLE else kernel.KERNEL
    if not sure:
        return (kind, 0) if kind in KEPT and not poison else (kernel.DOUBTFUL, 0)
    return kind | poison, order


def left_out(form: Form, pages: list[Page], first: int) -> list[int]:
    """Give for each page the type for which a dump of level 31 lacks it; 0 if it has it.

    What is left out is left out in the whole run; of a page in two, the outer run tells. A compound page is
    broken as a whole, of a free block the first page only.
    """
    found = [0] * len(pages)
    for at in range(len(pages)):
        kind, order = told_alone(form, pages, first, at)
        if kind in KEPT or found[at]:
            continue
        found[at] = kind
        base = kind & (kernel.POISONED - 1)
        spread = base if base in (kernel.FREE, kernel.UNACCEPTED) else kind
        for place in range(at + 1, min(at + (1 << order), len(pages))):
            own = told_alone(form, pages, first, place)[0] & kernel.POISONED
            found[place] = found[place] or spread | own
    return found


words = st.sampled_from([4, 8])
forms = st.builds(
    Form,
    word=words,
    swapped=st.booleans(),
    order=st.sampled_from([
        kernel.ORDER_NONE, kernel.ORDER_IN_FLAGS, kernel.ORDER_U8, kernel.ORDER_U16, kernel.ORDER_WORD
    ]),
    huge=st.sampled_from([
        kernel.HUGE_NONE, kernel.HUGE_MAPCOUNT, kernel.HUGE_FLAG, kernel.HUGE_U8, kernel.HUGE_U16,
        kernel.HUGE_WORD,
    ]),
)  # fmt: skip
bits = st.lists(
    st.sampled_from([LRU, PRIVATE, SWAPCACHE, SWAPBACKED, SLAB, POISON, HEAD, HEAD, HUGE]), max_size=3
)
orders = st.sampled_from([0, 1, 2, 3, 4, 5, 9, 21, 22, 31, 32, 63, 64, 255, 256, 0xFFFF, (1 << 32) - 1])
odd_pages = st.builds(
    Page,
    flags=bits.map(lambda each: sum(set(each))) | st.just((1 << 64) - 1),
    mapping=st.sampled_from([0, 0x1000, 0x1001, 1]),
    private=orders,
    mapcount=st.sampled_from(
        [0xFFFFFFFF, 0xFFFFFFFF, 0, BUDDY, BUDDY, SLAB_TYPE, OFFLINE, UNACCEPTED, TABLE, HUGETLB]
    ),
    compound=st.sampled_from([0, 0, 0, 1, 0x1001]),
    order=orders,
    dtor=st.sampled_from([0, HUGE_DTOR]),
)
pages_of_each = st.lists(odd_pages | st.just(Page()), min_size=1, max_size=60)
firsts = st.sampled_from([0, 1, 16, 500, 511, 512, 1 << 20, (1 << 21) - 8, (1 << 40) - 8])


def clipped(form: Form, pages: list[Page]) -> list[Page]:
    """Give pages with words of the form's width."""
    return [
        page._replace(
            flags=page.flags & form.ones, private=page.private & form.ones, order=page.order & form.ones
        )
        for page in pages
    ]


def tell(form: Form, pages: list[Page], first: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    types = np.zeros(len(pages), np.uint8)
    return types, form.typer().tell(form.raw(pages), first, types)


@given(form=forms, pages=pages_of_each, first=firsts)
@settings(max_examples=300)
@example(  # a head in a group's last page
    form=Form(8, False, kernel.ORDER_U8, kernel.HUGE_U8),
    pages=[Page(flags=HEAD | LRU), Page(order=3)],
    first=511,
)
@example(  # a broken page in front of a free block, and of a compound one
    form=Form(8, False, kernel.ORDER_U8, kernel.HUGE_NONE),
    pages=[
        *(Page(flags=POISON, mapcount=BUDDY, private=1), Page()),
        *(Page(flags=POISON | HEAD), Page(compound=1, order=1)),
    ],
    first=0,
)
@example(  # the order of a word is more than 32 bits
    form=Form(8, False, kernel.ORDER_WORD, kernel.HUGE_NONE),
    pages=[Page(flags=HEAD | LRU), Page(order=1 << 32)],
    first=0,
)
def test_types_are_those_of_the_rules(form: Form, pages: list[Page], first: int) -> None:
    pages = clipped(form, pages)
    types, _ = tell(form, pages, first)
    kept = np.isin(types, KEPT)
    assert np.where(kept, 0, types).tolist() == left_out(form, pages, first)
    # What a dump has has the type that it tells itself, or that of the compound page that it is a part of.
    for at in np.flatnonzero(kept).tolist():
        alone = told_alone(form, pages, first, at)[0]
        assert types[at] == alone or alone == kernel.TAIL


@given(form=forms, pages=pages_of_each, cut=st.integers(1, 59), blocks=st.integers(0, 3))
@settings(max_examples=150)
def test_parts_tell_what_the_whole_does(form: Form, pages: list[Page], cut: int, blocks: int) -> None:
    """Parts are cut where groups end, whose last page is no head; runs that go on are spread afterwards."""
    pages = clipped(form, pages)
    cut = min(cut, len(pages))
    first = 512 * (1 + blocks) - cut
    types, open_runs = tell(form, pages, first)
    low, going_on = tell(form, pages[:cut], first)
    high, more = tell(form, pages[cut:], first + cut)
    for begin, count, kind in going_on:
        assert begin == first + cut
        kernel.spread_type(high[:count], kind)
    parts = np.concatenate((low, high))
    lacking = excluded_types(31)
    assert (lacking[parts] == lacking[types]).all()
    assert (parts[lacking[parts]] == types[lacking[types]]).all()
    end = first + len(pages)
    assert all(begin == end and count > 0 for begin, count, _ in open_runs + more)


@pytest.mark.parametrize("word", [4, 8])
def test_longest_order_of_each_form(word: int) -> None:
    for order_form in (kernel.ORDER_U8, kernel.ORDER_U16, kernel.ORDER_WORD):
        form = Form(word, False, order_form, kernel.HUGE_NONE)
        types, runs = tell(form, [Page(flags=HEAD | LRU), Page(order=kernel.MAX_ORDER)], 0)
        assert types.tolist() == [kernel.CACHE] * 2
        assert runs == [(2, (1 << kernel.MAX_ORDER) - 2, kernel.CACHE)]
        types, runs = tell(form, [Page(flags=HEAD | LRU), Page(order=kernel.MAX_ORDER + 1)], 0)
        assert types.tolist() == [kernel.DOUBTFUL, kernel.KERNEL]
        assert runs == []


@given(data=st.binary(min_size=64, max_size=64 * 100), first=st.integers(0, (1 << 52) - 101))
def test_any_bytes(data: bytes, first: int) -> None:
    """They end, they stay inside, and every page has a type that there is."""
    form: Any = Form(8, False, kernel.ORDER_IN_FLAGS, kernel.HUGE_MAPCOUNT)
    types = np.zeros(len(data) // 64, np.uint8)
    runs = form.typer().tell(data[: 64 * types.size], first, types)
    assert ((types & (kernel.POISONED - 1)) < kernel.TYPE_COUNT).all()
    assert len(runs) <= 2
    assert all(0 < count < 1 << kernel.MAX_ORDER for _, count, _ in runs)
