"""Pages that are copied as they are stored in a dump: packed already, with the codec that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmdump.pipeline.ahead import new_key

if TYPE_CHECKING:
    from vmdump.guest.stored import StoredPages

__all__ = ["CopiedPages"]


@dataclass(frozen=True)
class CopiedPages:
    """Which pages are copied as they are stored in a dump.

    What is copied is not unpacked, so damage in it is copied too: only its bounds were checked.

    Attributes
    ----------
    stored : callable
        ``(pfn, count) -> StoredPages``, or None where pages are not stored one by one. Called in worker
        threads.
    flag : int
        Flag of the pages that are packed as wanted.
    plain : bool
        Copy plain pages, too: the codec that is wanted was tried on them, and they did not shrink.
    key : (KEY_WORDS,) uint64
        Of the hashes that tell pages which share their bytes.
    """

    stored: Callable[[int, int], StoredPages | None]
    flag: int
    plain: bool
    key: NDArray[np.uint64] = field(default_factory=new_key)

    def wanted(self, run: StoredPages, page_size: int) -> NDArray[np.bool_]:
        """Tell which pages are copied; (count,)."""
        # By its size a packed page of a whole page's bytes would be taken for a plain one.
        wanted = (run.flags == self.flag) & (run.sizes < page_size)
        if self.plain:
            wanted |= (run.flags == 0) & (run.sizes == page_size)
        result: NDArray[np.bool_] = wanted & ~self.without_data(run) & (run.sizes != 0)
        return result

    @staticmethod
    def without_data(run: StoredPages) -> NDArray[np.bool_]:
        """Tell which pages have no data of their own: zero and excluded ones; (count,)."""
        result: NDArray[np.bool_] = run.zero | run.excluded
        return result

    def hashes(self, run: StoredPages) -> NDArray[np.uint64]:
        """Make hashes that are equal for pages that share their bytes, and for no others; (count,) uint64.

        They are not of contents. One equals a hash of contents with a chance of 2^-63: the key is random.
        """
        # A one-to-one map: an odd factor, and a sum, modulo 2^64.
        hashes: NDArray[np.uint64] = (
            run.identities.astype(np.uint64) * (self.key[0] | np.uint64(1)) + self.key[1]
        )
        hashes[hashes == 0] = 1
        return hashes
