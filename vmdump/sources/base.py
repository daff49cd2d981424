"""Where guests come from: a session that gives the guest of one moment."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import AS_TOLD, TOLD_OR_FOUND, VmcoreinfoChoice

__all__ = ["HeldGuest", "LiveSource", "Source", "StillSource"]


class Source(ABC):
    """A session with a guest. A context manager.

    Whatever a :class:`Guest` can be asked, a source can be asked as well: it answers for `guest`.
    """

    @property
    @abstractmethod
    def guest(self) -> Guest:
        """The guest as it was when the source was opened."""

    @abstractmethod
    def held(
        self,
        *,
        pause: bool,
        cancelled: Callable[[], bool],
        prepare: Callable[[Guest], object] | None = None,
        vmcoreinfo: VmcoreinfoChoice = TOLD_OR_FOUND,
    ) -> AbstractContextManager[Guest]:
        """Give the guest as it is now, paused if it runs and `pause` is true, and resumed afterwards.

        Its memory must be read inside the context; :meth:`release` resumes it earlier.

        Parameters
        ----------
        pause : bool
            Pause a running guest.
        cancelled : callable
            Asked while waiting for the guest.
        prepare : callable, optional
            Called with the guest as it is just before it is paused, if it is: what is done while it runs
            need not be done while it is paused.
        vmcoreinfo : VmcoreinfoChoice
            Which VMCOREINFO it is to have; what has to be looked for is, before the pause.

        Raises
        ------
        GuestBusy, QmpError, AccessDenied, SourceError
            The guest cannot be dumped now.
        RequestError
            There is no VMCOREINFO of the number that is wanted.
        """

    @abstractmethod
    def release(self) -> None:
        """Resume the guest, if :meth:`held` has paused it: all its memory has been read."""

    @property
    def paused_seconds(self) -> float | None:
        """For how long the guest was paused because of vmdump; None if it does not run."""
        return None

    @property
    def paused_since(self) -> float | None:
        """When vmdump began to pause the guest that is held, by `time.monotonic`; None if it has not."""
        return None

    @property
    def remarks(self) -> Sequence[str]:
        """What others see of the visit, that they would not expect: one clause each."""
        return ()

    @property
    def in_use(self) -> Sequence[os.stat_result]:
        """What nothing may be written to; see :attr:`Guest.in_use`."""
        return self.guest.in_use

    @abstractmethod
    def close(self) -> None:
        """Give back what the source has open; closing twice does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class _NeverPaused(Source):
    """A session in which nothing is to be done."""

    @contextmanager
    def held(
        self,
        *,
        pause: bool,
        cancelled: Callable[[], bool],
        prepare: Callable[[Guest], object] | None = None,
        vmcoreinfo: VmcoreinfoChoice = TOLD_OR_FOUND,
    ) -> Iterator[Guest]:
        """Give the guest as it is, with the VMCOREINFO that is wanted."""
        yield vmcoreinfo.at_once(self.guest, cancelled)

    def release(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Give back what is open."""


class StillSource(Guest, _NeverPaused):
    """A guest that does not run: it is its own session."""

    @property
    def guest(self) -> Guest:
        """The guest itself."""
        return self


class HeldGuest(_NeverPaused):
    """A guest that somebody else holds.

    Parameters
    ----------
    guest : Guest
        As :meth:`Source.held` has given it.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    @property
    def guest(self) -> Guest:
        """The guest."""
        return self._guest


class LiveSource(Source):
    """A guest that may run, and is another one each time that it is held."""

    def __getattr__(self, name: str) -> Any:
        """Ask the guest for what is not the session's: its memory, its registers, what it tells."""
        # A name with an underscore would be one of the session's own, which its constructor has not set yet.
        if name.startswith("_") or name == "guest":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.guest, name)

    def with_vmcoreinfo(self, text: bytes) -> LiveSource:
        """Give the same session, whose guest has another VMCOREINFO, whatever it tells.

        Parameters
        ----------
        text : bytes
            ``KEY=value`` lines.
        """
        return _LiveView(self, VmcoreinfoChoice(text))

    def without_search(self) -> LiveSource:
        """Give the same session, whose guest has the VMCOREINFO that it tells and no other."""
        return _LiveView(self, AS_TOLD)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.guest!r}>"


class _LiveView(LiveSource):
    """A session with the guest of another one, and a VMCOREINFO that was chosen before it is held."""

    def __init__(self, source: LiveSource, vmcoreinfo: VmcoreinfoChoice) -> None:
        self._source = source
        self._vmcoreinfo = vmcoreinfo

    @property
    def guest(self) -> Guest:
        """The guest as it was when the source was opened."""
        return self._vmcoreinfo.without_search(self._source.guest)

    def held(
        self,
        *,
        pause: bool,
        cancelled: Callable[[], bool],
        prepare: Callable[[Guest], object] | None = None,
        vmcoreinfo: VmcoreinfoChoice = TOLD_OR_FOUND,
    ) -> AbstractContextManager[Guest]:
        """Hold the guest; one that is given now comes before the one that was chosen."""
        if vmcoreinfo.given is None:
            vmcoreinfo = self._vmcoreinfo._replace(progress=vmcoreinfo.progress)
        return self._source.held(pause=pause, cancelled=cancelled, prepare=prepare, vmcoreinfo=vmcoreinfo)

    def release(self) -> None:
        """Resume the guest."""
        self._source.release()

    @property
    def paused_seconds(self) -> float | None:
        """For how long the guest was paused."""
        return self._source.paused_seconds

    @property
    def paused_since(self) -> float | None:
        """When vmdump began to pause it."""
        return self._source.paused_since

    @property
    def remarks(self) -> Sequence[str]:
        """What others see of the visit."""
        return self._source.remarks

    @property
    def in_use(self) -> Sequence[os.stat_result]:
        """What nothing may be written to."""
        return self._source.in_use

    def close(self) -> None:
        """Close the session."""
        self._source.close()
