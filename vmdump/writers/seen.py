"""Pages of a filtered guest that were read for telling types, and need not be read again for the dump."""

from __future__ import annotations

from vmdump.guest.guest import Guest
from vmdump.pipeline.ahead import PagesAhead
from vmdump.sinks.base import Sink

__all__ = ["note_read", "pages_ahead"]


def pages_ahead(guest: Guest, page_size: int, sink: Sink) -> PagesAhead:
    """Make a table of pages ahead, whose hashes compare with those that the guest's types were told by.

    Raises
    ------
    SinkError
        Creating its file failed.
    """
    told = None if guest.filtered is None else guest.filtered.ahead
    return PagesAhead(page_size, sink.folder, key=None if told is None else told.key)


def note_read(pages: PagesAhead, guest: Guest) -> None:
    """Note what was read of the guest that is held, in pages of the same size."""
    told = None if guest.filtered is None else guest.filtered.ahead
    if told is not None and told.key is pages.key and told.page_size == pages.page_size:
        pages.read_now = told.hashes
