"""libvirt-python without a daemon: domains that do what a test says, in the order that it says."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from xml.sax.saxutils import escape

RUNNING, PAUSED, SHUTOFF = 1, 3, 5
USER = 1
SUSPENDED, RESUMED = 3, 4
XML = """<domain type='qemu' id='{id}'><name>{name}</name><uuid>{uuid}</uuid>{more}
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk><target dev='vda'/></disk></devices></domain>"""


class Error(Exception):
    """libvirtError."""

    def __init__(self, text: str, code: int = 1, part: int = 10, number: int = -1) -> None:
        super().__init__(text)
        self.get_error_code = lambda: code
        self.get_error_domain = lambda: part
        self.get_int1 = lambda: number


class Domain:
    """A virDomain, with what a test may change."""

    def __init__(self, host: FakeLibvirt, name: str, uuid: str, number: int, more: str = "") -> None:
        self.host = host
        self.words = {"name": name, "uuid": uuid, "id": number, "more": more}
        self.now = (RUNNING, 1) if number >= 0 else (SHUTOFF, 1)
        self.calls: list[str] = []
        self.headers = b""
        self.memory: Callable[[int, int], bytes] = lambda address, size: bytes(size)
        self.before: dict[str, Callable[[], object]] = {}
        self.stats: dict[str, int] = {"type": 0}
        self.tells = True

    def name(self) -> str:
        return str(self.words["name"])

    def UUIDString(self) -> str:
        return str(self.words["uuid"])

    def ID(self) -> int:
        return int(self.words["id"])

    def XMLDesc(self) -> str:
        return XML.format(**{**self.words, "name": escape(str(self.words["name"]))})

    def _begin(self, call: str) -> None:
        self.calls.append(call)
        self.before.get(call, lambda: None)()
        if self.host.gone:
            raise Error("client socket is closed", part=7)

    def state(self) -> list[int]:
        self._begin("state")
        return list(self.now)

    def jobStats(self) -> dict[str, int]:
        self._begin("jobStats")
        return self.stats

    def blockJobInfo(self, disk: str) -> dict[str, int]:
        self._begin("blockJobInfo")
        return {}

    def suspend(self) -> None:
        self._begin("suspend")
        self.become(PAUSED, USER, SUSPENDED)

    def resume(self) -> None:
        self._begin("resume")
        if self.now[0] == RUNNING:
            raise Error("Requested operation is not valid: domain is already running", 55)
        self.become(RUNNING, 5, RESUMED)

    def become(self, state: int, reason: int, event: int) -> None:
        """Change the state, and tell of it."""
        if self.now[0] != state:
            self.now = state, reason
            if self.tells:
                self.host.tell(self, 0, event, 0)

    def memoryPeek(self, address: int, size: int, flags: int) -> bytes:
        self._begin("memoryPeek")
        return self.memory(address, size)

    def coreDumpWithFormat(self, path: str, form: int, flags: int) -> None:
        self._begin("dump")
        with open(path, "wb") as pipe:
            pipe.write(self.headers)
        raise Error("internal error: Child process (libvirt_iohelper) unexpected fatal signal 13")

    def messages(self, flags: int) -> list[str]:
        return []


class Connection:
    """A virConnect."""

    def __init__(self, host: FakeLibvirt, uri: str) -> None:
        self.host = host
        self.uri = uri
        self.callbacks: dict[int, tuple[Domain, int, Callable[..., object]]] = {}
        self.closed = False

    def getURI(self) -> str:
        return self.uri

    def getType(self) -> str:
        return self.host.kind

    def setKeepAlive(self, every: int, times: int) -> int:
        return 0

    def isAlive(self) -> int:
        return int(not self.host.gone and not self.closed)

    def listAllDomains(self, flags: int) -> list[Domain]:
        return self.host.domains

    def _find(self, method: str, key: object) -> Domain:
        for domain in self.host.domains:
            if getattr(domain, method)() == key:
                return domain
        raise Error("Domain not found", 42)

    def lookupByName(self, name: str) -> Domain:
        return self._find("name", name)

    def lookupByUUIDString(self, uuid: str) -> Domain:
        return self._find("UUIDString", uuid)

    def lookupByID(self, number: int) -> Domain:
        return self._find("ID", number)

    def domainEventRegisterAny(self, domain: Domain, kind: int, callback: Any, opaque: object) -> int:
        self.callbacks[len(self.callbacks)] = domain, kind, callback
        return len(self.callbacks) - 1

    def domainEventDeregisterAny(self, number: int) -> None:
        del self.callbacks[number]

    def registerCloseCallback(self, callback: Callable[..., object], opaque: object) -> None:
        self.host.on_loss.append(lambda: callback(self, 0, opaque))

    def unregisterCloseCallback(self) -> None:
        self.host.on_loss.clear()

    def close(self) -> int:
        self.closed = True
        self.host.connections.remove(self)
        return 0


class FakeLibvirt(SimpleNamespace):
    """The module ``libvirt``, and its daemon.

    Attributes
    ----------
    domains : list of Domain
        Those of the daemon.
    refusal : Error or None
        Why nobody is let in.
    gone : bool
        The daemon has ended.
    """

    libvirtError = Error
    VIR_ERR_OPERATION_TIMEOUT, VIR_ERR_OPERATION_INVALID, VIR_ERR_NO_DOMAIN = 68, 55, 42
    VIR_ERR_ACCESS_DENIED, VIR_ERR_OPERATION_DENIED, VIR_ERR_NO_CONNECT = 88, 29, 5
    VIR_ERR_AUTH_FAILED, VIR_ERR_AUTH_CANCELLED, VIR_ERR_AUTH_UNAVAILABLE = 45, 79, 80
    VIR_ERR_INVALID_ARG, VIR_FROM_RPC = 8, 7
    VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_ID_REBOOT = 0, 1
    VIR_MEMORY_PHYSICAL, VIR_DUMP_MEMORY_ONLY, VIR_DUMP_LIVE, VIR_DOMAIN_CORE_DUMP_FORMAT_RAW = 2, 16, 2, 0

    def __init__(self) -> None:
        super().__init__()
        self.domains: list[Domain] = []
        self.connections: list[Connection] = []
        self.kind = "QEMU"
        self.refusal: Error | None = None
        self.gone = False
        self.on_loss: list[Callable[[], object]] = []
        self.threads: set[str] = set()
        self._turns: queue.Queue[Callable[[], object]] = queue.Queue()
        self._registered = False
        self._timers: list[Callable[..., object]] = []

    def add(self, name: str, uuid: str = "", number: int = 1, more: str = "") -> Domain:
        """Make a domain."""
        uuid = uuid or f"00000000-0000-0000-0000-{len(self.domains):012}"
        self.domains.append(Domain(self, name, uuid, number, more))
        return self.domains[-1]

    def tell(self, domain: Domain, kind: int, *details: int) -> None:
        """Have an event told, in the thread for events."""

        def turn() -> None:
            self.threads.add(threading.current_thread().name)
            for connection in self.connections:
                for of, wanted, callback in list(connection.callbacks.values()):
                    if (of, wanted) == (domain, kind):
                        callback(connection, domain, *details, None)

        self._turns.put(turn)

    def lose(self) -> None:
        """End the daemon."""
        self.gone = True
        self._turns.put(lambda: [callback() for callback in self.on_loss])

    def open(self, uri: str | None) -> Connection:
        if self.refusal is not None:
            raise self.refusal
        self.connections.append(
            Connection(self, uri or os.environ.get("LIBVIRT_DEFAULT_URI", "qemu:///system"))
        )
        return self.connections[-1]

    def registerErrorHandler(self, handler: object, context: object) -> None: ...

    def virEventRegisterDefaultImpl(self) -> None:
        self._registered = True

    def virEventRunDefaultImpl(self) -> None:
        self._turns.get()()

    def virEventAddTimeout(self, wait: int, callback: Callable[..., object], opaque: object) -> int:
        if not self._registered:
            raise Error("virEventAddTimeout() failed")
        self._timers.append(lambda: callback(len(self._timers) - 1, opaque))
        self._turns.put(self._timers[-1])
        return len(self._timers) - 1

    def virEventUpdateTimeout(self, timer: int, wait: int) -> None:
        if wait == 0:
            self._turns.put(lambda: None)

    VIR_EVENT_HANDLE_READABLE = 1

    def virEventAddHandle(self, *_: object) -> int:
        return 0

    def virEventRemoveHandle(self, handle: int) -> None: ...

    def virEventRemoveTimeout(self, timer: int) -> None: ...
