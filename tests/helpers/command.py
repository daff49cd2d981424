"""The command line in a process of its own: as it is, on a terminal, and with its memory measured."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

RunVmdump = Callable[..., "subprocess.CompletedProcess[bytes]"]

PATIENCE = 60
"""Seconds; the slowest that is measured takes 8 on a machine with nothing else to do."""

MEASURE = """
import json, os, subprocess, sys
null = subprocess.DEVNULL
child = subprocess.Popen(sys.argv[1:], stdin=null, stdout=null, stderr=subprocess.PIPE)
said = child.stderr.read().decode()
_, status, usage = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([child.returncode, said, usage.ru_maxrss << 10]))
"""


def run(*args: object, prefix: Sequence[str] = (), **options: Any) -> subprocess.CompletedProcess[bytes]:
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*prefix, sys.executable, "-m", "vmdump", *map(str, args)]
    return subprocess.run(command, check=False, **(streams | options))


def on_a_terminal(words: list[str]) -> bytes:
    main, side = pty.openpty()
    parts = []

    def read() -> None:
        try:
            while piece := os.read(main, 65536):
                parts.append(piece)
        except OSError:  # EIO: nobody has the other side any more
            pass

    thread = threading.Thread(target=read)
    thread.start()
    environment = {**os.environ, "COLUMNS": "3000", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "vmdump", *words]
    subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=side, stderr=side, env=environment, check=False, timeout=60
    )
    os.close(side)
    thread.join()
    os.close(main)
    return b"".join(parts).replace(b"\r\n", b"\n")


def run_measured(*arguments: object) -> tuple[int, str, int]:
    """Run vmdump; give its exit code, what it said on stderr, and its peak of resident bytes."""
    # In between stands a small process: a child's peak begins with what its parent has.
    words = [sys.executable, "-I", "-S", "-c", MEASURE, sys.executable, "-m", "vmdump", *map(str, arguments)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            told, _ = process.communicate(timeout=PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    code, said, peak = json.loads(told)
    return code, said, peak
