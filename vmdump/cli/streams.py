"""The standard streams, which a daemon may have closed."""

from __future__ import annotations

import io
import os
import sys

__all__ = ["open_standard_streams"]

_STDERR = 2


def open_standard_streams() -> None:
    """Fill the descriptors 0 to 2 where a daemon closed them: no file of the dump may become one of them.

    They are opened for reading, so that a dump to a closed standard output stays an error.
    """
    while True:
        fd = os.open(os.devnull, os.O_RDONLY)
        if fd > _STDERR:
            os.close(fd)
            break
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error's: names need not fit a locale
