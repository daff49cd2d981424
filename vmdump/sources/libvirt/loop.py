"""libvirt's event loop: there is one in a process, and somebody has to run it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from vmdump.errors import SourceError

__all__ = ["EventLoop"]

_TURN_WAIT = 5.0
"""Seconds that a loop has for its next turn; it takes one millisecond."""
_TURN_EVERY = 10
"""Milliseconds. libvirtaio's loop does not notice timers and answers of other threads until something else
happens: a pause lasted 4 s."""


class EventLoop:
    """Sees that events are delivered for as long as somebody uses it.

    A program that has registered a loop runs it as well, and it is kept turning meanwhile. Where there is
    none, libvirt's own is registered, which cannot be taken back, and a thread runs it while there are users.

    Parameters
    ----------
    libvirt : module
        libvirt-python.
    """

    def __init__(self, libvirt: Any) -> None:
        self._libvirt = libvirt
        self._lock = threading.Lock()
        self._users = 0
        self._own = False
        self._thread: threading.Thread | None = None
        self._timer = -1

    def enter(self) -> None:
        """Begin to use it; before a connection is opened.

        Raises
        ------
        SourceError
            The program has registered a loop, and does not run it.
        """
        with self._lock:
            if self._users == 0:
                self._start()
            self._users += 1

    def _start(self) -> None:
        add = self._libvirt.virEventAddTimeout
        turned = threading.Event()

        def turn(timer: int, _: object) -> None:
            turned.set()
            self._libvirt.virEventUpdateTimeout(timer, -1 if self._own else _TURN_EVERY)

        try:
            self._timer = add(0, turn, None)
        except self._libvirt.libvirtError:
            self._libvirt.virEventRegisterDefaultImpl()
            self._own = True
            self._timer = add(0, turn, None)
        if self._own:
            self._thread = threading.Thread(target=self._run, name="vmdump-libvirt-events", daemon=True)
            self._thread.start()
        has_turned = turned.wait(_TURN_WAIT) if self._own else self._wake(turned)
        if not has_turned:
            self._stop()
            raise SourceError("this program has registered an event loop of libvirt's, and does not run it")

    def _wake(self, turned: threading.Event) -> bool:
        """Let the program's loop notice the timer, by a descriptor that is ready; tell whether it has."""
        libvirt = self._libvirt
        ready = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

        def take(_: int, fd: int, __: int, ___: object) -> None:
            with contextlib.suppress(OSError):
                os.eventfd_read(fd)

        try:
            handle = libvirt.virEventAddHandle(ready, libvirt.VIR_EVENT_HANDLE_READABLE, take, None)
            try:
                return turned.wait(_TURN_WAIT)
            finally:
                libvirt.virEventRemoveHandle(handle)
        finally:
            os.close(ready)

    def _run(self) -> None:
        while threading.current_thread() is self._thread:
            with contextlib.suppress(self._libvirt.libvirtError):
                self._libvirt.virEventRunDefaultImpl()

    def leave(self) -> None:
        """Use it no more."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stop()

    def _stop(self) -> None:
        thread, self._thread = self._thread, None
        with contextlib.suppress(self._libvirt.libvirtError):
            if thread is not None:
                self._libvirt.virEventUpdateTimeout(self._timer, 0)  # one more turn, after which it looks
                if thread is not threading.current_thread():
                    thread.join(_TURN_WAIT)
            self._libvirt.virEventRemoveTimeout(self._timer)
