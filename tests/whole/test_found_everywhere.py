"""VMCOREINFO that no note tells: what is in a guest's memory is known to every command, and to the output."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.command import RunVmdump
from oracles import judges
from oracles.elf import ElfCore, split_notes
from oracles.elf_builder import Load, build_elf, note
from oracles.kdump import Kdump
from oracles.kdump_builder import Build, build_kdump
from oracles.lime_builder import build_avml, build_lime

import vmdump
from vmdump.errors import Cancelled, CapabilityError, SourceError
from vmdump.guest.linux import find_vmcoreinfo
from vmdump.readers.kdump import KdumpDump

PAGE = 4096
KINDS = ("lime", "avml", "elf", "kdump", "raw")
CAPABILITY = 7


@pytest.fixture(scope="module")
def memory() -> list[tuple[int, np.ndarray]]:
    """The synthetic guest's, without what its notes tell."""
    with vmdump.open_source("synthetic:32M?seed=4&fill=0.3") as guest:
        return [
            (block.start, np.frombuffer(guest.read(block.start, block.size), np.uint8))
            for block in guest.blocks
        ]


@pytest.fixture(scope="module")
def text() -> bytes:
    with vmdump.open_source("synthetic:32M?seed=4&fill=0.3") as guest:
        return guest.vmcoreinfo.text.rstrip(b"\0")


@pytest.fixture(scope="module")
def place(memory: list[tuple[int, np.ndarray]]) -> int:
    """Guest-physical address at which the text is."""
    for start, data in memory:
        for at in range(0, len(data), PAGE):
            if data[at : at + 10].tobytes() == b"OSRELEASE=":
                return start + at
    raise AssertionError("no text in memory")


@pytest.fixture(scope="module")
def sources(memory: list[tuple[int, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same memory in files of each kind, none of which has a note of VMCOREINFO."""
    folder = tmp_path_factory.mktemp("sources")
    ranges = [(start, data.tobytes()) for start, data in memory]
    pages = {
        (start + at) // PAGE: data[at : at + PAGE]
        for start, data in ranges
        for at in range(0, len(data), PAGE)
    }
    (folder / "lime").write_bytes(build_lime(ranges))
    (folder / "avml").write_bytes(build_avml(ranges))
    (folder / "elf").write_bytes(
        build_elf([Load(*piece) for piece in ranges], notes=note(b"CORE", 1, bytes(336)))
    )
    (folder / "kdump").write_bytes(build_kdump(Build(pages, sub={"dump_level": 1})))
    with (folder / "raw").open("wb") as file:
        for start, data in ranges[:2]:
            file.seek(start)
            file.write(data)
    return {kind: f"raw:{folder / kind}" if kind == "raw" else str(folder / kind) for kind in KINDS}


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every search that is begun from now on."""
    begun: list[object] = []
    search = find_vmcoreinfo.find_all

    def counted(source: vmdump.Source, *options: Callable[[], bool]) -> object:
        begun.append(source)
        return search(source, *options)

    monkeypatch.setattr(find_vmcoreinfo, "find_all", counted)
    return begun


@pytest.mark.parametrize("kind", KINDS)
def test_dumps_are_opened_by_other_readers(
    kind: str, sources: dict[str, str], text: bytes, place: int, tmp_path: Path
) -> None:
    for form in ("kdump-zlib", "elf"):
        report = vmdump.dump(sources[kind], tmp_path / form, format=form)
        assert report.vmcoreinfo_found == place
        judges.require("drgn")
        import drgn

        program = drgn.Program()
        program.set_core_dump(tmp_path / form)
        assert program["UTS_RELEASE"].string_() == b"6.1.0-vmdump-synthetic"
    kdump = Kdump(tmp_path / "kdump-zlib").check()
    assert kdump.vmcoreinfo == text
    assert kdump.uts["version"].startswith("#1 SMP")
    assert f"NUMBER(phys_base)={kdump.sub_header['phys_base']}\n".encode() in text
    told = [
        entry.desc
        for entry in split_notes(ElfCore(tmp_path / "elf").notes, "<")
        if entry.name == b"VMCOREINFO"
    ]
    assert told == [text]


@pytest.mark.parametrize("kind", ["lime", "kdump"])
def test_every_command_knows(
    kind: str, sources: dict[str, str], place: int, run_vmdump: RunVmdump, tmp_path: Path
) -> None:
    source = sources[kind]
    told = json.loads(run_vmdump("info", source, "--json").stdout)
    assert told["vmcoreinfo"]["OSRELEASE"] == told["utsname"]["release"] == "6.1.0-vmdump-synthetic"
    assert [(found["address"], found["chosen"]) for found in told["vmcoreinfo_found"]] == [(place, True)]
    symbol = int(told["vmcoreinfo"]["SYMBOL(init_uts_ns)"], 16)
    read = run_vmdump("read", source, hex(symbol), 65, "--virtual")
    assert read.stdout.rstrip(b"\0") == b"Linux"
    assert b"found in memory at" in run_vmdump("info", source).stdout
    # ... and is left alone where that is wanted.
    told = json.loads(run_vmdump("info", source, "--json", "--no-search").stdout)
    assert (told["vmcoreinfo"], told["vmcoreinfo_found"]) == ({}, [])
    assert run_vmdump("read", source, hex(symbol), 65, "--virtual", "--no-search").returncode == CAPABILITY
    done = run_vmdump("dmesg", source)
    assert b"Linux version 6.1.0-vmdump-synthetic" in done.stdout
    done = run_vmdump("dmesg", source, "--no-search")
    assert b"no VMCOREINFO" in done.stderr
    for command in ("dump", "convert"):
        assert run_vmdump(command, source, tmp_path / command, "--no-search").returncode == 0
        assert Kdump(tmp_path / command).vmcoreinfo == b""


def test_a_split_set(sources: dict[str, str], text: bytes, place: int, tmp_path: Path) -> None:
    report = vmdump.convert(sources["lime"], tmp_path / "set", split=3)
    assert report.vmcoreinfo_found == place
    with vmdump.open([tmp_path / f"set.{part}" for part in (1, 2, 3)]) as dump:
        assert dump.told.lines.text == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_knows_when_it_is_asked(
    kind: str, sources: dict[str, str], text: bytes, searches: list[object]
) -> None:
    with vmdump.open(sources[kind]) as dump:
        assert dump.read(0x100000, 8)
        assert dump.size
        assert not searches
        assert dump.vmcoreinfo.text == text
        symbol = dump.vmcoreinfo.symbol("init_uts_ns")
        assert symbol is not None
        assert dump.translate(symbol) == dump.kernel_to_phys(symbol)
        assert dump.read_virtual(symbol, 5) == b"Linux"
        assert dump.utsname.release == b"6.1.0-vmdump-synthetic"
        assert dump.phys_base == (dump.vmcoreinfo.number("phys_base") or 0) % (1 << 64)
        assert len(searches) == 1
    with vmdump.open(sources[kind], search=False) as dump:
        assert not dump.vmcoreinfo
        with pytest.raises(CapabilityError, match="VMCOREINFO"):
            dump.translate(symbol)
        assert len(searches) == 1


def test_buffers(memory: list[tuple[int, np.ndarray]], text: bytes, place: int, tmp_path: Path) -> None:
    report = vmdump.dump(memory, tmp_path / "dump")
    assert (report.vmcoreinfo_found, Kdump(tmp_path / "dump").vmcoreinfo) == (place, text)
    assert vmdump.BlockSource(memory).vmcoreinfo.text == text
    assert not vmdump.dump(memory, tmp_path / "dump", search=False, force=True).vmcoreinfo_found
    assert Kdump(tmp_path / "dump").vmcoreinfo == b""


def test_memory_that_changes_is_searched_for_each_dump(
    memory: list[tuple[int, np.ndarray]], text: bytes, place: int, tmp_path: Path
) -> None:
    """The caller's buffers may be those of a guest that boots meanwhile."""
    start, data = memory[1]
    changing = data.copy()
    before = changing[place - start : place - start + PAGE].copy()
    changing[place - start : place - start + PAGE] = 0
    source = vmdump.BlockSource([(start, changing)])
    assert vmdump.dump(source, tmp_path / "dump").vmcoreinfo_found is None
    changing[place - start : place - start + PAGE] = before
    assert vmdump.dump(source, tmp_path / "dump", force=True).vmcoreinfo_found == place
    changing[place - start : place - start + PAGE] = 0
    assert vmdump.dump(source, tmp_path / "dump", force=True).vmcoreinfo_found is None


def test_what_needs_none_does_not_search(
    sources: dict[str, str], tmp_path: Path, searches: list[object]
) -> None:
    vmdump.dump(sources["elf"], tmp_path / "theirs", compat="qemu")
    assert vmdump.verify(sources["kdump"], against=sources["lime"]).pages
    vmdump.dump(sources["elf"], tmp_path / "given", vmcoreinfo=b"OSRELEASE=1\nPAGESIZE=4096\n")
    vmdump.info(tmp_path / "given")
    vmdump.dump("synthetic:32M?seed=1", tmp_path / "told")
    assert not searches


def test_one_search_for_a_dump(sources: dict[str, str], tmp_path: Path, searches: list[object]) -> None:
    for form in ("elf", "kdump-zlib"):
        vmdump.dump(sources["lime"], tmp_path / form, format=form)
        vmdump.convert(sources["lime"], tmp_path / form, format=form, force=True)
    vmdump.info(sources["lime"])
    assert len(searches) == 5
    # Nor is a guest that is not Linux searched again for each thing that asks.
    searches.clear()
    vmdump.dump([(0, np.zeros(1 << 20, np.uint8))], tmp_path / "other")
    vmdump.info(tmp_path / "other")
    assert len(searches) == 2


def test_the_page_size_that_is_found_is_the_dump_s(tmp_path: Path) -> None:
    """64 KiB is what an AArch64 guest may have, and 4 KiB is what this one has."""
    memory = np.zeros(4 << 20, np.uint8)
    text = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nNUMBER(PHYS_OFFSET)=0x40000000\n"
    memory[0x30000 : 0x30000 + len(text)] = np.frombuffer(text, np.uint8)
    source = vmdump.BlockSource([(0x40000000, memory)], arch="aarch64")
    assert source.page_size == 65536
    assert source.vmcoreinfo.page_size == 4096
    assert source.page_size == 65536  # nothing changes under a plan
    assert vmdump.info(source).page_size == 4096
    vmdump.dump(source, tmp_path / "dump")
    assert Kdump(tmp_path / "dump").header["block_size"] == 4096


@pytest.mark.parametrize("damaged", [1, 40])
def test_pages_that_are_damaged_are_passed_over(
    damaged: int, memory: list[tuple[int, np.ndarray]], place: int
) -> None:
    start, data = memory[1]
    pages = {(start + at) // PAGE: data[at : at + PAGE].tobytes() for at in range(0, len(data), PAGE)}
    whole = build_kdump(Build(pages))
    with vmdump.open(whole) as dump:
        broken = bytearray(whole)
        count = 0
        for pfn in sorted(pages, key=lambda pfn: abs(pfn - place // PAGE)):
            stored = dump.stored_pages(pfn, 1)
            assert stored is not None
            needed = pfn == place // PAGE or b"Linux\0" in pages[pfn]
            if needed or len(stored.data) < 100 or bytes(stored.data[:2]) != b"\x78\x9c":
                continue
            at = int(stored.identities[0])
            broken[at : at + 50] = bytes(50)
            count += 1
            if count == damaged:
                break
        assert count == damaged
    with vmdump.open(bytes(broken)) as dump:
        found = vmdump.info(dump)
    assert [place.address for place in found.vmcoreinfo_found] == [place]
    assert found.utsname["sysname"] == "Linux"


def test_hundreds_of_damaged_pages_hide_nothing(memory: list[tuple[int, np.ndarray]], place: int) -> None:
    start, data = memory[1]
    pages = {(start + at) // PAGE: data[at : at + PAGE].tobytes() for at in range(0, len(data), PAGE)}
    broken = bytearray(build_kdump(Build(pages)))
    kept = {place // PAGE - 1, place // PAGE, place // PAGE + 1}
    with vmdump.open(bytes(broken)) as dump:
        for pfn in sorted(pages.keys() - kept)[::5]:
            stored = dump.stored_pages(pfn, 1)
            assert stored is not None
            at = int(stored.identities[0])
            broken[at : at + 50] = bytes(50)
    with vmdump.open(bytes(broken)) as dump:
        assert [found.address for found in vmdump.info(dump).vmcoreinfo_found] == [place]


def test_names_in_a_damaged_page_say_nothing(memory: list[tuple[int, np.ndarray]], place: int) -> None:
    """It is not known whether the text is right: as the only one it is taken."""
    start, data = memory[1]
    pages = {(start + at) // PAGE: data[at : at + PAGE].tobytes() for at in range(0, len(data), PAGE)}
    whole = build_kdump(Build(pages))
    with vmdump.open(whole) as dump:
        names = dump.vmcoreinfo.symbol("init_uts_ns")
        assert names is not None
        stored = dump.stored_pages((dump.kernel_to_phys(names) or 0) // PAGE, 1)
        assert stored is not None
    at = int(stored.identities[0])
    with vmdump.open(whole[:at] + bytes(50) + whole[at + 50 :]) as dump:
        found = vmdump.info(dump)
    assert [(place.verdict, place.chosen) for place in found.vmcoreinfo_found] == [("unknown", True)]
    assert found.utsname["release"] == "6.1.0-vmdump-synthetic"


def test_a_file_that_cannot_be_read_has_its_headers(
    sources: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SourceError("a bad sector")

    with vmdump.open(sources["lime"]) as dump:
        monkeypatch.setattr(find_vmcoreinfo, "find_all", fail)
        found = vmdump.info(dump)
        assert not found.vmcoreinfo
        with pytest.raises(SourceError, match="a bad sector"):
            _ = dump.vmcoreinfo


@pytest.mark.parametrize("told", [b"\xff\xfe" * 600, b"A=1\nB=2\n", b"SRELEASE=6.1.0-cut\nPAGESIZE=4096\n"])
def test_a_note_that_is_damaged(
    told: bytes, memory: list[tuple[int, np.ndarray]], text: bytes, place: int, tmp_path: Path
) -> None:
    source = vmdump.BlockSource(memory, notes=note(b"VMCOREINFO", 0, told))
    assert vmdump.dump(source, tmp_path / "dump").vmcoreinfo_found == place
    assert Kdump(tmp_path / "dump").check().vmcoreinfo == text
    # It is kept where there is nothing better.
    vmdump.dump(source, tmp_path / "dump", search=False, force=True)
    assert Kdump(tmp_path / "dump").vmcoreinfo == told


def small_pages(tmp_path: Path, page: bytes) -> Path:
    """A kdump file whose 64 MiB of pages take a fraction of that, with VMCOREINFO in the last one."""
    path = tmp_path / "small"
    last = b"OSRELEASE=6.1.0-last\nPAGESIZE=4096\n".ljust(PAGE, b"\0")
    path.write_bytes(build_kdump(Build({**dict.fromkeys(range(16383), page), 16383: last})))
    return path


def test_pages_that_are_known_to_be_zero_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_pages = KdumpDump.read_pages

    def counted(dump: KdumpDump, pfn: int, out: np.ndarray, *options: dict[int, str]) -> None:
        read.append(pfn)
        read_pages(dump, pfn, out, *options)

    monkeypatch.setattr(KdumpDump, "read_pages", counted)
    found = vmdump.info(small_pages(tmp_path, bytes(PAGE)))
    assert found.vmcoreinfo["OSRELEASE"] == "6.1.0-last"
    assert min(read) >= 15 * 1024  # the last 4 MiB


def test_no_file_makes_the_search_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_pages(tmp_path, bytes([7]) * PAGE)
    assert path.stat().st_size < 2 << 20
    assert vmdump.info(path).vmcoreinfo
    looked: list[int] = []
    starts = find_vmcoreinfo._starts

    def counted(data: np.ndarray, address: int) -> list[int]:
        looked.append(len(data))
        return starts(data, address)

    monkeypatch.setattr(find_vmcoreinfo, "_starts", counted)
    monkeypatch.setattr(find_vmcoreinfo, "_AHEAD", 1)
    monkeypatch.setattr(find_vmcoreinfo, "_MAX_RATIO", 1)
    monkeypatch.setattr(find_vmcoreinfo, "_ALWAYS", 4 << 20)
    assert not vmdump.info(path).vmcoreinfo
    threads = len(os.sched_getaffinity(0))
    assert sum(looked) <= (2 << 20) + (4 << 20) * (1 + threads)


# Waiting for it


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes too long."""
    monkeypatch.setattr(find_vmcoreinfo, "_SILENT", -1.0)


@pytest.mark.usefixtures("impatient")
def test_progress_of_a_search_that_takes_long(sources: dict[str, str], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    vmdump.info(sources["lime"], progress=lambda done, total: told.append((done, total)))
    size = 32 << 20
    assert told
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(size - (1 << 20) < total <= size for _, total in told)
    assert told[-1][0] == told[-1][1]
    told.clear()
    vmdump.dump(sources["lime"], tmp_path / "dump", progress=lambda done, total: told.append((done, total)))
    total = vmdump.info(sources["lime"]).guest_bytes
    assert told[-1] == (2 * total, 2 * total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.usefixtures("impatient")
def test_a_search_is_ended_with_its_dump(
    sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []
    job = vmdump.start_dump(sources["lime"], tmp_path / "started")
    job.wait()
    starts = find_vmcoreinfo._starts

    def look(data: np.ndarray, address: int) -> list[int]:
        looked.append(address)
        running.cancel()
        return starts(data, address)

    monkeypatch.setattr(find_vmcoreinfo, "_starts", look)
    from vmdump.job import DumpJob
    from vmdump.operations.dump import check_request

    running = DumpJob(check_request(sources["lime"], tmp_path / "ended").run)
    running.start()
    with pytest.raises(Cancelled):
        running.wait(60)
    assert looked
    assert not (tmp_path / "ended").exists()
