"""A dump that can begin: the guest is held, laid out, written and reported."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from vmdump.errors import RequestError, naming_shortages
from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import VmcoreinfoChoice
from vmdump.operations.report import Report
from vmdump.operations.room import demand_room, telling_what_is_missing
from vmdump.pipeline.control import Control
from vmdump.sinks.opening import open_sink
from vmdump.sources.base import Source
from vmdump.units import counted, format_size
from vmdump.writers.base import Ahead, Writer
from vmdump.writers.tally import Tally

if TYPE_CHECKING:
    from vmdump.operations.exclusion import Exclusion

_log = logging.getLogger("vmdump")
__all__ = ["Choice", "Request", "Target", "check_keywords", "make_request"]


@runtime_checkable
class Choice(Protocol):
    """A format, and how its pages are packed; :class:`vmdump.Candidate` is one."""

    @property
    def format(self) -> str:
        """Name of the format."""

    @property
    def engine(self) -> str:
        """Name of the engine; empty for ELF."""

    @property
    def level(self) -> int | None:
        """The engine's level; None for ELF."""


def check_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords as Python does, but for the function that was called, and with the nearest one.

    Raises
    ------
    TypeError
        A keyword is not known.
    """
    for name in given:
        if name not in known:
            from difflib import get_close_matches  # few are misspelt

            nearest = get_close_matches(name, sorted(known), 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(sorted(known))}"
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; {hint}")


class Target(NamedTuple):
    """The dump to be made of a guest.

    Attributes
    ----------
    output : str or path
        As for :func:`vmdump.dump`.
    format : str
        As it was named.
    writer : Writer
        Of that format.
    threads : int
        Worker threads.
    force : bool
        Replace an existing output file.
    parts : sequence of str
        The files of a split set, which the writer can write; empty for a dump in one file.
    exclude : int
        Types of pages that are left out, in makedumpfile's bits.
    keeps : bool
        What was written stays, under another name, if the rest cannot be.
    """

    output: str | os.PathLike[str]
    format: str
    writer: Writer
    threads: int
    force: bool = False
    parts: Sequence[str] = ()
    exclude: int = 1
    keeps: bool = False

    @property
    def filters(self) -> bool:
        """Whether types of pages are left out that take more than a look at their contents."""
        return self.exclude > 1


class _Written(NamedTuple):
    name: str
    layout: str
    guest: Guest
    guest_bytes: int
    tally: Tally


class Request(NamedTuple):
    """A dump that was checked and can begin.

    Attributes
    ----------
    source : Source
        Holds the guest.
    owned : bool
        The source is closed when the request has run.
    target : Target
        The dump.
    vmcoreinfo : VmcoreinfoChoice
        Which one the guest is to have.
    pause : bool
        As for :func:`vmdump.dump`.
    """

    source: Source
    owned: bool
    target: Target
    vmcoreinfo: VmcoreinfoChoice
    pause: bool

    @naming_shortages()
    def run(self, control: Control) -> Report:
        """Dump the guest.

        Parameters
        ----------
        control : Control
            Told of every chunk.

        Raises
        ------
        VmdumpError
            As for :func:`vmdump.dump`.
        """
        began = time.perf_counter()
        try:
            written = self._write_set(control) if self.target.parts else self._write(control)
            control.finish()
            return self._report(written, time.perf_counter() - began)
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Close what was opened for it; what :meth:`run` ends with."""
        if self.owned:
            self.source.close()

    def _write(self, control: Control) -> _Written:
        writer, threads = self.target.writer, self.target.threads
        _log.info("output: %s, %s by %s", self.target.output, self.target.format, writer.engine or "nothing")
        with (
            open_sink(
                self.target.output,
                force=self.target.force,
                keeps=self.target.keeps,
                cancelled=control.cancelled,
            ) as sink,
            ExitStack() as stack,
        ):
            layout = writer.layout_for(sink)
            sink.begin(self.source.guest.files, self.source.in_use)
            ahead: Ahead | None = None
            room_demanded = False
            exclusion = self._exclusion(control)

            def write_ahead(running: Guest) -> None:
                nonlocal ahead, room_demanded
                control.enter("packing")
                wanted = running if exclusion is None else exclusion.of_running(running)
                if wanted is not None:
                    demand_room(wanted, writer, sink)
                    room_demanded = True
                if wanted is not None and writer.writes_ahead(sink):
                    ahead = writer.write_ahead(wanted, sink, threads=threads, control=control)
                if ahead is not None:
                    stack.enter_context(closing(ahead))

            stack.enter_context(telling_what_is_missing([sink], control))
            prepares = exclusion is not None or writer.writes_ahead(sink)
            if not prepares:
                demand_room(self.source.guest, writer, sink)
                room_demanded = True
            guest = stack.enter_context(self._held(control, exclusion, write_ahead if prepares else None))
            sink.begin(guest.files)
            if not room_demanded:
                demand_room(guest, writer, sink)
            plan = (ahead or writer).plan(guest)
            control.start(plan.memory_size)
            tally = plan.write(sink, threads=threads, control=control, release=self._release_in(control))
            control.enter("sync")
        return _Written(sink.name, layout, guest, plan.guest_size, tally)

    def _write_set(self, control: Control) -> _Written:
        """Write the parts of a set one after another, each with all threads."""
        from vmdump.sinks.set import SinkSet  # few dumps are split

        target, tally = self.target, Tally()
        with (
            SinkSet(
                list(target.parts), force=target.force, keeps=target.keeps, cancelled=control.cancelled
            ) as parts,
            telling_what_is_missing(parts.sinks, control),
            self._held(control, self._exclusion(control)) as guest,
        ):
            demand_room(guest, target.writer, parts.sinks[0])
            plans = target.writer.plan_split(guest, len(target.parts))
            control.start(sum(plan.memory_size for plan in plans))
            for sink in parts.sinks:
                sink.begin(guest.files)
            for plan, sink in zip(plans, parts.sinks, strict=True):
                tally += plan.write(sink, threads=target.threads, control=control, release=_keep)
            control.enter("sync")
        return _Written(os.fspath(target.output), "standard", guest, guest.size, tally)

    @contextmanager
    def _held(
        self, control: Control, exclusion: Exclusion | None, prepare: Callable[[Guest], object] | None = None
    ) -> Iterator[Guest]:
        """Hold the source's guest, with the VMCOREINFO that is wanted, without what is excluded."""
        vmcoreinfo = self.vmcoreinfo._replace(progress=control.side_work())
        with self.source.held(
            pause=self.pause, cancelled=control.cancelled, prepare=prepare, vmcoreinfo=vmcoreinfo
        ) as guest:
            since = self.source.paused_since
            control.enter("writing" if since is None else "paused", since)
            yield guest if exclusion is None else exclusion.of(guest)

    def _release_in(self, control: Control) -> Callable[[], None]:
        """Give what lets the guest run again, and notes that."""

        def release() -> None:
            paused = self.source.paused_since is not None
            self.source.release()
            if paused:
                control.enter("writing")

        return release

    def _exclusion(self, control: Control) -> Exclusion | None:
        if not self.target.filters:
            return None
        from vmdump.operations.exclusion import Exclusion  # most dumps leave out nothing

        return Exclusion(self.target.exclude, threads=self.target.threads, check=control.check)

    def _report(self, written: _Written, seconds: float) -> Report:
        guest, target = written.guest, self.target
        return Report(
            output=written.name,
            format=target.format,
            layout=written.layout,
            codec=target.writer.codec,
            engine=target.writer.engine,
            level=target.writer.level,
            threads=target.threads,
            guest_bytes=written.guest_bytes,
            unreadable=tuple(guest.unreadable),
            fuzzy=guest.fuzzy,
            paused_seconds=self.source.paused_seconds,
            seconds=seconds,
            parts=tuple(target.parts),
            vmcoreinfo_found=None if guest.told.found is None else guest.told.found.address,
            lost_pages=guest.lost_pages,
            remarks=tuple(self.source.remarks),
            dump_level=guest.dump_level,
            doubtful_pages=0 if guest.filtered is None else guest.filtered.doubtful_pages,
            has_vmcoreinfo=guest.told.is_whole,
            **asdict(written.tally),
        )


def _keep() -> None:
    """Do not release a guest of which there is more to read."""


@naming_shortages()
def make_request(
    open_source: Callable[[], tuple[Source, bool]],
    target: Target,
    *,
    vmcoreinfo: bytes | str | os.PathLike[str] | None,
    search: bool,
    pause: bool = True,
) -> Request:
    """Open a source, and check the request, before anything is created.

    Parameters
    ----------
    open_source : callable
        Gives the source, and whether it is to be closed when the request has run.
    target : Target
        The dump.
    vmcoreinfo, search, pause
        As for :func:`vmdump.dump`.

    Raises
    ------
    VmdumpError
        As for :func:`vmdump.dump`.
    """
    writer = target.writer
    choice = VmcoreinfoChoice.read(vmcoreinfo, search=search and writer.takes_found_vmcoreinfo)
    if isinstance(choice.given, int) and not choice.search:
        raise RequestError("search: found:N names what a search finds", parameter="search")
    began = time.perf_counter()
    request = Request(*open_source(), target, choice, pause)
    try:
        guest = choice.without_search(request.source.guest)
        _log.info(
            "source opened: %s, %s, %s, %s: %.3f s",
            guest.arch.name,
            format_size(guest.size),
            counted(len(guest.blocks), "block"),
            "runs" if guest.changes else "does not change",
            time.perf_counter() - began,
        )
        if target.parts:
            writer.plan_split(guest, len(target.parts))
        else:
            writer.check(guest)
        if target.filters and guest.told.is_whole and not guest.changes:
            from vmdump.guest.linux.page_types.types import demand_vmcoreinfo
            from vmdump.guest.linux.page_types.way_out import DUMP_ALL, naming_way_out

            with naming_way_out(DUMP_ALL):
                demand_vmcoreinfo(guest)
    except BaseException:
        request.give_up()
        raise
    return request
