"""The log of a guest's Linux kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vmdump.errors import ExcludedPage, ReadError, VmdumpError
from vmdump.guest.linux.kernel_log import LogRecord, read_log
from vmdump.opening import opened_in_part

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["dmesg"]


def dmesg(
    source: AnySource,
    *,
    vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
    search: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[LogRecord]:
    """Read the log of a guest's Linux kernel, the oldest record first.

    Parameters
    ----------
    source : str, path, sequence of paths, Source, buffer, or list of blocks
        A dump or a guest, as :func:`vmdump.dump` takes it.
    vmcoreinfo, search
        As for :func:`vmdump.dump`.
    progress : callable, optional
        Called with (done, total) in bytes of memory, while VMCOREINFO is looked for, if that takes longer
        than a second.

    Yields
    ------
    LogRecord

    Raises
    ------
    RequestError
        `vmcoreinfo` is not VMCOREINFO, or has a number that was not found.
    CapabilityError
        The guest has no VMCOREINFO, or that of a kernel without a log.
    TranslationError
        An address of the kernel cannot be translated.
    FormatError
        The log's sizes make no sense.
    ReadError, SourceError, CodecError
        Memory of the log is not in the dump, or cannot be read.
    """
    with opened_in_part(source, vmcoreinfo=vmcoreinfo, search=search, progress=progress) as (guest, damage):
        try:
            yield from read_log(guest)
        except VmdumpError as error:
            if damage:  # it is not excluded, and the page tables are not wrong: it is lost
                text = f"{damage}; the log is not in what is left"
                if isinstance(error, ExcludedPage):
                    raise ReadError(text, address=error.address) from error
                error.args = (text, *error.args[1:])
            raise
