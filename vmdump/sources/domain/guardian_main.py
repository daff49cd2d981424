"""The guardian of a guest of libvirt: resumes it if vmdump died while it had paused it.

A program of its own, ``python -I -S guardian_main.py PIPE_FD PARENT_PID WORDS FOLDER QEMU_PID URI UUID``;
only the standard library and libvirt-python, which is in FOLDER. WORDS is the file of QEMU's guardian: what
is said through the pipe is the same here.

It has a connection to libvirt's daemon of its own, and makes a new one if the daemon is restarted, as long
as there is a QEMU. It leaves a domain alone that somebody else has resumed, or that is not as `suspend`
leaves it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import select
import sys
import threading
import time
from types import ModuleType
from typing import Any

_RETRY = 0.05
_LATE = 10.0
"""Seconds after the death of vmdump in which the daemon may still carry out a `suspend` of its: it reads what
it was sent before it sees that nobody waits for the answer."""
_ALIVE_EVERY, _ALIVE_TIMES = 2, 3
_PAUSED_REASONS = (0, 1)
"""VIR_DOMAIN_PAUSED_UNKNOWN, as a daemon that was restarted says, and _USER."""
_PASSING_REASONS = (2, 3, 4, 9, 11)
"""Of a job that somebody has begun: migration, save, dump, snapshot, start. Its end decides."""


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("guardians_words", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Domain:
    """The guest, over a connection that is made anew when it is lost."""

    def __init__(self, libvirt: Any, uri: str, uuid: str) -> None:
        self._libvirt = libvirt
        self._uri = uri
        self._uuid = uuid
        self._connection: Any = None
        self.stops = 0
        self.resumes = 0

    def connect(self) -> Any:
        """Give the domain."""
        if self._connection is None or not self._connection.isAlive():
            connection = self._libvirt.open(self._uri)
            with contextlib.suppress(self._libvirt.libvirtError):
                connection.setKeepAlive(_ALIVE_EVERY, _ALIVE_TIMES)
            domain = connection.lookupByUUIDString(self._uuid)
            lifecycle = self._libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
            connection.domainEventRegisterAny(domain, lifecycle, self._count, None)
            self._connection = connection
            return domain
        return self._connection.lookupByUUIDString(self._uuid)

    def _count(self, _: Any, __: Any, event: int, ___: int, ____: Any) -> None:
        self.stops += event == self._libvirt.VIR_DOMAIN_EVENT_SUSPENDED
        self.resumes += event == self._libvirt.VIR_DOMAIN_EVENT_RESUMED

    def forget(self) -> None:
        """Count anew: the guest is going to be paused."""
        self.stops = self.resumes = 0

    def let_run(self, until: float) -> bool:
        """Resume the guest if it is still as it was left; true if there is nothing more to do."""
        libvirt = self._libvirt
        domain = self.connect()
        state, reason = domain.state()
        if self.resumes:
            return True  # by somebody: if it is paused again, that is his wish
        if state == libvirt.VIR_DOMAIN_RUNNING:
            return self.stops > 0 or time.monotonic() > until
        if state != libvirt.VIR_DOMAIN_PAUSED:
            return True
        if reason in _PAUSED_REASONS:
            domain.resume()
            return True
        return reason not in _PASSING_REASONS


def _run_events(libvirt: Any) -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


def _end_with(qemu: int) -> None:
    """End when QEMU does, whatever the daemon does: it may hang."""
    select.select([qemu], [], [])
    os._exit(0)


def main(arguments: list[str]) -> int:
    """Guard until vmdump ends; see the module."""
    pipe, parent, path, folder, pid, uri, uuid = arguments
    words = _load(path)
    sys.path.append(folder)
    libvirt: Any = importlib.import_module("libvirt")
    qemu = os.pidfd_open(int(pid))
    libvirt.registerErrorHandler(lambda _, __: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(libvirt,), daemon=True).start()
    domain = _Domain(libvirt, uri, uuid)
    domain.connect()

    def heard(word: bytes) -> None:
        if word == words.ARM:
            domain.forget()

    word = words.guard(int(pipe), int(parent), heard)
    if word in (words.ARM, words.ARM_MIGRATED):
        threading.Thread(target=_end_with, args=(qemu,), daemon=True).start()
        until, done = time.monotonic() + _LATE, False
        while not done:
            with contextlib.suppress(libvirt.libvirtError):
                done = domain.let_run(until)
            if not done:
                time.sleep(_RETRY)
    # The daemon notices by itself, and one that hangs does not keep this from ending.
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
