"""What a dump knows of a page without reading it."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["PageKind", "name_kinds"]


class PageKind(IntEnum):
    """How a dump holds a page.

    MISSING is a page in no block: the guest has no memory there. EXCLUDED is one of the guest's that is not
    in the dump. ZERO is known to be zero from the dump's structure; others may be zero, too.
    PLAIN is stored as it was, the others are compressed with the codec of that name.
    """

    MISSING = 0
    EXCLUDED = 1
    ZERO = 2
    PLAIN = 3
    ZLIB = 4
    LZO = 5
    SNAPPY = 6
    ZSTD = 7


def name_kinds(counts: NDArray[np.int64], pages: int, excluded: int, damaged: int = 0) -> dict[str, int]:
    """Name the kinds of a guest's pages, of which those that may not be zero were counted.

    Parameters
    ----------
    counts : (len(PageKind),) int64
        Pages by kind, of all :func:`vmdump.guest.whole.data_runs` at least.
    pages : int
        All pages of the guest.
    excluded : int
        Those that are excluded.
    damaged : int
        Those that have no kind.

    Returns
    -------
    dict of str to int
        Pages by the kind's name in lower case; only kinds that come up. All the others are zero.
    """
    named = {kind: int(counts[kind]) for kind in PageKind}
    named[PageKind.EXCLUDED] = excluded
    named[PageKind.MISSING] = named[PageKind.ZERO] = 0
    named[PageKind.ZERO] = max(pages - damaged - sum(named.values()), 0)
    return {kind.name.lower(): count for kind, count in named.items() if count}
