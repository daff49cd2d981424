"""A QMP client over a bare socket, which sees every byte; and a QEMU and a `vmdump serve` for it."""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 30.0
"""Seconds for whatever is waited for."""


class QmpClient:
    """A connection to a QMP server.

    Parameters
    ----------
    path : str
        Of the socket.
    capabilities : sequence of str, optional
        Those to be enabled; None leaves the negotiation to the test.

    Attributes
    ----------
    greeting : dict
        What the server said first.
    events : list of dict
        All that came so far.
    """

    def __init__(self, path: str | Path, capabilities: Sequence[str] | None = ()) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self._received = bytearray()
        self.events: list[dict[str, Any]] = []
        self.greeting = self.message()
        if capabilities is not None:
            enabled = {"enable": list(capabilities)} if capabilities else {}
            assert self.ask("qmp_capabilities", **enabled) == {"return": {}}

    def message(self) -> dict[str, Any]:
        """Wait for the next message, whatever it is; EOFError at the end."""
        looked_at = 0
        while (end := self._received.find(b"\r\n", looked_at)) < 0:
            looked_at = max(len(self._received) - 1, 0)
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            self._received += data
        message = json.loads(self._received[:end])
        del self._received[: end + 2]
        if "event" in message:
            self.events.append(message)
        return dict(message)

    def reply(self) -> dict[str, Any]:
        """Wait for the next message that is no event."""
        while "event" in (message := self.message()):
            pass
        return message

    def event(self, name: str) -> dict[str, Any]:
        """Wait for the next event of a name."""
        while (message := self.message()).get("event") != name:
            assert "event" in message, message
        return message

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes, the first of them with descriptors."""
        if fds:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
            self.socket.sendmsg([data[:1]], [rights])
            data = data[1:]
        self.socket.sendall(data)

    def post(self, command: str, *, fds: Sequence[int] = (), number: object = None, **arguments: Any) -> None:
        """Send a command; underscores in names of arguments are hyphens."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request: dict[str, Any] = {"execute": command, **({"arguments": named} if named else {})}
        if number is not None:
            request["id"] = number
        self.send(json.dumps(request).encode(), fds)

    def ask(self, command: str, *, fds: Sequence[int] = (), **arguments: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer."""
        self.post(command, fds=fds, **arguments)
        return self.reply()

    def until_reply(self, command: str, **arguments: Any) -> list[Any]:
        """Send a command; the names of the events up to the answer, and the answer."""
        self.post(command, **arguments)
        found: list[Any] = []
        while "event" in (message := self.message()):
            found.append(message["event"])
        return [*found, message]

    def line(self, line: str) -> str:
        """Execute a line of the human monitor."""
        return str(self.ask("human-monitor-command", command_line=line)["return"])

    def at_end(self) -> bool:
        """Wait for the end of the connection, past all that still comes."""
        with contextlib.suppress(ConnectionResetError, EOFError):
            while True:
                self.message()
        return True

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class Started:
    """A process with a socket."""

    process: subprocess.Popen[bytes]
    path: str

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        return self.process.wait(PATIENCE)


def wait_for_socket(process: subprocess.Popen[bytes], path: Path, *, connect: bool) -> None:
    """Wait until it is there, or until somebody listens there, who takes more than one client."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            if path.is_socket() and not (connect and probe.connect_ex(str(path))):
                return
        time.sleep(0.01)
    raise TimeoutError(f"{path}: nobody listens")


@contextlib.contextmanager
def start_qemu(folder: Path, *options: str, machine: str = "q35", memory: int = 64) -> Iterator[Started]:
    """Start a QEMU under TCG with a QMP socket."""
    path = folder / "qemu.qmp"
    words = ["-machine", machine, "-m", str(memory), "-accel", "tcg", "-display", "none", "-nodefaults"]
    process = subprocess.Popen(
        ["qemu-system-x86_64", *words, "-qmp", f"unix:{path},server,nowait", *options], cwd=folder
    )
    try:
        wait_for_socket(process, path, connect=False)
        yield Started(process, str(path))
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def start_serve(qemu: str, folder: Path, name: str = "clients.qmp", *, code: str = "") -> Iterator[Started]:
    """Start ``vmdump serve`` in front of a QMP socket; `code` is a program that runs the command."""
    path = folder / name
    program = ["-c", code] if code else ["-m", "vmdump"]
    process = subprocess.Popen(
        [sys.executable, *program, "serve", f"qmp:{qemu}", "--listen", str(path)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for_socket(process, path, connect=True)
        yield Started(process, str(path))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            assert process.stderr is not None
            process.stderr.close()


def until(true: Callable[[], object]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_open(pid: int, path: str | os.PathLike[str]) -> bool:
    """Tell whether a process has a file open."""
    target = os.path.realpath(path)
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{number}") == target:
                return True
    return False
