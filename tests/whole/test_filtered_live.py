"""Filtered dumps of guests that run while they are prepared: what is in them is decided by the pause."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.running import FileRam, PreparedSource, Ram
from helpers.struct_pages import BUDDY, KEYS_6_12, LRU, PAGE, guest_of, structs
from oracles.elf import ElfCore
from oracles.flattened import Flattened
from oracles.kdump import Kdump

import vmdump
import vmdump.guest.linux.page_types.types as page_types
from vmdump.guest.blocks import Block
from vmdump.kernels.scan import PageScan

COUNT = 4096
STRUCTS = 1 << 20
LONG = slice(2048, 3072)
NOISE = np.random.RandomState(5).randint(1, 256, (COUNT, PAGE), np.uint8)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_types, "_CHUNK", 512)


class Moment:
    """What a guest holds: struct pages, and contents that are random but for pages of zeros."""

    def __init__(self) -> None:
        self.pages = structs(COUNT)
        self.memory = NOISE.copy()
        self.memory[3500:3600] = 0

    def guest(self, kind: type[Ram], *, more: int = 0) -> Any:
        memory = self.memory.copy()
        raw = self.pages.view(np.uint8).reshape(-1, PAGE)
        memory[STRUCTS // PAGE : STRUCTS // PAGE + len(raw)] = raw
        memory[2, :8] = np.array([STRUCTS], "<u8").view(np.uint8)
        self.whole = memory
        keys = {**KEYS_6_12, "SYMBOL(mem_map)": 0x2000, **{f"NUMBER(key{n})": n for n in range(more)}}
        return guest_of([Block(0, kind(memory.reshape(-1)))], keys)

    def free(self, order: int, first: int) -> None:
        self.pages["mapcount"][first], self.pages["private"][first] = BUDDY, order


class Running(PreparedSource):
    def __init__(self, running: Moment, still: Moment, kind: type[Ram], *, more: int = 0) -> None:
        self.still = still.guest(kind, more=more)
        super().__init__(running.guest(kind), lambda: self.still)


def change_nothing(before: Moment, after: Moment) -> None:
    pass


def become_dumpable(before: Moment, after: Moment) -> None:
    before.pages["flags"][1000:1300] = LRU
    before.free(3, 1608)


def cease_to_be(before: Moment, after: Moment) -> None:
    after.pages["flags"][1000:1300] = LRU
    after.free(9, 512)


def both_in_one_chunk(before: Moment, after: Moment) -> None:
    before.pages["flags"][1030:1300] = LRU
    after.pages["flags"][1300:1500] = LRU


def become_dumpable_with_other_contents(before: Moment, after: Moment) -> None:
    become_dumpable(before, after)
    after.memory[990:1100] ^= 0x55


def contents_only(before: Moment, after: Moment) -> None:
    after.memory[[100, 900, 3500, 4000]] ^= 0x55
    after.memory[[101, 901]] = 0


def a_long_run_is_used(before: Moment, after: Moment) -> None:
    after.pages["mapcount"][2048] = -1


LIVES = [
    change_nothing,
    become_dumpable,
    cease_to_be,
    both_in_one_chunk,
    become_dumpable_with_other_contents,
    contents_only,
    a_long_run_is_used,
]


@pytest.fixture(params=LIVES, ids=lambda life: life.__name__)
def life(request: pytest.FixtureRequest) -> tuple[Moment, Moment]:
    before, after = Moment(), Moment()
    for moment in (before, after):
        moment.free(10, LONG.start)
        moment.pages["flags"][3200] = LRU
    request.param(before, after)
    return before, after


def excluded(moment: Moment) -> np.ndarray:
    """Which pages their struct pages exclude at level 31, by the few rules that they use."""
    pages = moment.pages
    mask: np.ndarray = pages["flags"] & LRU != 0
    for head in np.flatnonzero(pages["mapcount"] == BUDDY).tolist():
        mask[head : head + (1 << int(pages["private"][head]))] = True
    return mask


def check_kdump(path: Path, still: Moment) -> None:
    if path.read_bytes()[:8] == b"makedump":
        Flattened(path).check().rearrange(path.with_name("standard"))
        path = path.with_name("standard")
    dump = Kdump(path)
    mask = excluded(still)
    kept = np.unpackbits(np.frombuffer(dump.bitmap2, np.uint8), bitorder="little")[:COUNT].astype(bool)
    assert np.array_equal(kept, ~mask)
    found = dict(dump.pages())
    wrong = [pfn for pfn in np.flatnonzero(kept).tolist() if found[pfn] != still.whole[pfn].tobytes()]
    assert not wrong


def check_elf(path: Path, still: Moment) -> None:
    mask = excluded(still)
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    gone = [(begin, end) for begin, end in edges.tolist() if end - begin >= 256 or end == COUNT]
    dumped = np.ones(COUNT, bool)
    for begin, end in gone:
        dumped[begin:end] = False
    core = ElfCore(path)
    covered = np.zeros(COUNT, bool)
    for load in core.loads:
        first, count = load.paddr // PAGE, load.filesz // PAGE
        covered[first : first + count] = True
        content = np.frombuffer(core.load_bytes(load)[: load.filesz], np.uint8).reshape(-1, PAGE)
        kept = ~mask[first : first + count]
        assert np.array_equal(content[kept], still.whole[first : first + count][kept])
    assert np.array_equal(covered, dumped)
    assert sum(load.memsz for load in core.loads) == COUNT * PAGE
    whole = path.read_bytes()
    assert not any(still.whole[(begin + end) // 2].tobytes() in whole for begin, end in gone)


@pytest.mark.parametrize(
    ("format", "layout", "kind"),
    [
        ("kdump-lzo", "standard", FileRam),
        ("kdump-zlib", "standard", Ram),
        ("kdump-lzo", "flattened", FileRam),
        ("elf", "auto", FileRam),
        ("elf", "auto", Ram),
    ],
)
def test_it_is_of_the_moment_of_the_pause(
    life: tuple[Moment, Moment], format: str, layout: str, kind: type[Ram], tmp_path: Path
) -> None:
    before, still = life
    source = Running(before, still, kind)
    report = vmdump.dump(source, tmp_path / "dump", format=format, layout=layout, exclude=31, threads=2)
    assert (source.prepared, source.released) == (1, 1)
    (check_elf if format == "elf" else check_kdump)(tmp_path / "dump", still)
    alone = vmdump.dump(
        Running(still, still, kind),
        tmp_path / "alone",
        format=format,
        exclude=31,
        pause=False,
        force_fuzzy=True,
    )
    assert report.excluded_pages == alone.excluded_pages
    assert report.dump_level == 31


def test_headers_that_grew_over_the_memory_written_ahead(tmp_path: Path) -> None:
    before, still = Moment(), Moment()
    become_dumpable(before, still)
    source = Running(before, still, FileRam, more=6000)
    vmdump.dump(source, tmp_path / "dump", format="elf", exclude=31)
    assert source.prepared == 1
    check_elf(tmp_path / "dump", still)


def test_into_a_pipe(life: tuple[Moment, Moment], tmp_path: Path) -> None:
    before, still = life
    reader, writer = os.pipe()

    def take() -> None:
        with os.fdopen(reader, "rb") as stream:
            (tmp_path / "dump").write_bytes(stream.read())

    thread = threading.Thread(target=take)
    thread.start()
    try:
        vmdump.dump(Running(before, still, FileRam), f"fd:{writer}", format="kdump-lzo", exclude=31)
    finally:
        os.close(writer)
        thread.join()
    check_kdump(tmp_path / "dump", still)


def test_what_is_as_it_was_is_not_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Struct pages are read once within the pause, all other pages once, and nothing that is left out."""
    before, still = Moment(), Moment()
    before.free(10, LONG.start)
    still.free(10, LONG.start)
    source = Running(before, still, FileRam)
    memory = source.still.blocks[0].memory
    read: list[tuple[int, int]] = []

    def noting(mem: Any, page_size: int, *, runs: Any = None, **options: Any) -> Any:
        if runs is not None:
            read.extend(
                (int(row[3]) - 1, int(row[3]) - 1 + int(row[1] - row[0]))
                for row in runs
                if row[2] == memory._fd
            )
        return PageScan(mem, page_size, runs=runs, **options)

    monkeypatch.setattr("vmdump.pipeline.chunks.PageScan", noting)
    vmdump.dump(source, tmp_path / "dump", format="kdump-lzo", exclude=31)
    check_kdump(tmp_path / "dump", still)
    pages = np.zeros(COUNT, int)
    for begin, end in read:
        pages[begin // PAGE : end // PAGE] += 1
    structs_at = STRUCTS // PAGE
    assert not pages[structs_at : structs_at + COUNT * 64 // PAGE].any()
    assert not pages[LONG].any()
    assert (pages[[10, 1000, 4000]] == 1).all()
