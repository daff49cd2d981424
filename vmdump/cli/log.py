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
from collections.abc import Mapping
from typing import Any

import click

from vmdump.cli.printing import say, say_for_now, say_json

__all__ = ["begin_log", "log_as_json"]

_KEY = "vmdump.cli.log"
_JSON_KEY = "vmdump.cli.log.json"


class _Handler(logging.Handler):
    def __init__(self, meta: Mapping[str, Any]) -> None:
        super().__init__()
        self._began = time.time()
        self._meta = meta
        self._lines: queue.SimpleQueue[tuple[str, float, str] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="vmdump-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; it is written a moment later."""
        self._lines.put((record.levelname.lower(), record.created - self._began, record.getMessage()))

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            level, seconds, message = line
            if self._meta.get(_JSON_KEY):
                shown = {"event": "log", "level": level, "seconds": round(seconds, 3), "message": message}
                say_json(shown, err=True)
                continue
            if sys.stderr.isatty():
                say_for_now("")  # a bar may be there
            say(f"vmdump: {seconds:8.3f} s  {message}", err=True)

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
    logger, handler = logging.getLogger("vmdump"), _Handler(root.meta)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.end()

    root.call_on_close(end)


def log_as_json(context: click.Context) -> None:
    """Let each line of the log be one of JSON, whether it has begun or not.

    Parameters
    ----------
    context : click.Context
        As for :func:`begin_log`.
    """
    context.find_root().meta[_JSON_KEY] = True
