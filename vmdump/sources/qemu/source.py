"""The source ``qmp:``: a live guest that is reached over QMP."""

from __future__ import annotations

import os

from vmdump.errors import CapabilityError
from vmdump.sources.qemu.attached import AttachedSource
from vmdump.sources.qemu.over_qmp import OverQmp
from vmdump.sources.spec import check_options

__all__ = ["QemuSource", "open_qemu"]


class QemuSource(AttachedSource):
    """A guest of a QEMU on this machine.

    What the attach finds can be read while the guest runs; :meth:`held` takes it anew.

    Parameters
    ----------
    path : str
        Of a QMP socket, ``-qmp unix:PATH,server,nowait``. QMP serves one client at a time.
    search : bool
        Look for VMCOREINFO in the guest's memory where QEMU does not tell it.

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
        Its memory is encrypted, or libvirt's daemon may not survive a dump.
    """

    def __init__(self, path: str, *, search: bool = True) -> None:
        super().__init__(lambda: OverQmp(path), search=search)


def open_qemu(path: str, options: dict[str, str], *, search: bool = True) -> QemuSource:
    """Attach to a live guest: ``qmp:PATH``.

    Parameters
    ----------
    path : str
        Of a Unix socket; QMP over TCP does not tell whose memory to read.
    options : dict
        None exist.
    search : bool
        As for :class:`QemuSource`.

    Raises
    ------
    RequestError
        An option was given.
    CapabilityError
        The address is a TCP one.
    VmdumpError
        As for :class:`QemuSource`.
    """
    check_options(options, (), "qmp")
    host, colon, port = path.rpartition(":")
    if colon and port.isdigit() and not os.path.exists(path):
        raise CapabilityError(
            f"qmp:{path}: QMP over TCP reaches a QEMU whose memory is not readable from here; run vmdump on "
            f"{host or 'its host'}, with a socket of -qmp unix:PATH,server,nowait"
        )
    return QemuSource(path, search=search)
