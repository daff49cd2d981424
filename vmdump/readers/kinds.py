"""What a dump knows of a page without reading it."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["PageKind"]


class PageKind(IntEnum):
    """How a dump holds a page.

    MISSING is a page in no block: the guest has no memory there. EXCLUDED is one of the guest's that was
    left out of the dump. ZERO is known to be zero from the dump's structure; others may be zero, too.
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
