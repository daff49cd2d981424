"""Guests of libvirt that are named by a QMP socket, whose daemon may not hear of a dump that is not its own.

If not, the daemon itself begins the dump of which the headers are taken. It is told nothing that harms it:
QEMU's own STOP and RESUME it knows how to take from anybody.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from vmdump.errors import CapabilityError, VmdumpError
from vmdump.sources.libvirt.daemons import MONITOR, Daemon, Guest, find_daemons, guest_of
from vmdump.sources.process.process import command_line
from vmdump.sources.qemu.monitor import Monitor

if TYPE_CHECKING:
    from vmdump.sources.libvirt.domain import Domain

__all__ = ["find_harm", "find_reroute"]

_NO_DAEMON = "no daemon of it can be seen from here, and one may crash when a dump that it did not begin ends"


def find_reroute(monitor: Monitor) -> Domain | None:
    """Find the domain that a guest is, if its dump has to be begun by libvirt; None for all others.

    Asks nothing of QEMU that a monitor would be told of.

    Parameters
    ----------
    monitor : Monitor
        The guest's.

    Returns
    -------
    Domain or None
        The caller closes its connection.

    Raises
    ------
    CapabilityError
        The daemon may crash, or may not be looked at, and cannot be asked.
    QmpError
        QEMU does not answer.
    """
    found = _find_unsafe(monitor)
    if found is None:
        return None
    guest, daemons = found
    if not daemons:
        raise _refusal(monitor, guest, _NO_DAEMON, "")
    reasons = []
    # It belongs to one of them, and each may be asked, also one that is safe.
    for daemon in daemons:
        try:
            return _domain_of(monitor, guest, daemon)
        except VmdumpError as error:
            reasons.append(str(error))
    why = f"{_may_crash(daemons)}, and cannot begin one"
    raise _refusal(monitor, guest, why, " and ".join(reasons))


def find_harm(monitor: Monitor) -> str:
    """Say why QEMU must not end a dump of a guest that libvirt did not begin; nothing if it may.

    Asks nothing of QEMU that a monitor would be told of.

    Parameters
    ----------
    monitor : Monitor
        The guest's.

    Raises
    ------
    QmpError
        QEMU does not answer.
    """
    found = _find_unsafe(monitor)
    if found is None:
        return ""
    guest, daemons = found
    return f"the guest {guest.name} is libvirt's: {_may_crash(daemons) if daemons else _NO_DAEMON}"


def _find_unsafe(monitor: Monitor) -> tuple[Guest, list[Daemon]] | None:
    """Find the domain that a guest is, and whom it may belong to, one of them unsafe; None for all others."""
    words = command_line(monitor.pid)
    place = _place_of_monitor(monitor)
    if place is None and not any(f"id={MONITOR}," in word for word in words):
        return None
    daemons = find_daemons(monitor.pid, place)
    if daemons and all(daemon.is_safe for daemon in daemons):
        return None
    return guest_of(words), daemons


def _may_crash(daemons: list[Daemon]) -> str:
    unsafe = next(daemon for daemon in daemons if not daemon.is_safe)
    return f"its daemon ({unsafe}) may crash when a dump that it did not begin ends"


def _place_of_monitor(monitor: Monitor) -> str | None:
    """Give where libvirt's monitor is, in QEMU's words; None where QEMU tells of none."""
    devices = monitor.execute_if_known("query-chardev") or []
    return next((str(device.get("filename")) for device in devices if device.get("label") == MONITOR), None)


def _refusal(monitor: Monitor, guest: Guest, why: str, reason: str) -> CapabilityError:
    name = shlex.quote(guest.name)
    because = f" ({reason})" if reason else ""
    return CapabilityError(
        f"{monitor.path}: the guest {guest.name} is libvirt's, and not known to be safe with it: "
        f"{why}{because}; use libvirt:{name}, or virsh dump --memory-only {name} FILE, which vmdump reads"
    )


def _domain_of(monitor: Monitor, guest: Guest, daemon: Daemon) -> Domain:
    # libvirt-python takes 20 ms to load, and most guests need none of it.
    from vmdump.sources.libvirt.connection import Connection
    from vmdump.sources.libvirt.domain import find_domain

    uri = daemon.uri
    if not uri:
        raise CapabilityError("its socket cannot be seen from here: run vmdump as root, or as its user")
    if not guest.uuid:
        raise CapabilityError("its QEMU does not tell the domain's UUID")
    connection = Connection(uri)
    try:
        domain = find_domain(connection, guest.uuid, monitor.path)
        if domain.pid != monitor.pid:
            raise CapabilityError(
                f"the domain {guest.uuid} of {uri} is process {domain.pid}, not {monitor.pid}"
            )
    except BaseException:
        connection.close()
        raise
    return domain
