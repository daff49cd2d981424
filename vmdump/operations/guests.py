"""The running guests of this host, and how each is named as a source."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote

from vmdump.errors import AccessDenied, RequestError, SourceError
from vmdump.sources.emulator_words import is_emulator, memory_size, options, settings, target
from vmdump.sources.libvirt.daemons import MONITOR, find_daemons
from vmdump.sources.process.process import Process, command_line
from vmdump.sources.qemu.seats import Seat, find_seats
from vmdump.sources.spec import split_options

__all__ = ["RunningGuest", "guests"]

_SYSTEM_FOLDER = "/var/lib/libvirt/"
_SYSTEM = "qemu:///system"
_SESSION = "qemu:///session"
_USUAL = ("libvirt-sock", "virtqemud-sock")
_NEXT_TIME = "start QEMU with -qmp unix:PATH,server=on,wait=off"


@dataclass(frozen=True)
class RunningGuest:
    """A QEMU of this host that runs a guest.

    Attributes
    ----------
    pid : int
        Its process.
    name, uuid : str
        The guest's, as QEMU was told; empty where it was not.
    arch : str
        ``x86_64`` of qemu-system-x86_64; empty where the program's name tells none.
    memory, resident : int
        Bytes: the guest's memory at its start, and what the whole process has in the host's memory.
    accelerator : str
        ``kvm``, ``tcg`` and so on. Where several were allowed, and it may not be seen which one is in use,
        all of them with colons in between.
    user : str
        Whose process it is.
    domain : str
        Name of libvirt's domain; empty where it is none.
    socket : str
        Path of a QMP socket; empty where there is none.
    source : str
        What :func:`vmdump.dump` takes, ``qmp:/run/vm.qmp``; empty where no way leads to the guest.
    reason : str
        Why `source` is empty, and the way out.
    missing_rights : str
        What this process may not do, and what would help; empty where nothing is missing.
    """

    pid: int
    name: str
    uuid: str
    arch: str
    memory: int
    resident: int
    accelerator: str
    user: str
    domain: str
    socket: str
    source: str
    reason: str
    missing_rights: str

    @property
    def can_be_dumped(self) -> bool:
        """True if this process can dump it now."""
        return bool(self.source) and not self.missing_rights

    def as_dict(self) -> dict[str, Any]:
        """Give everything by name, for JSON."""
        return {**asdict(self), "can_be_dumped": self.can_be_dumped}


def guests() -> list[RunningGuest]:
    """Find the running guests of QEMU on this host, those of libvirt as well.

    No guest is disturbed: its monitor is not connected to, and libvirt is not asked. What is told
    comes from ``/proc``, and may have changed a moment later.

    Returns
    -------
    list of RunningGuest
        By ascending process number. Guests of containers are among them, if their processes are visible here.

    Examples
    --------
    >>> for guest in vmdump.guests():  # doctest: +SKIP
    ...     if guest.can_be_dumped:
    ...         vmdump.dump(guest.source, f"{guest.pid}.kdump")
    """
    found = []
    for pid in sorted(map(int, filter(str.isdecimal, os.listdir("/proc")))):
        words = _words(pid)
        if is_emulator(words) and not _is_helper(pid, words):
            # It may end at any moment.
            with suppress(OSError):
                found.append(_describe(pid, words))
    return found


def _words(pid: int) -> list[str]:
    words = command_line(pid)
    return words[:-1] if words and not words[-1] else words


def _is_helper(pid: int, words: Sequence[str]) -> bool:
    """Tell whether a process only frees the memory of its parent, a QEMU, at the end (async-teardown)."""
    with suppress(OSError, ValueError), open(f"/proc/{pid}/stat", errors="surrogateescape") as file:
        return _words(int(file.read().rpartition(") ")[2].split()[1])) == words
    return False


def _describe(pid: int, words: Sequence[str]) -> RunningGuest:
    owner = os.stat(f"/proc/{pid}").st_uid
    chosen = {name: value for name, value in options(words) if name in ("name", "uuid")}
    name = settings(chosen.get("name", ""), "guest").get("guest", "")
    seats = find_seats(pid, words)
    free = next((seat for seat in seats if seat.is_qmp and not seat.reason), None)
    socket = free or next((seat for seat in seats if seat.is_qmp and seat.path), None)
    is_domain = any(_names_monitor(value) for option, value in options(words) if option == "chardev")
    source = reason = ""
    if _is_encrypted(words):
        reason = "its memory is encrypted, so nothing outside can read it: use kdump inside the guest"
    elif is_domain and find_spec("libvirt") is not None:
        source = _domain_source(pid, owner, words, _domain_name(name, chosen.get("uuid", "")))
        if not source:
            reason = (
                f"no source can be written for a domain of this name: virsh rename {shlex.quote(name)} NAME"
            )
    elif is_domain and free is None:
        reason = (
            f"it is libvirt's domain {name}, and libvirt-python is not installed: "
            "pip install 'vmdump[libvirt]', or "
            f"virsh dump --memory-only {shlex.quote(name)} FILE, which vmdump reads"
        )
    elif free is not None:
        source = f"qmp:{free.path}"
    else:
        reason = _why_not(seats)
    return RunningGuest(
        pid=pid,
        name=name,
        uuid=chosen.get("uuid", ""),
        arch=target(words),
        memory=memory_size(words),
        resident=_resident(pid),
        accelerator=_accelerator(pid, words),
        user=_user_name(owner),
        domain=name if is_domain else "",
        socket=socket.path if socket else "",
        source=source,
        reason=reason,
        missing_rights=_missing_rights(pid, source.removeprefix("qmp:") if source.startswith("qmp:") else ""),
    )


def _names_monitor(chardev: str) -> bool:
    return settings(chardev, "backend").get("id") == MONITOR


def _domain_name(name: str, uuid: str) -> str:
    """Give the name, or the UUID where the name would be read as options of the source; else nothing.

    Any user can start a process that looks like a domain: ``?uri=qemu+ext:///...`` in its name is a program
    that libvirt would start for whoever dumps the guest.
    """
    from uuid import UUID

    with suppress(RequestError):
        if name and split_options(name)[0] == name:
            return name
    with suppress(ValueError):
        return str(UUID(uuid))
    return ""


def _domain_source(pid: int, owner: int, words: Sequence[str], name: str) -> str:
    """Name a domain, with the daemon where it is not the one that libvirt itself would ask."""
    if not name:
        return ""
    is_system = any(_SYSTEM_FOLDER in word for word in words)
    usual = _SYSTEM if is_system else _SESSION
    uri = usual
    for daemon in find_daemons(pid, _SYSTEM_FOLDER if is_system else ""):
        uri = _short(daemon.uri, owner) or usual
    default = _SYSTEM if os.geteuid() == 0 else _SESSION
    if uri == os.environ.get("LIBVIRT_DEFAULT_URI", default):
        return f"libvirt:{name}"
    return f"libvirt:{name}?uri={quote(uri, safe=':/=')}"


def _short(uri: str, owner: int) -> str:
    """Leave away a socket that libvirt finds by itself."""
    base, _, path = uri.partition("?socket=")
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    folder = "/run/libvirt" if base == _SYSTEM else f"{runtime}/libvirt"
    is_usual = base == _SYSTEM or owner == os.geteuid()
    places = [f"{prefix}{folder}/{name}" for prefix in ("", "/var") for name in _USUAL]
    return base if is_usual and path in places else uri


def _why_not(seats: Sequence[Seat]) -> str:
    reasons = [f"its QMP monitor {seat.reason}" for seat in seats if seat.is_qmp]
    if reasons:
        return f"{'; '.join(reasons)}; next time {_NEXT_TIME}"
    human = next((seat for seat in seats if seat.path), None) or next(iter(seats), None)
    if human is not None:
        return (
            f"it has a monitor for people only (HMP), at {human.place}: 'dump-guest-memory FILE' there "
            f"writes a dump that vmdump reads; next time {_NEXT_TIME}"
        )
    return f"it has no monitor: next time {_NEXT_TIME}"


def _is_encrypted(words: Sequence[str]) -> bool:
    return any(
        name in ("machine", "M") and "confidential-guest-support" in settings(value, "type")
        for name, value in options(words)
    )


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _accelerator(pid: int, words: Sequence[str]) -> str:
    with suppress(OSError):
        links = [_link(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
        if "anon_inode:kvm-vm" in links:
            return "kvm"
    allowed = list(_allowed_accelerators(words))
    return ":".join(dict.fromkeys(allowed)) or "tcg"


def _allowed_accelerators(words: Sequence[str]) -> Iterator[str]:
    if os.path.basename(words[0]) in ("kvm", "qemu-kvm"):
        yield "kvm"
    for name, value in options(words):
        if name == "enable-kvm":
            yield "kvm"
        elif name == "accel":
            yield settings(value, "accel").get("accel", "")
        elif name in ("machine", "M"):
            yield from filter(None, settings(value, "type").get("accel", "").split(":"))


def _link(path: str) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _missing_rights(pid: int, socket: str) -> str:
    """Say what this process may not do of what a dump takes."""
    if socket and not os.access(socket, os.W_OK, effective_ids=True):
        return f"no permission to connect to {socket}: run vmdump as root, or as the socket's user"
    with suppress(SourceError):
        process = None
        try:
            process = Process(pid, "QEMU")
            os.close(process.open("mem"))
        except AccessDenied as error:
            return f"no permission to read QEMU's memory: {error.hint}"
        finally:
            if process is not None:
                process.close()
    return ""
