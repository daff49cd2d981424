"""Guests that hold pages of every type, or rewrite theirs for ever: `programs/pages.c` in an initramfs."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from oracles.elf import ElfCore
from oracles.kdump import Kdump

from live.guests import IMAGE

PROGRAM = Path(__file__).parent / "programs/pages.c"
SCRIPT = Path(__file__).resolve().parents[2] / "scripts/guest"
PAGE = 4096
NUMBERS, RECORD = 0x73726562A5C3F117, 0x64726F63A5C3F117
WRITTEN = 2048
"""Pages of each writer of numbers."""
CAPACITY = 1024
"""Pages of the pipe."""
QUEUES, LOCKED = 0, 1
"""The writers: of the kernel's memory, of a user's."""

_HEAD = r"""#!/bin/busybox sh
set -e
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in MODULES; do
    [ ! -e /lib/$module.ko ] || insmod /lib/$module.ko
done
"""
_HOLD = r"""
mm=/sys/kernel/mm
echo always >$mm/transparent_hugepage/enabled
# What describes the tails of huge pages is given back, where the kernel can do that.
[ ! -e /proc/sys/vm/hugetlb_optimize_vmemmap ] || echo 1 >/proc/sys/vm/hugetlb_optimize_vmemmap
echo 20 >/proc/sys/vm/nr_hugepages
echo 1 >$mm/ksm/run
mount -t tmpfs -o huge=always,size=90% data /data
dd if=/dev/urandom of=/data/random bs=1M count=10 2>/dev/null
mkswap /dev/vdb >/dev/null
swapon /dev/vdb
mke2fs /dev/vda >/dev/null
mount -t ext2 /dev/vda /mnt
for number in 0 1 2 3 4 5 6 7; do
    cp /bin/busybox /mnt/$number
done
# What is read has no buffers, what was written has.
sync
echo 1 >/proc/sys/vm/drop_caches
cat /mnt/0 /mnt/1 /mnt/2 >/dev/null
cp /bin/busybox /mnt/again
pages hold >/said &
while ! grep -q READY /said; do sleep 0.1; done
while [ "$(cat $mm/ksm/pages_sharing)" -lt 100 ]; do sleep 0.1; done
echo GUEST-READY
while sleep 1000; do :; done
"""
_WRITE = r"""
pages write >/said &
while ! grep -q READY /said; do sleep 0.1; done
echo GUEST-READY
while sleep 1000; do :; done
"""


@cache
def _script() -> ModuleType:
    """Load scripts/guest."""
    loader = importlib.machinery.SourceFileLoader("guest_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("guest_script", loader)
    assert spec
    script = importlib.util.module_from_spec(spec)
    loader.exec_module(script)
    return script


def _initrd(folder: Path, init: str) -> Path:
    """Make the tests' initramfs with the program and another init."""
    script, program, path = _script(), folder / "pages", folder / "initrd.gz"
    words = ("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(program), str(PROGRAM))
    subprocess.run(words, check=True)
    members = [
        ("mnt", script.FOLDER, b""),
        ("bin/pages", script.PROGRAM, program.read_bytes()),
        ("init", script.PROGRAM, (_HEAD.replace("MODULES", " ".join(script.MODULES)) + init).encode()),
    ]
    path.write_bytes((IMAGE / "initrd.gz").read_bytes() + script.archive(members, 1))
    return path


def holding(folder: Path) -> dict[str, Any]:
    """Give the options of a `Guest` that holds pages of every type; its files go to `folder`."""
    extra = ["-device", "virtio-balloon-pci"]
    for name, size in (("disk", 64 << 20), ("swap", 16 << 20)):
        with (folder / name).open("wb") as file:
            file.truncate(size)
        extra += ["-drive", f"if=none,id={name},format=raw,file={folder / name}"]
        extra += ["-device", f"virtio-blk-pci,drive={name}"]
    return {"initrd": str(_initrd(folder, _HOLD)), "extra": extra}


def writing(folder: Path) -> dict[str, Any]:
    """Give the options of a `Guest` that rewrites pages for ever; its files go to `folder`."""
    return {"initrd": str(_initrd(folder, _WRITE))}


def _marked(path: Path) -> Iterator[np.ndarray]:
    """Yield the pages of a dump that begin with a mark of the program's, as 512 words."""
    marks = NUMBERS, RECORD
    with path.open("rb") as file:
        elf = file.read(4) == b"\x7fELF"
    if elf:
        core = ElfCore(path)
        for load in core.loads:
            words = np.frombuffer(core.load_bytes(load)[: load.filesz], "<u8").reshape(-1, PAGE // 8)
            yield from words[np.isin(words[:, 0], marks)]
        return
    for _, page in Kdump(path).pages():
        if int.from_bytes(page[:8], "little") in marks:
            yield np.frombuffer(page, "<u8")


def check_moment(path: Path, *, user: bool) -> int:
    """Assert that all that `pages write` writes is in a dump as it was at one moment.

    Parameters
    ----------
    path : Path
        A kdump file, or an ELF core.
    user : bool
        The dump has to have the memory of users, too. Some of it is in every ELF core: short runs stay.

    Returns
    -------
    int
        The round in which the writer of kernel memory was.
    """
    numbers: dict[int, list[np.ndarray]] = {QUEUES: [], LOCKED: []}
    records = []
    for words in _marked(path):
        if int(words[0]) == NUMBERS:
            numbers[int(words[1])].append(words)
        elif (words[1:] == words[1]).all():  # else it is being written or overwritten
            records.append(int(words[1]))
    for writer, there in numbers.items():
        if writer == LOCKED and not user:
            continue
        assert len(there) == WRITTEN, f"{len(there)} of {WRITTEN} pages of writer {writer}"
        there.sort(key=lambda words: int(words[2]))
        assert [int(words[2]) for words in there] == list(range(WRITTEN)), f"pages of writer {writer} twice"
        # In the order in which they were written.
        rounds = np.array([(words[3], words[-1]) for words in there], np.int64).reshape(-1)
        assert (np.diff(rounds) <= 0).all(), f"a page of writer {writer} is younger than one before it"
        assert rounds[0] - rounds[-1] <= 1, f"{rounds[0] - rounds[-1]} rounds of writer {writer}"
    newest = max(records)
    lacking = set(range(newest - CAPACITY + 3, newest + 1)) - set(records)
    assert not lacking, f"{len(lacking)} of the last {CAPACITY - 2} pages of the pipe are not there"
    return int(numbers[QUEUES][0][3])
