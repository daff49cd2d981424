"""``python -m vmdump``, and the command ``vmdump``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
from typing import NoReturn

from vmdump.cli.signals import Signals
from vmdump.cli.streams import open_standard_streams

_OBJECTS = 100_000
"""Objects made since the last search for garbage that lead to the next."""


def run() -> NoReturn:
    """Run the command and end the process."""
    open_standard_streams()
    # What is imported stays, and has hundreds of thousands of objects: to look for garbage after each 700
    # takes 15 ms until the command begins.
    gc.set_threshold(_OBJECTS)
    # Importing the rest takes 0.1 s: a signal that comes meanwhile is handled then. What comes while Python
    # itself starts, nobody can handle.
    with Signals(process=True) as signals:
        from vmdump.cli.main import run_line

        code = run_line(sys.argv[1:], signals)
    _end(code)


def _end(code: int) -> NoReturn:
    """End the process; Python would take apart first, for 10 ms, what was imported.

    What is to be done at the end is done, and where something still runs or cannot be flushed, Python ends.
    """
    atexit._run_exitfuncs()
    if threading.active_count() == 1:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
