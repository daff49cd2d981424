"""Which VMCOREINFO a guest is to have: what it tells, what is given, or what is found in its memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import numpy as np

from vmdump.errors import RequestError
from vmdump.guest.blocks import MAX_PAGE_SIZE
from vmdump.guest.files import GuestFile
from vmdump.guest.linux.found import FOUND, is_vmcoreinfo

if TYPE_CHECKING:
    from vmdump.guest.linux.find_vmcoreinfo import Searchable

_Guest = TypeVar("_Guest", bound="Searchable")

__all__ = ["AS_TOLD", "TOLD_OR_FOUND", "VmcoreinfoChoice", "read_vmcoreinfo"]


def _never() -> bool:
    return False


def read_vmcoreinfo(given: bytes | str | os.PathLike[str]) -> bytes | int:
    """Take what a user gives for VMCOREINFO.

    Parameters
    ----------
    given : bytes, str or path
        Its lines, a file that holds them, or ``found:N``.

    Returns
    -------
    bytes or int
        The lines, or N.

    Raises
    ------
    RequestError
        They do not look like VMCOREINFO, or N is not a number.
    SourceError
        The file cannot be read.
    """
    if isinstance(given, bytes):
        return _checked(given)
    if isinstance(given, str) and given.startswith(FOUND):
        number = given.removeprefix(FOUND)
        if not (number.isascii() and number.isdigit()):
            raise RequestError(
                f"vmcoreinfo: {given} is not one of those that 'vmdump info' lists; a file of that name is "
                f"./{given}",
                parameter="vmcoreinfo",
            )
        return int(number[:9])
    with closing(GuestFile(given)) as file:
        text = np.empty(min(file.size, MAX_PAGE_SIZE + 1), np.uint8)
        file.read_into(0, text)
    return _checked(text.tobytes())


def _checked(text: bytes) -> bytes:
    """Give the lines of a text, with or without zeros behind, that is VMCOREINFO."""
    lines = text.rstrip(b"\0")
    if not is_vmcoreinfo(lines):
        raise RequestError(
            "vmcoreinfo: these are not VMCOREINFO lines, which begin with OSRELEASE= and tell PAGESIZE",
            parameter="vmcoreinfo",
        )
    return lines


class VmcoreinfoChoice(NamedTuple):
    """Which VMCOREINFO a guest is to have.

    Attributes
    ----------
    given : bytes, int or None
        Its lines, whatever the guest tells; or the number of those that are found in its memory.
    search : bool
        Look for it in the guest's memory where nothing tells it.
    progress : callable, optional
        Told (done, total) in bytes of memory by a search that takes longer than a second.
    """

    given: bytes | int | None = None
    search: bool = True
    progress: Callable[[int, int], object] | None = None

    @classmethod
    def read(
        cls,
        given: bytes | str | os.PathLike[str] | None,
        *,
        search: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ) -> Self:
        """Take what a user gives; see :func:`read_vmcoreinfo`."""
        return cls(None if given is None else read_vmcoreinfo(given), search, progress)

    def without_search(self, guest: _Guest) -> _Guest:
        """Give the guest with what is given, else with what it tells; nothing is looked for."""
        if isinstance(self.given, bytes):
            guest = guest.with_vmcoreinfo(self.given)
        return guest.without_search()

    def lazily(self, guest: _Guest) -> _Guest:
        """Give the guest with it; what has to be looked for is, when it is first asked for.

        Raises
        ------
        RequestError, SourceError
            As for :meth:`at_once`, of a number.
        LayoutError
            Raw memory is not where it was taken to be.
        """
        if not self.search:
            guest = guest.without_search()
        if isinstance(self.given, bytes):
            guest = guest.with_vmcoreinfo(self.given)
        guest = self._telling_progress(guest)
        return self.at_once(guest) if isinstance(self.given, int) else guest

    def at_once(self, guest: _Guest, cancelled: Callable[[], bool] = _never) -> _Guest:
        """Give the guest with it; what has to be looked for is, and is in the guest's notes then.

        Parameters
        ----------
        guest : Guest
            One that tells its VMCOREINFO, or is not to be searched, keeps what it tells.
        cancelled : callable
            Asked after each 4 MiB; ends the search.

        Raises
        ------
        RequestError
            Nothing of this number was found.
        SourceError
            The memory cannot be read.
        """
        if isinstance(self.given, bytes):
            return guest.with_vmcoreinfo(self.given)
        if self.given is None and not self.search:
            return guest.without_search()
        if self.given is None and (guest.told.is_whole or not guest.told.search):
            return guest
        from vmdump.guest.linux.find_vmcoreinfo import findings_of  # few guests have to be searched

        findings = findings_of(self._telling_progress(guest), cancelled, anew=guest.changes)
        found = findings.chosen if self.given is None else findings.number(self.given)
        return guest if found is None else guest.with_vmcoreinfo(found.text, found=found)

    def _telling_progress(self, guest: _Guest) -> _Guest:
        return guest if self.progress is None else guest.telling_progress(self.progress)


TOLD_OR_FOUND = VmcoreinfoChoice()
"""What the guest tells, else what is found."""
AS_TOLD = VmcoreinfoChoice(search=False)
"""What the guest tells, and no other."""
