"""Pages as they are stored in the file that a guest was read from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Pages

__all__ = ["StoredPages"]


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
