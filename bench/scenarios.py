"""What is dumped, group by group; each group's contestants run in turns."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from guests import IMAGE, QEMU, SHM, Guest
from limits import Limits
from measure import (
    ROOT,
    Contestant,
    Failed,
    Group,
    Sample,
    data_size,
    demand_room,
    read_once,
    run_process,
    say,
    take_turns,
)
from peers import dump_with_makedumpfile, dump_with_qemu, dump_with_vmdump

import vmdump
from vmdump.operations.verify import compare
from vmdump.units import format_size, parse_size

FORMATS = ("elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", "kdump-zstd")
QEMU_FORMATS = ("kdump-zlib", "elf")
GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """How large everything is: guests with MiB that they fill, and the raw files of `scale`."""

    warm: tuple[str, int] = ("4G", 300)
    cold: tuple[str, int] = ("2G", 270)
    filtered_live: tuple[str, int] = ("4G", 200)
    domain: tuple[int, int] = (1024, 300)  # both in MiB
    dense: int = GIB
    sparse: int = 1 << 40
    starts: int = 5
    large: tuple[str, int] = ("32G", 7400)
    filtered: tuple[int, ...] = (4 * GIB, 64 * GIB, 1 << 40)


QUICK = Sizes(
    warm=("1G", 60),
    cold=("512M", 40),
    filtered_live=("1G", 40),
    domain=(512, 40),
    dense=128 << 20,
    sparse=32 << 30,
    starts=2,
    large=("1G", 60),
    filtered=(4 * GIB, 32 * GIB),
)


@dataclass
class Bench:
    """What all groups share.

    Attributes
    ----------
    folder, shm : Path
        For outputs, and for guests' memory; both are removed at the end.
    rounds, threads : int
        As asked for.
    sizes : Sizes
        Of the guests.
    """

    folder: Path
    shm: Path
    rounds: int
    threads: int
    sizes: Sizes

    @property
    def output(self) -> Path:
        """Where the contestants dump to, one after the other."""
        return self.folder / "dump"

    @property
    def raw(self) -> Path:
        """The memory of a guest, in a file in memory; made at the first call."""
        return self._corpus("guest.raw", self.shm)

    @property
    def elf(self) -> Path:
        """vmdump's ELF dump of the same guest, on disk."""
        return self._corpus("guest.elf", self.folder)

    def _corpus(self, name: str, folder: Path) -> Path:
        path = folder / name
        if not path.exists():
            memory, fill = self.sizes.warm
            say(f"booting a guest of {memory} for the files")
            with booted(memory, fill) as guest:
                guest.monitor.execute("stop")
                copy = ["cp", "--sparse=always", str(guest.ram_path()), str(self.shm / "guest.raw")]
                subprocess.run(copy, check=True)
                dump_with_vmdump(f"qmp:{guest.qmp}", self.folder / "guest.elf", "elf", self.threads)
        return path


@contextmanager
def booted(memory: str, fill: int) -> Iterator[Guest]:
    """Give a running Linux guest with its RAM in a file in memory.

    Raises
    ------
    Failed
        There is no QEMU, no kernel, or no memory for it.
    """
    if shutil.which(QEMU) is None:
        raise Failed(f"the program {QEMU} is not installed")
    if not (IMAGE / "initrd.gz").exists():
        raise Failed("scripts/guest has not made the guest's kernel and initramfs")
    demand_room(SHM, parse_size(memory, parameter="memory"))
    with Guest(memory, fill=fill) as guest:
        yield guest.wait_ready()


class Fresh:
    """Guests that are just booted, one at a time: another key, another guest."""

    def __init__(self, memory: str, fill: int) -> None:
        self._what = memory, fill
        self._stack = ExitStack()
        self._key: object = None

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def get(self, *key: object) -> Guest:
        """Give the guest of this key; that of the key before is ended first."""
        if self._key != key:
            self._stack.close()
            self._key = None
            self._guest = self._stack.enter_context(booted(*self._what))
            self._key = key
        return self._guest


def demand_equal(source: str, path: Path, threads: int) -> None:
    """Compare a dump with what it is of, page by page."""
    with vmdump.open_source(source) as guest, vmdump.open(path) as dump:
        found = compare(guest, dump, threads=threads)
    if not found.equal:
        raise Failed(f"{path.name} does not hold the guest: {found.different_pages} pages differ")


def demand_equal_to_qemus(bench: Bench, guest: Guest) -> None:
    """Stop a guest, dump it by QEMU and by vmdump in every format, and compare page by page.

    QEMU's dump touches all memory of the guest: afterwards it is a warm one.
    """
    theirs = bench.folder / "theirs"
    guest.monitor.execute("stop")
    guest.monitor.dump(theirs, "elf")
    for name in FORMATS:
        dump_with_vmdump(f"qmp:{guest.qmp}", bench.output, name, bench.threads)
        demand_equal(str(theirs), bench.output, bench.threads)
        say(f"{name}: every page is the one in QEMU's own ELF dump")
    theirs.unlink()
    guest.monitor.execute("cont")


def bare(limits: Limits, path: Path, name: str, threads: int) -> Sample:
    """The limit of a format."""
    codec = name.partition("-")[2]
    return limits.pack(codec, threads) if codec else limits.write(path, threads)


def live_contestants(
    bench: Bench, limits: Limits, guest_of: Callable[[int, str], Guest], prepare: Callable[[int], None]
) -> list[Contestant]:
    """vmdump in every format, each followed by its limit, then QEMU's own formats: they make a guest warm.

    Parameters
    ----------
    guest_of : callable
        Gives the guest of a round for a contestant.
    prepare : callable
        Called before a limit of a round: its pages have to be the guest's.
    """

    def by_qemu(name: str, turn: int) -> Sample:
        # vmdump leaves a cold guest cold; so QEMU's kdump is of the same memory, and their sizes compare.
        whose = "vmdump" if name == "kdump-zlib" else f"QEMU {name}"
        return dump_with_qemu(guest_of(turn, whose), bench.output, name)

    def by_vmdump(name: str, turn: int) -> Sample:
        guest = guest_of(turn, "vmdump")
        return dump_with_vmdump(f"qmp:{guest.qmp}", bench.output, name, bench.threads, guest=guest)

    def by_limit(name: str, turn: int) -> Sample:
        prepare(turn)
        return bare(limits, bench.output, name, bench.threads)

    found = []
    for name in FORMATS:
        peer = "QEMU elf" if name == "elf" else "QEMU kdump-zlib"
        limit = f"limit of {name}"
        found.append(Contestant(f"vmdump {name}", "vmdump", partial(by_vmdump, name), peer, limit))
        found.append(Contestant(limit, "limit", partial(by_limit, name)))
    return [*found, *(Contestant(f"QEMU {name}", "peer", partial(by_qemu, name)) for name in QEMU_FORMATS)]


def paused_contestants(bench: Bench, guest: Guest) -> list[Contestant]:
    """vmdump in every format, of a paused guest: it is read once, where a running one is read twice."""

    def by_vmdump(name: str, turn: int) -> Sample:
        guest.monitor.execute("stop")
        try:
            return dump_with_vmdump(f"qmp:{guest.qmp}", bench.output, name, bench.threads, guest=guest)
        finally:
            guest.monitor.execute("cont")

    return [
        Contestant(
            f"vmdump {name}, paused",
            "vmdump",
            partial(by_vmdump, name),
            "QEMU elf" if name == "elf" else "QEMU kdump-zlib",
            f"limit of {name}",
        )
        for name in FORMATS
    ]


def live_warm(bench: Bench, group: Group) -> None:
    """A guest all of whose memory is resident, because QEMU has dumped it before."""
    memory, fill = bench.sizes.warm
    size = parse_size(memory, parameter="memory")
    demand_room(bench.folder, 2 * size)
    with booted(memory, fill) as guest, Limits() as limits:
        data = guest.allocated()
        demand_equal_to_qemus(bench, guest)
        group.about = (
            f"live guest of {memory}, warm: {format_size(guest.allocated())} resident,"
            f" {format_size(data)} of it before QEMU's first dump"
        )
        limits.load(f"raw:{guest.ram_path()}?base=0")
        running = live_contestants(bench, limits, lambda *_: guest, lambda turn: None)
        take_turns(group, [*running, *paused_contestants(bench, guest)], bench.rounds)


def live_cold(bench: Bench, group: Group) -> None:
    """Guests that have just booted: each round one for vmdump, then QEMU's kdump, and one for QEMU's elf."""
    memory, fill = bench.sizes.cold
    demand_room(bench.folder, 2 * parse_size(memory, parameter="memory"))
    with Fresh(memory, fill) as fresh, Limits() as limits:
        loaded: set[int] = set()

        def prepare(turn: int) -> None:
            if turn not in loaded:
                limits.load(f"raw:{fresh.get(turn, 'vmdump').ram_path()}?base=0")
                loaded.add(turn)

        take_turns(
            group, live_contestants(bench, limits, lambda *key: fresh.get(*key), prepare), bench.rounds
        )
        sizes = [sample.data_bytes for row in group.rows for sample in row.good if row.kind == "peer"]
        resident = min((size for size in sizes if size), default=0)
        group.about = f"live guest of {memory}, cold (fresh): {format_size(resident)} resident"


def from_elf(bench: Bench, group: Group) -> None:
    """An ELF file to kdump files; it is in the page cache for everybody."""
    elf = bench.elf
    group.about = f"an ELF file on disk, {format_size(data_size(elf))} of data, to kdump"

    def by_makedumpfile(options: tuple[str, ...], turn: int) -> Sample:
        read_once(elf)
        return dump_with_makedumpfile(elf, bench.output, *options)

    def by_vmdump(name: str, turn: int) -> Sample:
        read_once(elf)
        sample = dump_with_vmdump(str(elf), bench.output, name, bench.threads, data=data_size(elf))
        if turn == 0:
            demand_equal(str(elf), bench.output, bench.threads)
        return sample

    # One thread, makedumpfile's default. --num-threads 2 took 7 to 27 times the CPU seconds on two processors
    # that others used as well; on an idle machine it was not measured.
    options = [(codec, "-d", level) for codec in ("-c", "-l") for level in ("0", "1", "31")]
    contestants = [
        Contestant(" ".join(("makedumpfile", *some)), "peer", partial(by_makedumpfile, some))
        for some in options
    ]
    # Without zero pages (-d 1) makedumpfile does what vmdump does.
    peers = {"kdump-zlib": "makedumpfile -c -d 1", "kdump-lzo": "makedumpfile -l -d 1"}
    with Limits() as limits:
        limits.load(str(elf))
        for name in FORMATS[1:]:
            limit = f"limit of {name}"
            run = partial(by_vmdump, name)
            contestants.append(Contestant(f"vmdump {name}", "vmdump", run, peers.get(name, ""), limit))
            contestants.append(one_limit(limit, limits, bench, name, bench.threads))
        take_turns(group, contestants, bench.rounds)


def one_limit(title: str, limits: Limits, bench: Bench, name: str, threads: int) -> Contestant:
    """A limit of pages that stay the same."""
    return Contestant(title, "limit", lambda turn: bare(limits, bench.output, name, threads))


def raw_file(bench: Bench, group: Group) -> None:
    """A guest's memory in a file in memory, with one thread and with all."""
    raw = bench.raw
    group.about = f"a raw file in memory, {format_size(data_size(raw))} of data"

    def by_vmdump(name: str, threads: int, turn: int) -> Sample:
        sample = dump_with_vmdump(f"raw:{raw}?base=0", bench.output, name, threads, data=data_size(raw))
        if turn == 0:
            demand_equal(f"raw:{raw}?base=0", bench.output, bench.threads)
        return sample

    with Limits() as limits:
        limits.load(f"raw:{raw}?base=0")
        contestants = []
        for name in FORMATS:
            for threads in sorted({1, bench.threads}):
                limit = f"limit of {name} -j{threads}"
                run = partial(by_vmdump, name, threads)
                contestants.append(Contestant(f"vmdump {name} -j{threads}", "vmdump", run, "", limit))
                contestants.append(one_limit(limit, limits, bench, name, threads))
        take_turns(group, contestants, bench.rounds)


def start(bench: Bench, group: Group) -> None:
    """What a process costs that has next to nothing to do."""
    page = bench.shm / "page"
    page.write_bytes(os.urandom(mmap.PAGESIZE))
    group.about = "a raw file of one page: the start of the process"

    def python(turn: int) -> Sample:
        done = run_process(sys.executable, "-c", "pass")
        return Sample(done.seconds, cpu_seconds=done.cpu_seconds, peak_bytes=done.peak_bytes)

    def by_vmdump(turn: int) -> Sample:
        return dump_with_vmdump(f"raw:{page}", bench.output, "kdump-zlib", bench.threads, data=mmap.PAGESIZE)

    contestants = [
        Contestant("python -c pass", "peer", python),
        Contestant("vmdump kdump-zlib", "vmdump", by_vmdump),
    ]
    take_turns(group, contestants, bench.rounds * bench.sizes.starts)


PIECES = 64


def scale(bench: Bench, group: Group) -> None:
    """The same data without holes, and scattered over a file that is a thousand times as long."""
    dense, sparse = bench.shm / "dense.raw", bench.shm / "sparse.raw"
    size, length = bench.sizes.dense, bench.sizes.sparse
    # 24 bytes of descriptor for each page, two bitmaps, the data, and room to breathe.
    demand_room(bench.folder, length // 4096 * 25 + 2 * size)
    demand_room(bench.shm, 2 * size + GIB)
    make_scale_files(bench.raw, dense, sparse, size, length)
    group.about = f"raw files in memory, {format_size(size)} of data, in {PIECES} pieces or in one"

    def by_vmdump(path: Path, turn: int) -> Sample:
        sample = dump_with_vmdump(f"raw:{path}?base=0", bench.output, "kdump-lzo", bench.threads, data=size)
        if turn == 0:
            demand_pieces(path, bench.output, size // PIECES)
        return sample

    contestants = [
        Contestant(f"vmdump dense {format_size(size)}", "vmdump", partial(by_vmdump, dense)),
        Contestant(f"vmdump sparse {format_size(length)}", "vmdump", partial(by_vmdump, sparse)),
    ]
    try:
        take_turns(group, contestants, min(bench.rounds, 2))
    finally:
        dense.unlink()
        sparse.unlink()


def make_scale_files(guest: Path, dense: Path, sparse: Path, size: int, length: int) -> None:
    """Fill two files with a guest's pages, those that are not zero, again and again."""
    piece = size // PIECES
    block = bytearray()
    zero = bytes(4096)
    with guest.open("rb") as file:
        offset = 0
        while len(block) < min(size, GIB // 4):
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            page = os.pread(file.fileno(), 4096, offset)
            if page != zero:
                block += page
            offset += 4096
    with dense.open("wb") as one, sparse.open("wb") as other:
        for number in range(PIECES):
            begin = number * piece % len(block)
            data = (block[begin : begin + piece] + block)[:piece]
            one.write(data)
            other.seek(number * (length // PIECES))
            other.write(data)
        other.truncate(length)


def demand_pieces(source: Path, dump: Path, piece: int) -> None:
    """Compare the pieces of data; to compare all of a TiB would take minutes."""
    with vmdump.open(dump) as found, source.open("rb") as file:
        distance = file.seek(0, os.SEEK_END) // PIECES
        for begin in range(0, PIECES * distance, distance):
            if found.read(begin, piece) != os.pread(file.fileno(), piece, begin):
                raise Failed(f"{dump.name} does not hold the data at {begin:#x}")
            if distance > piece and any(found.read(begin + distance - 4096, 4096)):
                raise Failed(f"{dump.name} has data before {begin + distance:#x}")


@contextmanager
def prepared(folder: Path | None, rounds: int, threads: int, sizes: Sizes) -> Iterator[Bench]:
    """Make the folders of a run, and remove them."""
    prefix = "vmdump-bench-"
    # As an installation has it; else each start compiles what it loads where Python may write no bytecode.
    subprocess.run([sys.executable, "-m", "compileall", "-q", "vmdump"], cwd=ROOT, check=False)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as outputs,
        tempfile.TemporaryDirectory(prefix=prefix, dir=SHM) as shm,
    ):
        yield Bench(Path(outputs), Path(shm), rounds, threads, sizes)


def versions() -> dict[str, str]:
    """First lines of what the programs say about their version."""

    def first(*command: str) -> str:
        if shutil.which(command[0]) is None:
            return "not installed"
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return (done.stdout or done.stderr).partition("\n")[0]

    return {
        "qemu": first(QEMU, "--version"),
        "makedumpfile": first("makedumpfile", "-v"),
        "virsh": f"virsh {first('virsh', '--version')}",
    }
