"""The log of the logger ``vmdump`` on standard error.

Lines are written by a thread of its own: whoever logs something may have a guest paused, and a terminal may
be stopped.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time

import click

from vmdump.cli.printing import say, say_for_now

__all__ = ["begin_log"]

_KEY = "vmdump.cli.log"


class _Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._began = time.time()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="vmdump-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; it is written a moment later."""
        self._lines.put(f"vmdump: {record.created - self._began:8.3f} s  {record.getMessage()}")

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            if sys.stderr.isatty():
                say_for_now("")  # a bar may be there
            say(line, err=True)

    def end(self) -> None:
        """Write what is left."""
        self._lines.put(None)
        self._thread.join()


def begin_log(context: click.Context) -> None:
    """Write what vmdump logs until the command ends; doing it twice does nothing.

    Parameters
    ----------
    context : click.Context
        Of the command, or of the group.
    """
    root = context.find_root()
    if _KEY in root.meta:
        return
    root.meta[_KEY] = True
    logger, handler = logging.getLogger("vmdump"), _Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.end()

    root.call_on_close(end)
