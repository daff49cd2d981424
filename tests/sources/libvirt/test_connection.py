"""Connections to libvirt: which daemons are refused before one is asked, and without libvirt-python."""

from __future__ import annotations

import sys

import pytest

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


def test_without_libvirt_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    connection._libvirt_and_loop.cache_clear()
    try:
        with pytest.raises(CapabilityError, match=r"pip install 'vmdump\[libvirt\]'"):
            Connection("qemu:///system")
    finally:
        connection._libvirt_and_loop.cache_clear()
