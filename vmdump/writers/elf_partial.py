"""What makes a readable ELF core of one that cannot be finished: its head, with the mark."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vmdump.errors import VmdumpError
from vmdump.guest.guest import Guest
from vmdump.interrupts import Deferred
from vmdump.sinks.base import Sink
from vmdump.writers.elf_head import ElfHead
from vmdump.writers.lanes import Lane, PlainFile

__all__ = ["kept_core"]


@contextlib.contextmanager
def kept_core(guest: Guest, head: ElfHead, sink: Sink, lane: Lane) -> Iterator[None]:
    """Let a sink that keeps have a core that is cut, if writing its memory fails.

    Memory lies in the order of its addresses, unless some was written ahead; readers take zeros for what is
    behind the end.

    Parameters
    ----------
    guest : Guest
        Whose memory it is.
    head : ElfHead
        Of the core; room for it is reserved.
    sink : Sink
        Where it goes.
    lane : Lane
        Through which memory is written.

    Raises
    ------
    SinkError
        There is no room for the head.
    """
    if sink.keeps:
        sink.reserve(len(head.content))
    try:
        yield
    except BaseException:
        if sink.keeps:
            with Deferred(), contextlib.suppress(VmdumpError, OSError):
                with contextlib.suppress(VmdumpError, OSError):
                    lane.finish()
                if sink.end() > len(head.content):
                    front = PlainFile(sink, _never).lane(0)
                    front.write(head.marked_incomplete(guest))
                    front.finish()
                    sink.keep()
        raise


def _never() -> bool:
    return False
