"""What a running dump and its owner tell each other."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vmdump.errors import Cancelled

__all__ = ["Control"]


class Control:
    """Bytes done and total, and the wish to stop.

    Parameters
    ----------
    on_progress : callable, optional
        Called with (done, total) in bytes of guest memory, in the dumping thread, after each chunk.
    """

    def __init__(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        self.done = 0
        self.total = 0
        self._on_progress = on_progress
        self._stop = threading.Event()

    def start(self, total: int) -> None:
        """Set the number of bytes to do from now on."""
        self.total = self.done + total
        self.advance(0)

    def advance(self, size: int) -> None:
        """Count `size` bytes as done.

        Raises
        ------
        Cancelled
            The owner wants the dump to stop.
        """
        self.done += size
        if self._on_progress is not None:
            self._on_progress(self.done, self.total)
        self.check()

    def check(self) -> None:
        """Raise Cancelled if the owner wants the dump to stop."""
        if self._stop.is_set():
            raise Cancelled("cancelled")

    def side_work(self) -> Callable[[int, int], None]:
        """Give what counts other work than dumping, from (done, total) of it on: some take no time."""
        told = -1

        def tell(done: int, total: int) -> None:
            nonlocal told
            if told < 0:
                told = 0
                self.start(total)
            self.advance(done - told)
            told = done

        return tell

    def cancel(self) -> None:
        """Ask the dump to stop; from any thread."""
        self._stop.set()

    def cancelled(self) -> bool:
        """Tell whether the dump was asked to stop."""
        return self._stop.is_set()
