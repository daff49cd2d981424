"""Where bytes, or what a regular expression describes, are in a guest's memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vmdump.errors import naming_shortages
from vmdump.guest.linux.choice import AS_TOLD
from vmdump.opening import session
from vmdump.pipeline.workers import check_threads
from vmdump.readers.search import MAX_LENGTH, Wanted, search, wanted

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vmdump.opening import AnySource

__all__ = ["find"]


@naming_shortages()
def find(
    source: AnySource,
    pattern: Buffer | re.Pattern[bytes],
    *,
    begin: int | None = None,
    length: int | None = None,
    max_length: int = MAX_LENGTH,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    skipped: Callable[[int, int], object] | None = None,
) -> Iterator[int]:
    """Find bytes, or what a regular expression describes, in a guest's memory.

    Memory without gaps is searched as if it were one buffer: matches go across pages and blocks. Pages that
    are excluded from a dump, or cannot be read, are gaps: nothing matches in them or across them. A live
    guest runs on; what is read may change meanwhile.

    Parameters
    ----------
    source : str, path, sequence of paths, Source, buffer, or list of blocks
        A dump, raw memory, or a live guest, as for :func:`vmdump.dump`.
    pattern : bytes-like, or compiled regular expression of bytes
        Of bytes, every place is found, those that overlap included. Of a regular expression, what
        :func:`re.finditer` finds: no matches that overlap, and ``^`` and ``$`` mean the ends of memory
        without gaps.
    begin, length : int, optional
        Matches lie in ``[begin, begin + length)``, guest-physical addresses; all memory, if not given.
    max_length : int
        Of a regular expression: how many bytes a match has, with all that it looks at behind or ahead; up to
        1 MiB. A longer match ends after as many bytes, if it can end there; else it is none.
    threads : int, optional
        Threads that read, unpack and look for bytes; the processors this process may use, if not given.
        Regular expressions hold the GIL: with them, threads only read side by side.
    progress : callable, optional
        Called with (done, total) in bytes of guest memory.
    skipped : callable, optional
        Called with ranges ``[begin, end)`` of memory that could not be read; ascending.

    Yields
    ------
    int
        Guest-physical addresses, ascending.

    Raises
    ------
    RequestError
        The pattern is empty, longer than 1 MiB, or matches no bytes at all; or a number is out of range.
    VmdumpError
        The guest cannot be opened or read, as for :func:`vmdump.dump`: when the first address is asked for.

    Examples
    --------
    >>> list(find(b"to be or not to be".ljust(4096, b"."), b"to be"))
    [0, 13]
    """
    what = wanted(pattern, begin=begin, length=length, max_length=max_length)
    return _addresses(source, what, check_threads(threads), progress, skipped)


def _addresses(
    source: AnySource,
    what: Wanted,
    threads: int,
    progress: Callable[[int, int], None] | None,
    skipped: Callable[[int, int], object] | None,
) -> Iterator[int]:
    """Open the guest for as long as addresses are asked for."""
    with session(source) as it, it.held(pause=False, cancelled=lambda: False, vmcoreinfo=AS_TOLD) as guest:
        yield from search(
            guest,
            what,
            threads=threads,
            advance=(lambda done: None) if progress is None else lambda done: progress(done, guest.size),
            skipped=(lambda begin, end: None) if skipped is None else skipped,
        )
