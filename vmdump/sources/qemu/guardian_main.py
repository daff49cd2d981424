"""The guardian: resumes a guest whose vmdump died while it had stopped it.

A program of its own, ``python -I -S guardian_main.py PIPE_FD PARENT_PID SOCKET_FD QEMU_PID PATH``; only the
standard library, since it has to be up in a few milliseconds. A QMP server serves one client at a time, so
it cannot have a connection of its own: it shares vmdump's, and uses it only after vmdump has stopped reading.

It reads single bytes from the pipe: A (or M) before the guest is stopped, D after it runs again, E to end.
After E, the end of the pipe or the death of its parent it resumes the guest if it is still armed, and ends: 0
if the guest runs or its QEMU is gone, 1 if QEMU refuses. It asks a QEMU that does not answer as long as there
is one: QEMU may be draining its disks, or be frozen, and nobody else resumes this guest.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READY = b"R"
ARM = b"A"
ARM_MIGRATED = b"M"
"""As ARM, of a guest that runs although `has_migrated` is true: it was saved to a file, for example."""
DISARM = b"D"
END = b"E"

_ID = "vmdump-guardian"
_GREETING_WAIT = 5.0
"""Seconds for a greeting: one that does not come means that QEMU serves another client at the moment."""
_ANSWER_WAIT = 2.0
"""Seconds until a question is asked again, which doubles with each time; the answer to any of them counts."""
_MAX_ANSWER_WAIT = 30.0
_RETRY = 0.1
_MILLISECONDS = 1000
# vmdump may have died in the middle of a command: a control character brings QEMU's parser back to its
# start, at the price of one error message (docs/interop/qmp-spec, "known-good state").
_RESYNC = b"\x1b"


def is_held(status: object) -> bool:
    """Tell whether a guest is in a state in which `stop` leaves it, whatever else was done to it then.

    QEMU 7.2 takes a paused guest to `prelaunch` when somebody resets it; savevm and loadvm leave it paused.
    In any other state it is not the guest that was stopped: it runs, has migrated away and runs elsewhere on
    the same disks, or has an error that nobody may pass over.
    """
    return status in ("paused", "prelaunch")


def needs_migration(status: object) -> bool:
    """Tell whether only `query-migrate` says if the guest is still here: a reset hides `postmigrate`."""
    return status == "prelaunch"


def has_migrated(answer: object) -> bool:
    """Tell from the answer to `query-migrate` whether the guest has gone elsewhere.

    savevm counts as a migration as well, but one that took no time.
    """
    if not isinstance(answer, dict) or answer.get("status") != "completed":
        return False
    seconds = answer.get("total-time")
    return isinstance(seconds, int) and seconds > 0


def is_dumping(refusal: object) -> bool:
    """Tell from QEMU's refusal of `cont` whether somebody's dump has to end first.

    It may be one that libvirt has begun for vmdump just before.
    """
    return "dump in process" in str(refusal)


class _Gone(Exception):
    """QEMU has ended."""


class _Resumed(Exception):
    """Somebody has resumed the guest; if it is paused now, that is somebody else's wish."""


class _Conversation:
    """Commands and answers over a connection that nobody else reads; OSError if it ends."""

    def __init__(self, connection: socket.socket, qemu: int) -> None:
        self._connection = connection
        self._qemu = qemu
        self._poll = select.poll()
        self._poll.register(qemu, select.POLLIN)
        self._poll.register(connection, select.POLLIN)
        self._pending = b""
        self._asked = 0
        self._again = False
        connection.setblocking(False)

    def _send(self, data: bytes, deadline: float) -> None:
        """Send as much as is taken until then: a later try begins with a control character."""
        while data and time.monotonic() < deadline:
            try:
                data = data[self._connection.send(data) :]
            except BlockingIOError:
                if select.select([self._qemu], [], [], _RETRY)[0]:
                    raise _Gone from None

    def _messages(self, deadline: float) -> list[dict[str, object]]:
        """Give what comes until then; at least one message, or none and the time is over."""
        while (left := deadline - time.monotonic()) > 0:
            ready = [fd for fd, _ in self._poll.poll(left * _MILLISECONDS)]
            if self._qemu in ready:
                raise _Gone
            if not ready:
                continue
            try:
                data = self._connection.recv(65536)
            except BlockingIOError:
                continue
            if not data:
                raise ConnectionResetError
            *lines, self._pending = (self._pending + data).split(b"\n")
            found = []
            for line in lines:
                # The first line may be the rest of an answer of which vmdump read the start. What is nested
                # too deeply is not an answer either.
                with contextlib.suppress(ValueError, RecursionError):
                    message = json.loads(line)
                    if isinstance(message, dict):
                        found.append(message)
            if found:
                return found
        return []

    def ask(self, command: str) -> dict[str, object]:
        """Execute a command, if need be again, and give QEMU's answer."""
        wait, mine = _ANSWER_WAIT, []
        start = b"" if self._asked else _RESYNC
        while True:
            self._asked += 1
            # An answer that comes late must not be taken for that to another command.
            mine.append(f"{_ID}-{self._asked}" if self._again else _ID)
            deadline = time.monotonic() + wait
            self._send(start + json.dumps({"execute": command, "id": mine[-1]}).encode() + b"\n", deadline)
            while messages := self._messages(deadline):
                for message in messages:
                    if message.get("event") == "RESUME" and command != "cont":
                        raise _Resumed
                    if message.get("id") in mine:
                        return message
            self._again = True
            wait, start = min(2 * wait, _MAX_ANSWER_WAIT), _RESYNC


def _resume(conversation: _Conversation, migrated: bool) -> bool:
    """Resume the guest; OSError if the connection ends, False if QEMU refuses."""
    answer = conversation.ask("query-status").get("return")
    status = answer.get("status") if isinstance(answer, dict) else None
    # Of a QEMU that does not tell, the guest was stopped all the same.
    if isinstance(status, str):
        if not is_held(status):
            return True
        if not migrated and needs_migration(status):
            migrated = has_migrated(conversation.ask("query-migrate").get("return"))
            if migrated:
                return True
    while "return" not in (told := conversation.ask("cont")):
        if not is_dumping(told.get("error")):
            return False
        time.sleep(_RETRY)
    return True


def _resume_anew(path: str, qemu: int, migrated: bool) -> bool:
    """Resume the guest over a new connection; OSError if nobody takes one."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_GREETING_WAIT)
        connection.connect(path)
        if not connection.recv(65536):
            raise ConnectionResetError
        connection.sendall(b'{"execute": "qmp_capabilities"}\n')
        return _resume(_Conversation(connection, qemu), migrated)


def _let_run(shared: socket.socket, qemu: int, path: str, migrated: bool) -> bool:
    try:
        return _resume(_Conversation(shared, qemu), migrated)
    except (_Gone, _Resumed):
        return True
    except OSError:
        # Its end of the connection is closed: only then does QEMU take another client.
        shared.close()
    while not select.select([qemu], [], [], 0)[0]:
        try:
            return _resume_anew(path, qemu, migrated)
        except (_Gone, _Resumed):
            return True
        except OSError:
            time.sleep(_RETRY)
    return True  # QEMU is gone, and its guest with it


def _watch(pipe: int, parent: int, heard: Callable[[bytes], object]) -> bytes:
    """Wait until vmdump has gone; its last word, or nothing if it never said one."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    death = -1
    # A child that vmdump's process has forked keeps the pipe open, so its death is watched as well.
    with contextlib.suppress(OSError):
        death = os.pidfd_open(parent)
        poll.register(death, select.POLLIN)
    word = b""
    dead = os.getppid() != parent
    while True:
        ready = [] if dead else [fd for fd, _ in poll.poll()]
        dead = dead or death in ready
        while dead or pipe in ready:
            try:
                said = os.read(pipe, 64)
            except BlockingIOError:
                break
            word = said.removesuffix(END)[-1:] or word
            heard(word)
            if not said or said.endswith(END):
                return word
        if dead:
            return word


def guard(pipe: int, parent: int, heard: Callable[[bytes], object] = lambda _: None) -> bytes:
    """Say that the guardian is ready, and wait until vmdump has gone.

    Parameters
    ----------
    pipe : int
        From which words are read.
    parent : int
        vmdump's process.
    heard : callable
        Called with each last word.

    Returns
    -------
    bytes
        The last of ARM, ARM_MIGRATED and DISARM; nothing if there was none.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(pipe, False)
    os.write(1, READY)
    os.close(1)
    return _watch(pipe, parent, heard)


def main(arguments: list[str]) -> int:
    """Guard until vmdump ends; see the module."""
    pipe, parent = int(arguments[0]), int(arguments[1])
    shared, qemu = socket.socket(fileno=int(arguments[2])), os.pidfd_open(int(arguments[3]))
    word = guard(pipe, parent)
    armed = word in (ARM, ARM_MIGRATED)
    return 0 if not armed or _let_run(shared, qemu, arguments[4], word == ARM_MIGRATED) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
