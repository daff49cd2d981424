import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer

__all__ = ["find_all", "period_of"]

def find_all(data: ReadableBuffer, pattern: ReadableBuffer, period: int) -> npt.NDArray[np.uint64]: ...
def period_of(pattern: ReadableBuffer) -> int: ...
