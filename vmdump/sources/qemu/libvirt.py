"""Guests of libvirt: QEMU's word that a dump has ended may crash the daemon that did not ask for one.

QEMU sends DUMP_COMPLETED to each of its monitors, libvirt's own too. The handler of libvirt 9.0.0 (Debian 12)
follows a null pointer where the daemon has no job for the domain, and every domain of the host is without its
daemon. 11.3.0 looks first. What is not known to be safe counts as unsafe.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from vmdump.errors import CapabilityError
from vmdump.sources.process.process import command_line
from vmdump.sources.qemu.monitor import Monitor

__all__ = ["refuse_unsafe_libvirt"]

_SAFE = (11, 3, 0)
"""The oldest release that was seen to live on."""
_MONITOR = "charmonitor"
"""The name of the character device of libvirt's own monitor, in all releases that speak QMP."""
_DAEMONS = ("libvirtd", "virtqemud")
_WRAPPED = re.compile(r"\.(\w+)-wrap")
"""Where a script of the name sets the environment (NixOS); the kernel keeps 15 characters of it."""
_SYSTEM_FOLDER = "/var/lib/libvirt/"
_NAME = re.compile(r"(?:guest=)?((?:[^,]|,,)+)")
# Not what is installed: an upgrade does not end the daemon, which has the old library mapped. libvirt 11.3.0
# is libvirt.so.0.11003.0, and loads no driver of another release.
_LIBRARY = re.compile(r"/libvirt\.so\.0\.(\d+)\.(\d+)(?: \(deleted\))?$", re.MULTILINE)
_THOUSAND = 1000


@dataclass(frozen=True)
class _Daemon:
    pid: int
    name: str
    version: tuple[int, int, int] | None

    def __str__(self) -> str:
        version = "of unknown version" if self.version is None else ".".join(map(str, self.version))
        return f"{self.name} {version}, process {self.pid}"


def refuse_unsafe_libvirt(monitor: Monitor) -> None:
    """Refuse a guest of libvirt, unless its daemon is known to survive a dump that is not its own.

    Asks nothing of QEMU that a monitor would be told of.

    Parameters
    ----------
    monitor : Monitor
        The guest's.

    Raises
    ------
    CapabilityError
        The daemon may crash, or may not be looked at.
    QmpError
        QEMU does not answer.
    """
    words = command_line(monitor.pid)
    place = _place_of_monitor(monitor)
    if place is None and not any(f"id={_MONITOR}," in word for word in words):
        return
    daemons = list(_daemons(monitor.pid, place))
    unsafe = [daemon for daemon in daemons if daemon.version is None or daemon.version < _SAFE]
    if daemons and not unsafe:
        return
    safe = ".".join(map(str, _SAFE))
    if unsafe:
        why = f"its daemon ({unsafe[0]}) may crash when a dump that it did not begin ends"
    else:
        why = "no daemon of it can be seen from here, and one before that may crash when such a dump ends"
    name = _name_of_domain(words)
    raise CapabilityError(
        f"{monitor.path}: the guest {name} is libvirt's, and not known to be safe with it: {why}; "
        f"use virsh dump --memory-only {shlex.quote(name)} FILE, which vmdump reads, "
        f"or libvirt {safe} or later"
    )


def _name_of_domain(words: list[str]) -> str:
    for word, value in pairwise(words):
        if word == "-name" and (match := _NAME.match(value)):
            return match[1].replace(",,", ",")
    return "DOMAIN"


def _place_of_monitor(monitor: Monitor) -> str | None:
    """Give where libvirt's monitor is, in QEMU's words; None where QEMU tells of none."""
    devices = monitor.execute_if_known("query-chardev") or []
    return next((str(device.get("filename")) for device in devices if device.get("label") == _MONITOR), None)


def _daemons(qemu: int, place: str | None) -> Iterator[_Daemon]:
    """Find the daemons that the guest may belong to: those of the system, or of QEMU's own user.

    A container's daemon has nothing to do with the host's guests, nor the other way round. The user
    0 of a container may be any user of the host, and a daemon and its QEMUs are in one PID namespace.
    """
    owners = set()
    if place is None or _SYSTEM_FOLDER in place:
        owners.add(_superuser(qemu))
    if place is None or _SYSTEM_FOLDER not in place:
        with contextlib.suppress(OSError):
            owners.add(os.stat(f"/proc/{qemu}").st_uid)
    for number in filter(str.isdigit, os.listdir("/proc")):
        name = _name(number)
        if name not in _DAEMONS or _are_apart(number, qemu):
            continue
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{number}").st_uid in owners:
                version = _version(number)
                # Without a library: a child that is to become QEMU, or one that has ended, is not a daemon.
                if version is not None or _name(number) == name:
                    yield _Daemon(int(number), name, version)


def _superuser(pid: int) -> int:
    """Give the user that is 0 in the user namespace of a process."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/uid_map") as file:
        for inside, outside, _ in (map(int, line.split()) for line in file):
            if inside == 0:
                return outside
    return 0


def _are_apart(number: str, qemu: int) -> bool:
    """Tell whether two processes are known to be in two PID namespaces."""
    with contextlib.suppress(OSError):
        return not os.path.samefile(f"/proc/{number}/ns/pid", f"/proc/{qemu}/ns/pid")
    return False


def _name(number: str) -> str:
    """Give the name of a process, without what wraps it; nothing if it has ended, and nobody asked how."""
    with contextlib.suppress(OSError), open(f"/proc/{number}/stat", errors="surrogateescape") as file:
        name, _, rest = file.read().partition("(")[2].rpartition(") ")
        if not rest.startswith(("Z", "X")):
            match = _WRAPPED.match(name)
            return match[1] if match else name
    return ""


def _version(number: str) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError), open(f"/proc/{number}/maps", errors="surrogateescape") as file:
        found = {(int(major), int(micro)) for major, micro in _LIBRARY.findall(file.read())}
        if len(found) == 1:
            combined, micro = found.pop()
            return combined // _THOUSAND, combined % _THOUSAND, micro
    return None
