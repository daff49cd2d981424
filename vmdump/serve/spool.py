"""Flattened files of a guest that runs: made as standard ones first, which can be packed before the pause."""

from __future__ import annotations

import os
from collections.abc import Callable

from vmdump.formats import flattened
from vmdump.operations.report import Report
from vmdump.operations.request import Request
from vmdump.pipeline.control import Control
from vmdump.sinks.opening import open_sink
from vmdump.sources.base import Source

__all__ = ["dump_flattened"]

_TEMPORARY = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
_RECORD = 4 << 20
"""Bytes of a record."""


def dump_flattened(
    source: Source, output: str, check: Callable[[str, str], Request], control: Control
) -> Report | None:
    """Dump into a file without a name, and write that out in the flattened layout when the guest runs again.

    A flattened file is a stream: of one that is written at once, nothing can be packed before the pause. This
    takes the room of two files for a moment.

    Parameters
    ----------
    source : Source
        The guest.
    output : str
        A path. A file there is replaced.
    check : callable
        Makes the request of an output and a layout.
    control : Control
        Told of every chunk.

    Returns
    -------
    Report or None
        None if there can be no such file, or the output is none: nothing was done.

    Raises
    ------
    VmdumpError
        As for :func:`vmdump.dump`.
    """
    if os.path.lexists(output) and not os.path.isfile(output):
        return None
    try:
        spool = os.open(os.path.dirname(output) or ".", _TEMPORARY, 0o600)
    except OSError:  # not all file systems have files without a name
        return None
    try:
        with open_sink(output, force=True, cancelled=control.cancelled) as sink:
            sink.begin(source.guest.files, source.in_use)
            report = check(f"fd:{spool}", "standard").run(control)
            channel = sink.channel()
            channel.write(flattened.file_header())
            size, offset = flattened.FILE_HEADER_SIZE, 0
            while data := os.pread(spool, _RECORD, offset):
                control.check()
                for part in (flattened.record(offset, len(data)), data):
                    channel.write(part)
                    size += len(part)
                offset += len(data)
            channel.write(flattened.END_MARK)
            channel.flush()
            sink.set_size(size + len(flattened.END_MARK))
            return report
    finally:
        os.close(spool)
