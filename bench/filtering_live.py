"""A live guest without the pages that nobody looks at, against QEMU's ELF dump and makedumpfile behind it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from guests import Guest, Share
from measure import (
    Contestant,
    Failed,
    Group,
    Sample,
    clear,
    demand_room,
    describe_output,
    read_once,
    say,
    take_turns,
)
from oracles.kdump import Kdump
from peers import dump_with_makedumpfile, dump_with_qemu, dump_with_vmdump, stamp
from scenarios import Bench

import vmdump
from vmdump.units import format_size, parse_size

__all__ = ["filter_live"]

LEVEL = "31"
FORMATS = ("kdump-lzo", "elf")
PEER = "QEMU elf, makedumpfile -l -d 31"
KINDS: dict[Share, str] = {"file": "shared", "private": "private"}


def filter_live(bench: Bench, group: Group) -> None:
    """Running guests of both kinds of memory. QEMU has guests of its own: its dump makes all resident."""
    memory, fill = bench.sizes.filtered_live
    demand_room(bench.folder, 3 * parse_size(memory, parameter="memory"))
    about = []
    for share, kind in KINDS.items():
        with (
            Guest(memory, share=share, fill=fill) as guest,
            Guest(memory, share=share, fill=fill) as other,
        ):
            for one in (guest, other):
                one.wait_ready()
            about.append(f"{format_size(guest.mapped())} of it resident, {kind}")
            demand_same_bitmaps(bench, guest, other)
            take_turns(group, contestants(bench, kind, guest, other), bench.rounds)
    group.about = f"live guest of {memory} at level {LEVEL}: {'; '.join(about)}"


def contestants(bench: Bench, kind: str, guest: Guest, other: Guest) -> list[Contestant]:
    """vmdump in both kinds of files, and the two tools."""
    peer = f"{PEER}, {kind}"
    ours = [
        Contestant(
            f"vmdump {name} -d {LEVEL}, {kind}", "vmdump", partial(by_vmdump, bench, guest, name), peer
        )
        for name in FORMATS
    ]
    return [*ours, Contestant(peer, "peer", partial(by_both_tools, bench, other))]


def by_vmdump(bench: Bench, guest: Guest, name: str, turn: int) -> Sample:
    """One run; the pause is what another monitor sees of it."""
    told: list[float] = []

    def run() -> Sample:
        sample = dump_with_vmdump(f"qmp:{guest.qmp}", bench.output, name, bench.threads, more=("-d", LEVEL))
        told.append(sample.still_seconds or 0.0)
        return sample

    sample = watched(guest, run)
    # Attaching stops the guest for a moment as well, and the report counts that.
    if abs((sample.still_seconds or 0.0) - told[0]) > 0.01:
        raise Failed(f"the report says {told[0]:.3f} s of pause, QEMU's events {sample.still_seconds:.3f} s")
    return sample


def by_both_tools(bench: Bench, guest: Guest, turn: int) -> Sample:
    """QEMU's dump, and then makedumpfile's of it."""
    core = bench.folder / "core"
    try:
        whole = watched(guest, lambda: dump_with_qemu(guest, core, "elf"))
        sample = dump_with_makedumpfile(for_makedumpfile(core), bench.output, "-l", "-d", LEVEL)
    finally:
        clear(core)
    sample.seconds += whole.seconds
    sample.cpu_seconds = (sample.cpu_seconds or 0.0) + (whole.cpu_seconds or 0.0)
    sample.still_seconds = whole.still_seconds
    return describe_output(sample, bench.output)


def for_makedumpfile(core: Path) -> Path:
    """Write a core of QEMU's again, for makedumpfile 1.7.2 finds no program header in it; nobody's time."""
    again = core.with_name("again")
    vmdump.convert(core, again, format="elf", force=True)
    again.replace(core)
    read_once(core)
    return core


def watched(guest: Guest, run: Callable[[], Sample]) -> Sample:
    """Do a run, and count for how long the guest was stopped meanwhile, by its events."""
    guest.monitor.event_names()
    guest.monitor.events.clear()
    sample = run()
    guest.monitor.event_names()
    stopped, paused = 0.0, 0.0
    for event in guest.monitor.events:
        at = stamp(event["timestamp"])
        if event["event"] == "STOP":
            stopped = at
        elif event["event"] == "RESUME":
            paused += at - stopped
    sample.still_seconds = paused
    return sample


def demand_same_bitmaps(bench: Bench, guest: Guest, other: Guest) -> None:
    """Stop a guest, and compare which pages both have; what is above the last struct page, vmdump keeps."""
    core, theirs = bench.folder / "core", bench.folder / "theirs"
    other.monitor.execute("stop")
    try:
        dump_with_qemu(other, core, "elf")
        dump_with_makedumpfile(for_makedumpfile(core), theirs, "-l", "-d", LEVEL)
        dump_with_vmdump(f"qmp:{other.qmp}", bench.output, FORMATS[0], bench.threads, more=("-d", LEVEL))
    finally:
        other.monitor.execute("cont")
        clear(core)
    bits = [np.unpackbits(np.frombuffer(Kdump(path).bitmap2, np.uint8)) for path in (theirs, bench.output)]
    count = Kdump(theirs).max_mapnr // 8 * 8
    wrong = int(np.count_nonzero(bits[0][:count] != bits[1][:count]))
    clear(theirs)
    if wrong:
        raise Failed(f"{wrong} pages are in one of the two dumps only")
    say(f"level {LEVEL}: the bitmap is makedumpfile's, {count} pages")
