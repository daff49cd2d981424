"""Memory that has to be read with care."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class Fragments:
    """Memory of which only some runs are data, and reading anything else is an error."""

    copies = True

    def __init__(self, content: np.ndarray, runs: list[tuple[int, int]]) -> None:
        self._content = content
        self._runs = runs
        self.bytes_read = 0

    @property
    def size(self) -> int:
        return int(self._content.size)

    def extents(self) -> Iterator[tuple[int, int]]:
        yield from self._runs

    def view(self, offset: int, length: int, scratch: np.ndarray) -> np.ndarray:
        assert any(begin <= offset and offset + length <= end for begin, end in self._runs), "a hole was read"
        self.bytes_read += length
        scratch[:length] = self._content[offset : offset + length]
        return scratch[:length]
