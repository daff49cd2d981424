"""README.md and docs/: their commands and Python run. Pages that want a running guest are in tests/live/."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pages import DOMAIN, PAGES, SOCKET, blocks, check_played, needs
from oracles.judges import require

STILL = [
    page
    for page in PAGES
    if any(block.runs for block in blocks(page)) and not needs(page, f"{SOCKET}|{DOMAIN}")
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", STILL)
def test_page(page: str, scratch: Path) -> None:
    for judge in ("drgn", "makedumpfile", "qemu-system-x86_64"):
        if needs(page, judge):
            require(judge)
    check_played(page, scratch)
