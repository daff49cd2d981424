import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["read", "scan"]

_Numbers = npt.NDArray[np.uint64]

def read(
    stream: int | ReadableBuffer,
    size: int,
    begins: _Numbers,
    ends: _Numbers,
    places: _Numbers,
    offset: int,
    out: WriteableBuffer,
) -> None: ...
def scan(
    stream: int | ReadableBuffer, size: int, position: int
) -> tuple[_Numbers, _Numbers, _Numbers, int | None]: ...
