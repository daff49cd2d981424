"""A QEMU's guest of one moment: registers, layout and memory as they were when it was laid out."""

from __future__ import annotations

import os

from vmdump.arch import arch_of_elf
from vmdump.formats.notes import fuzzy_note
from vmdump.guest.guest import Guest
from vmdump.guest.qemu import LiveFacts, QemuFacts
from vmdump.sources.qemu.byte_order import in_guests_byte_order
from vmdump.sources.qemu.emulator import Emulator
from vmdump.sources.qemu.layout import GuestLayout

__all__ = ["QemuGuest"]


class QemuGuest(Guest):
    """The guest of a layout.

    Parameters
    ----------
    layout : GuestLayout
        Stays the caller's; when it is closed, the memory cannot be read any more.
    emulator : Emulator
        The QEMU.
    changes : bool
        It may run.
    fuzzy : bool
        It runs while it is read.
    live : LiveFacts, optional
        How it was found.
    """

    format = "live guest of QEMU"

    def __init__(
        self,
        layout: GuestLayout,
        emulator: Emulator,
        *,
        changes: bool = False,
        fuzzy: bool = False,
        live: LiveFacts | None = None,
    ) -> None:
        self.files = tuple(layout.files)
        self.unreadable = layout.unreadable
        self.fuzzy = fuzzy
        self.changes = changes
        self.live = live
        self._emulator = emulator
        self._layout = layout
        qemus = layout.headers
        self.qemu = QemuFacts(emulator.target, emulator.machine, qemus.notes, qemus.byteorder)
        headers = in_guests_byte_order(qemus)
        super().__init__(
            layout.blocks,
            arch_of_elf(headers.machine, headers.elf_class, headers.byteorder),
            byteorder=headers.byteorder,
            elf_class=headers.elf_class,
            notes=headers.notes + (fuzzy_note(headers.byteorder) if fuzzy else b""),
        )

    @property
    def in_use(self) -> tuple[os.stat_result, ...]:
        """What QEMU has open: the guest's disks, among others."""
        return self._layout.open_files()

    @property
    def maker(self) -> str:
        """QEMU, and its version where it tells."""
        return f"QEMU {self._emulator.version}".strip()
