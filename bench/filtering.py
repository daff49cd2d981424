"""Dumps without some types of pages: files that are filtered, by vmdump and by makedumpfile."""

from __future__ import annotations

import lzma
import mmap
import time
from functools import partial
from pathlib import Path

import numpy as np
from guests import Guest, Kdump
from measure import (
    ROOT,
    Contestant,
    Failed,
    Group,
    Sample,
    clear,
    data_size,
    demand_room,
    read_once,
    say,
    take_turns,
)
from peers import dump_with_makedumpfile, dump_with_vmdump
from scenarios import Bench
from sparse import GIB, make_sparse_guest

import vmdump
from vmdump.guest.linux.page_types.arrays import find_arrays
from vmdump.guest.linux.page_types.layout import PageLayout
from vmdump.units import format_size

LEVEL = "31"
CODECS = (("lzo", "-l"), ("zlib", "-c"))
CORE = ROOT / "tests/data/filter/x86_64-6.12/memory.elf.xz"
TYPED_GIB = 16
"""Of guest whose struct pages are told, in as many chunks as a dump takes."""
SECTION = 1 << 15


def filtering(bench: Bench, group: Group) -> None:
    """Files at level 31: of a guest, of a large one, and of sparse ones; and what telling types takes."""
    group.about = f"files, at level {LEVEL}"
    contestants = telling_types()
    sizes = bench.sizes
    with_elf = {"": bench.elf}
    memory, fill = sizes.large
    if memory != sizes.warm[0]:
        with_elf[f" of {memory}"] = large_guest(bench, memory, fill)
    for title, elf in with_elf.items():
        contestants += both(bench, elf, title)
    sparse = []
    for size in sizes.filtered:
        path = bench.folder / f"sparse-{size}.raw"
        told = make_sparse_guest(path, size, min(GIB, size // 4))
        sparse.append(path)
        for level in ("1", LEVEL):
            name = f"vmdump sparse {format_size(size)} -d {level}"
            contestants.append(
                Contestant(name, "vmdump", partial(by_vmdump, bench, f"raw:{path}?base=0", level, told))
            )
    demand_room(bench.folder, max(sizes.filtered) // mmap.PAGESIZE * 25 + 2 * GIB)
    try:
        take_turns(group, contestants, bench.rounds)
    finally:
        for path in sparse:
            path.unlink()


def by_vmdump(bench: Bench, source: str, level: str, told: Path, turn: int) -> Sample:
    more = ("-d", level, "--vmcoreinfo", str(told))
    return dump_with_vmdump(source, bench.output, "kdump-lzo", bench.threads, more=more)


def both(bench: Bench, elf: Path, title: str) -> list[Contestant]:
    """Filter an ELF file with both, after comparing their bitmaps; it is in the page cache."""
    found = []
    for codec, option in CODECS:
        demand_same_pages(bench, elf, codec, option)

        def theirs(option: str, turn: int) -> Sample:
            read_once(elf)
            return dump_with_makedumpfile(elf, bench.output, option, "-d", LEVEL)

        def ours(codec: str, turn: int) -> Sample:
            read_once(elf)
            return dump_with_vmdump(
                str(elf),
                bench.output,
                f"kdump-{codec}",
                bench.threads,
                data=data_size(elf),
                command="convert",
                more=("-d", LEVEL),
            )

        peer = f"makedumpfile {option} -d {LEVEL}{title}"
        found.append(Contestant(peer, "peer", partial(theirs, option)))
        name = f"vmdump kdump-{codec} -d {LEVEL}{title}"
        found.append(Contestant(name, "vmdump", partial(ours, codec), peer))
    return found


def large_guest(bench: Bench, memory: str, fill: int) -> Path:
    """Give an ELF file, with holes, of a guest of which a quarter was used."""
    path = bench.folder / "large.elf"
    demand_room(bench.folder, fill * 3 << 20)
    demand_room(bench.shm, fill * 5 << 18)
    say(f"booting a guest of {memory}, which takes minutes to fill")
    with Guest(memory, fill=fill) as guest:
        guest.wait_ready(900)
        guest.monitor.execute("stop")
        dump_with_vmdump(f"qmp:{guest.qmp}", path, "elf", bench.threads)
    return path


def demand_same_pages(bench: Bench, elf: Path, codec: str, option: str) -> None:
    """Compare both bitmaps with makedumpfile's, as far as that has any.

    Raises
    ------
    Failed
        They differ.
    """
    theirs = bench.folder / "theirs"
    dump_with_makedumpfile(elf, theirs, option, "-d", LEVEL)
    one = Kdump(theirs)
    dump_with_vmdump(
        str(elf), bench.output, f"kdump-{codec}", bench.threads, command="convert", more=("-d", LEVEL)
    )
    other = Kdump(bench.output)
    for name in ("bitmap1", "bitmap2"):
        if bits(getattr(one, name), one.max_mapnr) != bits(getattr(other, name), one.max_mapnr):
            raise Failed(f"{elf.name}: {name} of kdump-{codec} is not makedumpfile's")
    clear(theirs)
    say(f"{elf.name}, kdump-{codec}: both bitmaps are makedumpfile's")


def bits(bitmap: bytes, pages: int) -> int:
    """Give the bits of so many pages as a number."""
    return int.from_bytes(bitmap, "little") & ((1 << pages) - 1)


def telling_types() -> list[Contestant]:
    """Tell types by struct pages in memory, and copy the same struct pages; one thread."""
    with vmdump.open(np.frombuffer(lzma.decompress(CORE.read_bytes()), np.uint8)) as dump:
        layout = PageLayout.of(dump.vmcoreinfo, 8, "little")
        array = find_arrays(dump, dump.vmcoreinfo, layout.size)[0]
        one = np.frombuffer(dump.read_virtual(array.address, array.pages * layout.size), np.uint8)
    structs = np.tile(one, (TYPED_GIB << 18) // array.pages)
    typer, types, copy = layout.typer(), np.ones(TYPED_GIB << 18, np.uint8), structs.copy()
    step = SECTION * layout.size

    def tell(turn: int) -> Sample:
        began = time.perf_counter()
        for first in range(0, types.size, SECTION):
            chunk = structs[first * layout.size :][:step]
            typer.tell(chunk, first, types[first:][: chunk.size // layout.size])
        return Sample(time.perf_counter() - began, data_bytes=structs.size)

    def memcpy(turn: int) -> Sample:
        began = time.perf_counter()
        for begin in range(0, structs.size, step):
            copy[begin:][:step] = structs[begin:][:step]
        return Sample(time.perf_counter() - began, data_bytes=structs.size)

    return [
        Contestant("memcpy of struct pages", "limit", memcpy),
        Contestant("types of pages", "vmdump", tell, limit="memcpy of struct pages"),
    ]
