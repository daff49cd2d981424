"""Data runs of a file that are found once, however often and wherever somebody reads in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vmdump.guest.files import DataRuns, FileMemory, GuestFile

MIB = 1 << 20


def test_runs_are_found_by_any_offset_inside() -> None:
    runs = DataRuns()
    runs.add(4 * MIB, 8 * MIB)
    runs.add(0, 2 * MIB)
    assert runs.find(0) == (0, 2 * MIB)
    assert runs.find(2 * MIB - 1) == (0, 2 * MIB)
    assert runs.find(2 * MIB) is None
    assert runs.find(5 * MIB) == (4 * MIB, 8 * MIB)
    # One that was found from its middle on gives way to the whole.
    runs.add(3 * MIB, 8 * MIB)
    assert runs.find(3 * MIB) == runs.find(7 * MIB) == (3 * MIB, 8 * MIB)


def test_short_runs_and_too_many_are_forgotten() -> None:
    runs = DataRuns()
    runs.add(0, MIB - 1)
    assert runs.find(0) is None
    for number in range(300):
        runs.add(2 * number * MIB, (2 * number + 1) * MIB)
    assert sum(runs.find(2 * number * MIB) is not None for number in range(300)) == 256


@pytest.fixture
def sparse(tmp_path: Path) -> GuestFile:
    """A file of which 4 MiB from 2 MiB on are data, and 3 MiB from 8 MiB on."""
    path = tmp_path / "ram"
    with path.open("wb") as file:
        for begin, size in ((2, 4), (8, 3)):
            file.seek(begin * MIB)
            file.write(b"\1" * size * MIB)
        file.truncate(16 * MIB)
    return GuestFile(path)


def test_the_end_of_a_run_is_looked_for_once(sparse: GuestFile, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    lseek = os.lseek

    def noting(fd: int, position: int, how: int) -> int:
        if how == os.SEEK_HOLE:
            asked.append(position)
        return lseek(fd, position, how)

    memory = FileMemory(sparse, 0, 16 * MIB)
    monkeypatch.setattr(os, "lseek", noting)
    try:
        assert list(memory.extents()) == [(2 * MIB, 6 * MIB), (8 * MIB, 11 * MIB)]
        scratch = np.empty(MIB, np.uint8)
        for place in (9, 3, 10, 5, 1, 7):
            whole = memory.view(place * MIB, MIB, scratch)
            assert whole.all() == (place not in (1, 7))
        assert asked == [2 * MIB, 8 * MIB]
        again = GuestFile(sparse.path)
        again.data_runs.take(sparse.data_runs)
        other = FileMemory(again, MIB, 14 * MIB)
        assert list(other.extents()) == [(MIB, 5 * MIB), (7 * MIB, 10 * MIB)]
        assert len(asked) == 2
        again.close()
    finally:
        sparse.close()
