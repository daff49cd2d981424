"""What to do where types of pages cannot be told: each operation has a way out of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vmdump.errors import CapabilityError, ReadError

__all__ = ["DUMP_ALL", "naming_way_out"]

DUMP_ALL = "give its own with --vmcoreinfo FILE, or dump all pages with -d 1"
"""What dumps can do."""


@contextmanager
def naming_way_out(way_out: str) -> Iterator[None]:
    """Say what to do when types of pages cannot be told inside.

    Parameters
    ----------
    way_out : str
        An imperative, without a full stop.

    Raises
    ------
    CapabilityError
        What came out with the way out behind it; what is not in memory as well.
    """
    try:
        yield
    except (CapabilityError, ReadError) as error:
        raise CapabilityError(f"page types: {error}; {way_out}") from error
