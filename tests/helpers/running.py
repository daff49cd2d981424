"""A guest that runs while a dump is prepared, then is paused with another memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from vmdump.arch import arch_by_name
from vmdump.guest.blocks import Block
from vmdump.guest.guest import Guest
from vmdump.sources.base import LiveSource

PAGE = 4096
Blocks = list[tuple[int, np.ndarray]]


class Ram:
    """Memory that is copied when it is read, and whose zero pages are holes."""

    copies = True

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory

    @property
    def size(self) -> int:
        return len(self._memory)

    def extents(self) -> Iterator[tuple[int, int]]:
        data = np.flatnonzero(self._memory.reshape(-1, PAGE).any(axis=1))
        return ((page * PAGE, (page + 1) * PAGE) for page in data.tolist())

    def view(self, offset: int, length: int, scratch: np.ndarray) -> np.ndarray:
        scratch[:length] = self._memory[offset : offset + length]
        return scratch[:length]


class FileRam(Ram):
    """The same in a file, which is read without its help."""

    def __init__(self, memory: np.ndarray) -> None:
        super().__init__(memory)
        self._fd = os.memfd_create("guest")
        os.pwrite(self._fd, memory.tobytes(), 1)

    def __del__(self) -> None:
        os.close(self._fd)

    def file_runs(self, offset: int, length: int) -> list[tuple[int, int, int, int]]:
        return [
            (max(begin - offset, 0), min(end - offset, length), self._fd, max(begin, offset) + 1)
            for begin, end in self.extents()
            if begin < offset + length and end > offset
        ]


class PreparedSource(LiveSource):
    """A live source that is prepared with its running guest, and then held as another one.

    Attributes
    ----------
    prepared, released : int
        How often.
    """

    def __init__(self, running: Guest, still: Callable[[], Guest]) -> None:
        self._running = running
        self._still = still
        self.prepared = 0
        self.released = 0

    @property
    def guest(self) -> Guest:
        return self._running

    @contextmanager
    def held(
        self,
        *,
        pause: bool,
        cancelled: Callable[[], bool],
        prepare: Callable[[Guest], object] | None = None,
        vmcoreinfo: object = None,
    ) -> Iterator[Guest]:
        if pause and prepare is not None:
            self.prepared += 1
            prepare(self._running)
        yield self._still()

    def release(self) -> None:
        self.released += 1

    def close(self) -> None:
        pass


class RunningGuest(PreparedSource):
    """A guest with one memory while it runs and another when it is paused."""

    def __init__(
        self,
        running: Blocks,
        still: Blocks,
        notes: bytes = b"",
        *,
        running_notes: bytes = b"",
        memory: type[Ram] = Ram,
    ) -> None:
        def guest_with(blocks: Blocks, given: bytes) -> Guest:
            held = [Block(start, memory(content)) for start, content in blocks]
            return Guest(held, arch_by_name("x86_64"), notes=given)

        super().__init__(guest_with(running, running_notes), lambda: guest_with(still, notes))


def noise(seed: int, pages: int) -> np.ndarray:
    """Pages without a zero byte."""
    return np.random.default_rng(seed).integers(1, 256, pages * PAGE, np.uint8)
