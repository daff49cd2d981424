"""The way to a guest over QMP."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vmdump.errors import Cancelled, CapabilityError, GuestBusy
from vmdump.formats.elf_headers import ElfHeaders
from vmdump.sources.process.process import Mapping, Process
from vmdump.sources.qemu import guardian_main
from vmdump.sources.qemu.dump_headers import ask_headers
from vmdump.sources.qemu.emulator import MACHINE, Emulator, ask_emulator
from vmdump.sources.qemu.guardian import Guardian
from vmdump.sources.qemu.host_address import demand_contiguous, host_address, host_address_line
from vmdump.sources.qemu.monitor import Monitor
from vmdump.sources.qemu.reroute import find_reroute

if TYPE_CHECKING:
    from vmdump.sources.libvirt.domain import Domain

__all__ = ["OverQmp"]

_ASKED_AT_ONCE = 4096
_LIBVIRT_WAIT = 10.0
"""Seconds; it takes 0.02. libvirt itself would wait 30 for whoever has the domain in use."""


class OverQmp:
    """The way to a guest over QMP: a :class:`vmdump.sources.qemu.way.Way`.

    Parameters
    ----------
    monitor : str or Monitor
        Path of a QMP socket; or a monitor that others use as well: that stays open when the way is closed.
        It is closed all the same where vmdump cannot resume the guest, because the guardian has to use the
        connection then.

    Attributes
    ----------
    commands : Monitor
        The monitor.

    Raises
    ------
    SourceError, QmpError
        As for :class:`vmdump.sources.qemu.monitor.Monitor`.
    """

    remarks: Sequence[str] = ()
    respondent = "QEMU"
    cure = "'cont' at its monitor"

    def __init__(self, monitor: str | Monitor) -> None:
        self._shared = not isinstance(monitor, str)
        self._left = False
        self._domain: Domain | None = None
        # The last thing: of what is interrupted behind it, nobody would close it.
        self.commands = Monitor(monitor) if isinstance(monitor, str) else monitor

    @property
    def pid(self) -> int:
        """QEMU's process, 0 if it is in a namespace that this process cannot see."""
        return self.commands.pid

    def demand_dumpable(self) -> None:
        """Find out who begins a dump without harm, and that the guest's memory is not encrypted.

        Raises
        ------
        CapabilityError
            Nobody does, or it is.
        QmpError
            QEMU does not answer.
        """
        self._domain = find_reroute(self.commands)
        ask = self.commands.execute_if_known
        support = ask("qom-get", {"path": MACHINE, "property": "confidential-guest-support"})
        kind = ask("qom-get", {"path": support, "property": "type"}) if support else None
        if not kind and (ask("query-sev") or {}).get("enabled"):
            kind = "sev-guest"
        if kind or support:
            raise CapabilityError(
                f"{self.commands.path}: the guest's memory is encrypted ({kind or support}): "
                "nothing outside it can read it; use kdump inside the guest"
            )

    def emulator(self) -> Emulator:
        """Ask the QEMU what it is; QmpError if it does not tell."""
        return ask_emulator(self.commands)

    @property
    def has_quick_headers(self) -> bool:
        """Whether QEMU itself is asked: libvirt takes 20 ms."""
        return self._domain is None

    def headers(self, cancelled: Callable[[], bool]) -> ElfHeaders:
        """Let QEMU begin a dump; or libvirt, where its daemon may not hear of one that it did not begin.

        Raises
        ------
        GuestBusy
            libvirt lets it wait: the guest may be paused meanwhile.
        VmdumpError
            As of :func:`vmdump.sources.qemu.dump_headers.ask_headers`, or
            :func:`vmdump.sources.libvirt.fifo.headers_through_fifo`.
        """
        if self._domain is None:
            return ask_headers(self.commands, cancelled)
        from vmdump.sources.libvirt.fifo import headers_through_fifo

        limit, late = time.monotonic() + _LIBVIRT_WAIT, False

        def stop() -> bool:
            nonlocal late
            late = time.monotonic() > limit
            return late or cancelled()

        try:
            return headers_through_fifo(self._domain, stop)
        except Cancelled as error:
            if not late:
                raise
            raise GuestBusy(
                f"{self.commands.path}: libvirt does not begin a dump within {_LIBVIRT_WAIT:.0f} s: its "
                "daemon hangs, or somebody else is at work on the domain; try again",
                state="job",
            ) from error

    def host_addresses(
        self,
        ranges: Sequence[tuple[int, int]],
        process: Process,
        mappings: Sequence[Mapping],
        cancelled: Callable[[], bool],
    ) -> list[int]:
        """Ask QEMU for the addresses of the first and the last byte of each range.

        Raises
        ------
        LayoutError
            There is no memory, or it is not contiguous in QEMU.
        QmpError
            QEMU does not answer.
        Cancelled
            `cancelled` returned true.
        """
        bounds = [start for start, _ in ranges] + [start + size - 1 for start, size in ranges]
        addresses = self.commands.wait(self._ask_addresses(bounds), cancelled=cancelled)
        begins, lasts = addresses[: len(ranges)], addresses[len(ranges) :]
        for (start, size), begin, last in zip(ranges, begins, lasts, strict=True):
            demand_contiguous(self.commands.path, start, size, begin, last)
        return begins

    async def _ask_addresses(self, addresses: list[int]) -> list[int]:
        found = []
        ask = self.commands.ask
        # Many at once: one by one each takes the time of a round trip, and the guest is paused.
        for first in range(0, len(addresses), _ASKED_AT_ONCE):
            part = addresses[first : first + _ASKED_AT_ONCE]
            lines = [host_address_line(address) for address in part]
            texts = await asyncio.gather(
                *(ask("human-monitor-command", {"command-line": line}) for line in lines)
            )
            for address, text in zip(part, texts, strict=True):
                found.append(host_address(self.commands.path, address, text))
        return found

    def start_guardian(self, process: Process) -> Guardian:
        """Start the guardian, which has the connection and the process' lock open as well.

        Raises
        ------
        SourceError
            It cannot be started.
        """
        connection = self.commands.connection.fileno()
        words = (str(connection), str(process.pid), os.path.abspath(self.commands.path))
        return Guardian(guardian_main.__file__, words, (connection, process.lock))

    def leave(self) -> None:
        """Ask nothing any more: the guardian reads the connection now."""
        # Two readers of one connection would take the answers from each other.
        self._left = True
        self.commands.stop()

    def close(self, *, hang_up: bool) -> None:
        """Close the monitor, unless others use it; see :meth:`Monitor.close`."""
        try:
            if self._domain is not None:
                self._domain.close()
        finally:
            if self._left or not self._shared:
                self.commands.close(hang_up=hang_up)
