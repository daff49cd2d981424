"""The source ``libvirt:``: a live guest of libvirt."""

from __future__ import annotations

from vmdump.errors import SourceError
from vmdump.sources.domain.over_libvirt import OverLibvirt
from vmdump.sources.libvirt.connection import Connection
from vmdump.sources.libvirt.domain import find_domain
from vmdump.sources.qemu.attached import AttachedSource
from vmdump.sources.spec import check_options

__all__ = ["DomainSource", "open_libvirt"]


class DomainSource(AttachedSource):
    """A guest of libvirt on this machine.

    Nothing is asked of QEMU's monitor, so that libvirt does not mark the domain as tainted; unless neither
    contents nor its size tell where a block of memory is. `remarks` says so then.

    Parameters
    ----------
    name : str
        Of the domain, or its UUID; or its id, where no domain has that name.
    uri : str, optional
        Of libvirt's daemon on this machine, ``qemu:///system`` or ``qemu:///session``; if not given, what
        libvirt itself takes: LIBVIRT_DEFAULT_URI, or the system's daemon for root, and the user's for others.
    search : bool
        Look for VMCOREINFO in the guest's memory where QEMU does not tell it.

    Raises
    ------
    SourceError
        No daemon answers, there is no such domain, or it is not active.
    AccessDenied
        libvirt does not let this user dump it, or this process may not read QEMU's memory.
    QmpError
        The daemon ends or hangs, or QEMU refuses to tell the layout.
    GuestBusy
        Somebody has a job on the domain, or another dump of it runs.
    CapabilityError
        libvirt-python is not installed; the hypervisor is no QEMU, or is another machine's; the guest's
        memory is encrypted.
    """

    def __init__(self, name: str, *, uri: str | None = None, search: bool = True) -> None:
        super().__init__(lambda: _open_way(name, uri), search=search)


def _open_way(name: str, uri: str | None) -> OverLibvirt:
    path = f"libvirt:{name}"
    if not name:
        raise SourceError("no domain is named", path=path, hint="libvirt:NAME, or libvirt:UUID")
    connection = Connection(uri)
    try:
        return OverLibvirt(find_domain(connection, name, path))
    except BaseException:
        connection.close()
        raise


def open_libvirt(name: str, options: dict[str, str], *, search: bool = True) -> DomainSource:
    """Attach to a live guest: ``libvirt:NAME?uri=qemu:///session``.

    Parameters
    ----------
    name : str
        Of the domain; or its UUID, or its id.
    options : dict
        ``uri``.
    search : bool
        As for :class:`DomainSource`.

    Raises
    ------
    RequestError
        Another option was given.
    VmdumpError
        As for :class:`DomainSource`.
    """
    check_options(options, ("uri",), "libvirt")
    return DomainSource(name, uri=options.get("uri"), search=search)
