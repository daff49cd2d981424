"""A terminal of some width, and what is to be seen on it: pyte is the judge of escape sequences."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass

import pyte

ROWS = 400
"""Enough for whatever a command prints at once."""
PATIENCE = 60


@dataclass(frozen=True)
class Shown:
    """What a command left on the screen; `raw` is what it wrote, `colours` whether a character had one."""

    code: int
    raw: bytes
    lines: list[str]
    colours: bool


def on_terminal(
    words: Sequence[object], columns: int, *, program: Sequence[str] = (), **environment: str
) -> Shown:
    """Run vmdump, or another program, with all its streams on a terminal."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("4H", ROWS, columns, 0, 0))
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    command = [*(program or (sys.executable, "-m", "vmdump")), *map(str, words)]
    parts = []
    with subprocess.Popen(
        command,
        stdin=side,
        stdout=side,
        stderr=side,
        env={**inherited, "TERM": "xterm-256color", **environment},
    ) as process:
        os.close(side)
        try:
            while piece := os.read(main, 65536):
                parts.append(piece)
        except OSError:  # EIO: nobody has the other side any more
            pass
        code = process.wait(PATIENCE)
    os.close(main)
    screen = pyte.Screen(columns, ROWS)
    pyte.ByteStream(screen).feed(b"".join(parts))
    cells = [cell for row in screen.buffer.values() for cell in row.values()]
    coloured = any(cell.bold or cell.fg != "default" or cell.bg != "default" for cell in cells)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return Shown(code, b"".join(parts), lines, coloured)
