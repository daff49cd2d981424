"""A guest that rewrites kernel memory as fast as it can is in a filtered dump as it was at one moment.

`many_filtered.py` does the same a hundred times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from oracles import judges

from live import pages
from live.dumping import succeeds
from live.guests import Guest

FUZZY = ("--no-pause", "--force-fuzzy")


@pytest.fixture(scope="module", params=["file", "private"])
def writing_guest(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    """256 MiB, 20 of it rewritten for ever."""
    judges.require("guest")
    options = pages.writing(tmp_path_factory.mktemp("initrd"))
    with Guest("256M", share=request.param, **options) as guest:
        yield guest.wait_ready()


@pytest.mark.parametrize(("format", "level"), [("kdump-lzo", 31), ("elf", 31), ("kdump-zstd", 23)])
def test_one_moment(format: str, level: int, writing_guest: Guest, scratch: Path) -> None:
    report = succeeds(writing_guest, scratch / "dump", "-f", format, "-d", level)
    assert not report["fuzzy"]
    assert report["doubtful_pages"] == 0
    assert pages.check_moment(scratch / "dump", user=level == 23) > 0
    assert writing_guest.running()


def test_without_a_pause_it_is_none(writing_guest: Guest, scratch: Path) -> None:
    """What is checked is wrong where vmdump does not promise it."""
    for _ in range(3):
        report = succeeds(writing_guest, scratch / "dump", "-f", "kdump-lzo", "-d", 31, "--force", *FUZZY)
        assert report["fuzzy"]
        try:
            pages.check_moment(scratch / "dump", user=False)
        except AssertionError:
            return
    pytest.fail("the guest does not write, or nobody looks")
