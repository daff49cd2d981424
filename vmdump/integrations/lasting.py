"""A guest that stays open for as long as somebody looks at it."""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmdump.opening import opened

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["LastingGuest"]


class LastingGuest:
    """Hold a guest for programs that never say when they are done: its source is closed with the last holder.

    Nor does a source that this has opened outlive the interpreter. One that the caller has opened stays his.

    Attributes
    ----------
    guest : Guest
        As it was when it was opened; what is read of a live guest is as it is now.

    Parameters
    ----------
    source, vmcoreinfo, search
        As for :func:`vmdump.opening.opened`.

    Raises
    ------
    VmdumpError
        As of :func:`vmdump.opening.opened`.
    """

    def __init__(
        self,
        source: AnySource,
        *,
        vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
        search: bool = True,
    ) -> None:
        with ExitStack() as stack:
            self.guest = stack.enter_context(opened(source, vmcoreinfo=vmcoreinfo, search=search))
            self._end = weakref.finalize(self, stack.pop_all().close)

    def close(self) -> None:
        """Close what was opened for this now; closing twice does nothing."""
        self._end()
