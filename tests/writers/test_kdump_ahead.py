"""A guest that runs while its pages are packed, then is paused: the dump is of that moment."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers.running import PAGE, Blocks, FileRam, Ram, RunningGuest, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.kdump import CODEC_FLAGS, Kdump

import vmdump


def pages_of(blocks: Blocks) -> dict[int, bytes]:
    return {
        start // PAGE + number: page.tobytes()
        for start, memory in blocks
        for number, page in enumerate(memory.reshape(-1, PAGE))
    }


def dump_and_check(guest: RunningGuest, still: Blocks, path: Path, **options: object) -> vmdump.Report:
    report = vmdump.dump(guest, path, threads=2, **options)  # type: ignore[arg-type]
    dump = Kdump(path).check(ahead=True)
    found, wanted = dict(dump.pages()), pages_of(still)
    assert found.keys() == wanted.keys()
    wrong = [pfn for pfn, page in wanted.items() if found[pfn] != page]
    assert not wrong
    assert guest.released >= 1
    assert report.guest_bytes == len(wanted) * PAGE
    assert report.zero_pages == sum(not any(page) for page in wanted.values())
    assert report.zero_pages + report.plain_pages + report.compressed_pages == len(wanted)
    return report


KINDS = st.sampled_from(["same", "noise", "zero", "last byte", "text", "first bit"])


@st.composite
def lives(draw: st.DrawFn) -> tuple[Blocks, Blocks]:
    """Draw what a guest holds while it runs, and what of it has changed when it is paused."""
    running, still = [], []
    pfn = draw(st.sampled_from([0, 1, 1000, (1 << 20) - 3]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 30))
        before = np.zeros((count, PAGE), np.uint8)
        for page in draw(st.sets(st.integers(0, count - 1))):
            before[page] = rng.integers(0, 256 if page % 2 else 3, PAGE, np.uint8)
        after = before.copy()
        for page, kind in draw(st.dictionaries(st.integers(0, count - 1), KINDS)).items():
            if kind == "noise":
                after[page] = rng.integers(0, 256, PAGE, np.uint8)
            elif kind == "zero":
                after[page] = 0
            elif kind == "last byte":
                after[page, -1] ^= 1
            elif kind == "first bit":
                after[page, 0] ^= 0x80
            elif kind == "text":
                after[page] = np.resize(np.frombuffer(b"crash> bt -a %d " % page, np.uint8), PAGE)
        running.append((pfn * PAGE, before.reshape(-1)))
        still.append((pfn * PAGE, after.reshape(-1)))
        pfn += count + draw(st.integers(0, 30))
    return running, still


@pytest.mark.parametrize("codec", sorted(CODEC_FLAGS))
@settings(max_examples=25)
@given(life=lives(), memory=st.sampled_from([Ram, FileRam]))
def test_dump_is_of_the_moment_of_the_stop(
    codec: str, life: tuple[Blocks, Blocks], memory: type[Ram]
) -> None:
    running, still = life
    with tempfile.TemporaryDirectory(prefix="vmdump-test-") as folder:
        guest = RunningGuest(running, still, memory=memory)
        dump_and_check(guest, still, Path(folder) / "guest", format=f"kdump-{codec}")
        assert guest.prepared == 1


def test_only_what_changed_is_packed_again(tmp_path: Path) -> None:
    before = noise(1, 3000)
    after = before.copy()
    changed = (0, 1023, 1024, 2047, 2999)
    for page in changed:
        after[page * PAGE + 77] ^= 1
    still = [(1 << 32, after)]
    report = dump_and_check(RunningGuest([(1 << 32, before)], still), still, tmp_path / "guest")
    assert report.changed_pages == len(changed)
    plain = vmdump.dump(vmdump.BlockSource(still), tmp_path / "plain")
    assert report.output_bytes == plain.output_bytes + len(changed) * PAGE


def test_nothing_changed(tmp_path: Path) -> None:
    blocks = [(0, noise(2, 64)), (1 << 24, np.zeros(64 * PAGE, np.uint8))]
    report = dump_and_check(RunningGuest(blocks, blocks), blocks, tmp_path / "guest")
    assert report.changed_pages == 0


@pytest.mark.parametrize("notes", [b"", b"\x05\0\0\0\x00\x20\0\0\x01\0\0\0CORE\0\0\0\0" + bytes(8192)])
def test_layout_that_changed_meanwhile(tmp_path: Path, notes: bytes) -> None:
    """Headers that grew over the pages written ahead: those are thrown away, and nothing of them is left."""
    before = noise(3, 512)
    still = [(0, before), (1 << 24, noise(4, 40_000))] if not notes else [(0, before)]
    guest = RunningGuest([(0, before)], still, notes)
    report = dump_and_check(guest, still, tmp_path / "guest")
    assert report.changed_pages == 0


@pytest.mark.parametrize("unplugged", [1, 64, 170, 171, 512, 40_000])
def test_memory_that_was_unplugged_meanwhile(tmp_path: Path, unplugged: int) -> None:
    """Readers tell zero pages by the place right behind the descriptors, 24 bytes for each page unplugged."""
    still = [(0, noise(5, 512)), (1 << 22, np.zeros(300 * PAGE, np.uint8))]
    running = [*still, (1 << 24, noise(6, unplugged))]
    path = tmp_path / "guest"
    report = dump_and_check(RunningGuest(running, still), still, path)
    assert report.zero_pages == 300
    with vmdump.open(path) as dump:
        kinds = dump.page_kinds(1 << 10, 300)
    assert (kinds == vmdump.PageKind.ZERO).all()


@pytest.mark.parametrize("options", [{"pause": False}, {"layout": "flattened"}])
def test_guest_is_not_read_twice_for_nothing(tmp_path: Path, options: dict[str, object]) -> None:
    """Pages written ahead help only a file with all its places fixed, of a guest that is paused."""
    blocks = [(0, noise(6, 64))]
    guest = RunningGuest(blocks, blocks)
    vmdump.dump(guest, tmp_path / "guest", **options)  # type: ignore[arg-type]
    assert guest.prepared == 0


def test_progress_ends_where_it_says(tmp_path: Path) -> None:
    blocks = [(0, noise(7, 5000))]
    moments: list[tuple[int, int]] = []
    vmdump.dump(
        RunningGuest(blocks, blocks), tmp_path / "guest", progress=lambda *moment: moments.append(moment)
    )
    done = [moment[0] for moment in moments]
    assert done == sorted(done)
    assert moments[-1][0] == moments[-1][1]
    assert all(done <= total for done, total in moments)
