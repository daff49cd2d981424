from typing import Self, final

import numpy as np
import numpy.typing as npt

__all__ = ["SharedPages"]

@final
class SharedPages:
    def __new__(cls) -> Self: ...
    def store(
        self,
        data: npt.NDArray[np.uint8],
        sizes: npt.NDArray[np.uint32],
        hashes: npt.NDArray[np.uint64],
        next_offset: int,
        offsets: npt.NDArray[np.uint64],
    ) -> int: ...
