"""The memory of another process: what is there is read, what is not is not touched, what is lost is noted."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted.fake_qemu import PAGE, Child, page_of

from vmdump.errors import AccessDenied, SourceError
from vmdump.guest.blocks import Memory
from vmdump.guest.files import FileMemory, GuestFile
from vmdump.sources.process.memory import (
    JoinedMemory,
    PrivateMemory,
    ProcessMemory,
    UnreadablePages,
    WatchedMemory,
)
from vmdump.sources.process.pagemap import PageTable
from vmdump.sources.process.process import Process, covering, merged

MADV_SPLITS, MADV_GUARD_INSTALL, MADV_HWPOISON, MADV_FREE = 16, 102, 100, 8
PAGES = 96
page_sets = st.sets(st.integers(0, PAGES - 1), max_size=PAGES)


def runs(pages: Sequence[int] | set[int]) -> list[tuple[int, int]]:
    """Page numbers as half-open runs of bytes."""
    found: list[tuple[int, int]] = []
    for page in sorted(pages):
        if found and found[-1][1] == page * PAGE:
            found[-1] = found[-1][0], (page + 1) * PAGE
        else:
            found.append((page * PAGE, (page + 1) * PAGE))
    return found


def whole(memory: Memory) -> bytes:
    """All of it, read into a buffer that held something else."""
    return memory.view(0, memory.size, np.full(memory.size, 0xEE, np.uint8)).tobytes()


def contents(pages: set[int] | Sequence[int], first: int = 0, count: int = PAGES) -> bytes:
    return b"".join(page_of(first + page) if page in pages else bytes(PAGE) for page in range(count))


class Opened:
    """A child, and what vmdump opens of it."""

    def __init__(self, *, scan: bool = True) -> None:
        self.scan = scan
        self.child = Child()
        self.process = Process(self.child.pid, "the child")
        self.memory = ProcessMemory(self.process)
        if not scan:
            self.memory.table.close()
            self.memory.table = PageTable(self.process, scan=False)

    def mapped(self, address: int) -> GuestFile:
        """The file that is mapped at an address."""
        return self.process.open_mapped(covering(self.process.mappings(), address, address + PAGE)[0])

    def close(self) -> None:
        self.memory.close()
        self.process.close()
        self.child.__exit__(None, None, None)


@pytest.fixture(scope="module", params=["scan", "entries"])
def shared(request: pytest.FixtureRequest) -> Iterator[Opened]:
    """One child for many examples, each of which maps memory of its own."""
    opened = Opened(scan=request.param == "scan")
    yield opened
    opened.close()


@pytest.fixture
def opened() -> Iterator[Opened]:
    """A child for one test."""
    opened = Opened()
    yield opened
    opened.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vmdump-test-", dir="/dev/shm") as name:
        yield Path(name)


@given(page_sets, page_sets)
def test_anonymous_memory(shared: Opened, written: set[int], looked_at: set[int]) -> None:
    """Written pages are data; pages that were only read are the kernel's zero page, and none.

    Without PAGEMAP_SCAN the zero page cannot be told from data, and is read.
    """
    child = shared.child
    address = child.map("anonymous", PAGES)
    child.ask("madvise", address=address, size=PAGES * PAGE, advice=15)  # no huge pages: a page is a page
    child.write(address, written)
    child.ask("touch", address=address, pages=list(looked_at))
    memory = PrivateMemory(shared.memory, address, PAGES * PAGE)
    before = child.resident(address)
    assert list(memory.extents()) == runs(written if shared.scan else written | looked_at)
    assert whole(memory) == contents(written)
    assert child.resident(address) == before == len(written) * PAGE
    child.ask("munmap", address=address, size=PAGES * PAGE)


@given(page_sets, st.integers(0, PAGES * PAGE - 1), st.integers(1, 40 * PAGE))
def test_any_piece_of_anonymous_memory(shared: Opened, written: set[int], offset: int, length: int) -> None:
    child = shared.child
    address = child.map("anonymous", PAGES)
    child.write(address, written)
    memory = PrivateMemory(shared.memory, address, PAGES * PAGE)
    length = min(length, PAGES * PAGE - offset)
    scratch = np.full(length + 5, 0xEE, np.uint8)
    found = memory.view(offset, length, scratch)
    assert found.tobytes() == contents(written)[offset : offset + length]
    assert scratch[length:].tolist() == [0xEE] * 5
    child.ask("munmap", address=address, size=PAGES * PAGE)


@given(page_sets)
def test_scan_and_entries_agree(shared: Opened, written: set[int]) -> None:
    child = shared.child
    address = child.map("anonymous", PAGES)
    child.write(address, written)
    with contextlib.ExitStack() as stack:
        tables = [PageTable(shared.process, scan=scan) for scan in (True, False)]
        for table in tables:
            stack.callback(table.close)

        def both(anonymous: bool) -> list[list[tuple[int, int]]]:
            end = address + PAGES * PAGE
            return [list(table.populated(address, end, anonymous=anonymous)) for table in tables]

        for anonymous in (True, False):
            first, second = both(anonymous)
            assert first == second == [(address + low, address + high) for low, high in runs(written)]
    child.ask("munmap", address=address, size=PAGES * PAGE)


@given(page_sets, page_sets, st.booleans())
def test_private_mapping_of_a_file(shared: Opened, filled: set[int], own: set[int], deleted: bool) -> None:
    """Pages that the process has written are its own; the others are the file's, and holes stay holes."""
    child = shared.child
    with tempfile.TemporaryDirectory(prefix="vmdump-test-", dir="/dev/shm") as folder:
        path = Path(folder) / "ram"
        with path.open("wb") as file:
            for page in filled:
                file.seek(page * PAGE)
                file.write(page_of(1000 + page))
            file.truncate(PAGES * PAGE)
        address = child.map("private", PAGES, path=str(path))
        child.write(address, own)
        blocks = path.stat().st_blocks
        if deleted:
            path.unlink()
        guest_file = shared.mapped(address)
        try:
            memory = PrivateMemory(
                shared.memory, address, PAGES * PAGE, FileMemory(guest_file, 0, PAGES * PAGE)
            )
            before = child.resident(address)
            assert list(memory.extents()) == runs(filled | own)
            expected = b"".join(
                page_of(page) if page in own else page_of(1000 + page) if page in filled else bytes(PAGE)
                for page in range(PAGES)
            )
            assert whole(memory) == expected
            assert child.resident(address) == before
            # The page cache of a file in memory is its contents: a hole that is touched is filled.
            assert os.fstat(guest_file.fd).st_blocks == blocks
        finally:
            guest_file.close()
    child.ask("munmap", address=address, size=PAGES * PAGE)


def test_page_of_a_file_that_was_only_read(shared: Opened, tmp_path: Path) -> None:
    """It is in the process's page table, and still the file's: a hole of it is no data."""
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.seek(8 * PAGE)
        file.write(page_of(1008))
        file.truncate(PAGES * PAGE)
    blocks = path.stat().st_blocks
    address = shared.child.map("private", PAGES, path=str(path))
    shared.child.write(address, [70])
    shared.child.ask("touch", address=address, pages=list(range(20)))
    if path.stat().st_blocks != blocks:
        pytest.skip("this file system fills the holes that are looked at")
    with contextlib.closing(shared.mapped(address)) as guest_file:
        file_memory = FileMemory(guest_file, 0, PAGES * PAGE)
        memory = PrivateMemory(shared.memory, address, PAGES * PAGE, file_memory)
        own = list(memory._own(0, PAGES * PAGE))
        assert own == runs({70})
        data = {page for low, high in file_memory.extents() for page in range(low // PAGE, high // PAGE)}
        assert list(memory.extents()) == runs(data | {70})


@pytest.mark.parametrize("kind", ["memfd", "zero", "shared", "shared, deleted"])
@settings(max_examples=10)
@given(written=page_sets)
def test_shared_memory(shared: Opened, kind: str, written: set[int]) -> None:
    """Files with and without a name, and with neither name nor descriptor: those are in map_files."""
    child = shared.child
    with tempfile.TemporaryDirectory(prefix="vmdump-test-", dir="/dev/shm") as folder:
        path = Path(folder) / "ram"
        path.touch()
        os.truncate(path, PAGES * PAGE)
        name = kind.split(",")[0]
        address = child.map(name, PAGES, **({"path": str(path)} if name == "shared" else {}))
        child.write(address, written)
        if kind == "shared, deleted":
            path.unlink()
        try:
            guest_file = shared.mapped(address)
        except AccessDenied as error:
            pytest.skip(str(error))
        try:
            blocks = os.fstat(guest_file.fd).st_blocks
            memory = FileMemory(guest_file, 0, PAGES * PAGE)
            assert list(memory.extents()) == runs(written)
            assert whole(memory) == contents(written)
            assert os.fstat(guest_file.fd).st_blocks == blocks
        finally:
            guest_file.close()
    child.ask("munmap", address=address, size=PAGES * PAGE)


def test_mapping_that_was_split(opened: Opened) -> None:
    """QEMU's madvise calls cut a mapping into many; they are found again as one run of memory."""
    child = opened.child
    address = child.map("anonymous", PAGES)
    child.write(address, range(0, PAGES, 3))
    for page in range(0, PAGES, 8):
        child.ask("madvise", address=address + page * PAGE, size=4 * PAGE, advice=MADV_SPLITS)
    mappings = covering(opened.process.mappings(), address, address + PAGES * PAGE)
    assert len(mappings) == PAGES // 4
    assert len(merged(mappings)) == 1
    memory = PrivateMemory(opened.memory, address, PAGES * PAGE)
    assert list(memory.extents()) == runs(set(range(0, PAGES, 3)))
    assert whole(memory) == contents(set(range(0, PAGES, 3)))


@given(page_sets, page_sets, st.integers(0, 2 * PAGES * PAGE - 1), st.integers(1, 2 * PAGES * PAGE))
def test_joined_memory(shared: Opened, left: set[int], right: set[int], offset: int, length: int) -> None:
    child = shared.child
    parts: list[Memory] = []
    addresses = []
    for number, pages in enumerate((left, right)):
        addresses.append(child.map("anonymous", PAGES))
        child.write(addresses[-1], pages, first=number * PAGES)
        parts.append(PrivateMemory(shared.memory, addresses[-1], PAGES * PAGE))
    memory = JoinedMemory(parts)
    length = min(length, memory.size - offset)
    expected = contents(left) + contents(right, PAGES)
    found = memory.view(offset, length, np.full(length, 0xEE, np.uint8))
    assert found.tobytes() == expected[offset : offset + length]
    pages = {page for low, high in memory.extents() for page in range(low // PAGE, high // PAGE)}
    assert pages == left | {PAGES + page for page in right}
    for address in addresses:
        child.ask("munmap", address=address, size=PAGES * PAGE)


def test_pages_that_were_given_back(opened: Opened) -> None:
    """A balloon takes pages away from a running guest: they read as zero and are no data."""
    child = opened.child
    address = child.map("anonymous", PAGES)
    child.write(address, range(PAGES))
    child.ask("madvise", address=address + 10 * PAGE, size=20 * PAGE, advice=mmap.MADV_DONTNEED)
    memory = PrivateMemory(opened.memory, address, PAGES * PAGE)
    left = set(range(PAGES)) - set(range(10, 30))
    assert list(memory.extents()) == runs(left)
    assert whole(memory) == contents(left)


class Watch:
    """What `WatchedMemory` asks."""

    def __init__(self) -> None:
        self.unreadable = UnreadablePages()
        self.asked = 0

    def demand_alive(self) -> None:
        self.asked += 1


def guard(child: Child, address: int, pages: set[int] | Sequence[int]) -> None:
    """Make pages unreadable for everybody, as a memory error does."""
    for page in pages:
        try:
            child.ask("madvise", address=address + page * PAGE, size=PAGE, advice=MADV_GUARD_INSTALL)
        except OSError as error:
            pytest.skip(f"this kernel has no MADV_GUARD_INSTALL: {error}")


class Stale(PrivateMemory):
    """Memory whose page table was read before the pages were lost."""

    def _own(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        return iter([(begin, end)])


@settings(max_examples=25)
@given(page_sets, st.integers(0, PAGES * PAGE - 1), st.integers(1, 40 * PAGE))
def test_lost_pages(shared: Opened, lost: set[int], offset: int, length: int) -> None:
    """All else is read; the lost ones are zeros, and exactly those are noted that were asked for."""
    child = shared.child
    address = child.map("anonymous", PAGES)
    child.write(address, range(PAGES))
    guard(child, address, lost)
    start = 7 << 20
    watch = Watch()
    memory = WatchedMemory(Stale(shared.memory, address, PAGES * PAGE), start, watch)
    length = min(length, PAGES * PAGE - offset)
    found = memory.view(offset, length, np.full(length, 0xEE, np.uint8))
    assert found.tobytes() == contents(set(range(PAGES)) - lost)[offset : offset + length]
    touched = set(range(offset // PAGE, (offset + length - 1) // PAGE + 1))
    assert list(watch.unreadable.ranges()) == [
        (start + low, start + high) for low, high in runs(lost & touched)
    ]
    assert watch.asked
    child.ask("munmap", address=address, size=PAGES * PAGE)


def test_poisoned_page(opened: Opened) -> None:
    """What a memory error of the host leaves behind."""
    child = opened.child
    address = child.map("anonymous", PAGES)
    child.write(address, range(PAGES))
    try:
        child.ask("madvise", address=address + 5 * PAGE, size=PAGE, advice=MADV_HWPOISON)
    except OSError as error:
        pytest.skip(f"this kernel poisons no page: {error}")
    watch = Watch()
    memory = WatchedMemory(PrivateMemory(opened.memory, address, PAGES * PAGE), 0, watch)
    assert whole(memory) == contents(set(range(PAGES)) - {5})
    assert watch.unreadable.ranges() == ((5 * PAGE, 6 * PAGE),)


def test_page_behind_the_end_of_its_file(opened: Opened, folder: Path) -> None:
    """The file shrinks, and takes pages along that the process has written."""
    path = folder / "ram"
    path.write_bytes(contents(set(range(PAGES)), 1000))
    address = opened.child.map("private", PAGES, path=str(path))
    opened.child.write(address, [3])
    os.truncate(path, 50 * PAGE)
    watch = Watch()
    memory = WatchedMemory(Stale(opened.memory, address, PAGES * PAGE), 0, watch)
    expected = bytearray(contents(set(range(50)), 1000))
    expected[3 * PAGE : 4 * PAGE] = page_of(3)
    assert whole(memory) == bytes(expected).ljust(PAGES * PAGE, b"\0")
    assert watch.unreadable.ranges() == ((50 * PAGE, PAGES * PAGE),)


def test_another_error_is_no_lost_page(opened: Opened) -> None:
    """A file that is too short is the user's mistake, not the host's."""

    class Broken:
        copies = True
        size = PAGE

        def extents(self) -> Iterator[tuple[int, int]]:
            return iter([(0, PAGE)])

        def view(self, offset: int, length: int, scratch: np.ndarray) -> np.ndarray:
            raise SourceError("no", errno=errno.EPERM)

    watch = Watch()
    with pytest.raises(SourceError) as caught:
        whole(WatchedMemory(Broken(), 0, watch))
    assert caught.value.errno == errno.EPERM
    assert watch.unreadable.ranges() == ()


def test_process_that_has_ended(opened: Opened) -> None:
    """Its number may become another's; what is open stays its own, and says so."""
    child = opened.child
    address = child.map("anonymous", PAGES)
    child.write(address, range(PAGES))
    memory = Stale(opened.memory, address, PAGES * PAGE)
    assert whole(memory)
    child.kill()
    with pytest.raises(SourceError, match="the child has ended") as caught:
        whole(memory)
    assert caught.value.errno == errno.ESRCH
    for work in (
        opened.process.mappings,
        lambda: covering(opened.process.mappings(), address, address + PAGE),
        lambda: os.close(opened.process.open("maps")),
        lambda: list(opened.memory.table.populated(address, address + PAGE)),
    ):
        # Empty or an error, never somebody else's.
        with contextlib.suppress(SourceError):
            assert not work()


def test_process_that_never_was() -> None:
    with pytest.raises(SourceError, match="there is no process") as caught:
        Process(2**22 + 1, "QEMU")
    assert caught.value.hint == (
        "QEMU runs on another host, or in another PID namespace: run vmdump where QEMU runs"
    )


def test_one_dump_at_a_time(opened: Opened) -> None:
    second = Process(opened.child.pid, "the child")
    assert opened.process.claim()
    assert not second.claim()
    opened.process.disclaim()
    assert second.claim()
    second.close()
    second.close()
    # Closing gives it back, too.
    assert opened.process.claim()


def test_lock_outlives_its_owner(opened: Opened) -> None:
    """Who has the descriptor open has the lock: the guardian keeps it as long as it works."""
    second = Process(opened.child.pid, "the child")
    assert second.claim()
    kept = os.dup(second.lock)
    second.close()
    assert not opened.process.claim()
    os.close(kept)
    assert opened.process.claim()


def test_access_denied() -> None:
    """Another user's process is not read, and the way out is named."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with Child() as child:
        pid = os.fork()
        if pid == 0:
            try:
                os.setgid(65534)
                os.setuid(65534)
                Process(child.pid, "the child")
            except AccessDenied as error:
                os._exit(0 if error.errno == errno.EACCES and "CAP_SYS_PTRACE" in error.hint else 2)
            except BaseException:
                os._exit(3)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@given(st.sets(st.integers(0, 200)))
def test_lost_pages_are_merged(pages: set[int]) -> None:
    lost = UnreadablePages()
    for page in sorted(pages, key=lambda page: page * 7919 % 201):
        lost.add(page * PAGE, (page + 1) * PAGE)
        lost.add(page * PAGE, (page + 1) * PAGE)
    assert list(lost.ranges()) == runs(pages)
