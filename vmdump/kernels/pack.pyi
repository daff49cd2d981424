from typing import Final, Self, final

import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer, WriteableBuffer

from vmdump.kernels.scan import PageScan

__all__ = ["SAME_SIZE", "Packer"]

SAME_SIZE: Final[int]

@final
class Packer:
    @property
    def engine(self) -> str: ...
    @property
    def level(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    def __new__(
        cls, engine: str, page_size: int, level: int | None = None, *, exact: bool = False
    ) -> Self: ...
    def bound(self, page_count: int) -> int: ...
    def train(self, pages: ReadableBuffer) -> bool: ...
    def pack(
        self, mem: PageScan | ReadableBuffer, out: WriteableBuffer, sizes: npt.NDArray[np.uint32]
    ) -> int: ...
