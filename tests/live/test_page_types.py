"""A guest of Debian's kernel 6.1 that holds pages of every type, against QEMU's dump and makedumpfile."""

from __future__ import annotations

import bisect
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.command import run
from oracles import judges
from oracles.elf import ElfCore, put_headers_first
from oracles.kdump import Kdump

import vmdump
from live import pages
from live.dumping import until
from live.guests import Guest
from vmdump import PageType

FIRMWARE = range(0xFFFC0000 // pages.PAGE, (1 << 32) // pages.PAGE)
"""What has no struct page: the BIOS below 4 GiB. makedumpfile's dump ends with the last struct page."""
LEFT = 224 << 20
HELD = {
    PageType.FREE: 10000,
    PageType.CACHE: 2000,  # of tmpfs alone 10 MiB
    PageType.CACHE_PRIVATE: 200,  # a program with buffers, and a file system's own blocks
    PageType.USER: 7000,  # of which 12 MiB plain, 14 MiB huge, 2 MiB locked
    PageType.HUGE: 10240,  # 20 huge pages, of which 4 are somebody's
    PageType.SLAB: 1000,
    PageType.KERNEL: 5000,
    PageType.OFFLINE: 8192,  # in the balloon
    PageType.ZERO: 1000,
    PageType.UNDESCRIBED: 1,
}
"""Pages of each type that there are at least. Nothing is POISONED: this kernel is made without that."""


class Stopped(NamedTuple):
    """A stopped guest, and QEMU's dump of it."""

    source: str
    core: Path
    folder: Path


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """256 MiB of pages of every type; runs at first."""
    judges.require("guest")
    with Guest("256M", **pages.holding(tmp_path_factory.mktemp("initrd"))) as guest:
        guest.wait_ready()
        guest.monitor.execute("balloon", value=LEFT)
        until(lambda: guest.monitor.execute("query-balloon")["actual"] == LEFT, "the balloon is full")
        yield guest


@pytest.fixture(scope="module")
def stopped(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    guest.monitor.execute("stop")
    guest.monitor.dump(folder / "qemu")
    put_headers_first(folder / "qemu", folder / "core")
    (folder / "qemu").unlink()
    return Stopped(f"qmp:{guest.qmp}", folder / "core", folder)


@pytest.fixture(scope="module")
def usage(stopped: Stopped) -> vmdump.PageUsage:
    return vmdump.page_types(stopped.source)


@pytest.fixture(scope="module")
def small(stopped: Stopped) -> Path:
    """A dump of level 31."""
    vmdump.dump(stopped.source, stopped.folder / "small", format="kdump-lzo", exclude=31)
    return stopped.folder / "small"


def bits(bitmap: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").astype(bool)


def test_usage_of_a_running_guest(guest: Guest, scratch: Path) -> None:
    """It runs on, and both pictures are drawn."""
    for kind in ("svg", "png"):
        done = run("info", "--usage", f"qmp:{guest.qmp}", "--json", "--picture", scratch / f"map.{kind}")
        assert (done.returncode, done.stderr) == (0, b"")
        assert guest.running()
        told = json.loads(done.stdout)
        assert told["running"]
        assert told["pages"] == sum(each["pages"] for each in told["types"].values())
        assert told["types"]["offline"]["pages"] >= HELD[PageType.OFFLINE]
    done = run("info", "--usage", f"qmp:{guest.qmp}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"figures of a running guest")
    text = "".join(ET.parse(scratch / "map.svg").getroot().itertext())
    assert all(kind.label in text for kind in (PageType.OFFLINE, PageType.CACHE_PRIVATE, PageType.SLAB))
    assert (scratch / "map.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_every_type_is_there(usage: vmdump.PageUsage) -> None:
    assert not usage.running
    counts = {kind: usage.counts[kind].pages for kind in HELD}
    assert all(counts[kind] >= least for kind, least in HELD.items()), counts
    others = {kind for kind, each in usage.counts.items() if each.pages} - set(HELD)
    assert not others, others


def compare(level: int, expected: Kdump, dump: Kdump, report: vmdump.Report, usage: vmdump.PageUsage) -> None:
    """Both bitmaps, and what the report and `info` say of the dump."""
    last = expected.max_mapnr
    for name in ("bitmap1", "bitmap2"):
        wanted, found = bits(getattr(expected, name))[:last], bits(getattr(dump, name))
        assert np.array_equal(found[:last], wanted), (level, name)
        assert (np.flatnonzero(found[last:]) + last).tolist() == list(FIRMWARE), (level, name)
    assert (report.doubtful_pages, report.unreadable) == (0, ()), level
    assert report.dump_level == dump.check(ahead=True, level=level | 1).sub_header["dump_level"]
    # What info says that a dump of this level has is in it.
    there = int(np.count_nonzero(bits(dump.bitmap2)))
    assert usage.bytes_at(level & ~1) == there * pages.PAGE, level
    assert usage.bytes_at(level | 1) == (there - report.zero_pages) * pages.PAGE, level


def test_all_levels(stopped: Stopped, usage: vmdump.PageUsage) -> None:
    """Both bitmaps are makedumpfile's, bit for bit, at each level; but for the firmware, which is kept."""
    mine = stopped.folder / "mine"

    def filtered(level: int) -> Kdump:
        path = stopped.folder / f"theirs-{level}"
        judges.makedumpfile_filter(stopped.core, path, "-l", "-d", str(level))
        dump = Kdump(path)
        path.unlink()
        return dump

    with ThreadPoolExecutor(1) as pool:
        all_of_theirs = pool.map(filtered, range(32))
        for level, expected in enumerate(all_of_theirs):
            report = vmdump.dump(stopped.source, mine, format="kdump-lzo", exclude=level, force=True)
            dump = Kdump(mine)
            compare(level, expected, dump, report, usage)


@pytest.mark.parametrize("kind", [PageType.FREE, PageType.CACHE, PageType.CACHE_PRIVATE, PageType.USER,
                                  PageType.HUGE, PageType.OFFLINE])  # fmt: skip
def test_why_a_page_is_missing(
    kind: PageType, stopped: Stopped, small: Path, usage: vmdump.PageUsage
) -> None:
    """A page of level 31 that is not there has the type that it had in the guest."""
    frames = np.flatnonzero(usage.types == kind)
    # A free page's or a huge page's type is told by the first one of its run.
    for pfn in (frames[0], frames[len(frames) // 2], frames[-1]):
        address = int(pfn) * pages.PAGE + 0x123
        found = vmdump.page_at(small, address)
        assert (found.type, found.in_dump) == (kind.name.lower(), False)
        assert found.excluded_by == found.leaves_out
    done = run("read", small, hex(address), 8)
    assert (done.returncode, done.stdout) == (vmdump.errors.ExcludedPage.exit_code, b"")
    assert f"was excluded when the dump was made (its type: {kind.label})" in done.stderr.decode()
    # The guest has it.
    done = run("info", "--page", hex(address), stopped.source)
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"type         {kind.label}\n" in done.stdout.decode()
    assert "in the dump  yes\n" in done.stdout.decode()


def test_usage_of_the_dump(stopped: Stopped, small: Path, usage: vmdump.PageUsage) -> None:
    """All types, those of pages that it lacks as well, are told by a dump of level 31."""
    again = vmdump.page_types(small)
    lacking = {kind for kind, each in again.counts.items() if each.excluded_pages}
    assert lacking == {PageType.FREE, PageType.CACHE, PageType.CACHE_PRIVATE, PageType.USER, PageType.HUGE,
                       PageType.OFFLINE}  # fmt: skip
    assert np.array_equal(again.types, usage.types)
    assert all(again.counts[kind].pages == again.counts[kind].excluded_pages for kind in lacking)
    assert again.bytes_at(31) == usage.bytes_at(31)
    whole = vmdump.page_types(stopped.core)
    assert np.array_equal(whole.types, usage.types)
    assert whole.as_dict() == usage.as_dict()


def test_all_that_is_kept(stopped: Stopped, small: Path) -> None:
    """Every page of the small dump is QEMU's."""
    core = ElfCore(stopped.core)
    memory = {load.paddr: core.load_bytes(load) for load in core.loads}
    begins = sorted(memory)
    for pfn, page in Kdump(small).pages():
        begin = begins[bisect.bisect(begins, pfn * pages.PAGE) - 1]
        at = pfn * pages.PAGE - begin
        assert memory[begin][at : at + pages.PAGE] == page, pfn


def test_the_kernels_words(stopped: Stopped, small: Path) -> None:
    """The log, and for drgn what VMCOREINFO names, are in the small dump what they are in QEMU's."""
    judges.require("drgn")
    import drgn

    with vmdump.open(small) as dump, vmdump.open(stopped.core) as core:
        lines = list(vmdump.dmesg(dump))
        assert lines == list(vmdump.dmesg(core))
        assert any(b"Linux version 6.1" in line.text for line in lines)
        symbols = {name[7:-1]: value for name, value in dump.vmcoreinfo.items() if name[:7] == "SYMBOL("}
    mine, theirs = drgn.Program(), drgn.Program()
    mine.set_core_dump(small)
    theirs.set_core_dump(stopped.core)
    assert {"_stext", "kallsyms_names", "mem_section", "prb", "swapper_pg_dir"} <= set(symbols)
    for name, address in symbols.items():
        at = int(address, 16)
        assert mine.read(at, 1024) == theirs.read(at, 1024), name
    # All names of the kernel.
    begin, end = (int(symbols[name], 16) for name in ("kallsyms_names", "kallsyms_token_index"))
    assert mine.read(begin, end - begin) == theirs.read(begin, end - begin)
