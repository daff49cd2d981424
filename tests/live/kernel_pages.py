#!/usr/bin/env python3
"""Boot Debian's kernels of other architectures and compare vmdump's types of pages with what they say.

Usage: .venv/bin/python tests/live/kernel_pages.py [NAME ...]     (names: KERNELS of kernels.py; default: all)

Downloads as `kernels.py` beside this file does, and for some kernels debugging information as well, 250 to
700 MiB each. One line for each check; the exit code is 1 if one of them failed.

What is right is said by two:

- The guest. It reads its /proc/kpageflags and /proc/kpagecount, is stopped a moment later, is dumped, goes
  on, reads both again, and writes all to its console. What both readings agree about was so at the stop as
  well, but for pages of the programs that read: both times these were the same. 1 of 1000 pages may differ.
- drgn, by the kernel's debugging information: where its struct pages are, and which field and value means
  what, on the same dump. No page may differ.
"""

from __future__ import annotations

import base64
import gzip
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "scripts")]

import vmdump  # noqa: E402
from live import drgn_pages  # noqa: E402
from live.kernels import KERNELS, Booted  # noqa: E402
from vmdump.guest.linux.page_types.levels import excluded_types  # noqa: E402
from vmdump.guest.linux.page_types.types import PageTypes, tell_types  # noqa: E402
from vmdump.kernels import page_types as kinds  # noqa: E402

DEBUGGED = ("arm64", "arm64-6.12", "ppc64el-radix", "s390x-6.12")
"""Kernels whose debugging information is downloaded: some of each architecture that drgn can walk."""
MOST_CHANGED = 0.001
"""Of all pages: those whose use changed between a reading and the stop, and back."""

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
echo 0 >/proc/sys/kernel/printk
echo always >/sys/kernel/mm/transparent_hugepage/enabled
echo 4 >/proc/sys/vm/nr_hugepages
dd if=/dev/zero of=/tmp/file bs=64k count=200 2>/dev/null
held=$(dd if=/dev/zero bs=64k count=200 2>/dev/null | tr '\0' x)
# Memory fails 48 MiB below its end.
end=$(grep 'System RAM' /proc/iomem | tail -n 1 | sed 's/^[^-]*-\([0-9a-f]*\) .*/\1/')
echo $(printf '0x%x' $((0x$end - 0x3000000))) >/sys/devices/system/memory/hard_offline_page
readings() { # NUMBER
    dd if=/proc/kpageflags of=/tmp/flags$1 bs=64k conv=notrunc 2>/dev/null
    dd if=/proc/kpagecount of=/tmp/count$1 bs=64k conv=notrunc 2>/dev/null
}
# Twice: the second time no page is allocated for them.
readings 1
readings 2
readings 1
echo GUEST-READY
sleep 4
echo GUEST-WENT-ON
readings 2
for name in flags1 count1 flags2 count2; do
    echo "FILE $name"
    gzip -c /tmp/$name | base64
    echo "END $name"
done
echo GUEST-DONE
while sleep 1000; do :; done
"""

# Bits of /proc/kpageflags; those from 32 on are for the kernel's own developers.
LRU, SLAB, BUDDY, ANON, SWAPCACHE, SWAPBACKED, TAIL = (1 << bit for bit in (5, 7, 10, 12, 13, 14, 16))
HUGE, HWPOISON, NOPAGE, OFFLINE, PGTABLE, PRIVATE = (1 << bit for bit in (17, 19, 20, 23, 26, 35))
NAMES = {
    kinds.KERNEL: "kernel",
    kinds.SLAB: "slab",
    kinds.TABLE: "page table",
    kinds.FREE: "free",
    kinds.CACHE: "cache",
    kinds.CACHE_PRIVATE: "cache private",
    kinds.USER: "user",
    kinds.HUGE: "huge",
    kinds.OFFLINE: "offline",
    kinds.UNKNOWN: "without a struct page",
    kinds.UNREADABLE: "unreadable",
    kinds.DOUBTFUL: "doubtful",
}

BASE = kinds.POISONED - 1
"""The bits of a type without POISONED."""

Types = NDArray[np.uint8]


def types_by_flags(flags: NDArray[np.uint64]) -> Types:
    """Tell types by /proc/kpageflags, by vmdump's rules; UNKNOWN of pages that have no struct page.

    A tail is what its head is: some of the bits are those of the head only.
    """
    numbers = np.arange(flags.size)
    tail = flags & np.uint64(TAIL) != 0
    of = flags[np.maximum.accumulate(np.where(tail, 0, numbers))]

    def has(bits: int) -> NDArray[np.bool_]:
        return of & np.uint64(bits) == bits

    anon = has(ANON) & ~has(SLAB)
    cache = (has(LRU) | has(SWAPBACKED | SWAPCACHE)) & ~anon
    types = np.full(flags.size, kinds.KERNEL, np.uint8)
    # The later ones take precedence.
    types[has(PGTABLE)] = kinds.TABLE
    types[has(SLAB)] = kinds.SLAB
    types[has(OFFLINE)] = kinds.OFFLINE
    types[anon] = kinds.USER
    types[has(HUGE)] = kinds.HUGE
    types[cache] = kinds.CACHE
    types[cache & has(PRIVATE)] = kinds.CACHE_PRIVATE
    types[has(BUDDY)] = kinds.FREE
    types[flags & np.uint64(HWPOISON) != 0] |= kinds.POISONED
    types[flags & np.uint64(NOPAGE) != 0] = kinds.UNKNOWN
    return types


def readings(text: str, byteorder: str) -> dict[str, NDArray[np.uint64]]:
    """Decode the files that the guest wrote to its console."""
    found = {}
    for name in ("flags1", "count1", "flags2", "count2"):
        match = re.search(rf"^FILE {name}\n(.*?)^END {name}$", text, re.MULTILINE | re.DOTALL)
        assert match, f"no {name} in {text[-300:]}"
        raw = gzip.decompress(base64.b64decode(match[1]))
        found[name] = np.frombuffer(raw, "<u8" if byteorder == "little" else ">u8").astype(np.uint64)
    return found


def shown(theirs: Types, mine: Types) -> str:
    """Say how many pages there are of each type that somebody else tells, and what differs."""
    parts = []
    for kind in np.unique(theirs).tolist():
        name = NAMES[kind & BASE] + (", poisoned" if kind & kinds.POISONED else "")
        here = theirs == kind
        others, counts = np.unique(mine[here & (mine != theirs)], return_counts=True)
        odd = {
            NAMES[other & BASE]: count for other, count in zip(others.tolist(), counts.tolist(), strict=True)
        }
        parts.append(f"{np.count_nonzero(here)} {name}" + (f" (but {odd})" if odd else ""))
    return ", ".join(parts)


def simple(types: Types, *, tables: bool) -> Types:
    """Make of tails, of which only those of kernel pages are left, what nobody can tell from other ones."""
    types = types.copy()
    types[types == kinds.TAIL] = kinds.KERNEL
    if not tables:
        types[types == kinds.TABLE] = kinds.KERNEL
    return types


def memory_of(dump: vmdump.Source, pages: int, page_size: int) -> NDArray[np.bool_]:
    """Tell which frame numbers are memory of the guest."""
    there = np.zeros(pages, np.bool_)
    for block in dump.blocks:
        there[-(-block.start // page_size) : block.end // page_size] = True
    return there


def by_guest(
    types: PageTypes, dump: vmdump.Source, said: dict[str, NDArray[np.uint64]]
) -> Iterator[tuple[str, bool, str]]:
    first, second = types_by_flags(said["flags1"]), types_by_flags(said["flags2"])
    release = re.match(r"(\d+)\.(\d+)", dump.vmcoreinfo["OSRELEASE"])
    assert release
    tables = (int(release[1]), int(release[2])) >= (6, 12)
    mine = simple(types.of(0, first.size), tables=tables)
    first, second = simple(first, tables=tables), simple(second, tables=tables)
    there = memory_of(dump, first.size, types.page_size)
    steady = there & (first == second)
    compared = steady & (first != kinds.UNKNOWN)
    same = mine[compared] == first[compared]
    share = same.mean()
    text = f"{np.count_nonzero(compared)} pages, {np.count_nonzero(~same)} differ: "
    text += shown(first[compared], mine[compared])
    yield "kpageflags", bool(share >= 1 - MOST_CHANGED), text
    changed = np.count_nonzero(there & (first != second))
    text = f"{changed} of {np.count_nonzero(there)}"
    yield "pages that changed meanwhile", bool(changed < 0.02 * there.sum()), text
    # What the guest says has no struct page has none, or was never set up, or is off line.
    without = mine[steady & (first == kinds.UNKNOWN)]
    kept = ~excluded_types(31)[without]
    yield "pages without a struct page are kept", bool(kept.all()), f"{without.size} pages"
    wanted = {kinds.KERNEL, kinds.SLAB, kinds.FREE, kinds.CACHE, kinds.USER}
    yield "every type is there", wanted <= set(mine[compared].tolist()), ""
    steady = compared & (said["count1"] == said["count2"])
    mapped = steady & (said["count1"] != 0)
    never = np.isin(mine, [kinds.FREE, kinds.SLAB, kinds.TABLE, kinds.OFFLINE, kinds.UNACCEPTED])
    count = np.count_nonzero(mapped & never)
    text = f"{count} of {np.count_nonzero(mapped)} mapped pages are of a type that is never mapped"
    yield "kpagecount: what is mapped", bool(count <= MOST_CHANGED * compared.sum()), text
    user = steady & (mine == kinds.USER)
    count = np.count_nonzero(user & ~mapped)
    text = f"{count} of {np.count_nonzero(user)} pages of processes are not mapped"
    yield "kpagecount: what is of processes", bool(count <= max(0.01 * user.sum(), 64)), text


def checks(
    name: str, guest: Booted, folder: Path, seed: int, *, drgn: bool
) -> Iterator[tuple[str, bool, str]]:
    """Yield the name of each check, whether it holds, and what was found; the guest goes on meanwhile."""
    with vmdump.open_source(f"qmp:{guest.qmp}") as source:
        vmdump.dump(source, folder / "dump", format="elf")
        report = vmdump.dump(source, folder / "filtered", format="kdump-lzo", exclude=31)
    late = "GUEST-WENT-ON" in guest.wait_for("GUEST-READY")
    yield "stopped between both readings", not late, ""
    assert guest.monitor
    guest.monitor.execute("cont")
    text = guest.wait_for("GUEST-DONE").replace("\r", "")
    guest.monitor.execute("stop")
    with vmdump.open(folder / "dump") as dump:
        begin = time.process_time()
        types = tell_types(dump, threads=2)
        milliseconds = 1000 * (time.process_time() - begin)
        info = dump.vmcoreinfo
        found = f"{info['OSRELEASE']}, {dump.arch.name}, {types.page_size >> 10} KiB, {types.arrays}"
        counts = types.counts(types.arrays)
        yield "struct pages", bool(counts.sum() > 0), f"{found}, {milliseconds:.0f} ms"
        doubt = int(counts[kinds.UNREADABLE] + counts[kinds.DOUBTFUL])
        yield "no doubt", bool(doubt < counts.sum() / 8), f"{doubt} doubtful or unreadable"
        yield from by_guest(types, dump, readings(text, dump.byteorder))
        with vmdump.open(folder / "filtered") as filtered:
            yield from same_pages(dump, filtered, types, report.doubtful_pages)
        if drgn and name in DEBUGGED:
            yield from drgn_pages.checks(KERNELS[name], folder / "dump", dump, types, seed)


def same_pages(
    dump: vmdump.Source, filtered: vmdump.Source, types: PageTypes, doubtful: int
) -> Iterator[tuple[str, bool, str]]:
    """Compare a live guest's dump of level 31 with the types in a dump of all."""
    parts = types.page_size // dump.page_size
    left_out = wrong = pages = 0
    for block in dump.blocks:
        pfn, count = block.start // types.page_size, block.size // types.page_size
        want = excluded_types(31)[types.of(pfn, count)]
        told = filtered.excluded_pages(pfn * parts, count * parts)
        have = np.zeros(count * parts, np.bool_) if told is None else told
        pages += count
        left_out += int(np.count_nonzero(want))
        wrong += int(np.count_nonzero(np.repeat(want, parts) != have))
    text = f"{left_out} of {pages} left out, {wrong} differ, {doubtful} doubtful"
    yield "level 31 of the live guest", wrong == 0, text


def judge(name: str, seed: int, *, drgn: bool = True) -> Iterator[tuple[str, bool, str]]:
    """Boot a kernel and yield its checks."""
    folder = Path(tempfile.mkdtemp(prefix="vmdump-kernel-", dir="/dev/shm"))
    guest = None
    begin = time.monotonic()
    try:
        guest = Booted(KERNELS[name], folder, INIT)
        yield "boots", True, f"{time.monotonic() - begin:.0f} s"
        yield from checks(name, guest, folder, seed, drgn=drgn)
    finally:
        if guest is not None:
            guest.close()
        shutil.rmtree(folder)


def main(names: list[str]) -> int:
    failed = 0
    seed = random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    for name in names or list(KERNELS):
        try:
            for what, holds, found in judge(name, seed):
                failed += not holds
                print(f"{name}: {what}: {'ok' if holds else 'FAILED'} ({found})", flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
