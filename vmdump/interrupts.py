"""Signals wait while a guest is resumed, a connection is closed, or a file gets its name."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["SIGNALS", "Deferred"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Those that a person ends a command with."""

_Handler = Callable[[int, FrameType | None], Any]


class Deferred:
    """Hold back the signals that end a process. A context manager.

    Python runs signal handlers in the main thread, between any two steps of it, and most of them raise an
    exception there: KeyboardInterrupt above all. Inside the context they are noted only; the first one is
    handled at its end. In other threads no handler runs, and this does nothing.
    """

    def __init__(self) -> None:
        self._first = 0
        self._handlers: dict[int, _Handler] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        try:
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self)
        except BaseException:
            self._restore()
            raise
        return self

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal."""
        self._first = self._first or number

    @property
    def pending(self) -> bool:
        """Whether a signal has come, inside this context or one around it."""
        return bool(self._first) or any(
            isinstance(handler, Deferred) and handler.pending for handler in self._handlers.values()
        )

    def _restore(self) -> None:
        raised: BaseException | None = None
        for number, handler in self._handlers.items():
            while signal.getsignal(number) is self:
                try:
                    signal.signal(number, handler)
                except BaseException as error:  # of a handler that is back in its place
                    raised = raised or error
        if raised is not None:
            raise raised

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self._first:
            self._handlers[self._first](self._first, None)

    def settle(self) -> None:
        """Call `settle` of the handlers that have it: the work is done, and further signals come too late."""
        for handler in self._handlers.values():
            settle = getattr(handler, "settle", None)
            if settle is not None:
                settle()
