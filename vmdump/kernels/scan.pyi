from typing import Final, Self, final

import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer

__all__ = ["CLEARED", "NEW", "RUN_WORDS", "SAME", "ZERO", "PageScan"]

ZERO: Final[int]
SAME: Final[int]
CLEARED: Final[int]
NEW: Final[int]
RUN_WORDS: Final[int]

@final
class PageScan:
    @property
    def page_count(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    def __new__(
        cls,
        mem: ReadableBuffer | None,
        page_size: int,
        *,
        runs: npt.NDArray[np.int64] | None = None,
        page_count: int = 0,
        key: npt.NDArray[np.uint64] | None = None,
        hashes: npt.NDArray[np.uint64] | None = None,
        known: npt.NDArray[np.uint64] | None = None,
    ) -> Self: ...
    def read(
        self, kinds: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]: ...
