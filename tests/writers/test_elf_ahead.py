"""An ELF file that is written while the guest runs, then set right during the pause."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers.running import PAGE, Blocks, FileRam, Ram, RunningGuest, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.elf import ElfCore
from oracles.elf_builder import note
from oracles.kdump import Kdump

import vmdump
from vmdump.errors import RequestError

KINDS = st.sampled_from(["as it was", "noise", "zero", "last byte", "first bit"])


@st.composite
def lives(draw: st.DrawFn) -> tuple[Blocks, Blocks]:
    """Draw what a guest holds while it runs, and what of it has changed when it is paused.

    Data stands between holes of both lengths: those that are skipped, and those too short for it.
    """
    running, still = [], []
    pfn = draw(st.sampled_from([0, 1, 1000, (1 << 20) - 3]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.sampled_from([1, 2, 30, 80]))
        before = np.zeros((count, PAGE), np.uint8)
        for first, length in draw(
            st.lists(st.tuples(st.integers(0, count - 1), st.integers(1, 20)), max_size=5)
        ):
            piece = before[first : first + length]
            piece[:] = rng.integers(0, 256, piece.shape, np.uint8)
        after = before.copy()
        changes = st.lists(st.tuples(st.integers(0, count - 1), st.integers(1, 25), KINDS), max_size=5)
        for first, length, kind in draw(changes):
            piece = after[first : first + length]
            if kind == "noise":
                piece[:] = rng.integers(0, 256, piece.shape, np.uint8)
            elif kind == "zero":
                piece[:] = 0
            elif kind == "last byte":
                piece[:, -1] ^= 1
            elif kind == "first bit":
                piece[:, 0] ^= 0x80
        running.append((pfn * PAGE, before.reshape(-1)))
        still.append((pfn * PAGE, after.reshape(-1)))
        pfn += count + draw(st.integers(0, 30))
    return running, still


def check_core(path: Path, blocks: Blocks, notes: bytes = b"") -> None:
    core = ElfCore(path).check_vmdump_layout()
    assert [(load.paddr, load.memsz) for load in core.loads] == [(start, len(part)) for start, part in blocks]
    for load, (_, content) in zip(core.loads, blocks, strict=True):
        assert core.load_bytes(load) == content.tobytes()
    assert core.notes == notes


def changed_pages(running: Blocks, still: Blocks) -> int:
    pairs = zip(running, still, strict=True)
    return sum(
        int((before.reshape(-1, PAGE) != after.reshape(-1, PAGE)).any(axis=1).sum())
        for (_, before), (_, after) in pairs
    )


@settings(max_examples=100)
@given(life=lives(), memory=st.sampled_from([Ram, FileRam]), threads=st.integers(1, 2))
def test_file_is_of_the_moment_of_the_stop(
    life: tuple[Blocks, Blocks], memory: type[Ram], threads: int
) -> None:
    running, still = life
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as folder:
        guest = RunningGuest(running, still, memory=memory)
        report = vmdump.dump(guest, Path(folder) / "guest", format="elf", threads=threads)
        check_core(Path(folder) / "guest", still)
        assert (guest.prepared, guest.released) == (1, 1)
        # Pages of a hole that were data are set to zero, and not counted.
        assert report.changed_pages <= changed_pages(running, still)
        # The same bytes as of a guest that never ran.
        vmdump.dump(RunningGuest(still, still), Path(folder) / "plain", format="elf", pause=False)
        assert (Path(folder) / "guest").read_bytes() == (Path(folder) / "plain").read_bytes()


NOTES = st.sampled_from([0, 200, 4000, 9000]).map(lambda size: note(b"CORE", 1, bytes(size)) if size else b"")


def changed_layout(draw: st.DrawFn, still: Blocks) -> Blocks:
    start, last = still[-1]
    half = len(last) // PAGE // 2 * PAGE
    kinds = {
        "as it was": still,
        "moved": [*still[:-1], (start + PAGE, last)],
        "grown": [*still[:-1], (start, np.concatenate((last, noise(3, 20))))],
        "shrunk": [*still[:-1], (start, last[: half or PAGE])],
        "plugged": [*still, (start + len(last) + PAGE, noise(4, 3))],
        "unplugged": still[1:] or still,
        "split": [*still[:-1], (start, last[:half]), (start + half, last[half:])] if half else still,
        "turned": [(still[0][0], still[0][1][::-1].copy()), *still[1:]],
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]


@pytest.mark.parametrize("name", ["elf", "kdump-lzo"])
@settings(max_examples=100)
@given(data=st.data())
def test_layout_and_notes_that_changed_meanwhile(name: str, data: st.DataObject) -> None:
    running, still = data.draw(lives())
    still = data.draw(st.composite(changed_layout)(still))
    notes = data.draw(NOTES)
    guest = RunningGuest(running, still, notes, running_notes=data.draw(NOTES))
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as folder:
        vmdump.dump(guest, Path(folder) / "guest", format=name)
        if name == "elf":
            check_core(Path(folder) / "guest", still, notes)
        else:
            dump = Kdump(Path(folder) / "guest").check(ahead=True)
            pages = [(start // PAGE, content.reshape(-1, PAGE)) for start, content in still]
            wanted = {pfn + number: page.tobytes() for pfn, rows in pages for number, page in enumerate(rows)}
            assert dict(dump.pages()) == wanted
            assert dump.notes == notes


@settings(max_examples=100)
@given(
    life=lives(),
    shift=st.sampled_from([0, 0, 512, 2048]),
    begin=st.integers(0, 140 * PAGE) | st.integers(0, 140).map(PAGE.__mul__),
    length=st.integers(1, 140 * PAGE) | st.integers(1, 140).map(PAGE.__mul__),
)
def test_part_of_the_memory(life: tuple[Blocks, Blocks], shift: int, begin: int, length: int) -> None:
    """Any begin and length, in blocks that need not begin at a page."""
    running, still = ([(start + shift, content) for start, content in blocks] for blocks in life)
    begin += running[0][0] - running[0][0] % PAGE
    kept = []
    for start, content in still:
        low, high = max(begin - start, 0), min(begin + length - start, len(content))
        if low < high:
            kept.append((start + low, content[low:high]))
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as folder:
        path, guest = Path(folder) / "guest", RunningGuest(running, still)
        if kept:
            vmdump.dump(guest, path, format="elf", begin=begin, length=length)
            check_core(path, kept)
        else:
            with pytest.raises(RequestError, match="no memory"):
                vmdump.dump(guest, path, format="elf", begin=begin, length=length)


@pytest.mark.parametrize("memory", [Ram, FileRam])
def test_only_what_changed_is_written_again(tmp_path: Path, memory: type[Ram]) -> None:
    before = noise(1, 3000)
    after = before.copy()
    changed = (0, 1023, 1024, 2047, 2999)
    for page in changed:
        after[page * PAGE + 77] ^= 0x80
    after[2000 * PAGE : 2003 * PAGE] = 0
    blocks = [(1 << 32, before)], [(1 << 32, after)]
    report = vmdump.dump(RunningGuest(*blocks, memory=memory), tmp_path / "guest", format="elf")
    check_core(tmp_path / "guest", blocks[1])
    assert report.changed_pages == len(changed) + 3
    report = vmdump.dump(RunningGuest(blocks[0], blocks[0]), tmp_path / "same", format="elf")
    assert report.changed_pages == 0
    # Notes that need more room move all memory: then nothing that was written is of use.
    notes = note(b"CORE", 1, bytes(9000))
    report = vmdump.dump(RunningGuest(*blocks, notes), tmp_path / "moved", format="elf")
    check_core(tmp_path / "moved", blocks[1], notes)
    assert report.changed_pages == 0
    # Notes that fit the same room do not.
    notes = note(b"CORE", 1, bytes(336))
    report = vmdump.dump(RunningGuest(*blocks, notes), tmp_path / "notes", format="elf")
    check_core(tmp_path / "notes", blocks[1], notes)
    assert report.changed_pages == len(changed) + 3


def test_memory_that_was_given_back(tmp_path: Path) -> None:
    """Data while the guest ran, and a hole of the guest when it was paused: a range far from other data."""
    before = noise(2, 4000)
    after = before.copy()
    after[500 * PAGE : 3500 * PAGE] = 0
    vmdump.dump(RunningGuest([(0, before)], [(0, after)]), tmp_path / "guest", format="elf")
    check_core(tmp_path / "guest", [(0, after)])
    after[:] = 0
    vmdump.dump(RunningGuest([(0, before)], [(0, after)]), tmp_path / "empty", format="elf")
    check_core(tmp_path / "empty", [(0, after)])


@pytest.mark.parametrize("options", [{"pause": False}, {"output": "appended"}])
def test_guest_is_not_read_twice_for_nothing(tmp_path: Path, options: dict[str, object]) -> None:
    """What is written ahead is of use only in a file, of a guest that is stopped."""
    blocks = [(0, noise(6, 4))]
    guest = RunningGuest(blocks, blocks)
    if options.pop("output", None):
        with (tmp_path / "guest").open("ab") as file:
            vmdump.dump(guest, f"fd:{file.fileno()}", format="elf")
    else:
        vmdump.dump(guest, tmp_path / "guest", format="elf", **options)  # type: ignore[arg-type]
    assert guest.prepared == 0
    check_core(tmp_path / "guest", blocks)


def test_block_that_begins_inside_a_page(tmp_path: Path) -> None:
    """Whole pages of such a block are no whole pages of addresses: what is told by page is of no use."""
    before, after = noise(7, 10), noise(7, 10)
    after[: 3 * PAGE] = 0
    guest = RunningGuest([(512, before)], [(512, after)])
    vmdump.dump(guest, tmp_path / "guest", format="elf", begin=PAGE, length=6 * PAGE)
    check_core(tmp_path / "guest", [(PAGE, after[PAGE - 512 : 7 * PAGE - 512])])
