"""A domain of libvirt: found by its name, what it is, which process it is, paused and resumed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vmdump.errors import QmpError, SourceError
from vmdump.sources.libvirt.connection import Connection, never
from vmdump.sources.libvirt.states import name_of_event
from vmdump.sources.process.process import command_line

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["Domain", "find_domain"]

_SYSTEM_STATE = "libvirt/qemu"
_SESSION_STATE = "libvirt/qemu/run"
_UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
_SIMILAR = 3
_PID_LIMIT = 1 << 22


class Domain:
    """An active domain.

    Parameters
    ----------
    connection : Connection
        Stays the caller's.
    handle : virDomain
        libvirt-python's.
    path : str
        What errors name.
    cancelled : callable
        Asked while waiting.

    Attributes
    ----------
    connection, handle, path
        As given.
    name, uuid : str
        libvirt's.
    number : int
        The id that it has while it is active.
    xml : Element
        Its live description.
    pid : int
        The QEMU's process; 0 where it cannot be seen from here.

    Raises
    ------
    VmdumpError
        As for :func:`find_domain`.
    """

    def __init__(
        self, connection: Connection, handle: Any, path: str, cancelled: Callable[[], bool] = never
    ) -> None:
        from xml.etree.ElementTree import ParseError, fromstring

        self.connection = connection
        self.handle = handle
        self.path = path
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()
        self.number: int = handle.ID()
        if self.number < 0:
            raise _inactive(path)
        # Not with VIR_DOMAIN_XML_SECURE: nothing here needs passwords, and it takes another right.
        text = self.call(handle.XMLDesc, what="describe", cancelled=cancelled)
        try:
            self.xml: Element = fromstring(text)
        except ParseError as error:
            raise QmpError(f"{path}: libvirt's description of the domain is not XML: {error}") from error
        self.pid = self._find_process()

    def call(
        self, function: Callable[..., Any], *arguments: Any, what: str, cancelled: Callable[[], bool] = never
    ) -> Any:
        """Call something of libvirt's as :meth:`Connection.call` does, for this domain."""
        return self.connection.call(function, *arguments, what=what, name=self.path, cancelled=cancelled)

    def begin_dump(self, path: str) -> concurrent.futures.Future[object]:
        """Let libvirt write an ELF dump of the memory to a path, without pausing the domain itself."""
        libvirt = self.connection.libvirt
        return self.connection.begin(
            self.handle.coreDumpWithFormat,
            path,
            libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_RAW,
            libvirt.VIR_DUMP_MEMORY_ONLY | libvirt.VIR_DUMP_LIVE,
        )

    def listen(self, notice: Callable[[str], object], notice_loss: Callable[[], object]) -> None:
        """Have somebody told of what happens to the domain, in the thread for events.

        Parameters
        ----------
        notice : callable
            Called with QMP's words for events: STOP, RESUME, WAKEUP, RESET; END for that of the QEMU.
        notice_loss : callable
            Called when the daemon ends, or hangs.

        Raises
        ------
        VmdumpError
            As :meth:`Connection.failure` says.
        """
        libvirt, listen = self.connection.libvirt, self.connection.listen

        def lifecycle(_: Any, __: Any, event: int, detail: int, ___: Any) -> None:
            if name := name_of_event(event, detail):
                notice(name)

        listen(self.handle, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle)
        listen(self.handle, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, lambda *_: notice("RESET"))
        self.connection.listen_for_loss(notice_loss)

    def peek(self, address: int, size: int) -> bytes:
        """Give what is at a guest-physical address; the domain is not marked as tainted.

        Raises
        ------
        VmdumpError
            As :meth:`Connection.failure` says.
        """
        physical = self.connection.libvirt.VIR_MEMORY_PHYSICAL
        shown: bytes = self.call(self.handle.memoryPeek, address, size, physical, what="peek")
        return shown

    @property
    def disks(self) -> list[str]:
        """The names of its disks, in the guest."""
        targets = (disk.find("target") for disk in self.xml.iterfind("devices/disk"))
        return [target.get("dev", "") for target in targets if target is not None]

    def close(self) -> None:
        """Close the connection as well; closing twice does nothing."""
        handle, self.handle = self.handle, None
        self.connection.close(handle)

    def fact(self, place: str, attribute: str = "") -> str:
        """Give an attribute or the text of the first element at a place of the description, or nothing."""
        element = self.xml.find(place)
        if element is None:
            return ""
        return (element.get(attribute, "") if attribute else element.text or "").strip()

    def _find_process(self) -> int:
        """Find the QEMU: libvirt has no call for that, but writes its number down."""
        name = f"{self.name}.pid"
        if self.connection.is_session:
            runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
            cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            places = [os.path.join(each, _SESSION_STATE, name) for each in (runtime, cache)]
        else:
            places = [os.path.join(each, _SYSTEM_STATE, name) for each in ("/run", "/var/run")]
        for place in places:
            with contextlib.suppress(OSError, ValueError):
                with open(place) as file:
                    pid = int(file.read(32))
                if 0 < pid <= _PID_LIMIT and self._is_process(pid):
                    return pid
        # Of another namespace, or not to be read: then by its words, which libvirt chose.
        numbers = map(int, filter(str.isdigit, os.listdir("/proc")))
        found = [pid for pid in numbers if self._is_process(pid, folder=True)]
        return found[0] if len(found) == 1 else 0

    def _is_process(self, pid: int, *, folder: bool = False) -> bool:
        """Tell whether a process was started as this domain's.

        Parameters
        ----------
        pid : int
            Its number.
        folder : bool
            Look for the folder of the domain, too: system and session may have one of the same UUID.
        """
        words = command_line(pid)
        return (
            ("-uuid", self.uuid) in pairwise(words)
            and any(word.startswith("guest=" + self.name.replace(",", ",,")) for word in words)
            and (not folder or any(f"{self._folder}{self.number}-" in word for word in words))
        )

    @property
    def _folder(self) -> str:
        """How the name of a domain's own folder begins."""
        return "/libvirt/qemu/lib/domain-" if self.connection.is_session else "/lib/libvirt/qemu/domain-"


def find_domain(
    connection: Connection, name: str, path: str, cancelled: Callable[[], bool] = never
) -> Domain:
    """Find an active domain.

    Parameters
    ----------
    connection : Connection
        Stays the caller's.
    name : str
        Its name or UUID; or its id, where no domain has that name.
    path : str
        What errors name.
    cancelled : callable
        Asked while waiting.

    Raises
    ------
    SourceError
        There is none, or it is not active; or name and UUID are those of two domains.
    AccessDenied
        libvirt does not let this user see it.
    QmpError
        The daemon has ended, or does not answer.
    Cancelled
        `cancelled` returned true.
    """
    libvirt, virt = connection.libvirt, connection.handle

    def look_up(function: Callable[[Any], Any], key: str | int) -> Any:
        future = connection.begin(function, key)
        connection.await_result(future, what="find", name=path, cancelled=cancelled)
        error = future.exception()
        if error is None:
            return future.result()
        # A name that is not UTF-8 is no domain's.
        if isinstance(error, UnicodeError) or getattr(error, "get_error_code", int)() in (
            libvirt.VIR_ERR_NO_DOMAIN,
            libvirt.VIR_ERR_INVALID_ARG,
        ):
            return None
        raise connection.failure(error, "find", path) from error

    handle = look_up(virt.lookupByName, name) if name else None
    if _UUID.fullmatch(name):
        by_uuid = look_up(virt.lookupByUUIDString, name)
        if handle and by_uuid and handle.UUIDString() != by_uuid.UUIDString():
            raise SourceError(
                f"this is the name of the domain {handle.UUIDString()}, and the UUID of "
                f"{by_uuid.name()!r}; use the UUID of the one, or the name of the other",
                path=path,
            )
        handle = handle or by_uuid
    elif handle is None and name.isascii() and name.isdigit() and len(name) < len(str(_PID_LIMIT)) + 3:
        handle = look_up(virt.lookupByID, int(name))
    if handle is None:
        raise _unknown(connection, name, path, cancelled)
    return Domain(connection, handle, path, cancelled)


def _inactive(path: str) -> SourceError:
    return SourceError(
        "the domain is not active, so it has no memory", path=path, hint="virsh start starts it"
    )


def _unknown(connection: Connection, name: str, path: str, cancelled: Callable[[], bool]) -> SourceError:
    from difflib import get_close_matches

    list_all = connection.handle.listAllDomains
    domains = connection.call(list_all, 0, what="list", name=path, cancelled=cancelled)
    similar = get_close_matches(name, [str(domain.name()) for domain in domains], n=_SIMILAR)
    known = f"is it {' or '.join(map(repr, similar))}?" if similar else "virsh list --all shows its domains,"
    other = "system" if connection.is_session else "session"
    return SourceError(
        f"there is no such domain at {connection.uri}",
        path=path,
        hint=f"{known} ?uri=qemu:///{other} may have others",
    )
