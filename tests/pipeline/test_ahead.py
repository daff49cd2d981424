"""The table of pages ahead, against a dict; no room for it; and that nothing of it is left behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.running import RunningGuest, noise
from hypothesis import given
from hypothesis import strategies as st

import vmdump
from vmdump.errors import Cancelled, SinkError
from vmdump.kernels.hash import KEY_WORDS
from vmdump.pipeline.ahead import PLACE, PagesAhead

PAGE = 4096
BATCH = 1 << 16
# 2**39 pages of 4 KiB end at 2 PiB; the table of them is a file of 10 TiB, and ext4 ends at 16.
BASES = (0, 1, 203, BATCH - 2, (1 << 20) - 3, 1 << 32, (1 << 39) - 400)


def look_up(ahead: PagesAhead, pfn: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What is noted of pages; nothing is as good as pages that were never recorded."""
    return ahead.read(pfn, count) or (np.zeros(count, np.uint64), np.zeros(count, PLACE))


def places_of(rows: list[tuple[int, int]]) -> np.ndarray:
    return np.array(rows, PLACE)


@st.composite
def records(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, int, int]], bool]]:
    """Draw calls of record(): first page, (hash, offset, size) of each, and whether places are given."""
    hashes = st.sampled_from([0, 1, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
    entry = st.tuples(hashes, st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
    pfns = st.builds(int.__add__, st.sampled_from(BASES), st.integers(0, 350))
    return draw(st.lists(st.tuples(pfns, st.lists(entry, max_size=40), st.booleans()), max_size=8))


@given(calls=records(), data=st.data())
def test_any_records(calls: list[tuple[int, list[tuple[int, int, int]], bool]], data: st.DataObject) -> None:
    model: dict[int, tuple[int, int, int]] = {}
    with closing(PagesAhead(PAGE, None)) as ahead:
        for pfn, entries, with_places in calls:
            hashes = np.array([entry[0] for entry in entries], np.uint64)
            places = places_of([entry[1:] for entry in entries]) if with_places else None
            ahead.record(pfn, hashes, places)
            for number, entry in enumerate(entries):
                model[pfn + number] = entry if with_places else (entry[0], 0, 0)
        for base in (*BASES, data.draw(st.integers(0, 1 << 39))):
            first, count = base + data.draw(st.integers(0, 200)), data.draw(st.integers(0, 400))
            found, places = look_up(ahead, first, count)
            wanted = [model.get(pfn, (0, 0, 0)) for pfn in range(first, first + count)]
            assert list(zip(found.tolist(), *map(np.ndarray.tolist, (places["offset"], places["size"])),
                            strict=True)) == wanted  # fmt: skip
            runs = list(ahead.recorded(first, count))
            assert all(begin < end for begin, end in runs)
            covered = [pfn for begin, end in runs for pfn in range(begin, end)]
            assert covered == [first + number for number, entry in enumerate(wanted) if entry[0]]
        everything = [pfn for run in ahead.recorded(0, 1 << 39) for pfn in range(*run)]
        assert everything == sorted(pfn for pfn, entry in model.items() if entry[0])


def test_arrays_are_the_callers_own() -> None:
    with closing(PagesAhead(PAGE, None)) as ahead:
        ahead.record(5, np.array([7, 8], np.uint64))
        hashes, places = look_up(ahead, 5, 2)
        hashes[:], places[:] = 0, (1, 1)
        assert look_up(ahead, 5, 2)[0].tolist() == [7, 8]
        assert ahead.key.shape == (KEY_WORDS,)
        with closing(PagesAhead(PAGE, None)) as other:
            assert (ahead.key != other.key).any()


def test_more_than_a_batch_with_a_gap() -> None:
    count = 3 * BATCH
    hashes = np.arange(1, count + 1, dtype=np.uint64)
    hashes[BATCH + 5 : 2 * BATCH - 5] = 0
    with closing(PagesAhead(PAGE, None)) as ahead:
        ahead.record(1000, hashes)
        found = np.zeros(count + 2000, bool)
        for begin, end in ahead.recorded(0, count + 2000):
            assert not found[begin:end].any()
            found[begin:end] = True
        assert np.array_equal(found[1000 : 1000 + count], hashes != 0)
        assert found.sum() == np.count_nonzero(hashes)
        assert np.array_equal(look_up(ahead, 1000, count)[0], hashes)


def test_calls_of_the_system_that_do_half(monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:7], at))
    monkeypatch.setattr(os, "preadv", lambda fd, rooms, at: read(fd, [rooms[0][:11]], at))
    hashes = np.arange(1, 60, dtype=np.uint64)
    with closing(PagesAhead(PAGE, None)) as ahead:
        ahead.record(77, hashes, places_of([(number, 9) for number in range(59)]))
        found, places = look_up(ahead, 70, 70)
        assert found.tolist() == [0] * 7 + hashes.tolist() + [0] * 4
        assert places["offset"][7:66].tolist() == list(range(59))


def test_several_threads() -> None:
    with closing(PagesAhead(PAGE, None)) as ahead:

        def work(first: int) -> None:
            for pfn in range(first, first + 4000, 40):
                ahead.record(pfn, np.full(40, pfn + 1, np.uint64))
                assert (look_up(ahead, pfn, 40)[0] == pfn + 1).all()

        threads = [threading.Thread(target=work, args=(4000 * number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = np.repeat(np.arange(0, 16000, 40, dtype=np.uint64) + 1, 40)
        assert np.array_equal(look_up(ahead, 0, 16000)[0], expected)


# --- trouble ------------------------------------------------------------------------------------------------


def fail_with(code: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def open_descriptors() -> list[str]:
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in set(os.listdir("/proc/self/fd"))
                  if os.path.lexists(f"/proc/self/fd/{fd}"))  # fmt: skip


@pytest.mark.parametrize(
    ("call", "code"), [("pwrite", errno.ENOSPC), ("preadv", errno.EIO), ("lseek", errno.EIO)]
)
def test_each_failure_is_named(call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(PagesAhead(PAGE, str(tmp_path))) as ahead:
        monkeypatch.setattr(os, call, fail_with(code))
        with pytest.raises(SinkError) as error:
            ahead.record(0, np.ones(3, np.uint64))
            list(ahead.recorded(0, 3))
        monkeypatch.undo()
    assert (error.value.errno, error.value.filename) == (code, str(tmp_path))
    assert os.strerror(code) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.hint
    assert not list(tmp_path.iterdir())


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SinkError) as error:
        PagesAhead(PAGE, str(tmp_path / "nowhere"))
    assert error.value.errno == errno.ENOENT


def changing_guest(start: int = 0) -> RunningGuest:
    before = noise(1, 4000)  # two chunks
    after = before.copy()
    after[::50_000] ^= 1
    return RunningGuest([(start, before)], [(start, after)])


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
def test_file_that_cannot_grow(name: str, tmp_path: Path) -> None:
    """The table of pages this high in memory ends far behind the dump, and a limit hits it alone."""
    before = open_descriptors()
    with file_size_limit(1 << 30), pytest.raises(SinkError, match="what the pages held") as error:
        vmdump.dump(changing_guest(1 << 39), tmp_path / "out", format=name)
    assert error.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
    assert open_descriptors() == before
    with file_size_limit(1 << 30):
        vmdump.dump(changing_guest(1 << 32), tmp_path / "out", format=name)


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
@pytest.mark.parametrize(("call", "fails_at"), [("pwrite", 1), ("pwrite", 2), ("preadv", 1), ("preadv", 2)])
def test_call_that_fails_in_a_dump(
    name: str, call: str, fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls, real = open_descriptors(), 0, getattr(os, call)

    def failing(fd: int, data: object, at: int) -> int:
        nonlocal calls
        calls += 1
        if calls >= fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        result: int = real(fd, data, at)
        return result

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(SinkError, match="what the pages held") as error:
        vmdump.dump(changing_guest(), tmp_path / "out", format=name, threads=2)
    monkeypatch.undo()
    assert calls >= fails_at
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
    assert open_descriptors() == before


@pytest.mark.parametrize("name", ["elf", "kdump-zlib", "kdump-lzo"])
def test_nothing_is_left(name: str, tmp_path: Path) -> None:
    before = open_descriptors()
    during: list[list[str]] = []

    def look(done: int, total: int) -> None:
        during.append([path.name for path in tmp_path.iterdir()])

    report = vmdump.dump(changing_guest(), tmp_path / "out", format=name, progress=look)
    assert 0 < report.changed_pages < 4000
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert open_descriptors() == before
    assert not any(name.endswith("out") for names in during for name in names)


@pytest.mark.parametrize("name", ["elf", "kdump-zlib"])
@pytest.mark.parametrize("share", [0.3, 0.8], ids=["before the stop", "after the stop"])
def test_nothing_is_left_of_a_cancelled_dump(name: str, share: float, tmp_path: Path) -> None:
    before = open_descriptors()

    def cancel(done: int, total: int) -> None:
        if done >= share * 2 * 2000 * PAGE:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        vmdump.dump(changing_guest(), tmp_path / "out", format=name, progress=cancel)
    assert not list(tmp_path.iterdir())
    assert open_descriptors() == before
