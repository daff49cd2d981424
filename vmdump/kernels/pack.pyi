from typing import Any

import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["NATIVE_ENGINES", "Packer", "Unpacker", "missing_engines", "native_engines"]

NATIVE_ENGINES: tuple[str, ...]

def missing_engines() -> dict[str, str]: ...
def native_engines() -> dict[str, dict[str, Any]]: ...

class Packer:
    engine: str
    level: int
    page_size: int
    def __init__(
        self, engine: str, page_size: int, level: int | None = None, zero_kernel: str | None = None
    ) -> None: ...
    def bound(self, page_count: int) -> int: ...
    def pack(self, mem: ReadableBuffer, out: WriteableBuffer, sizes: npt.NDArray[np.uint32]) -> int: ...

class Unpacker:
    engine: str
    page_size: int
    def __init__(self, engine: str, page_size: int) -> None: ...
    def unpack(
        self,
        data: ReadableBuffer,
        offsets: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint32],
        compressed: npt.NDArray[np.uint8],
        out: WriteableBuffer,
    ) -> None: ...
