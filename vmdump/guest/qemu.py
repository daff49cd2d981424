"""What only QEMU knows of a guest that it runs, and how it was found."""

from __future__ import annotations

from dataclasses import dataclass

from vmdump.formats.layout import ByteOrder

__all__ = ["LiveFacts", "QemuFacts"]


@dataclass(frozen=True)
class QemuFacts:
    """What only the QEMU of a live guest tells, for files that have to be as QEMU writes them.

    Attributes
    ----------
    target : str
        ``x86_64`` of qemu-system-x86_64, and so on.
    machine : str
        QOM type of the machine: ``pc-q35-7.2-machine``.
    notes : bytes
        The guest's notes as QEMU gives them.
    byteorder : {"little", "big"}
        Of these; QEMU may take it from the wrong register.
    """

    target: str
    machine: str
    notes: bytes
    byteorder: ByteOrder


@dataclass(frozen=True)
class LiveFacts:
    """A live guest, as the attach found it.

    Attributes
    ----------
    state : str
        QMP's word for how it is: ``running``, ``paused``, ``guest-panicked``, ``shutdown``, and so on.
    path : str
        What vmdump is attached to: a QMP socket, or a domain of libvirt.
    process : int
        Of QEMU.
    machine : str
        QOM type of the machine, ``pc-q35-7.2-machine``; empty where QEMU does not tell.
    """

    state: str
    path: str
    process: int
    machine: str
