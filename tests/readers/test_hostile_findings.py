"""What the fuzzers have found, one test each."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracles import small_dumps

import vmdump
from vmdump.readers.kinds import PageKind


@pytest.mark.parametrize("kind", small_dumps.all_kinds(), ids=lambda kind: kind.name)
def test_page_in_front_of_the_first(kind: small_dumps.SmallDump, tmp_path: Path) -> None:
    """Page -1, asked for where a block has no whole page: a negative number in unsigned arithmetic."""
    path = tmp_path / "dump"
    path.write_bytes(kind.data)
    with vmdump.open(path) as dump:
        assert dump.page_kinds(-1, 2).tolist()[0] == PageKind.MISSING
        assert dump.page_kinds(0, 1).tolist() != [PageKind.MISSING]
        with pytest.raises(vmdump.errors.ReadError):
            dump.pages(-1, 2)
        with pytest.raises(vmdump.errors.ReadError):
            dump.read(-1, 2)
