"""What QEMU and makedumpfile make of a real Linux guest, read by vmdump and page by page by libkdumpfile."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from oracles import judges

import vmdump
from live.guests import Guest
from vmdump import PageKind
from vmdump.errors import ExcludedPage
from vmdump.units import merge_runs

PAGE = 4096
_READER = """
import hashlib, json, sys
import kdumpfile, kdumpfile.exceptions
request = json.load(sys.stdin)
dump = kdumpfile.kdumpfile(request["path"])
found = []
for pfn in request["pfns"]:
    try:
        page = dump.read(kdumpfile.KDUMP_MACHPHYSADDR, pfn * 4096, 4096)
        found.append(hashlib.md5(page).hexdigest())
    except kdumpfile.exceptions.NoDataException:
        found.append("")
json.dump(found, sys.stdout)
"""


def libkdumpfile_pages(path: Path, pfns: list[int]) -> list[str]:
    """The MD5 of each page; empty where libkdumpfile has none."""
    judges.require("libkdumpfile")
    done = subprocess.run(
        [judges.SYSTEM_PYTHON, "-c", _READER],
        input=json.dumps({"path": str(path), "pfns": pfns}).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: list[str] = json.loads(done.stdout)
    return found


class Ram:
    """The guest's RAM by frame number, from its file: q35 puts 2 GiB of it at 0, the rest at 4 GiB."""

    runs = ((0, 0x80000), (0xFFFC0, 0x180000))  # with the firmware, which is no RAM

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def pages(self, pfn: int, count: int) -> np.ndarray | None:
        """None for the firmware's. Read, not mapped: that would fill the holes."""
        if pfn + count > 0x80000 and pfn < 0x100000:
            return None
        begin = pfn if pfn < 0x80000 else pfn - 0x80000
        data = os.pread(self._file.fileno(), count * PAGE, begin * PAGE)
        return np.frombuffer(data, np.uint8).reshape(-1, PAGE)


@pytest.fixture(scope="module")
def truth(linux_guest: Guest) -> Iterator[Ram]:
    """What the paused guest holds."""
    path = linux_guest.ram_path()
    assert path is not None
    with path.open("rb") as file:
        yield Ram(file)


@pytest.fixture(scope="module")
def kdump(linux_guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makedumpfile filters: vmdump's kdump, for it reads neither QEMU's ELF nor QEMU's kdump."""
    path = tmp_path_factory.mktemp("kdump") / "kdump"
    vmdump.dump(f"qmp:{linux_guest.qmp}", path, format="kdump-lzo")
    return path


def makedumpfile(*words: object, to: Path | None = None) -> None:
    judges.require("makedumpfile")
    with to.open("wb") if to else open("/dev/null", "wb") as output:
        done = subprocess.run(
            ["makedumpfile", *map(str, words)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 0, done.stderr.decode()


def check(dump: vmdump.Dump, truth: Ram, judge: Path | None, *, excludes: bool) -> None:
    """Compare every page that is in the dump with the guest, thousands of all kinds with libkdumpfile."""
    end = truth.runs[-1][1]
    kinds = np.concatenate([dump.page_kinds(pfn, min(1 << 18, end - pfn)) for pfn in range(0, end, 1 << 18)])
    runs = merge_runs((block.start // PAGE, block.end // PAGE) for block in dump.blocks)
    assert tuple(runs) == truth.runs
    assert bool((kinds == PageKind.EXCLUDED).any()) == bool(dump.excluded_size) == excludes
    compared = 0
    for pfn, pages in dump.batches(threads=2):
        data = kinds[pfn : pfn + len(pages)] > PageKind.ZERO
        ram = truth.pages(pfn, len(pages)) if data.any() else None
        assert ram is None or np.array_equal(pages[data], ram[data])
        assert (kinds[pfn : pfn + len(pages)] >= PageKind.ZERO).all()
        compared += len(pages)
    assert compared == np.count_nonzero(kinds >= PageKind.ZERO)

    random = np.random.default_rng(1)
    chosen = [random.choice(np.flatnonzero(kinds == kind), 1500) for kind in np.unique(kinds)]
    pfns = sorted({*np.concatenate(chosen).tolist()})
    mine = []
    for pfn in pfns:
        if kinds[pfn] == PageKind.MISSING:
            with pytest.raises(vmdump.errors.ReadError):
                dump.read(pfn * PAGE, PAGE)
        elif kinds[pfn] == PageKind.EXCLUDED:
            with pytest.raises(ExcludedPage):
                dump.read(pfn * PAGE, PAGE)
        held = kinds[pfn] >= PageKind.ZERO
        mine.append(hashlib.md5(dump.read(pfn * PAGE, PAGE)).hexdigest() if held else "")
    if judge is not None:
        assert mine == libkdumpfile_pages(judge, pfns)


@pytest.mark.parametrize("words", [("-l", "-d31"), ("-c", "-d31"), ("-l", "-d1"), ("-l", "-d0")])
def test_makedumpfiles_files(words: tuple[str, ...], kdump: Path, truth: Ram, scratch: Path) -> None:
    path = scratch / "filtered"
    makedumpfile(*words, kdump, path)
    with vmdump.open(path) as dump:
        check(dump, truth, path, excludes=words[1] not in ("-d0", "-d1"))
        assert dump.utsname.release.decode() == dump.vmcoreinfo["OSRELEASE"]


def test_makedumpfiles_split_set(kdump: Path, truth: Ram, scratch: Path) -> None:
    parts = [scratch / f"part{number}" for number in range(3)]
    makedumpfile("-l", "-d31", "--split", kdump, *parts)
    whole = scratch / "whole"
    makedumpfile("--reassemble", *parts, whole)
    with vmdump.open(parts[::-1]) as dump:
        check(dump, truth, whole, excludes=True)


def test_makedumpfiles_flattened_file(kdump: Path, truth: Ram, scratch: Path) -> None:
    flat, standard = scratch / "flat", scratch / "standard"
    makedumpfile("-l", "-d31", "-F", kdump, to=flat)
    with flat.open("rb") as stream:
        subprocess.run(["makedumpfile", "-R", standard], stdin=stream, check=True, capture_output=True)
    with vmdump.open(flat) as dump:
        check(dump, truth, standard, excludes=True)


@pytest.mark.parametrize("name", ["kdump-zlib"])
def test_qemus_kdumps(name: str, linux_guest: Guest, truth: Ram, scratch: Path) -> None:
    path = scratch / name
    linux_guest.monitor.dump(path, name)
    with vmdump.open(path) as dump:
        assert dump.format == "kdump flattened"
        # libkdumpfile takes QEMU's empty utsname for damage, and then reads nothing.
        check(dump, truth, None, excludes=False)


def test_drgn_agrees(kdump: Path) -> None:
    judges.require("drgn")
    with vmdump.open(kdump) as dump:
        chosen = np.random.default_rng(2).choice(0x80000, 3000).tolist()
        ranges = [(pfn * PAGE, PAGE) for pfn in chosen]
        assert judges.drgn_read(kdump, ranges) == [dump.read(*one) for one in ranges]


def test_finds_in_a_guest_what_its_ram_has(linux_guest: Guest, truth: Ram, kdump: Path) -> None:
    """Live, and in its dump; what the guest never touched is not read, or it would be there afterwards."""
    before = linux_guest.allocated()
    live = vmdump.open_source(f"qmp:{linux_guest.qmp}")
    with live, vmdump.open(kdump) as dump:
        for pattern in (b"Linux version ", re.compile(rb"Linux version \d[^\0\n]*#1 SMP")):
            found = list(vmdump.find(live, pattern, threads=2))
            assert found
            assert found == list(dump.find(pattern, threads=2))
            for address in found:
                pages = truth.pages(address // PAGE, 2)
                assert pages is not None
                assert pages.tobytes()[address % PAGE :].startswith(b"Linux version ")
    assert linux_guest.allocated() == before
