#!/usr/bin/env python3
"""Ask crash and drgn, with the kernel's debug information, the same of a full dump and of filtered ones.

Usage: .venv/bin/python tests/live/debugged.py

Not a part of the suite: it downloads Debian's debug symbols of the guest's kernel (300 MiB, 2 GiB unpacked)
and crash into build/debug. A guest that holds pages of every type is stopped and dumped by QEMU, in full by
vmdump, and at level 31 to a kdump file and to an ELF core. Of all four, crash and drgn must say the same of
tasks, modules, the log, slab caches and stacks. One line for each question; the exit code is 1 if one of them
was answered differently.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests")]

import drgn  # noqa: E402
from drgn.helpers.linux import (  # noqa: E402
    for_each_module,
    for_each_slab_cache,
    for_each_task,
    get_dmesg,
    slab_cache_for_each_allocated_object,
    task_on_cpu,
)

import vmdump  # noqa: E402
from live import pages  # noqa: E402
from live.guests import Guest  # noqa: E402

BUILD = REPOSITORY / "build/debug"
CRASH = ("sys", "ps", "mod", "log", "kmem -i", "kmem -s", "bt -a", "dev", "irq")
"""What crash is asked. Debian's release of it finds only the idle tasks of this kernel, in whatever dump."""
KEPT_SLABS = ("task_struct", "dentry", "inode_cache", "vm_area_struct", "filp", "kmalloc-64", "kmalloc-1k")


def unpacked(package: str) -> Path:
    """Download and unpack a package once."""
    tree = BUILD / package
    if not tree.is_dir():
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            subprocess.run(
                ["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
            (archive,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", str(archive), f"{folder}/tree"], check=True)
            (Path(folder) / "tree").rename(tree)
    return tree


def ask_crash(vmlinux: Path, dump: Path) -> dict[str, str]:
    """Give crash's answers by question; each is asked by a line that says which one it is."""
    program = unpacked("crash") / "usr/bin/crash"
    lines = "".join(f"echo ANSWER [{question}]\n{question}\n" for question in CRASH)
    with tempfile.NamedTemporaryFile("w", suffix=".crash") as file:
        file.write(f"set scroll off\n{lines}quit\n")
        file.flush()
        words = [str(program), "-s", "-i", file.name, str(vmlinux), str(dump)]
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    found = re.split(r"ANSWER \[(.*?)\]", done.stdout + done.stderr)
    assert set(CRASH) <= set(found[1::2]), done.stdout + done.stderr
    # The file's name and kind are the dump's own.
    answers = (re.sub(r" *DUMPFILE:.*", "", answer) for answer in found[2::2])
    return dict(zip(found[1::2], answers, strict=True))


def ask_drgn(vmlinux: Path, dump: Path) -> dict[str, object]:
    """Give drgn's answers by question."""
    program = drgn.Program()
    program.set_core_dump(dump)
    program.load_debug_info([vmlinux])

    def slabs() -> Iterator[tuple[str, list[int]]]:
        for cache in for_each_slab_cache(program):
            name = cache.name.string_().decode()
            objects = slab_cache_for_each_allocated_object(cache, "void") if name in KEPT_SLABS else ()
            yield name, [each.value_() for each in objects]

    def kernel_frames(task: drgn.Object) -> list[drgn.StackFrame]:
        # In ELF cores drgn takes programs' addresses for physical ones, and has registers of tasks that run.
        frames = [] if task_on_cpu(task) else program.stack_trace(task)
        return [frame for frame in frames if frame.pc >= 0xFFFF800000000000]

    tasks = list(for_each_task(program))
    return {
        "tasks": [(task.pid.value_(), task.comm.string_(), task.value_()) for task in tasks],
        "stacks": [[str(frame) for frame in kernel_frames(task)] for task in tasks],
        "modules": [(module.name.string_(), module.value_()) for module in for_each_module(program)],
        "log": get_dmesg(program),
        "slab": dict(slabs()),
    }


def same(who: str, answers: dict[str, dict[str, object]]) -> bool:
    """Compare the answers of all dumps with those of the first one; print a line for each question."""
    (first, expected), *others = answers.items()
    well = True
    for question, answer in expected.items():
        wrong = [name for name, given in others if given.get(question) != answer]
        size = len(answer) if isinstance(answer, (str, bytes, list, dict)) else 0
        well &= bool(size) and not wrong
        verdict = f"DIFFERENT: {', '.join(wrong)}" if wrong else f"as of {first}" if size else "NO ANSWER"
        print(f"{who:<6} {question:<10} {size:>8}  {verdict}")
    return well


def main() -> int:
    """Boot, dump, ask."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmdump-debugged-") as name:
        folder = Path(name)
        with Guest("256M", **pages.holding(folder)) as guest:
            guest.wait_ready()
            guest.monitor.execute("stop")
            guest.monitor.dump(folder / "QEMU")
            source = f"qmp:{guest.qmp}"
            vmdump.dump(source, folder / "full", format="kdump-lzo")
            vmdump.dump(source, folder / "kdump-31", format="kdump-lzo", exclude=31)
            vmdump.dump(source, folder / "elf-31", format="elf", exclude=31)
        with vmdump.open(folder / "full") as dump:
            release = dump.utsname.release.decode()
        tree = unpacked(f"linux-image-{release}-dbg")
        vmlinux = tree / f"usr/lib/debug/boot/vmlinux-{release}"
        dumps = [folder / each for each in ("QEMU", "full", "kdump-31", "elf-31")]
        well = same("drgn", {dump.name: ask_drgn(vmlinux, dump) for dump in dumps})
        return not (well & same("crash", {dump.name: ask_crash(vmlinux, dump) for dump in dumps}))


if __name__ == "__main__":
    sys.exit(main())
