"""README.md and docs/: their pages that want a running guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pages import DOMAIN, PAGES, SOCKET, check_played, needs

from live.guests import Guest
from live.libvirt_host import Domain

OF_QEMU = [page for page in PAGES if needs(page, SOCKET)]
OF_LIBVIRT = [page for page in PAGES if needs(page, DOMAIN)]


@pytest.mark.parametrize("page", OF_QEMU)
def test_page_with_a_guest(page: str, running_guest: Guest, scratch: Path) -> None:
    check_played(page, scratch, instead={SOCKET: str(running_guest.qmp)})
    assert running_guest.running()


@pytest.mark.parametrize("page", OF_LIBVIRT)
def test_page_with_a_domain(page: str, domain: Domain, scratch: Path) -> None:
    check_played(page, scratch, instead={DOMAIN: domain.source}, prefix=domain.host.inside)
    assert domain.state() == ("running", "unpaused")
