"""What a QEMU is: it does not change in its life."""

from __future__ import annotations

from dataclasses import dataclass

from vmdump.sources.qemu.monitor import Monitor

__all__ = ["MACHINE", "Emulator", "ask_emulator"]

MACHINE = "/machine"
"""QOM path of the guest's machine."""


@dataclass(frozen=True)
class Emulator:
    """A QEMU.

    Attributes
    ----------
    target : str
        ``x86_64`` of qemu-system-x86_64, and so on.
    machine : str
        QOM type of the machine, ``pc-q35-7.2-machine``; empty where it does not tell.
    version : str
        ``7.2.22``; empty where it does not tell.
    """

    target: str
    machine: str
    version: str


def ask_emulator(monitor: Monitor) -> Emulator:
    """Ask a QEMU what it is.

    Raises
    ------
    QmpError
        It does not answer, or does not tell its target.
    """
    target = monitor.execute("query-target")["arch"]
    machine = monitor.execute_if_known("qom-get", {"path": MACHINE, "property": "type"})
    return Emulator(target, machine or "", monitor.version)
