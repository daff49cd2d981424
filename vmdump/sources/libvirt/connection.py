"""A connection to a libvirt daemon: calls that can be waited for and left alone, and their errors."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from vmdump.errors import (
    AccessDenied,
    Cancelled,
    CapabilityError,
    GuestBusy,
    QmpError,
    SourceError,
    VmdumpError,
)
from vmdump.sources.libvirt.loop import EventLoop

__all__ = ["CALL_WAIT", "Connection", "load_libvirt", "never"]

CALL_WAIT = 60.0
"""Seconds: libvirt itself waits 30 for whoever has the domain in use."""
_POLL = 0.1
_FIRST_POLL = 0.002
_CLOSE_WAIT = 2.0
_ALIVE_EVERY, _ALIVE_TIMES = 5, 3
"""Seconds between questions whether a silent daemon is still there, and how many it may leave unanswered."""
_LOCAL = ("", "unix")
_SESSION = "qemu:///session"


def never() -> bool:
    """Tell that nobody has cancelled anything."""
    return False


@cache
def _libvirt_and_loop() -> tuple[Any, EventLoop]:
    # A program that uses libvirt itself has decided already who is told of errors.
    ours = "libvirt" not in sys.modules
    try:
        libvirt = import_module("libvirt")
    except ImportError as error:
        raise CapabilityError(
            f"libvirt-python, by which guests of libvirt are reached, cannot be loaded ({error}): "
            "pip install 'vmdump[libvirt]', or the package python3-libvirt of the distribution"
        ) from error
    if ours:
        # It prints what it raises as well, unless it is told of somebody who wants to know.
        libvirt.registerErrorHandler(lambda _, __: None, None)
    return libvirt, EventLoop(libvirt)


def load_libvirt() -> Any:
    """Load libvirt-python.

    Returns
    -------
    module
        ``libvirt``.

    Raises
    ------
    CapabilityError
        It is not installed.
    """
    return _libvirt_and_loop()[0]


class Connection:
    """A connection to the daemon of this machine that has its QEMUs.

    Parameters
    ----------
    uri : str, optional
        ``qemu:///system`` or ``qemu:///session``; what libvirt itself takes, if not given.
    cancelled : callable
        Asked while waiting.

    Attributes
    ----------
    libvirt : module
        libvirt-python.
    uri : str
        That of the connection.

    Raises
    ------
    CapabilityError
        libvirt-python is not installed; or this is another hypervisor's, or another machine's.
    SourceError
        No daemon answers.
    AccessDenied
        It does not let this user in.
    Cancelled
        `cancelled` returned true.
    """

    def __init__(self, uri: str | None = None, *, cancelled: Callable[[], bool] = never) -> None:
        self.uri = uri or os.environ.get("LIBVIRT_DEFAULT_URI") or "libvirt"
        self._handle: Any = None
        self._lock = threading.Lock()
        _refuse_elsewhere(uri or os.environ.get("LIBVIRT_DEFAULT_URI", ""))
        self.libvirt, self._loop = _libvirt_and_loop()
        self._loop.enter()
        self._closed = False
        self._callbacks: list[int] = []
        try:
            handle = self._handle = self.call(self.libvirt.open, uri, what="connect", cancelled=cancelled)
            self.uri = self.call(handle.getURI, what="connect", cancelled=cancelled)
            _refuse_elsewhere(self.uri)
            kind = self.call(handle.getType, what="connect", cancelled=cancelled)
            if kind != "QEMU":
                raise _other_hypervisor(self.uri, kind)
            with contextlib.suppress(self.libvirt.libvirtError):
                handle.setKeepAlive(_ALIVE_EVERY, _ALIVE_TIMES)
        except BaseException:
            self.close()
            raise

    @property
    def handle(self) -> Any:
        """libvirt-python's ``virConnect``.

        Raises
        ------
        SourceError
            The connection is closed.
        """
        if self._handle is None:
            raise SourceError("the source is closed", path=self.uri)
        return self._handle

    @property
    def is_session(self) -> bool:
        """Whether its daemon is one user's own.

        The superuser has none: without another socket, libvirt asks the system's daemon then.
        """
        parts = urlsplit(self.uri)
        return parts.path == "/session" and (os.geteuid() != 0 or "socket=" in parts.query)

    @property
    def alive(self) -> bool:
        """Whether it has not been lost; asks nobody."""
        return self._handle is not None and bool(self._handle.isAlive())

    def begin(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future[Any]:
        """Call something of libvirt's that may block in a thread of its own, which may be left alone."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def work() -> None:
            try:
                result = function(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=work, name="vmdump-libvirt", daemon=True).start()
        return future

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        what: str,
        name: str = "",
        cancelled: Callable[[], bool] = never,
        limit: float = CALL_WAIT,
    ) -> Any:
        """Call something of libvirt's, and wait for what it returns.

        Parameters
        ----------
        function : callable
            Of libvirt-python.
        *arguments
            Its arguments.
        what : str
            What is wanted, for errors.
        name : str
            Of whom, for errors; this connection, if not given.
        cancelled : callable
            Asked while waiting.
        limit : float
            Seconds.

        Raises
        ------
        Cancelled
            `cancelled` returned true.
        VmdumpError
            As :meth:`failure` says.
        """
        future = self.begin(function, *arguments)
        self.await_result(future, what=what, name=name, cancelled=cancelled, limit=limit)
        try:
            return future.result()
        except self.libvirt.libvirtError as error:
            raise self.failure(error, what, name) from error
        finally:
            del future

    def await_result(
        self,
        future: concurrent.futures.Future[Any],
        *,
        what: str,
        name: str = "",
        cancelled: Callable[[], bool] = never,
        limit: float = CALL_WAIT,
    ) -> None:
        """Wait until a call has ended.

        Raises
        ------
        Cancelled
            `cancelled` returned true.
        QmpError
            It takes too long, or the connection is lost.
        """
        deadline, poll = time.monotonic() + limit, _FIRST_POLL
        while not future.done():
            concurrent.futures.wait((future,), poll)
            poll = min(2 * poll, _POLL)
            if cancelled():
                raise Cancelled("cancelled while waiting for libvirt")
            # Not every call that waits for a daemon which hangs is told that the connection is given up.
            late = time.monotonic() > deadline or (self._handle is not None and not self.alive)
            if late and not future.done():
                raise QmpError(f"{name or self.uri}: {what}: libvirt's daemon does not answer", command=what)

    def failure(self, error: BaseException, what: str, name: str = "") -> VmdumpError:
        """Give vmdump's error for one of libvirt's.

        GuestBusy where a job of the domain's is in the way or it is not active, AccessDenied where this user
        may not, SourceError where no daemon answers; else QmpError, without a class where the connection was
        lost or the domain is gone.

        Parameters
        ----------
        error : libvirtError
            libvirt's.
        what : str
            What was wanted.
        name : str
            Of whom.
        """
        libvirt = self.libvirt
        where, text = name or self.uri, " ".join(str(error).split())
        code: int = getattr(error, "get_error_code", lambda: -1)()
        number: int = getattr(error, "get_int1", lambda: -1)()
        if self._handle is None:
            return self._no_connection(code, number, text)
        if code in _codes(libvirt, "ACCESS_DENIED", "OPERATION_DENIED", "AUTH_FAILED", "AUTH_CANCELLED"):
            return AccessDenied(f"{where}: {what}: libvirt refuses: {text}", hint=_rights(self.uri))
        if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
            return GuestBusy(f"{where}: {what}: somebody else is at work on the domain ({text})", state="job")
        if code == libvirt.VIR_ERR_OPERATION_INVALID:
            return GuestBusy(f"{where}: {what}: libvirt refuses: {text}", state="inactive")
        lost = not self.alive or _part(error) == libvirt.VIR_FROM_RPC
        if lost or code == libvirt.VIR_ERR_NO_DOMAIN:
            return QmpError(f"{where}: {what}: {text}", command=what)
        return QmpError(f"{where}: {what}: libvirt: {text}", command=what, error_class="GenericError")

    def _no_connection(self, code: int, number: int, text: str) -> VmdumpError:
        if code == self.libvirt.VIR_ERR_NO_CONNECT:
            return CapabilityError(f"{self.uri}: {text}; guests of QEMU are at qemu:///system and {_SESSION}")
        missing = number in (errno.ENOENT, errno.ECONNREFUSED)
        # The daemon asks polkit whether somebody who is not root may, which fails in ways of its own.
        denied = number in (errno.EACCES, errno.EPERM) or not (
            missing or os.geteuid() == 0 or self.is_session
        )
        if denied or code in _codes(self.libvirt, "AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE"):
            return AccessDenied(f"{self.uri}: libvirt lets this user not in: {text}", hint=_rights(self.uri))
        return SourceError(
            f"cannot connect to libvirt: {text}",
            path=self.uri,
            hint="start its daemon (systemctl start libvirtd, or virtqemud), or name another with ?uri=",
        )

    def listen(self, domain: Any, kind: int, callback: Callable[..., object]) -> None:
        """Have a callback called at each event of a kind, in the thread for events, until this is closed.

        Parameters
        ----------
        domain : virDomain
            Of what.
        kind : int
            A VIR_DOMAIN_EVENT_ID.
        callback : callable
            As libvirt-python wants it.

        Raises
        ------
        VmdumpError
            As :meth:`failure` says.
        """
        register = self.handle.domainEventRegisterAny
        self._callbacks.append(self.call(register, domain, kind, callback, None, what="listen"))

    def listen_for_loss(self, callback: Callable[[], object]) -> None:
        """Have a callback called, in the thread for events, when the daemon ends or hangs."""
        handle = self.handle
        self.call(handle.registerCloseCallback, lambda *_: callback(), None, what="listen")

    def close(self, *others: Any) -> None:
        """Close it; closing twice does nothing. A daemon that does not answer is left to a thread.

        Parameters
        ----------
        *others
            What holds the connection as well, of libvirt-python's: who gives it up last waits for the daemon.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            handle, self._handle = self._handle, None
        try:
            if handle is not None:
                part = self.begin(_Goodbye(self.libvirt, handle, self._callbacks, others))
                del handle, others
                concurrent.futures.wait((part,), _CLOSE_WAIT)
        finally:
            self._loop.leave()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Goodbye:
    """Ends a connection, and lets go of all that holds it."""

    def __init__(self, libvirt: Any, handle: Any, callbacks: list[int], others: tuple[Any, ...]) -> None:
        self._libvirt = libvirt
        self._parts: list[Any] = [handle, *others]
        self._callbacks = callbacks

    def __call__(self) -> None:
        handle = self._parts[0]
        for callback in self._callbacks:
            with contextlib.suppress(self._libvirt.libvirtError):
                handle.domainEventDeregisterAny(callback)
        with contextlib.suppress(self._libvirt.libvirtError):
            handle.unregisterCloseCallback()
        with contextlib.suppress(self._libvirt.libvirtError):
            handle.close()
        self._parts.clear()


def _part(error: BaseException) -> int:
    """Give the part of libvirt that an error is from."""
    part: int = getattr(error, "get_error_domain", lambda: -1)()
    return part


def _codes(libvirt: Any, *names: str) -> tuple[int, ...]:
    return tuple(getattr(libvirt, f"VIR_ERR_{name}") for name in names)


def _rights(uri: str) -> str:
    if "/session" in uri:
        return "run vmdump as the user whose session it is"
    return f"run vmdump as root; guests of your own are at ?uri={_SESSION}"


def _refuse_elsewhere(uri: str) -> None:
    """Refuse what is not a QEMU of this machine."""
    if not uri:
        return
    parts = urlsplit(uri)
    driver, _, transport = parts.scheme.partition("+")
    # Without a scheme it may be a name from libvirt's configuration, which libvirt itself looks up.
    if driver and driver != "qemu":
        raise _other_hypervisor(uri, driver)
    if driver and parts.path not in ("/system", "/session"):
        raise CapabilityError(
            f"{uri}: this is no daemon; guests of QEMU are at qemu:///system and {_SESSION}"
        )
    if parts.netloc or transport not in _LOCAL:
        host = parts.hostname or "that host"
        raise CapabilityError(
            f"{uri}: the memory of its guests is on {host}, and cannot be read from here: run vmdump there"
        )


def _other_hypervisor(uri: str, kind: str) -> CapabilityError:
    return CapabilityError(
        f"{uri}: this hypervisor is {kind.lower()}, and only guests of QEMU can be dumped: qemu:///system or "
        f"{_SESSION}"
    )
