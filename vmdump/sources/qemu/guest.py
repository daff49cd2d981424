"""A live guest: attached to over QMP, stopped for the dump, and left as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Self

from vmdump.arch import arch_of_elf
from vmdump.errors import CapabilityError
from vmdump.formats.notes import fuzzy_note
from vmdump.guest.guest import Emulator, Guest
from vmdump.guest.linux.find_vmcoreinfo import FoundVmcoreinfo, findings_of
from vmdump.interrupts import Deferred
from vmdump.sources.qemu.attachment import Attachment
from vmdump.sources.qemu.byte_order import in_guests_byte_order
from vmdump.sources.qemu.layout import GuestLayout
from vmdump.sources.spec import check_options

__all__ = ["QemuGuest", "open_qemu"]


class _LaidOutGuest(Guest):
    """A live guest with the registers and the layout of one moment.

    Parameters
    ----------
    attachment : Attachment
        Stays the caller's.
    layout : GuestLayout
        Closed with the guest.
    vmcoreinfo : bytes or None
        Takes the place of what QEMU tells.
    fuzzy : bool
        It runs while it is read.
    """

    changes = True

    def __init__(
        self, attachment: Attachment, layout: GuestLayout, *, vmcoreinfo: bytes | None, fuzzy: bool = False
    ) -> None:
        self._attachment = attachment
        self._layout = layout
        self.fuzzy = fuzzy
        self.files = tuple(layout.files)
        qemus = layout.headers
        headers = in_guests_byte_order(qemus)
        super().__init__(
            layout.blocks,
            arch_of_elf(headers.machine, headers.elf_class, headers.byteorder),
            byteorder=headers.byteorder,
            elf_class=headers.elf_class,
            notes=headers.notes + (fuzzy_note(headers.byteorder) if fuzzy else b""),
            vmcoreinfo=vmcoreinfo,
        )
        self.given_notes, self.given_byteorder = qemus.notes, qemus.byteorder

    @property
    def unreadable(self) -> Sequence[tuple[int, int]]:  # type: ignore[override]
        """Ranges of which a read has failed."""
        return self._layout.lost.ranges()

    @property
    def paused_seconds(self) -> float:  # type: ignore[override]
        """For how long the guest stood still in the last dump, by QEMU's clock."""
        return self._attachment.paused_seconds

    @property
    def emulator(self) -> Emulator:  # type: ignore[override]
        """The target architecture and the machine that QEMU tells."""
        return self._attachment.emulator()

    @property
    def in_use(self) -> tuple[os.stat_result, ...]:  # type: ignore[override]
        """What QEMU has open: the guest's disks, among others."""
        return self._attachment.open_files()

    def watch(self) -> None:
        """Note how the guest is, if it is held: :meth:`release` looks whether it is still the same."""
        self._attachment.watch(self._layout)

    def release(self) -> None:
        """Let the guest run again, if it was stopped for this; SourceError if memory was unplugged."""
        self._attachment.release(self._layout.demand_in_place)

    def close(self) -> None:
        """Close the files; closing twice does nothing."""
        self._layout.close()


class QemuGuest(_LaidOutGuest):
    """A guest of a QEMU on this machine.

    What the attach finds can be read while the guest runs; :meth:`held` takes it anew.

    Parameters
    ----------
    path : str
        Of a QMP socket, ``-qmp unix:PATH,server,nowait``. QMP serves one client at a time.

    Raises
    ------
    SourceError
        There is no such socket, or what is behind it does not hold the guest's memory.
    AccessDenied
        This process may not read QEMU's memory.
    QmpError
        QEMU does not answer, or refuses to tell the layout.
    GuestBusy
        The guest migrates, or another dump of it runs.
    CapabilityError
        Its memory is encrypted.
    """

    finds_when_held = True

    def __init__(self, path: str) -> None:
        self._vmcoreinfo_given: bytes | None = None
        self._vmcoreinfo_found: FoundVmcoreinfo | None = None
        self._fresh = True
        attachment = Attachment(path)
        try:
            super().__init__(attachment, attachment.take_layout(lambda: False), vmcoreinfo=None)
            attachment.attached()
        except BaseException:
            attachment.close()
            raise

    def with_vmcoreinfo(self, text: bytes) -> Self:
        """Give the same guest with another VMCOREINFO, whatever QEMU tells."""
        other = super().with_vmcoreinfo(text)
        other._vmcoreinfo_given = text
        return other

    @contextmanager
    def held(
        self,
        *,
        pause: bool,
        cancelled: Callable[[], bool],
        prepare: Callable[[Guest], object] | None = None,
    ) -> Iterator[Guest]:
        """Give the guest as it is now; stopped, if it runs and `pause` is true, and running again after.

        Registers and layout are those inside the stop. Without `pause` a running guest is marked fuzzy.
        VMCOREINFO that QEMU does not tell is looked for in all of the guest's memory, before the stop.
        """
        attachment = self._attachment
        error: BaseException | None = None
        attachment.claim()
        try:
            running = attachment.refuse_busy()
            fuzzy = running and not pause
            # What a new attach has found is of now; asking QEMU again would stop the guest for a moment.
            fresh, self._fresh = self._fresh, False
            with nullcontext(self) if fresh else self._laid_out(cancelled, fuzzy=False) as guest:
                ready = self._with_vmcoreinfo(guest, cancelled, search=True)
                if running and pause and prepare is not None:
                    prepare(ready)
                    running = attachment.refuse_busy()
            attachment.hold(stop=running and pause, watch=not fuzzy, cancelled=cancelled)
            with self._laid_out(cancelled, fuzzy=fuzzy) as guest:
                guest.watch()
                yield self._with_vmcoreinfo(guest, cancelled, search=False)
                guest.release()
        except BaseException as raised:
            error = raised
            raise
        finally:
            with Deferred():
                try:
                    attachment.let_run(error)
                finally:
                    attachment.disclaim()

    def _with_vmcoreinfo(
        self, guest: _LaidOutGuest, cancelled: Callable[[], bool], *, search: bool
    ) -> _LaidOutGuest:
        """Add what was found in memory, if it still is of the kernel that is there, where QEMU tells none."""
        if guest.tells_vmcoreinfo:
            return guest
        found = self._vmcoreinfo_found if self.search else None
        if found is not None and not found.is_there(guest):
            found = None
        if found is None and search and self.search:
            guest.search_progress = self.search_progress
            found = self._vmcoreinfo_found = findings_of(guest, cancelled).chosen
        if found is None:
            return guest.without_search()
        other = guest.with_vmcoreinfo(found.text)
        other.found_vmcoreinfo = found
        return other

    def _laid_out(self, cancelled: Callable[[], bool], *, fuzzy: bool) -> _LaidOutGuest:
        layout = self._attachment.take_layout(cancelled)
        try:
            guest = _LaidOutGuest(self._attachment, layout, vmcoreinfo=self._vmcoreinfo_given, fuzzy=fuzzy)
            guest.found_vmcoreinfo = self.found_vmcoreinfo
            return guest
        except BaseException:
            layout.close()
            raise

    def close(self) -> None:
        """Let the guest run if it was stopped here, and end the connection; closing twice does nothing."""
        with Deferred():
            try:
                super().close()
            finally:
                self._attachment.close()


def open_qemu(path: str, options: dict[str, str]) -> QemuGuest:
    """Attach to a live guest: ``qmp:PATH``.

    Parameters
    ----------
    path : str
        Of a Unix socket; QMP over TCP does not tell whose memory to read.
    options : dict
        None exist.

    Raises
    ------
    RequestError
        An option was given.
    CapabilityError
        The address is a TCP one.
    VmdumpError
        As for :class:`QemuGuest`.
    """
    check_options(options, (), "qmp")
    host, colon, port = path.rpartition(":")
    if colon and port.isdigit() and not os.path.exists(path):
        raise CapabilityError(
            f"qmp:{path}: QMP over TCP reaches a QEMU whose memory cannot be read from here; run vmdump on "
            f"{host or 'its host'}, with a socket of -qmp unix:PATH,server,nowait"
        )
    return QemuGuest(path)
