"""One run of vmdump, of QEMU's own dump, and of makedumpfile."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from guests import Guest
from measure import Failed, Sample, clear, data_size, describe_output, run_process

TICKS = os.sysconf("SC_CLK_TCK")


def dump_with_vmdump(
    source: str,
    path: Path,
    format: str,
    threads: int,
    *,
    guest: Guest | None = None,
    data: int | None = None,
    prefix: Sequence[str] = (),
    command: str = "dump",
    more: Sequence[str] = (),
) -> Sample:
    """``vmdump dump SOURCE PATH`` in a process of its own, behind other words if there are any.

    Another command than dump gets the same options, and all get `more`.

    `guest` is the live one behind `source`.
    """
    clear(path)
    before = guest.allocated() if guest else 0
    qemu_before = cpu_seconds(guest.pid) if guest else 0.0
    words = [command, source, str(path), "-f", format, "-j", str(threads), "--json", *more]
    done = run_process(*prefix, sys.executable, "-m", "vmdump", *words)
    report = json.loads(done.stdout)
    sample = Sample(
        seconds=done.seconds,
        dump_seconds=report["seconds"],
        cpu_seconds=done.cpu_seconds,
        peak_bytes=done.peak_bytes,
        still_seconds=report["paused_seconds"],
        data_bytes=data,
        engine=f"{report['engine']} {report['level']}" if report["engine"] else "",
        changed_pages=report["changed_pages"] if guest else None,
    )
    if guest:
        sample.cpu_seconds = done.cpu_seconds + cpu_seconds(guest.pid) - qemu_before
        sample.growth_bytes, sample.data_bytes = guest.allocated() - before, before
    return describe_output(sample, path)


def dump_with_qemu(guest: Guest, path: Path, format: str) -> Sample:
    """QEMU's own ``dump-guest-memory``, without paging and without detaching."""
    clear(path)
    before, resident = guest.allocated(), guest.rss()
    # 5: the peak is from now on.
    Path(f"/proc/{guest.pid}/clear_refs").write_text("5")
    begin, cpu_before = len(guest.monitor.events), cpu_seconds(guest.pid)
    seconds = guest.monitor.dump(path, format)
    guest.monitor.event_names()  # until it answers, an event may be on its way
    times = {event["event"]: event["timestamp"] for event in guest.monitor.events[begin:]}
    growth = guest.allocated() - before
    sample = Sample(
        seconds=seconds,
        cpu_seconds=cpu_seconds(guest.pid) - cpu_before,
        peak_bytes=max(0, peak_of(guest.pid) - resident - growth),
        growth_bytes=growth,
        data_bytes=before,
    )
    if "STOP" in times and "RESUME" in times:
        sample.still_seconds = stamp(times["RESUME"]) - stamp(times["STOP"])
    return describe_output(sample, path)


def dump_with_makedumpfile(elf: Path, path: Path, *options: str) -> Sample:
    """``makedumpfile OPTIONS ELF PATH``."""
    if shutil.which("makedumpfile") is None:
        raise Failed("the program makedumpfile is not installed")
    clear(path)
    done = run_process("makedumpfile", *options, str(elf), str(path))
    sample = Sample(
        seconds=done.seconds,
        cpu_seconds=done.cpu_seconds,
        peak_bytes=done.peak_bytes,
        data_bytes=data_size(elf),
    )
    return describe_output(sample, path)


def stamp(time: dict[str, int]) -> float:
    """The seconds of an event's timestamp."""
    return time["seconds"] + time["microseconds"] / 1e6


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    # The name, in parentheses, may hold anything; utime and stime are fields 14 and 15 of the line.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_of(pid: int) -> int:
    """Peak resident memory of a process, in bytes."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise Failed(f"process {pid} has ended")
    return int(found[1]) * 1024
