"""The guardian: lets a guest run again whose vmdump died while it had stopped it.

A program of its own, started as ``python -I -S guardian_main.py SOCKET_FD PIPE_FD PARENT PATH``; only the
standard library, since it has to be up in a few milliseconds. A QMP server serves one client at a time,
so it cannot have a connection of its own: it shares vmdump's, and writes to it only after vmdump is gone.

It reads single bytes from the pipe: A before the guest is stopped, D after it runs again. Once the pipe
ends or the parent is dead, it lets the guest run if the last byte was A, and ends: 0 if the guest runs or
its QEMU is gone, 1 if it may stand still.
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

_ID = "vmdump-guardian"
_ANSWER_WAIT = 5.0
"""Seconds that a QEMU gets to answer: stopping and starting drains and syncs its disks."""
_RECONNECT_WAIT = 10.0
_RETRY = 0.05
_CONT = json.dumps({"execute": "cont", "id": _ID}).encode() + b"\n"
# vmdump may have died in the middle of a command: a control character brings QEMU's parser back to its
# start, at the price of one error message (docs/interop/qmp-spec, "known-good state").
_RESYNC = b"\x1b"


def _resume(connection: socket.socket) -> bool:
    """Let the guest run; OSError if QEMU does not answer here, False if it refuses."""
    connection.settimeout(_ANSWER_WAIT)
    connection.sendall(_RESYNC + _CONT)
    pending = b""
    deadline = time.monotonic() + _ANSWER_WAIT
    while time.monotonic() < deadline:
        data = connection.recv(65536)
        if not data:
            raise ConnectionResetError
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            # The first line may be the rest of an answer of which vmdump read the start.
            with contextlib.suppress(ValueError, AttributeError):
                answer = json.loads(line)
                if answer.get("id") == _ID:
                    return "return" in answer
    raise TimeoutError


def _resume_anew(path: str) -> bool:
    """Let the guest run over a new connection; OSError if there is none to be had."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_WAIT)
        connection.connect(path)
        if not connection.recv(65536):
            raise ConnectionResetError
        connection.sendall(b'{"execute": "qmp_capabilities"}\n')
        return _resume(connection)


def _let_run(shared: socket.socket, path: str) -> bool:
    try:
        return _resume(shared)
    except OSError:
        # Its end of the connection is closed: only then does QEMU take another client.
        shared.close()
    deadline = time.monotonic() + _RECONNECT_WAIT
    while time.monotonic() < deadline:
        try:
            return _resume_anew(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return True  # nobody listens: QEMU is gone, and its guest with it
        except OSError:
            time.sleep(_RETRY)
    return False


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
            if not state:
                return armed
            armed = state[-1:] == ARM
        if dead:
            return armed


def main(arguments: list[str]) -> int:
    """Guard until vmdump ends; see the module."""
    shared = socket.socket(fileno=int(arguments[0]))
    pipe, parent, path = int(arguments[1]), int(arguments[2]), arguments[3]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(pipe, False)
    os.write(1, READY)
    os.close(1)
    armed = _watch(pipe, parent)
    return 0 if not armed or _let_run(shared, path) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
