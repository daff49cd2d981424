"""How signals end the command: the first one does, wherever it comes, and the others come too late."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from types import FrameType, TracebackType
from typing import Any, Self

from vmdump.interrupts import SIGNALS

__all__ = ["Interrupted", "Signals"]

_SIGNAL_BASE = 128
"""A shell reports a command that a signal ended as 128 + the signal's number."""
_AGAIN = 0.01
"""Seconds."""


class Interrupted(KeyboardInterrupt):
    """A signal has come; unwinds like Ctrl-C, so that everything is cleaned up."""


class Signals:
    """Handle the signals that end a command. A context manager, in the main thread.

    The first one after :meth:`begin` raises :class:`Interrupted`, once; cleaning up cannot be interrupted
    then. After :meth:`settle` or :meth:`end` none does any more. SIGHUP stays ignored where nohup ignores it.

    Parameters
    ----------
    process : bool
        The process is the command's and ends with it: from then on signals are ignored. Otherwise the
        handlers that were there come back.

    Attributes
    ----------
    first : int
        The signal that ended the command; 0 if none did.
    one_output : bool
        What the command does is done as soon as its output is there.
    """

    def __init__(self, *, process: bool) -> None:
        self.first = 0
        self.one_output = False
        self._process = process
        self._owed = 0
        self._lost = 0
        self._begun = False
        self._settled = False
        self._before: dict[int, Any] = {}
        # Python handles signals by their numbers; this has them in the order in which they came. (Of two that
        # came while the process did not get to run at all, nobody knows the order.) A file in memory, as a
        # pipe takes two descriptors.
        self._order = -1
        with contextlib.suppress(OSError):
            self._order = os.memfd_create("vmdump-signals")
            os.set_blocking(self._order, False)
        self._woken = -1
        self._hook = sys.unraisablehook

    def __enter__(self) -> Self:
        self._woken = signal.set_wakeup_fd(self._order, warn_on_full_buffer=False)
        sys.unraisablehook = self._raise_again
        for number in SIGNALS:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before is signal.SIG_IGN:
                continue  # nohup
            self._before[number] = before
            signal.signal(number, self)
        return self

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.first or self._settled:
            return
        if not self._begun:
            self._owed = self._owed or number
            return
        # At once: the handler of the next one may run inside this one.
        self.first = number
        if self._lost:
            self.first = self._lost
        else:
            with contextlib.suppress(OSError, IndexError):
                self.first = os.pread(self._order, 1, 0)[0]
        # Of coroutines that were made just now, and that nobody will begin.
        warnings.simplefilter("ignore", RuntimeWarning)
        raise Interrupted(self.first)

    def begin(self) -> None:
        """Let signals raise from now on, also one that has come before: here it is caught."""
        self._begun = True
        if self._owed:
            self(self._owed, None)

    def _raise_again(self, lost: sys.UnraisableHookArgs) -> None:
        """See to it that an exception is not lost that was raised where nobody can catch it.

        Python calls this for a handler that ran inside a destructor, for example.
        """
        if lost.exc_type is not Interrupted:
            self._hook(lost)
            return
        # Whichever comes next is taken for it.
        number = self._lost = self.first
        self.first = 0

        def send() -> None:
            if not self._settled:
                os.kill(os.getpid(), number)

        timer = threading.Timer(_AGAIN, send)
        timer.daemon = True
        timer.start()

    def settle(self) -> None:
        """Note that the command's output is there: a signal comes too late."""
        if self.one_output:
            self._settled = True
            self.first = 0  # if one came, nobody has taken notice

    def end(self) -> None:
        """Let signals come too late from now on."""
        self._settled = True

    @property
    def exit_code(self) -> int:
        """What the command exits with if `first` has ended it."""
        return _SIGNAL_BASE + self.first

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settled = True
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._process else handler)
        signal.set_wakeup_fd(self._woken)
        sys.unraisablehook = self._hook
        if self._order >= 0:
            os.close(self._order)
