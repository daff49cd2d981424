from typing import Final, Self, final

import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer

__all__ = [
    "CACHE",
    "CACHE_PRIVATE",
    "DOUBTFUL",
    "FREE",
    "HUGE",
    "HUGE_FLAG",
    "HUGE_MAPCOUNT",
    "HUGE_NONE",
    "HUGE_U8",
    "HUGE_U16",
    "HUGE_WORD",
    "KERNEL",
    "MAX_ORDER",
    "OFFLINE",
    "ORDER_IN_FLAGS",
    "ORDER_NONE",
    "ORDER_U8",
    "ORDER_U16",
    "ORDER_WORD",
    "POISONED",
    "SLAB",
    "TABLE",
    "TAIL",
    "TYPE_COUNT",
    "UNACCEPTED",
    "UNKNOWN",
    "UNREADABLE",
    "USER",
    "PageTyper",
    "spread_type",
]

MAX_ORDER: Final[int]
ORDER_NONE: Final[int]
ORDER_IN_FLAGS: Final[int]
ORDER_U8: Final[int]
ORDER_U16: Final[int]
ORDER_WORD: Final[int]
HUGE_NONE: Final[int]
HUGE_MAPCOUNT: Final[int]
HUGE_FLAG: Final[int]
HUGE_U8: Final[int]
HUGE_U16: Final[int]
HUGE_WORD: Final[int]
UNKNOWN: Final[int]
UNREADABLE: Final[int]
DOUBTFUL: Final[int]
TAIL: Final[int]
KERNEL: Final[int]
SLAB: Final[int]
TABLE: Final[int]
FREE: Final[int]
UNACCEPTED: Final[int]
CACHE: Final[int]
CACHE_PRIVATE: Final[int]
USER: Final[int]
HUGE: Final[int]
OFFLINE: Final[int]
TYPE_COUNT: Final[int]
POISONED: Final[int]

@final
class PageTyper:
    def __new__(
        cls,
        *,
        size: int,
        word: int,
        swapped: bool,
        flags: int,
        mapping: int,
        private: int,
        mapcount: int,
        compound: int,
        order: int,
        order_form: int,
        huge: int,
        huge_form: int,
        huge_value: int,
        free_orders: int,
        lru_mask: int,
        private_mask: int,
        swapcache_mask: int,
        swapbacked_mask: int,
        slab_mask: int,
        poison_mask: int,
        head_mask: int,
        buddy_value: int,
        slab_value: int,
        offline_value: int,
        unaccepted_value: int,
        table_value: int,
    ) -> Self: ...
    def tell(
        self, descriptions: ReadableBuffer, first: int, types: npt.NDArray[np.uint8]
    ) -> list[tuple[int, int, int]]: ...

def spread_type(types: npt.NDArray[np.uint8], type: int) -> None: ...
