"""What an ELF core leaves out of a guest that was filtered: long runs only, by makedumpfile's rule."""

from __future__ import annotations

from vmdump.guest.guest import Guest

__all__ = ["for_core"]

_LONG = 256
"""Pages: makedumpfile's PFN_EXCLUDED. Each run that is left out takes a program header, of which most readers
take 65534 at most; shorter runs stay in the file, with what they hold."""


def for_core(guest: Guest) -> Guest:
    """Give the guest as it is in an ELF core: the guest itself, unless pages were left out by type."""
    if guest.filtered is None:
        return guest
    core: Guest = guest.filtered.only_long_runs(_LONG)
    return core
