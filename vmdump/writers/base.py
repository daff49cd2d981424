"""An output format: it checks a guest, lays it out, and writes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmdump.errors import RequestError, SinkError
from vmdump.formats.names import Layout
from vmdump.guest.guest import Guest
from vmdump.pipeline.control import Control
from vmdump.sinks.base import Sink
from vmdump.writers.tally import Tally

__all__ = ["Ahead", "Plan", "Writer", "demand_seekable"]


@dataclass(frozen=True)
class Plan(ABC):
    """A guest of one moment laid out in a format: where everything goes, before any of it is written.

    Attributes
    ----------
    guest : Guest
        The guest.
    guest_size : int
        Bytes of its memory that are dumped.
    memory_size : int
        Bytes that :meth:`write` goes through: the same in the pages of the format.
    """

    guest: Guest
    guest_size: int
    memory_size: int

    @abstractmethod
    def write(self, sink: Sink, *, threads: int, control: Control, release: Callable[[], None]) -> Tally:
        """Write the dump.

        Parameters
        ----------
        sink : Sink
            One of those that :meth:`Writer.layout_for` accepts.
        threads : int
            Worker threads.
        control : Control
            Told of every chunk.
        release : callable
            Lets the guest run again; called when all its memory has been read.

        Raises
        ------
        SourceError, SinkError, CodecError, Cancelled
            And nothing is committed.
        """


class Ahead(ABC):
    """What was written of a running guest before its pause."""

    @abstractmethod
    def plan(self, guest: Guest) -> Plan:
        """Lay out the guest that is held around what was written; where that no longer fits, clear the sink.

        Raises
        ------
        VmdumpError
            As of :meth:`Writer.plan`.
        SinkError
            Clearing the sink failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds; closing twice does nothing."""


class Writer(ABC):
    """An output format with its options.

    Attributes
    ----------
    codec, engine : str
        What compresses the pages; empty where nothing does.
    level : int or None
        Of the engine.
    takes_found_vmcoreinfo : bool
        True if VMCOREINFO is searched for in the memory of a guest that does not tell it.
    """

    codec = ""
    engine = ""
    level: int | None = None
    takes_found_vmcoreinfo = True

    def check(self, guest: Guest) -> None:
        """Refuse a guest that the format does not fit, at little cost and before anything is created.

        Raises
        ------
        RequestError
            The guest lacks what is asked for.
        CapabilityError, LayoutError
            The format has no place for it.
        """
        self.plan(guest)

    def layout_for(self, sink: Sink) -> Layout:
        """Tell in which layout it is written there: ``standard`` or ``flattened``.

        Raises
        ------
        SinkError
            The layout that is asked for needs a seekable sink.
        """
        return "standard"

    @abstractmethod
    def plan(self, guest: Guest) -> Plan:
        """Lay a guest out.

        Raises
        ------
        VmdumpError
            As of :meth:`check`.
        SourceError
            The memory that describes the rest of it cannot be read.
        """

    def writes_ahead(self, sink: Sink) -> bool:
        """Tell whether :meth:`write_ahead` helps there."""
        return False

    def write_ahead(self, guest: Guest, sink: Sink, *, threads: int, control: Control) -> Ahead | None:
        """Write a guest while it runs, so that only what has changed is left to do when it is held.

        Parameters
        ----------
        guest : Guest
            The guest as it is now.
        sink : Sink
            One for which :meth:`writes_ahead` is true.
        threads, control
            As for :meth:`Plan.write`.

        Returns
        -------
        Ahead or None
            None if nothing was written.

        Raises
        ------
        SourceError, SinkError, CodecError, Cancelled
            And nothing is committed.
        """
        return None

    def check_split(self) -> None:
        """Refuse to write a split set.

        Raises
        ------
        RequestError
            Files of this kind are never parts of a set.
        """
        raise RequestError(
            "split: only kdump files of the standard layout can be parts of a set", parameter="split"
        )

    def plan_split(self, guest: Guest, count: int) -> Sequence[Plan]:
        """Lay a guest out in several files; only where :meth:`check_split` raises nothing.

        Raises
        ------
        RequestError
            There are fewer pages than files.
        VmdumpError
            As of :meth:`plan`.
        """
        raise NotImplementedError


def demand_seekable(sink: Sink) -> None:
    """Refuse a sink that takes bytes in order only.

    Raises
    ------
    SinkError
        It takes bytes in order only.
    """
    if not sink.seekable:
        raise SinkError(
            "the standard layout needs a seekable output", path=sink.name, hint="use --layout flattened"
        )
