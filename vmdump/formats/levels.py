"""Dump levels: which kinds of pages a dump does not have, in makedumpfile's bits."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from types import MappingProxyType
from typing import SupportsIndex

from vmdump.errors import RequestError
from vmdump.suggestions import is_it

__all__ = ["CACHE", "CACHE_PRIVATE", "EXCLUDABLE", "FREE", "MAX_LEVEL", "USER", "ZERO", "parse_level"]

ZERO = 1
CACHE = 2
CACHE_PRIVATE = 4
"""Of the cache, with and without private data: this bit implies the one before."""
USER = 8
FREE = 16
MAX_LEVEL = 31

EXCLUDABLE = MappingProxyType(
    {"zero": ZERO, "cache": CACHE, "cache-private": CACHE_PRIVATE, "user": USER, "free": FREE}
)
"""The bits by name."""


def parse_level(exclude: SupportsIndex | str | Iterable[str]) -> int:
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
    if isinstance(exclude, SupportsIndex):
        level = operator.index(exclude)
        if not 0 <= level <= MAX_LEVEL:
            raise RequestError(f"exclude: level {level} is not from 0 to {MAX_LEVEL}", parameter="exclude")
        return level
    level = 0
    for name in exclude.split(",") if isinstance(exclude, str) else exclude:
        bit = EXCLUDABLE.get(name.strip()) if isinstance(name, str) else None
        if bit is None:
            near = is_it(str(name).strip().lower(), EXCLUDABLE)
            raise RequestError(
                f"exclude: {name!r} is not known{near}; there are {', '.join(EXCLUDABLE)}",
                parameter="exclude",
            )
        level |= bit
    return level
