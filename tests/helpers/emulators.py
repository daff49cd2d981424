"""QEMUs without a system, which never run an instruction: what counts is how they were started."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QEMU = "qemu-system-x86_64"
PATIENCE = 60
Start = Callable[..., int]


@contextmanager
def emulators() -> Iterator[Start]:
    """start(*words, until=path, prefix=(), **options of Popen): the process of a new QEMU.

    `until` is a file that it has made when this returns. They end with the context, or with this process.
    """
    running: list[subprocess.Popen[bytes]] = []

    def start(*words: object, until: Path | None = None, prefix: tuple[str, ...] = (), **options: Any) -> int:
        command = ["setpriv", "--pdeathsig", "KILL", *prefix, QEMU, "-M", "q35", "-S", "-nodefaults"]
        process = subprocess.Popen(
            [*command, "-m", "32", "-display", "none", *map(str, words)],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, **options},
        )
        running.append(process)
        limit = time.monotonic() + PATIENCE
        while not (_is_emulator(process.pid) and (until is None or until.exists())):
            assert process.poll() is None, "QEMU has ended"
            assert time.monotonic() < limit, "QEMU does not start"
            time.sleep(0.01)
        return process.pid

    try:
        yield start
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _is_emulator(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(QEMU.encode())


def greeting(path: Path) -> socket.socket:
    """Connect to a monitor and wait until it has said something: now it is taken."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    client.recv(1)
    return client
