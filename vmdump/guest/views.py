"""Views: guests that are another guest but for one thing, and share all else with it, its memory above all.

Those of :class:`vmdump.guest.guest.Guest`: with another VMCOREINFO, with none but what is told, and with
somebody who is told of a search.

A filter by page type (`guest/linux/page_types/filter.py`) is one more: it gives `view_of` a guest with its
own `excluded_pages`, `excluded_size`, `stored_pages` and `dump_level`, which add to the guest's. Whatever
writes, verifies or describes a guest asks these, and need not know of the filter.

A part of the memory is not a view: the kernel and the page tables that describe it may lie in the rest.
"""

from __future__ import annotations

from functools import cached_property
from typing import TypeVar

__all__ = ["view_of"]

_Guest = TypeVar("_Guest")

_SAID = "_said_of_view"
"""Attribute of a view: the names of what it was made with, which no view of it derives anew."""


def view_of(guest: _Guest, **changes: object) -> _Guest:
    """Give the same guest with other attributes; all that was derived from those it had is derived anew.

    Parameters
    ----------
    guest : Guest
        Or any other object; what it has as a `cached_property` is derived.
    **changes
        Attributes, derived ones and methods by name.
    """
    kind = type(guest)
    view = kind.__new__(kind)
    said = {*vars(guest).get(_SAID, ()), *changes}
    for name, value in vars(guest).items():
        if name in said or not isinstance(getattr(kind, name, None), cached_property):
            vars(view)[name] = value
    vars(view).update(changes)
    vars(view)[_SAID] = said
    return view
