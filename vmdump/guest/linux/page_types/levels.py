"""Which types of pages a dump leaves out: makedumpfile's levels, and names for their bits."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import RequestError
from vmdump.kernels.page_types import (
    CACHE,
    CACHE_PRIVATE,
    FREE,
    HUGE,
    OFFLINE,
    POISONED,
    TYPE_COUNT,
    UNACCEPTED,
    USER,
)

__all__ = ["EXCLUDABLE", "MAX_LEVEL", "ZERO", "excluded_types", "parse_level"]

ZERO = 1
_CACHE = 2
_CACHE_PRIVATE = 4
_USER = 8
_FREE = 16
MAX_LEVEL = 31

EXCLUDABLE = MappingProxyType(
    {"zero": ZERO, "cache": _CACHE, "cache-private": _CACHE_PRIVATE, "user": _USER, "free": _FREE}
)
"""The bits of a level by name."""

_BITS = {
    CACHE: _CACHE | _CACHE_PRIVATE,
    CACHE_PRIVATE: _CACHE_PRIVATE,
    USER: _USER,
    HUGE: _USER,
    FREE: _FREE,
    UNACCEPTED: _FREE,
    OFFLINE: MAX_LEVEL - ZERO,
}
"""For which bits of a level pages of a type are left out: any of them. What is offline has no contents."""


def parse_level(exclude: int | str | Iterable[str]) -> int:
    """Take what a user wants to exclude.

    Parameters
    ----------
    exclude : int, str, or iterable of str
        A level, or names of :data:`EXCLUDABLE`, in one string with commas or one by one.

    Raises
    ------
    RequestError
        There is no such level, or no such name.
    """
    if isinstance(exclude, int):
        if not 0 <= exclude <= MAX_LEVEL:
            raise RequestError(f"exclude: level {exclude} is not from 0 to {MAX_LEVEL}", parameter="exclude")
        return int(exclude)
    level = 0
    for name in exclude.split(",") if isinstance(exclude, str) else exclude:
        bit = EXCLUDABLE.get(name.strip())
        if bit is None:
            raise RequestError(
                f"exclude: {name!r} is not one of {', '.join(EXCLUDABLE)}", parameter="exclude"
            )
        level |= bit
    return level


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
        for kind in range(TYPE_COUNT):
            excluded[kind] = bool(_BITS.get(kind, 0) & level)
        excluded[POISONED:] = True
    excluded.setflags(write=False)
    return excluded
