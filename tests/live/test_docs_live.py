"""README.md and docs/: their pages that want a running guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pages import PAGES, check_played, needs

from live.guests import Guest
from live.libvirt_host import Domain

OF_QEMU = [page for page in PAGES if needs(page, "/run/vm.qmp")]
OF_LIBVIRT = [page for page in PAGES if needs(page, "libvirt:")]


@pytest.mark.parametrize("page", OF_QEMU)
def test_page_with_a_guest(page: str, running_guest: Guest, scratch: Path) -> None:
    check_played(page, scratch, instead={"/run/vm.qmp": str(running_guest.qmp)})
    assert running_guest.running()


@pytest.mark.parametrize("page", OF_LIBVIRT)
def test_page_with_a_domain(page: str, domain: Domain, scratch: Path) -> None:
    check_played(page, scratch, instead={"libvirt:web-1": domain.source}, prefix=domain.host.inside)
    assert domain.state() == ("running", "unpaused")
