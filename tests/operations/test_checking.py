"""Which pages of a damaged dump unpack: found by all threads, told as progress, and interruptible."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from oracles.kdump import Kdump
from oracles.lime_builder import build_avml

import vmdump
from vmdump import errors
from vmdump.readers.avml import AvmlDump
from vmdump.readers.kdump import KdumpDump

PAGE = 4096
SIZE = 32 << 20
Rewrite = Callable[..., object]
PROGRAMS: dict[str, Rewrite] = {
    "repair": vmdump.repair,
    "convert": lambda source, output, **options: vmdump.convert(source, output, keep_going=True, **options),
}


def damage(path: Path, places: list[int]) -> None:
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(bytes(byte ^ 0xFF for byte in os.pread(file.fileno(), 32, place)))


@pytest.fixture(scope="module")
def kdump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every 500th page of those that were compressed does not unpack."""
    path = tmp_path_factory.mktemp("kdump") / "damaged"
    vmdump.dump(f"synthetic:{SIZE}?seed=7&fill=0.8", path)
    table = Kdump(path).descriptors
    damage(path, table["offset"][table["flags"] != 0][::500].tolist())
    return path


@pytest.fixture(scope="module")
def avml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of 512 frames do not unpack; most of the file are frames that are plain."""
    path = tmp_path_factory.mktemp("avml") / "damaged"
    rng = random.Random(7)
    page = b"".join(rng.randbytes(16) * 4 for _ in range(PAGE // 64))
    path.write_bytes(build_avml([(0x100000, page * (SIZE // PAGE))]))
    step = path.stat().st_size // 201  # not where the second range begins
    damage(path, list(range(step, 200 * step, step)))
    return path


@pytest.fixture(params=["kdump", "avml"])
def damaged(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


class Meeting:
    """Two threads have to be in a function at once, or it fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.threads: set[str] = set()
        barrier = threading.Barrier(2)
        inner = getattr(owner, name)

        def work(*arguments: object) -> object:
            first = threading.current_thread().name not in self.threads and len(self.threads) < 2
            self.threads.add(threading.current_thread().name)
            if first:
                barrier.wait(30)
            return inner(*arguments)

        monkeypatch.setattr(owner, name, work)


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_threads_take_part(
    program: str, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = (
        (KdumpDump, "read_pages") if damaged.parent.name.startswith("kdump") else (AvmlDump, "_decode")
    )
    meeting = Meeting(monkeypatch, owner, name)
    PROGRAMS[program](damaged, tmp_path / "out", threads=2)
    assert len(meeting.threads) >= 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_result_does_not_depend_on_the_threads(program: str, damaged: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        PROGRAMS[program](damaged, tmp_path / f"{threads}", threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()
    assert len(Kdump(tmp_path / "1").pfns) < SIZE // PAGE
    assert vmdump.verify(tmp_path / "1").whole


@pytest.mark.parametrize("program", PROGRAMS)
def test_progress_covers_both_passes(program: str, damaged: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    PROGRAMS[program](damaged, tmp_path / "out", threads=2, progress=progress)
    done, totals = [moment[0] for moment in seen], [moment[1] for moment in seen]
    assert done == sorted(done)
    assert done[-1] == totals[-1]
    # Of the check, and of the writing; the total says so from the start.
    assert len({moment for moment in done if 0 < moment <= SIZE}) > 3
    assert min(totals) > 1.9 * SIZE
    assert max(totals) < 2.1 * SIZE


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_interrupt_ends_the_check(program: str, damaged: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        PROGRAMS[program](damaged, tmp_path / "out", threads=2, progress=progress)
    assert not list(tmp_path.iterdir())
    assert not [one for one in threading.enumerate() if one.name.startswith("vmdump-worker")]
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("program", PROGRAMS)
def test_nobody_has_no_threads(program: str, damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.RequestError, match="threads"):
        PROGRAMS[program](damaged, tmp_path / "out", threads=0)
