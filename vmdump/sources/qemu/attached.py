"""A live guest: attached to, paused for the dump, and left as it was."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext

from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import TOLD_OR_FOUND, VmcoreinfoChoice
from vmdump.guest.linux.find_vmcoreinfo import findings_of
from vmdump.guest.linux.found import FoundVmcoreinfo
from vmdump.interrupts import Deferred
from vmdump.sources.base import LiveSource
from vmdump.sources.qemu.attachment import Attachment
from vmdump.sources.qemu.guest import QemuGuest
from vmdump.sources.qemu.layout import GuestLayout
from vmdump.sources.qemu.way import Way

__all__ = ["AttachedSource"]

_log = logging.getLogger("vmdump")


class AttachedSource(LiveSource):
    """A guest of a QEMU on this machine, however it is reached.

    What the attach finds can be read while the guest runs; :meth:`held` takes it anew.

    Parameters
    ----------
    open_way : callable
        Gives the way to the guest, which is closed with the source.
    search : bool
        Look for VMCOREINFO in the guest's memory where QEMU does not tell it.

    Raises
    ------
    SourceError
        What answers does not hold the guest's memory.
    AccessDenied
        This process may not read QEMU's memory.
    QmpError
        QEMU does not answer, or refuses to tell the layout.
    GuestBusy
        The guest migrates, or another dump of it runs.
    CapabilityError
        Its memory is encrypted, or dumping it in this way could do harm.
    """

    def __init__(self, open_way: Callable[[], Way], *, search: bool = True) -> None:
        self._search = search
        self._found: FoundVmcoreinfo | None = None
        self._fresh = True
        began = time.monotonic()
        self._attachment = attachment = Attachment(open_way)
        connected = time.monotonic()
        try:
            # That of the attach, and that of the moment for which the guest is held.
            self._first = self._layout = attachment.take_layout(lambda: False)
            guest = QemuGuest(self._first, attachment.emulator, changes=True, live=attachment.facts)
            self._guest: Guest = guest if search else guest.without_search()
            attachment.attached()
            _log.info("attached to %s: %.3f s", attachment.emulator.target, connected - began)
            _log.info("layout and registers of the guest taken: %.3f s", time.monotonic() - connected)
            # Also of a source that is lost, by Ctrl-C just after it was opened: QMP serves one client only.
            self._close = weakref.finalize(self, _close, self._first, attachment)
            self._close.atexit = False  # the attachment sees to that
        except BaseException:
            attachment.close()
            raise

    @property
    def guest(self) -> Guest:
        """The guest as the attach found it; it may run."""
        return self._guest

    @property
    def paused_seconds(self) -> float:
        """For how long the guest was paused in the last dump, by QEMU's clock."""
        return self._attachment.paused_seconds

    @property
    def paused_since(self) -> float | None:
        """When vmdump began to pause the guest that is held, by `time.monotonic`."""
        return self._attachment.paused_since

    @property
    def remarks(self) -> Sequence[str]:
        """What others see of the visit, that they would not expect."""
        return self._attachment.remarks

    @property
    def in_use(self) -> tuple[os.stat_result, ...]:
        """What QEMU has open: the guest's disks, among others."""
        return self._attachment.open_files()

    @contextmanager
    def held(
        self,
        *,
        pause: bool,
        cancelled: Callable[[], bool],
        prepare: Callable[[Guest], object] | None = None,
        vmcoreinfo: VmcoreinfoChoice = TOLD_OR_FOUND,
    ) -> Iterator[Guest]:
        """Give the guest as it is now; paused, if it runs and `pause` is true, and running again after.

        Registers and layout are those inside the pause. Without `pause` a running guest is marked fuzzy.
        VMCOREINFO that QEMU does not tell is looked for in all of the guest's memory, before the pause.
        """
        attachment = self._attachment
        error: BaseException | None = None
        attachment.claim()
        try:
            running = attachment.refuse_busy()
            fuzzy = running and not pause
            # What a new attach has found is of now; asking QEMU again would stop the guest for a moment.
            fresh, self._fresh = self._fresh, False
            with nullcontext(self._first) if fresh else closing(attachment.take_layout(cancelled)) as before:
                guest = QemuGuest(before, attachment.emulator, changes=running)
                found = self._find(guest, vmcoreinfo, cancelled)
                if running and pause and prepare is not None:
                    attachment.expect_stop()
                    prepare(_with_vmcoreinfo(guest, vmcoreinfo, found))
                    running = attachment.refuse_busy()
            attachment.hold(stop=running and pause, watch=not fuzzy, cancelled=cancelled)
            with closing(attachment.take_layout(cancelled)) as layout:
                attachment.watch(layout)
                layout.know_data_of(before)
                self._layout = layout
                guest = QemuGuest(layout, attachment.emulator, changes=fuzzy, fuzzy=fuzzy)
                if found is not None and vmcoreinfo.given is None:
                    # After a reboot meanwhile it is not there any more, or QEMU tells another.
                    found = found if not guest.told.is_whole and found.is_there(guest) else None
                yield _with_vmcoreinfo(guest, vmcoreinfo, found)
                self.release()
        except BaseException as raised:
            error = raised
            raise
        finally:
            with Deferred():
                try:
                    attachment.let_run(error)
                finally:
                    attachment.disclaim()

    def _find(
        self, guest: Guest, vmcoreinfo: VmcoreinfoChoice, cancelled: Callable[[], bool]
    ) -> FoundVmcoreinfo | None:
        """Find VMCOREINFO in memory, if it is wanted; what was found before, if it is still there."""
        number = vmcoreinfo.given if isinstance(vmcoreinfo.given, int) else None
        if number is not None:
            return findings_of(guest.telling_progress(vmcoreinfo.progress), cancelled).number(number)
        wanted = vmcoreinfo.given is None and vmcoreinfo.search and self._search
        if not wanted or guest.told.is_whole:
            return None
        if self._found is None or not self._found.is_there(guest):
            self._found = findings_of(guest.telling_progress(vmcoreinfo.progress), cancelled).chosen
        return self._found

    def release(self) -> None:
        """Let the guest run again, if it was paused for this; SourceError if memory was unplugged."""
        self._attachment.release(self._layout.demand_in_place)

    def close(self) -> None:
        """Let the guest run if it was paused here, and end the connection; closing twice does nothing."""
        # A finalizer is called once: a signal between that and the closing would leave the guest to nobody.
        with Deferred():
            self._close()


def _close(layout: GuestLayout, attachment: Attachment) -> None:
    with Deferred():
        if attachment.waits_for_this_thread:
            return  # the collector came by there; the end of the interpreter closes it
        try:
            layout.close()
        finally:
            attachment.close()


def _with_vmcoreinfo(guest: Guest, vmcoreinfo: VmcoreinfoChoice, found: FoundVmcoreinfo | None) -> Guest:
    """Give the guest with what is given or was found; else with what QEMU tells."""
    if isinstance(vmcoreinfo.given, bytes):
        return guest.with_vmcoreinfo(vmcoreinfo.given)
    return guest.without_search() if found is None else guest.with_vmcoreinfo(found.text, found=found)
