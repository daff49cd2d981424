"""What a terminal stops a process with, for the commands that stop a live guest."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from vmdump.opening import names_live_guest

__all__ = ["unstoppable"]


@contextmanager
def unstoppable(source: str | tuple[str, ...] | None) -> Iterator[None]:
    """Ignore Ctrl-Z and what else a terminal stops a process with: a live guest would stay paused with it."""
    numbers = (signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN) if names_live_guest(source) else ()
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
