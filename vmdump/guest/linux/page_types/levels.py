"""Which types of pages a dump level leaves out."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from vmdump.formats.levels import CACHE, CACHE_PRIVATE, FREE, MAX_LEVEL, USER, ZERO
from vmdump.kernels import page_types as kernel

__all__ = ["excluded_types"]

_BITS = {
    kernel.CACHE: CACHE | CACHE_PRIVATE,
    kernel.CACHE_PRIVATE: CACHE_PRIVATE,
    kernel.USER: USER,
    kernel.HUGE: USER,
    kernel.FREE: FREE,
    kernel.UNACCEPTED: FREE,
    kernel.OFFLINE: MAX_LEVEL - ZERO,
}
"""For which bits of a level pages of a type are left out: any of them. What is offline has no contents."""


@cache
def excluded_types(level: int) -> NDArray[np.bool_]:
    """Tell which types a level leaves out, with and without the bit POISONED.

    Levels 0 and 1 leave out none: makedumpfile drops offline and broken pages even then, if the kernel tells
    of broken pages.

    Returns
    -------
    (256,) bool
    """
    excluded = np.zeros(256, np.bool_)
    if level & ~ZERO:
        for kind in range(kernel.TYPE_COUNT):
            excluded[kind] = bool(_BITS.get(kind, 0) & level)
        excluded[kernel.POISONED :] = True
    excluded.setflags(write=False)
    return excluded
