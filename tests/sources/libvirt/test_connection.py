"""Connections to libvirt: which daemons are refused before one is asked, and without libvirt-python."""

from __future__ import annotations

import os
import sys

import pytest
from scripted.fake_libvirt import FakeLibvirt

from vmdump.errors import CapabilityError
from vmdump.sources.libvirt import connection
from vmdump.sources.libvirt.connection import Connection


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("xen:///system", "xen"),
        ("test:///default", "test"),
        ("lxc:///system", "lxc"),
        ("bhyve:///system", "bhyve"),
        ("vbox:///session", "vbox"),
        ("esx://host/", "esx"),
    ],
)
def test_other_hypervisors_are_refused_by_name(uri: str, kind: str) -> None:
    with pytest.raises(CapabilityError, match=f"^{uri}: this hypervisor is {kind}, and only guests of QEMU"):
        Connection(uri)


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("qemu+ssh://root@far/system", "far"),
        ("qemu+tls://far:16514/system", "far"),
        ("qemu://far/system", "far"),
        ("qemu+libssh2://[::1]/system", "::1"),
        ("qemu+ext:///session?command=x", "that host"),
    ],
)
def test_other_hosts_are_refused(uri: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CapabilityError, match=f"memory of its guests is on {host}, and cannot be read"):
        Connection(uri)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", uri)
    with pytest.raises(CapabilityError, match="run vmdump there"):
        Connection()


@pytest.mark.parametrize("uri", ["qemu:///embed?root=/srv/vm", "qemu:///", "qemu+unix://"])
def test_what_is_no_daemon_is_refused(uri: str) -> None:
    """The driver embedded in this process would have domains of its own, and logs on standard error."""
    with pytest.raises(CapabilityError, match="this is no daemon; guests of QEMU are at qemu:///system"):
        Connection(uri)


@pytest.mark.parametrize(
    ("uri", "user", "is_session"),
    [
        ("qemu:///system", 0, False),
        ("qemu:///system?socket=/run/user/1/session", 0, False),
        ("qemu:///session", 1000, True),
        ("qemu:///session", 0, False),
        ("qemu:///session?socket=/run/user/1000/libvirt/libvirt-sock", 0, True),
    ],
)
def test_whose_daemon_it_is(
    uri: str, user: int, is_session: bool, libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with Connection(uri) as opened:
        assert opened.is_session == is_session


def test_without_libvirt_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    connection._libvirt_and_loop.cache_clear()
    try:
        with pytest.raises(CapabilityError, match=r"pip install 'vmdump\[libvirt\]'"):
            Connection("qemu:///system")
    finally:
        connection._libvirt_and_loop.cache_clear()
