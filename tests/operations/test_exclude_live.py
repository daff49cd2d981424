"""A guest that runs while its pages are packed: what is left out is decided when it is paused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.running import PAGE, Ram, RunningGuest
from helpers.struct_pages import BUDDY, LRU, flat, structs
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.elf import ElfCore
from oracles.kdump import Kdump

import vmdump
from vmdump.errors import CapabilityError, RequestError

COUNT = 2048
STRUCTS = range(256, 256 + COUNT * 64 // PAGE)
"""Pages that hold the struct pages."""


def guest_memory(kinds: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Make memory: pages by seed, and struct pages by kind: 0 kernel, 1 cache, 2 user, 3 free."""
    pages = structs(COUNT)
    pages["flags"][kinds == 1] = LRU
    pages["mapping"][kinds == 2] = 0x1001
    pages["mapcount"][kinds == 3] = BUDDY
    memory = np.zeros((COUNT, PAGE), np.uint8)
    memory[:, :8] = seeds.astype("<u8").view(np.uint8).reshape(-1, 8)
    memory[2, :8] = np.array([1 << 20], "<u8").view(np.uint8)
    memory.reshape(-1)[1 << 20 : (1 << 20) + pages.nbytes] = pages.view(np.uint8)
    return memory


NOTES = flat(structs(COUNT)).notes


def running(before: np.ndarray, after: np.ndarray) -> RunningGuest:
    blocks = [(0, before.reshape(-1))], [(0, after.reshape(-1))]
    return RunningGuest(*blocks, NOTES, running_notes=NOTES, memory=Ram)


@st.composite
def lives(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw memory before and at the pause, and which pages are excluded then."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    kinds = random.integers(0, 4, COUNT)
    if draw(st.booleans()):
        kinds[:] = draw(st.sampled_from([1, 2, 3]))  # nearly nothing is dumped before
    kinds[list(STRUCTS)] = kinds[:16] = 0
    seeds = random.integers(0, 3, COUNT) * random.integers(1, 1 << 40, COUNT)
    now, changed = kinds.copy(), seeds.copy()
    touched = random.random(COUNT) < draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    now[touched] = random.integers(0, 4, int(touched.sum()))
    now[list(STRUCTS)] = now[:16] = 0
    rewritten = random.random(COUNT) < draw(st.sampled_from([0.0, 0.1, 1.0]))
    changed[rewritten] = random.integers(0, 1 << 40, int(rewritten.sum()))
    return guest_memory(kinds, seeds), guest_memory(now, changed), now > 0


@settings(max_examples=15, deadline=None)
@given(life=lives(), codec=st.sampled_from(["lzo", "zlib", "zstd"]))
def test_what_is_left_out_is_decided_in_the_pause(
    tmp_path_factory: pytest.TempPathFactory, life: tuple[np.ndarray, np.ndarray, np.ndarray], codec: str
) -> None:
    before, after, excluded = life
    path = tmp_path_factory.mktemp("live") / "dump"
    guest = running(before, after)
    report = vmdump.dump(guest, path, format=f"kdump-{codec}", exclude=31, threads=2)
    assert (guest.prepared, guest.released) == (1, 1)
    dump = Kdump(path).check(ahead=True, level=31)
    found = dict(dump.pages())
    assert sorted(found) == np.flatnonzero(~excluded).tolist()
    assert all(found[pfn] == after[pfn].tobytes() for pfn in found)
    assert report.excluded_pages == excluded.sum()
    with vmdump.open(path) as again:
        zero = again.page_kinds(0, COUNT) == vmdump.PageKind.ZERO
    assert np.array_equal(zero, ~excluded & ~after.any(axis=1))


def test_only_what_changed_is_packed_again(tmp_path: Path) -> None:
    kinds = np.zeros(COUNT, np.int64)
    kinds[1000:2000] = 3
    seeds = np.arange(1, COUNT + 1)
    now = kinds.copy()
    now[1500:1503] = 0  # were free, and are the kernel's: there are more pages than before
    now[900] = 1  # the other way round
    changed = seeds.copy()
    changed[700] = 5555
    guest = running(guest_memory(kinds, seeds), guest_memory(now, changed))
    report = vmdump.dump(guest, tmp_path / "dump", format="kdump-lzo", exclude=31)
    # Two pages of struct pages, what changed, and what was not there before.
    assert report.changed_pages == 6
    assert report.excluded_pages == 998


def test_an_elf_core(tmp_path: Path) -> None:
    kinds = np.zeros(COUNT, np.int64)
    kinds[1000:1600] = 3
    now = np.zeros(COUNT, np.int64)
    now[1200:2000] = 3
    seeds = np.arange(1, COUNT + 1)
    after = guest_memory(now, seeds)
    guest = running(guest_memory(kinds, seeds), after)
    vmdump.dump(guest, tmp_path / "dump", format="elf", exclude=16)
    core = ElfCore(tmp_path / "dump")
    # What came to be dumped is behind all that was written ahead, and has a PT_LOAD of its own.
    pages = [(load.paddr // PAGE, load.filesz // PAGE, load.memsz // PAGE) for load in core.loads]
    assert pages == [(0, 1000, 1000), (1000, 200, 1000), (2000, 48, 48)]
    assert core.loads[1].offset > core.loads[2].offset
    for (begin, count, _), load in zip(pages, core.loads, strict=True):
        assert core.load_bytes(load)[: load.filesz] == after[begin : begin + count].tobytes()


def test_nobody_may_run_on_while_pages_are_left_out(tmp_path: Path) -> None:
    memory = guest_memory(np.zeros(COUNT, np.int64), np.ones(COUNT, np.int64))
    with pytest.raises(RequestError, match="--force-fuzzy"):
        vmdump.dump(running(memory, memory), tmp_path / "dump", exclude=16, pause=False)
    assert list(tmp_path.iterdir()) == []
    report = vmdump.dump(
        running(memory, memory), tmp_path / "dump", exclude=16, pause=False, force_fuzzy=True
    )
    assert report.dump_level == 17


def test_without_vmcoreinfo_it_is_not_paused(tmp_path: Path) -> None:
    memory = guest_memory(np.zeros(COUNT, np.int64), np.ones(COUNT, np.int64))
    blocks = [(0, memory.reshape(-1))]
    guest = RunningGuest(blocks, blocks)
    with pytest.raises(CapabilityError, match=r"--vmcoreinfo FILE, or dump all pages with -d 1$"):
        vmdump.dump(guest, tmp_path / "dump", exclude=31)
    assert list(tmp_path.iterdir()) == []
    assert guest.released == 0
