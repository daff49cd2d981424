"""A guest of which pages are excluded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import vmdump


class ExcludingSource(vmdump.BlockSource):
    """A guest that says which of its pages are excluded from dumps."""

    def __init__(
        self,
        blocks: Sequence[tuple[int, Any]],
        page_size: int,
        pfns: Iterable[int],
        *,
        arch: str = "x86_64",
    ) -> None:
        super().__init__(list(blocks), arch=arch, page_size=page_size)
        self._pfns = np.array(sorted(pfns), np.int64)

    @property
    def excluded_size(self) -> int:
        return len(self._pfns) * self.page_size

    def excluded_pages(self, pfn: int, count: int) -> np.ndarray:
        return np.isin(np.arange(pfn, pfn + count), self._pfns)
