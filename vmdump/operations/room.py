"""Whether a dump fits where it goes: told before the guest is paused, and by how much it did not."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmdump.errors import SinkError
from vmdump.guest.guest import Guest
from vmdump.pipeline.control import Control
from vmdump.sinks.base import Sink
from vmdump.units import format_size
from vmdump.writers.base import Writer

if TYPE_CHECKING:
    from vmdump.guest.blocks import Pages

__all__ = ["demand_room", "forecast_size", "telling_what_is_missing"]

_log = logging.getLogger("vmdump")
_SAMPLE = 4 << 20
"""Bytes: what engines are trained on, too; 256 places tell the size to within a few percent."""
_HEAD = 1 << 20
_DESCRIPTOR = 24
_SURE = 1.1
_DOUBTFUL = 0.9
"""A forecast of so much of the room: it cannot fit, or it may not."""
_LEAST_SHARE = 0.01
"""Of the guest, from which on what is missing can be told."""


def forecast_size(guest: Guest, writer: Writer) -> int:
    """Tell how large a dump will be, from a sample of the guest's pages.

    Parameters
    ----------
    guest : Guest
        May run; what it excludes is not in the dump.
    writer : Writer
        Of the format.

    Returns
    -------
    int
        Bytes on the disk: zeros of an ELF file are holes.

    Raises
    ------
    SourceError
        The memory cannot be read.
    """
    from vmdump.guest.whole import whole_pages
    from vmdump.pipeline.sample import take_sample

    sample = take_sample(whole_pages(guest.blocks, guest.page_size), page_size=guest.page_size, size=_SAMPLE)
    kept = 1 - guest.excluded_size / guest.size
    if not len(sample.pages):
        return _HEAD
    pages = sample.pages[sample.pages.any(axis=1)]
    share = _packed(pages, writer) / sample.pages.nbytes
    descriptors = guest.size // guest.page_size * _DESCRIPTOR if writer.codec else 0
    return _HEAD + int(kept * (sample.data_bytes * share + descriptors))


def _packed(pages: Pages, writer: Writer) -> int:
    if not writer.codec or not len(pages):
        return pages.nbytes
    import numpy as np

    from vmdump.codecs.registry import find_engine, make_packer

    page_size = pages.shape[1]
    packer = make_packer(find_engine(writer.codec, writer.engine), page_size, writer.level)
    out: Pages = np.zeros(packer.bound(len(pages)), np.uint8)
    sizes = np.zeros(len(pages), np.uint32)
    packer.pack(np.ascontiguousarray(pages).reshape(-1), out, sizes)
    return int(sizes.sum())


def demand_room(guest: Guest, writer: Writer, sink: Sink) -> None:
    """Refuse a dump that cannot fit, and warn of one that may not.

    Where the guest itself would fit, nothing is read. Where a file system compresses, memory that is written
    as it is may fit all the same: that is warned of only.

    Parameters
    ----------
    guest : Guest
        As for :func:`forecast_size`.
    writer : Writer
        Of the format.
    sink : Sink
        Where it goes; of a set, the first one: all are in one folder.

    Raises
    ------
    SinkError
        With ENOSPC.
    """
    room = sink.room()
    if room is None or guest.size + guest.size // 64 + _HEAD <= room:
        return
    size = forecast_size(guest, writer)
    _log.info("%s: forecast: about %s; %s are free", sink.name, format_size(size), format_size(room))
    if size > room * _SURE and (writer.codec or not sink.compresses()):
        raise SinkError(
            f"the dump will have about {format_size(size)}, and {format_size(room)} are free: "
            f"about {format_size(size - room)} are missing",
            path=sink.name,
            errno=errno.ENOSPC,
            hint="nothing was written; free some space, or choose another folder or a stronger compression",
        )
    if size > room * _DOUBTFUL:
        _log.warning(
            "%s: the dump may not fit: it will have about %s, and %s are free",
            sink.name,
            format_size(size),
            format_size(room),
        )


@contextmanager
def telling_what_is_missing(sinks: Sequence[Sink], control: Control) -> Iterator[None]:
    """Let an error of a full disk say how much more room was needed, as far as can be told."""
    try:
        yield
    except SinkError as error:
        done, total = control.done - control.base, control.total - control.base
        used = sum(sink.used() for sink in sinks)
        if error.errno == errno.ENOSPC and used and total and done / total > _LEAST_SHARE and done < total:
            missing = used * (total - done) // done
            text = (
                f"{error}; {done / total:.0%} of the guest is there, about {format_size(missing)} are missing"
            )
            error.args = (text,)
        raise
