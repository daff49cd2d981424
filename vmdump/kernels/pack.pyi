from typing import Any, Final, Self, final

import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer, WriteableBuffer

from vmdump.kernels.scan import PageScan

__all__ = ["NATIVE_ENGINES", "SAME_SIZE", "Packer", "Unpacker", "missing_engines", "native_engines"]

NATIVE_ENGINES: tuple[str, ...]
SAME_SIZE: Final[int]

def missing_engines() -> dict[str, str]: ...
def native_engines() -> dict[str, dict[str, Any]]: ...

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
