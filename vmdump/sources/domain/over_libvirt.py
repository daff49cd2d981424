"""The way to a guest over libvirt."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shlex
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from vmdump.errors import CapabilityError, QmpError
from vmdump.formats.elf_headers import ElfHeaders
from vmdump.sources.domain import guardian_main
from vmdump.sources.domain.commands import DomainCommands
from vmdump.sources.domain.places import find_places
from vmdump.sources.libvirt.domain import Domain
from vmdump.sources.libvirt.fifo import headers_through_fifo
from vmdump.sources.process.memory import ProcessMemory
from vmdump.sources.process.process import Mapping, Process, covering, merged
from vmdump.sources.qemu import guardian_main as guardians_words
from vmdump.sources.qemu.emulator import Emulator
from vmdump.sources.qemu.guardian import Guardian
from vmdump.sources.qemu.host_address import demand_contiguous, host_address, host_address_line

__all__ = ["OverLibvirt"]

_log = logging.getLogger("vmdump")
_PROGRAM = re.compile(r"(?:qemu-system-|qemu-)?([a-z0-9_]+)")
_TARGETS = {"i686": "i386", "armv6l": "arm", "armv7l": "arm", "ppc64le": "ppc64", "mipsel": "mips"}
"""QEMU's names for libvirt's architectures, where they differ."""
_NO_DUMP = "not currently supported"


class OverLibvirt:
    """The way to a guest over libvirt: a :class:`vmdump.sources.qemu.way.Way`.

    Parameters
    ----------
    domain : Domain
        The guest's; closed with this.

    Attributes
    ----------
    commands : DomainCommands
        libvirt, asked in QMP's words.
    remarks : tuple of str
        That the domain was marked as tainted.

    Raises
    ------
    VmdumpError
        As for :class:`vmdump.sources.domain.commands.DomainCommands`.
    """

    has_quick_headers = False
    respondent = "libvirt"

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._known: dict[tuple[int, int], tuple[int, list[Mapping]]] = {}
        self.remarks: tuple[str, ...] = ()
        self.commands = DomainCommands(domain)

    @property
    def pid(self) -> int:
        """QEMU's process, 0 if it is in a namespace that this process cannot see."""
        return self._domain.pid

    @property
    def cure(self) -> str:
        """How the guest is resumed by hand."""
        return f"'virsh -c {self._domain.connection.uri} resume {shlex.quote(self._domain.name)}'"

    def demand_dumpable(self) -> None:
        """Check that the guest's memory is not encrypted.

        Raises
        ------
        CapabilityError
            It is.
        """
        kind = self._domain.fact("launchSecurity", "type")
        if kind:
            raise CapabilityError(
                f"{self._domain.path}: the guest's memory is encrypted ({kind}): nothing outside it can read "
                "it; use kdump inside the guest"
            )

    def emulator(self) -> Emulator:
        """Tell what the QEMU is, by libvirt's description."""
        domain = self._domain
        arch = domain.fact("os/type", "arch")
        program = Path(domain.fact("devices/emulator")).name
        match = _PROGRAM.fullmatch(program) if program.startswith("qemu-system-") else None
        target = match[1] if match else _TARGETS.get(arch, arch)
        machine = domain.fact("os/type", "machine")
        # Not its version: libvirt tells that of what is installed, and starts it for that if need be.
        return Emulator(target, f"{machine}-machine" if machine else "", "")

    def headers(self, cancelled: Callable[[], bool]) -> ElfHeaders:
        """Let libvirt begin a dump; see :func:`vmdump.sources.libvirt.fifo.headers_through_fifo`.

        Raises
        ------
        CapabilityError
            QEMU does not dump guests of this architecture.
        VmdumpError
            As for that function.
        """
        try:
            return headers_through_fifo(self._domain, cancelled)
        except QmpError as refusal:
            if _NO_DUMP not in str(refusal):
                raise
            raise CapabilityError(
                f"{self._domain.path}: QEMU cannot dump a guest of this architecture, and libvirt does not "
                "tell where its memory is; give QEMU a QMP socket of its own, and use qmp:"
            ) from refusal

    def host_addresses(
        self,
        ranges: Sequence[tuple[int, int]],
        process: Process,
        mappings: Sequence[Mapping],
        cancelled: Callable[[], bool],
    ) -> list[int]:
        """Find ranges by their contents, unless they are where they were the last time.

        Raises
        ------
        LayoutError
            A range cannot be found.
        VmdumpError
            As of :meth:`vmdump.sources.libvirt.connection.Connection.failure`.
        """
        runs = merged(mappings)
        unknown = []
        for start, size in ranges:
            begin, place = self._known.get((start, size), (0, []))
            if not place or covering(runs, begin, begin + size) != place:
                unknown.append((start, size))
        if unknown:
            self._find(ranges, unknown, process, mappings, runs)
        return [self._known[each][0] for each in ranges]

    def _find(
        self,
        ranges: Sequence[tuple[int, int]],
        unknown: Sequence[tuple[int, int]],
        process: Process,
        mappings: Sequence[Mapping],
        runs: Sequence[Mapping],
    ) -> None:
        memory = ProcessMemory(process)
        try:
            found = find_places(ranges, mappings, memory, self._domain.peek, process.kept)
        except QmpError as error:
            if not error.error_class:
                raise
            found = [None] * len(ranges)  # libvirt cannot show the memory, for want of disk space perhaps
        finally:
            memory.close()
        for (start, size), begin in zip(ranges, found, strict=True):
            if begin is None and (start, size) in unknown:
                begin = self._ask_monitor(start, size)
            if begin is not None:
                self._known[start, size] = begin, covering(runs, begin, begin + size)

    def _ask_monitor(self, start: int, size: int) -> int:
        """Ask QEMU's monitor where a block is, which marks the domain as tainted."""
        domain = self._domain
        tainted = "custom-monitor" in " ".join(self._messages())
        begin, last = (self._gpa2hva(address) for address in (start, start + size - 1))
        demand_contiguous(domain.path, start, size, begin, last)
        if not tainted:
            remark = (
                "libvirt marks the domain as tainted (custom-monitor): nothing but QEMU's monitor could tell "
                f"where its memory at {start:#x} is"
            )
            self.remarks = (*self.remarks, remark)
            _log.info("%s: %s", domain.path, remark)
        return begin

    def _messages(self) -> list[str]:
        handle = self._domain.handle
        if not hasattr(handle, "messages"):
            return []
        try:
            return list(self._domain.call(handle.messages, 0, what="messages"))
        except QmpError as error:
            if not error.error_class:
                raise
            return []

    def _gpa2hva(self, address: int) -> int:
        ask = import_module("libvirt_qemu")
        line = host_address_line(address)
        human = ask.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        text = self._domain.call(ask.qemuMonitorCommand, self._domain.handle, line, human, what=line)
        return host_address(self._domain.path, address, text)

    def start_guardian(self, process: Process) -> Guardian:
        """Start the guardian, which has a connection of its own, and the process' lock.

        Raises
        ------
        SourceError
            It cannot be started.
        """
        spec = importlib.util.find_spec("libvirt")
        folder = os.path.dirname(spec.origin) if spec is not None and spec.origin else ""
        domain = self._domain
        words = (guardians_words.__file__, folder, str(process.pid), domain.connection.uri, domain.uuid)
        return Guardian(guardian_main.__file__, words, (process.lock,))

    def leave(self) -> None:
        """Ask nothing any more."""
        self.commands.stop()

    def close(self, *, hang_up: bool) -> None:
        """Close the connection: nobody else has it."""
        self.commands.close()
