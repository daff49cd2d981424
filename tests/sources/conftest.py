"""A daemon of libvirt's that does what a test says."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from scripted.fake_libvirt import FakeLibvirt

from vmdump.sources.libvirt import connection


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibvirt]:
    fake = FakeLibvirt()
    monkeypatch.setitem(sys.modules, "libvirt", fake)  # type: ignore[arg-type]
    connection._libvirt_and_loop.cache_clear()
    yield fake
    connection._libvirt_and_loop.cache_clear()
    assert not fake.connections, "a connection is left open"
