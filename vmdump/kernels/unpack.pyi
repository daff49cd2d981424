from typing import Self, final

import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["Unpacker"]

@final
class Unpacker:
    @property
    def engine(self) -> str: ...
    @property
    def page_size(self) -> int: ...
    def __new__(cls, engine: str, page_size: int) -> Self: ...
    def unpack(
        self,
        data: ReadableBuffer,
        offsets: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint32],
        compressed: npt.NDArray[np.uint8],
        out: WriteableBuffer,
    ) -> None: ...
    def unpack_page(self, data: ReadableBuffer) -> bytes: ...
