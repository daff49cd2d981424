"""What a dump knows of a page without reading it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.guest import Pages

__all__ = ["PageKind", "StoredPages"]


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


@dataclass(frozen=True)
class StoredPages:
    """Pages as a kdump file holds them, packed or not; nothing is decompressed or checked but the bounds.

    Page ``i`` is ``data[offsets[i] : offsets[i] + sizes[i]]``. Pages of equal `identities` share their
    bytes in the file, as zero pages do, and in `data`.

    Attributes
    ----------
    data : (n,) uint8
        Pieces of the file.
    offsets : (count,) uint64
        Where in `data` each page begins.
    sizes : (count,) uint32
        Bytes of each page in `data`; 0 for an excluded page.
    flags : (count,) uint32
        How the page is packed, as page descriptors have it: 0 for plain, else `CODEC_FLAGS` of
        :mod:`vmdump.formats.kdump`.
    identities : (count,) uint64
        Where the page's bytes are in the standard layout of the file; those of a split set are counted on.
    excluded : (count,) bool
        Pages that are not in the dump.
    zero : (count,) bool
        Pages that are the dump's shared zero page.
    """

    data: Pages
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    flags: NDArray[np.uint32]
    identities: NDArray[np.uint64]
    excluded: NDArray[np.bool_]
    zero: NDArray[np.bool_]
