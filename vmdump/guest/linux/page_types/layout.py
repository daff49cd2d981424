"""How a kernel lays out a struct page, by the keys that its VMCOREINFO has."""

from __future__ import annotations

import re
import sys
from typing import Literal, NamedTuple, Self

from vmdump.errors import CapabilityError
from vmdump.formats.layout import ByteOrder
from vmdump.formats.vmcoreinfo import Vmcoreinfo
from vmdump.kernels import page_types as kernel

__all__ = ["PageLayout"]

_MAX_SIZE = 512
"""Bytes; with every debugging option Linux' own have some 100."""
_ABSENT = -1
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})")


class PageLayout(NamedTuple):
    """How struct pages are laid out, and which values in them mean what.

    Chosen by which keys there are, never by the release: stable kernels take later ones' changes. Only the
    widths of fields before 4.16 are told by nothing else.

    Attributes
    ----------
    size, word : int
        Bytes of a struct page, and of an unsigned long.
    swapped : bool
        The byte order is not this machine's.
    flags, mapping, private, mapcount, compound, order, huge : int
        Offsets in bytes; -1 for a field that is not there. The last two are in the second struct page.
    order_form, huge_form, huge_value : int
        How a compound page tells its order, and whether it is hugetlbfs'; see :class:`PageTyper`.
    free_orders : int
        Orders of blocks of free pages.
    lru_mask, private_mask, swapcache_mask, swapbacked_mask, slab_mask, poison_mask, head_mask : int
        Of flags; 0 for one that is not there. Without ``PG_slab`` no bit stands for it: makedumpfile's 7 is
        PG_waiters since 6.10.
    buddy_value, slab_value, offline_value, unaccepted_value, table_value : int
        Of _mapcount; -1, as of a page that nobody maps, for none.
    """

    size: int
    word: int
    swapped: bool
    flags: int
    mapping: int
    private: int
    mapcount: int
    compound: int
    order: int
    order_form: int
    huge: int
    huge_form: int
    huge_value: int
    free_orders: int
    lru_mask: int
    private_mask: int
    swapcache_mask: int
    swapbacked_mask: int
    slab_mask: int
    poison_mask: int
    head_mask: int
    buddy_value: int
    slab_value: int
    offline_value: int
    unaccepted_value: int
    table_value: int

    @classmethod
    def of(cls, lines: Vmcoreinfo, word: int, byteorder: ByteOrder) -> Self:
        """Choose the layout.

        Parameters
        ----------
        lines : Vmcoreinfo
            Of the guest's kernel.
        word : int
            Bytes of its unsigned long.
        byteorder : {"little", "big"}
            The guest's.

        Raises
        ------
        CapabilityError
            A key is missing without which no page has a type, or its value is impossible.
        """
        keys = _Keys(lines, word)
        size = keys.demand("SIZE(page)", lines.struct_size("page"))
        if size % 4 or not 4 * word <= size <= _MAX_SIZE:
            raise CapabilityError(f"VMCOREINFO: SIZE(page)={size} is the size of no struct page")
        lru, private = keys.flag("PG_lru"), keys.flag("PG_private")
        swapcache, swapbacked = keys.flag("PG_swapcache"), keys.flag("PG_swapbacked")
        if swapbacked is None and swapcache is not None and private is not None and swapcache < private:
            swapbacked = min(private + 6, 8 * word - 2)
        if lru is None:
            raise CapabilityError("VMCOREINFO: NUMBER(PG_lru) is missing")
        order, order_form = keys.order(size)
        huge, huge_form, huge_value = keys.huge(size)
        private_offset = keys.member("private")
        compound = keys.member("compound_head")
        layout = cls(
            size=size,
            word=word,
            swapped=byteorder != sys.byteorder,
            flags=keys.demand("OFFSET(page.flags)", lines.offset("page.flags")),
            mapping=keys.demand("OFFSET(page.mapping)", lines.offset("page.mapping")),
            private=private_offset,
            mapcount=keys.member("_mapcount"),
            compound=keys.member("compound_info") if compound == _ABSENT else compound,
            order=order,
            order_form=order_form,
            huge=huge,
            huge_form=huge_form,
            huge_value=huge_value,
            free_orders=keys.free_orders(),
            lru_mask=_mask(lru),
            private_mask=_mask(private),
            swapcache_mask=_mask(swapcache),
            swapbacked_mask=_mask(swapbacked),
            slab_mask=_mask(keys.flag("PG_slab")),
            poison_mask=_mask(keys.flag("PG_hwpoison")),
            head_mask=keys.head_mask(),
            buddy_value=_ABSENT if private_offset == _ABSENT else keys.mapcount("PAGE_BUDDY_MAPCOUNT_VALUE"),
            slab_value=keys.mapcount("PAGE_SLAB_MAPCOUNT_VALUE"),
            offline_value=keys.mapcount("PAGE_OFFLINE_MAPCOUNT_VALUE"),
            unaccepted_value=keys.mapcount("PAGE_UNACCEPTED_MAPCOUNT_VALUE"),
            table_value=keys.table(),
        )
        layout.typer()
        return layout

    def typer(self) -> kernel.PageTyper:
        """Make what tells the types of pages that are laid out so.

        Raises
        ------
        CapabilityError
            A field is not inside a struct page.
        """
        try:
            return kernel.PageTyper(**self._asdict())
        except (ValueError, OverflowError) as error:
            raise CapabilityError(
                f"VMCOREINFO: a field that it tells is not inside a struct page of {self.size} bytes"
            ) from error

    @property
    def tells_free(self) -> bool:
        """Whether free pages are marked as such."""
        return self.mapcount != _ABSENT and self.buddy_value != _ABSENT


class _Keys:
    """The keys of a VMCOREINFO that need more than to be read.

    Parameters
    ----------
    lines : Vmcoreinfo
        All keys.
    word : int
        Bytes of an unsigned long.
    """

    def __init__(self, lines: Vmcoreinfo, word: int) -> None:
        self._lines = lines
        self._word = word

    @staticmethod
    def demand(key: str, value: int | None) -> int:
        """Give the value of a key without which nothing can be told."""
        if value is None or value < 0:
            raise CapabilityError(f"VMCOREINFO: {key} is {'missing' if value is None else value}")
        return value

    def member(self, name: str) -> int:
        """Give the offset of a field of struct page; -1 if absent."""
        offset = self._lines.offset(f"page.{name}")
        return _ABSENT if offset is None else self.demand(f"OFFSET(page.{name})", offset)

    def flag(self, name: str) -> int | None:
        """Give the number of a page flag; None if absent."""
        bit = self._lines.number(name)
        if bit is not None and not 0 <= bit < 8 * self._word - 1:
            raise CapabilityError(f"VMCOREINFO: NUMBER({name})={bit} is no bit of a page's flags")
        return bit

    def mapcount(self, name: str) -> int:
        """Give a value of _mapcount as 32 bits; -1 if absent."""
        value = self._lines.number(name)
        return _ABSENT if value is None or value & 0xFFFFFFFF == 0xFFFFFFFF else value & 0xFFFFFFFF

    def table(self) -> int:
        """Give the value of _mapcount of page tables; -1 if absent.

        No key tells it. Since 6.12 types are numbers in the highest byte, of which 0xf0 is a free page,
        0xf1 offline, 0xf2 a page table, and 0xf4 hugetlbfs': where the three others are told so, it is known.
        Before, they were bits, which changed places from release to release.
        """
        names = "PAGE_BUDDY_MAPCOUNT_VALUE", "PAGE_OFFLINE_MAPCOUNT_VALUE", "PAGE_HUGETLB_MAPCOUNT_VALUE"
        told = [self.mapcount(name) for name in names]
        return 0xF2 << 24 if told == [0xF0 << 24, 0xF1 << 24, 0xF4 << 24] else _ABSENT

    def head_mask(self) -> int:
        """Give the flag of heads of compound pages; bit 14 where it is not told."""
        mask = self._lines.number("PG_head_mask")
        if mask is not None and not 0 <= mask < 1 << (8 * self._word - 1):
            raise CapabilityError(f"VMCOREINFO: NUMBER(PG_head_mask)={mask} is no bit of a page's flags")
        return 1 << 14 if mask is None else mask

    def free_orders(self) -> int:
        """Give the orders of blocks of free pages; 11 where that is not told."""
        orders = self._lines.length("zone.free_area")
        if orders is not None and not 1 <= orders <= kernel.MAX_ORDER + 1:
            raise CapabilityError(f"VMCOREINFO: LENGTH(zone.free_area)={orders} is no number of orders")
        return 11 if orders is None else orders

    def order(self, size: int) -> tuple[int, int]:
        """Tell where and in which form the order of a compound page is."""
        if self._in_flags():
            return _ABSENT, kernel.ORDER_IN_FLAGS
        offset = self._second("page.compound_order", "folio._folio_order", size)
        if offset is None:
            offset = self._in_list("prev")
            return (_ABSENT, kernel.ORDER_NONE) if offset is None else (offset, kernel.ORDER_WORD)
        return offset, kernel.ORDER_U16 if self._before(4, 16) else kernel.ORDER_U8

    def huge(self, size: int) -> tuple[int, int, int]:
        """Tell where, in which form, and by which value a compound page is hugetlbfs'."""
        value = self.mapcount("PAGE_HUGETLB_MAPCOUNT_VALUE")
        if value != _ABSENT:
            return _ABSENT, kernel.HUGE_MAPCOUNT, value
        bit = self.flag("PG_hugetlb")
        if bit is not None:
            return _ABSENT, kernel.HUGE_FLAG, 1 << bit
        offset = self._second("page.compound_dtor", "folio._folio_dtor", size)
        if offset is None:
            offset = self._in_list("next")
        if offset is None:
            return _ABSENT, kernel.HUGE_NONE, 0
        if self._before(4, 4):
            function = self._lines.symbol("free_huge_page")
            if function is None:
                return _ABSENT, kernel.HUGE_NONE, 0
            return offset, kernel.HUGE_WORD, (function & (1 << 64) - 1 ^ 1 << 63) - (1 << 63)
        number = self._lines.number("HUGETLB_PAGE_DTOR")
        if number is None:
            return _ABSENT, kernel.HUGE_NONE, 0
        form = kernel.HUGE_U16 if self._before(4, 16) else kernel.HUGE_U8
        return offset, form, number & 0xFFFF

    def _in_flags(self) -> bool:
        return (
            self.mapcount("PAGE_HUGETLB_MAPCOUNT_VALUE") != _ABSENT
            or self._lines.number("PG_hugetlb") is not None
        )

    def _in_list(self, end: Literal["next", "prev"]) -> int | None:
        """Give the offset of a list's entry, which the second page of a compound page is not in.

        Before 4.4 what frees the page, and its order, are in the places of both ends. 4.4 and 4.5 have them
        elsewhere and tell nothing: their compound pages are kept but for the first page.
        """
        lru, offset = self._lines.offset("page.lru"), self._lines.offset(f"list_head.{end}")
        if lru is None or offset is None or not self._before(4, 4):
            return None
        return self.demand(f"OFFSET(list_head.{end})", offset) + self.demand("OFFSET(page.lru)", lru)

    def _second(self, in_page: str, in_folio: str, size: int) -> int | None:
        """Give the offset in the second struct page of a field, which a folio has behind the first."""
        offset = self._lines.offset(in_page)
        if offset is not None:
            return offset
        behind = self._lines.offset(in_folio)
        return None if behind is None else behind - size

    def _before(self, major: int, minor: int) -> bool:
        """Tell whether the release is an earlier one; for what nothing else tells."""
        match = _VERSION.match(self._lines.get("OSRELEASE", ""))
        return match is not None and (int(match[1]), int(match[2])) < (major, minor)


def _mask(bit: int | None) -> int:
    return 0 if bit is None else 1 << bit
