"""A guest that is open for as long as somebody holds it, and what of its memory is there."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import vmdump
from vmdump.errors import FormatError, SourceError
from vmdump.integrations.lasting import LastingGuest


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    vmdump.dump(np.ones(1 << 20, np.uint8), tmp_path / "dump", format="elf")
    return tmp_path / "dump"


def test_it_is_closed_with_its_last_holder(dump: Path) -> None:
    lasting = LastingGuest(dump)
    guest = lasting.guest
    assert guest.read(0, 2) == b"\1\1"
    del lasting
    gc.collect()
    with pytest.raises(SourceError, match="closed"):
        guest.read(0, 2)


def test_it_is_closed_at_once(dump: Path) -> None:
    lasting = LastingGuest(dump)
    lasting.close()
    lasting.close()
    with pytest.raises(SourceError, match="closed"):
        lasting.guest.read(0, 2)


def test_what_is_open_stays_the_callers(dump: Path) -> None:
    with vmdump.open(dump) as opened:
        LastingGuest(opened).close()
        assert opened.read(0, 2) == b"\1\1"


def test_nothing_stays_open_of_what_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"KDUMP   " + bytes(8192))
    with pytest.raises(FormatError):
        LastingGuest(tmp_path / "bad")
