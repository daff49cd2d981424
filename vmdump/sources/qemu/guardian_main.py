"""The guardian: lets a guest run again whose vmdump died while it had stopped it.

A program of its own, ``python -I -S guardian_main.py SOCKET_FD PIPE_FD PARENT_PID QEMU_PID PATH``; only the
standard library, since it has to be up in a few milliseconds. A QMP server serves one client at a time, so
it cannot have a connection of its own: it shares vmdump's, and writes to it only after vmdump is gone.

It reads single bytes from the pipe: A before the guest is stopped, D after it runs again, E to end. After E,
the end of the pipe or the death of its parent it lets the guest run if it is still armed, and ends: 0 if the
guest runs or its QEMU is gone, 1 if QEMU refuses. It waits for a QEMU that does not answer as long as there
is one: QEMU may be draining its disks, or be frozen, and nobody else lets this guest run.
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

READY = b"R"
ARM = b"A"
DISARM = b"D"
END = b"E"

STOPPED = "paused"
"""QEMU's word for the state that its command `stop` gives."""

_ID = "vmdump-guardian"
_GREETING_WAIT = 5.0
"""Seconds for a greeting: one that does not come means that QEMU serves another client at the moment."""
_RETRY = 0.1
# vmdump may have died in the middle of a command: a control character brings QEMU's parser back to its
# start, at the price of one error message (docs/interop/qmp-spec, "known-good state").
_RESYNC = b"\x1b"


def _ask(connection: socket.socket, command: str) -> dict[str, object] | None:
    """Execute a command and give what it returns, None if QEMU refuses; OSError if the connection ends."""
    connection.sendall(json.dumps({"execute": command, "id": _ID}).encode() + b"\n")
    pending = b""
    while data := connection.recv(65536):
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            # The first line may be the rest of an answer of which vmdump read the start.
            with contextlib.suppress(ValueError, AttributeError):
                answer = json.loads(line)
                if answer.get("id") == _ID:
                    returned: dict[str, object] | None = answer.get("return")
                    return returned
    raise ConnectionResetError


def _resume(connection: socket.socket) -> bool:
    """Let the guest run; OSError if the connection ends, False if QEMU refuses."""
    connection.settimeout(None)
    connection.sendall(_RESYNC)
    status = _ask(connection, "query-status")
    if status is not None and status["status"] != STOPPED:
        return True  # it does not stand still because of vmdump: it runs, or has migrated away
    return _ask(connection, "cont") is not None


def _resume_anew(path: str) -> bool:
    """Let the guest run over a new connection; OSError if there is none to be had."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_GREETING_WAIT)
        connection.connect(path)
        if not connection.recv(65536):
            raise ConnectionResetError
        connection.sendall(b'{"execute": "qmp_capabilities"}\n')
        return _resume(connection)


def _let_run(shared: socket.socket, qemu: int, path: str) -> bool:
    try:
        return _resume(shared)
    except OSError:
        # Its end of the connection is closed: only then does QEMU take another client.
        shared.close()
    while not select.select([qemu], [], [], 0)[0]:
        try:
            return _resume_anew(path)
        except OSError:
            time.sleep(_RETRY)
    return True  # QEMU is gone, and its guest with it


def _watch(pipe: int, parent: int) -> bool:
    """Wait until vmdump has gone; True if the guest was stopped then."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    death = -1
    # A child that vmdump's process has forked keeps the pipe open, so its death is watched as well.
    with contextlib.suppress(OSError):
        death = os.pidfd_open(parent)
        poll.register(death, select.POLLIN)
    armed = False
    dead = os.getppid() != parent
    while True:
        ready = [] if dead else [fd for fd, _ in poll.poll()]
        dead = dead or death in ready
        while dead or pipe in ready:
            try:
                state = os.read(pipe, 64)
            except BlockingIOError:
                break
            last = state.removesuffix(END)[-1:]
            armed = last == ARM if last else armed
            if not state or state.endswith(END):
                return armed
        if dead:
            return armed


def main(arguments: list[str]) -> int:
    """Guard until vmdump ends; see the module."""
    shared = socket.socket(fileno=int(arguments[0]))
    pipe, parent, qemu = int(arguments[1]), int(arguments[2]), os.pidfd_open(int(arguments[3]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(pipe, False)
    os.write(1, READY)
    os.close(1)
    armed = _watch(pipe, parent)
    return 0 if not armed or _let_run(shared, qemu, arguments[4]) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
