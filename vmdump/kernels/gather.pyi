import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["gather"]

def gather(
    data: ReadableBuffer,
    offsets: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.uint32],
    out: WriteableBuffer,
) -> int: ...
