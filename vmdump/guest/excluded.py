"""Pages that are in a guest and excluded from its dump, in pages of any size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.memory import GuestMemory

__all__ = ["partly_excluded"]


def partly_excluded(guest: GuestMemory, pfn: int, count: int, page_size: int) -> NDArray[np.bool_]:
    """Tell of which pages a part, or all, is excluded.

    Parameters
    ----------
    guest : GuestMemory
        Whose own pages may have another size.
    pfn, count : int
        The pages, by frame number in units of `page_size`.
    page_size : int
        Bytes.

    Returns
    -------
    (count,) bool
    """
    begin, end = pfn * page_size, (pfn + count) * page_size
    first, last = begin // guest.page_size, -(-end // guest.page_size)
    excluded = guest.excluded_pages(first, last - first)
    pages = np.zeros(count, np.bool_)
    if excluded is None:
        return pages
    unit = min(guest.page_size, page_size)
    units = np.repeat(excluded, guest.page_size // unit)
    skip = (begin - first * guest.page_size) // unit
    np.any(units[skip : skip + (end - begin) // unit].reshape(count, -1), axis=1, out=pages)
    return pages
