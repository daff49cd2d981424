"""Which compression for this guest and this disk: every engine at every level, on a sample of the guest."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from vmdump.codecs.registry import default_engine, engines
from vmdump.errors import RequestError, SourceError
from vmdump.formats.levels import parse_level
from vmdump.formats.names import FORMATS
from vmdump.guest.blocks import Pages
from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import AS_TOLD, TOLD_OR_FOUND
from vmdump.guest.whole import whole_pages
from vmdump.kernels.zero import zero_pages
from vmdump.opening import session
from vmdump.operations.bench.disk import DISK_ROUNDS, DiskSpeed, measure_disk
from vmdump.operations.bench.trial import Trial, estimate_ratios
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import whole_blocks
from vmdump.pipeline.sample import Sample, reading_speed, take_sample
from vmdump.pipeline.training import training_pages
from vmdump.pipeline.workers import check_threads
from vmdump.writers.elf_head import elf_head
from vmdump.writers.kdump_head import kdump_head

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["Benchmark", "Candidate", "bench", "efficient"]

_ROUNDS = 3
"""The median of three is not moved by one bad moment of the machine."""
_DEFAULT_SAMPLE = 32 << 20

Limit = Literal["processor", "disk"]


@dataclass(frozen=True)
class Candidate:
    """A way to dump the guest, and what it would cost.

    Attributes
    ----------
    format, codec, engine : str
        As of a dump; codec and engine are empty for ELF.
    level : int or None
        Of the engine; None for ELF.
    default : bool
        True if a dump in this format takes this engine and level by itself.
    level_matters : bool
        True if the engine has several.
    speed, slowest, fastest : float
        Bytes of pages that are not zero, packed in a second by one processor: median, minimum and maximum of
        the rounds. 0 for ELF, which packs nothing.
    ratio : float
        Packed to plain, of pages that are not zero; 1 for ELF.
    pages : int
        Pages of the sample that it had time for; where they were not all, `ratio` is an estimate.
    output_bytes : int
        What would be written to the disk; holes of an ELF file are not.
    seconds : float
        That the whole dump would take.
    limited_by : str
        ``processor`` or ``disk``: the bottleneck.
    efficient : bool
        True if no other engine and level is both faster and smaller; always false for ELF.
    """

    format: str
    codec: str
    engine: str
    level: int | None
    default: bool
    level_matters: bool
    speed: float
    slowest: float
    fastest: float
    ratio: float
    pages: int
    output_bytes: int
    seconds: float
    limited_by: Limit
    efficient: bool

    @property
    def options(self) -> str:
        """What to type for it: options of ``vmdump dump``."""
        words = ["-f", self.format]
        if self.engine and not self.default:
            words += ["--engine", self.engine]
            if self.level_matters:
                words += ["--level", str(self.level)]
        return " ".join(words)

    @property
    def name(self) -> str:
        """Short, for a picture: ``isal 1``."""
        return f"{self.engine} {self.level}" if self.level_matters else self.engine or self.format


@dataclass(frozen=True)
class Benchmark:
    """What :func:`bench` found.

    Attributes
    ----------
    source : str
        The guest, as it was named; all parts of a split set.
    machine : str
        The processor.
    threads : int
        Of the dump.
    dump_level : int
        Which types of pages it leaves out, in makedumpfile's bits.
    page_size, guest_bytes : int
        Of the guest.
    data_bytes : int
        Guest memory without its holes, and without long runs of pages that are left out.
    sample_bytes : int
        Part of it that was looked at.
    zero_share : float
        Part of the sample that is zero pages, of which a dump stores one, or that is left out.
    scan_speed : float
        Bytes that one processor reads from the guest and tests for zero in a second.
    disk : DiskSpeed
        Where the dump would go.
    candidates : tuple of Candidate
        By seconds, then by bytes.
    missing : dict of str to str
        Engines that this build does not have, and why.
    """

    source: str
    machine: str
    threads: int
    dump_level: int
    page_size: int
    guest_bytes: int
    data_bytes: int
    sample_bytes: int
    zero_share: float
    scan_speed: float
    disk: DiskSpeed
    candidates: tuple[Candidate, ...]
    missing: dict[str, str]

    @property
    def fitting(self) -> tuple[Candidate, ...]:
        """Those for which the disk has room; all, if even the smallest is too large."""
        return (
            tuple(each for each in self.candidates if each.output_bytes <= self.disk.room) or self.candidates
        )

    @property
    def fastest(self) -> Candidate:
        """The shortest dump that fits; the smaller one of equals."""
        return self.fitting[0]

    @property
    def smallest(self) -> Candidate:
        """The smallest dump; the shorter one of equals."""
        return min(self.candidates, key=lambda each: (each.output_bytes, each.seconds))

    @property
    def smallest_at_disk_speed(self) -> Candidate | None:
        """The smallest dump that fits and whose bottleneck is the disk; None if the disk always waits."""
        keep_up = [each for each in self.fitting if each.limited_by == "disk"]
        return min(keep_up, key=lambda each: (each.output_bytes, each.seconds), default=None)

    def as_dict(self) -> dict[str, Any]:
        """Give all attributes by name, and the options of the three choices, for JSON."""
        balanced = self.smallest_at_disk_speed
        return {
            **asdict(self),
            "fastest": self.fastest.options,
            "smallest": self.smallest.options,
            "smallest_at_disk_speed": balanced.options if balanced else None,
        }


def efficient(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell which points no other one beats by being as fast and as small, and better in one of the two.

    Parameters
    ----------
    points : sequence of (float, float)
        Speed (more is better) and ratio (less is better).

    Returns
    -------
    list of bool
        One for each point.

    Examples
    --------
    >>> efficient([(500, 0.5), (300, 0.4), (200, 0.45)])
    [True, True, False]
    """
    return [
        not any(other != point and other[0] >= point[0] and other[1] <= point[1] for other in points)
        for point in points
    ]


def bench(
    source: AnySource,
    *,
    to: str | os.PathLike[str] = ".",
    threads: int | None = None,
    sample: int = _DEFAULT_SAMPLE,
    exclude: int | str | Iterable[str] = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    """Pack a sample of a guest with every engine at every level, and tell what the whole dump would cost.

    A live guest is read while it runs. Then 57 engines and levels take some 20 s on one processor.

    The forecast is the longer one of two times: what the processors need to read, test, pack and write all
    data, and what the disk needs to take the dump. It leaves out the start of the process and attaching to a
    live guest, telling types of pages, the second look at one (which reads all its memory once more), moments
    in which the disk is slower than in the trial, and processors that slow each other down, as the two halves
    of a core do; of an ELF file the short runs of zero pages, which are written with the others; and of a
    kdump file that identical pages are stored once, some 5 % of a Linux guest's data but most of a guest that
    is filled with a pattern. Of a guest in a file, all is taken to be where the sample is: in the page cache,
    or not.

    Parameters
    ----------
    source : str, path, sequence of paths, Source, buffer, or list of blocks
        As for :func:`vmdump.dump`.
    to : str or path
        Folder of the dump; its disk is measured. No file is left there.
    threads : int, optional
        Worker threads of the dump; the processors this process may use, if not given.
    sample : int
        Bytes of the guest's data to look at.
    exclude : int, str, or iterable of str
        Types of pages that the dump leaves out, as for :func:`vmdump.dump`.
    progress : callable, optional
        Called with (done, total) in steps of up to 0.1 s.

    Returns
    -------
    Benchmark

    Raises
    ------
    RequestError
        `threads` is not from 1 to 1024, `sample` is not positive, or there is no such level.
    SourceError, AccessDenied, LayoutError, FormatError, CapabilityError, GuestBusy, QmpError
        Reading the guest failed, it has no data, or it fits no kdump file.
    SinkError
        Writing to the folder failed.
    CodecError
        An engine failed, or packed what does not unpack to the page.
    """
    threads = check_threads(threads)
    if sample < 1:
        raise RequestError(f"sample: {sample} is not positive", parameter="sample")
    left_out = parse_level(exclude)
    usable = [engine for engine in engines() if not engine.missing]
    count = sum(engine.max_level - engine.min_level + 1 for engine in usable)
    control = Control(progress)
    control.start(1 + DISK_ROUNDS + count * (1 + _ROUNDS))

    guest = _look_at(source, sample, left_out, threads, control)
    control.advance(1)
    disk = measure_disk(to, cancelled=control.cancelled, round_done=lambda: control.advance(1))

    trials = []
    for engine in usable:
        for level in range(engine.min_level, engine.max_level + 1):
            trials.append(Trial(engine, level, guest.pages, guest.training))
            control.advance(1)
    # In turn, so that a machine that becomes slower becomes so for all.
    for _ in range(_ROUNDS):
        for trial in trials:
            trial.round()
            control.advance(1)

    ratios = estimate_ratios(
        [trial.sizes for trial in trials], [trial.covered for trial in trials], guest.page_size
    )
    speeds = [median(trial.speeds) for trial in trials]
    best = efficient(list(zip(speeds, ratios, strict=True)))
    candidates = [guest.candidate_elf(threads, disk)]
    for trial, speed, ratio, is_efficient in zip(trials, speeds, ratios, best, strict=True):
        candidates.append(guest.candidate(trial, speed, ratio, is_efficient, threads, disk))
    candidates.sort(key=lambda each: (each.seconds, each.output_bytes))
    return Benchmark(
        source=_name(source),
        machine=_processor(),
        threads=threads,
        dump_level=left_out,
        page_size=guest.page_size,
        guest_bytes=guest.guest_bytes,
        data_bytes=guest.sample.data_bytes,
        sample_bytes=guest.sample.pages.nbytes,
        zero_share=guest.zero_share,
        scan_speed=1 / guest.scan_seconds_per_byte,
        disk=disk,
        candidates=tuple(candidates),
        missing={engine.name: engine.missing for engine in engines() if engine.missing},
    )


@dataclass(frozen=True)
class _Guest:
    """What the forecast needs of the guest, which is closed already."""

    sample: Sample
    pages: Pages
    training: Pages
    zero_share: float
    scan_seconds_per_byte: float
    page_size: int
    guest_bytes: int
    kdump_bytes: int
    elf_bytes: int

    @property
    def _stored(self) -> float:
        return self.sample.data_bytes * (1 - self.zero_share)

    def _cost(
        self, pack_seconds: float, written: float, threads: int, disk: DiskSpeed
    ) -> tuple[int, float, Limit]:
        """Give the bytes written, the seconds, and the bottleneck."""
        scan_seconds = self.sample.data_bytes * self.scan_seconds_per_byte
        # Threads beyond the processors only take turns on them.
        at_once = min(threads, len(os.sched_getaffinity(0)))
        processor = (scan_seconds + pack_seconds + written * disk.processor_seconds) / at_once
        writing = written / disk.bytes_per_second
        return round(written), max(processor, writing), "processor" if processor > writing else "disk"

    def candidate(
        self, trial: Trial, speed: float, ratio: float, is_efficient: bool, threads: int, disk: DiskSpeed
    ) -> Candidate:
        engine = trial.engine
        written = self.kdump_bytes + self._stored * ratio
        output_bytes, seconds, limited_by = self._cost(self._stored / speed, written, threads, disk)
        chosen = default_engine(engine.codec)
        return Candidate(
            format=next(known.name for known in FORMATS if known.codec == engine.codec and not known.raw),
            codec=engine.codec,
            engine=engine.name,
            level=trial.level,
            default=engine == chosen and trial.level == chosen.default_level,
            level_matters=engine.max_level > engine.min_level,
            speed=speed,
            slowest=min(trial.speeds),
            fastest=max(trial.speeds),
            ratio=ratio,
            pages=trial.covered,
            output_bytes=output_bytes,
            seconds=seconds,
            limited_by=limited_by,
            efficient=is_efficient,
        )

    def candidate_elf(self, threads: int, disk: DiskSpeed) -> Candidate:
        output_bytes, seconds, limited_by = self._cost(0, self.elf_bytes + self._stored, threads, disk)
        return Candidate(
            format=next(known.name for known in FORMATS if known.family == "elf"),
            codec="",
            engine="",
            level=None,
            default=True,
            level_matters=False,
            speed=0,
            slowest=0,
            fastest=0,
            ratio=1,
            pages=0,
            output_bytes=output_bytes,
            seconds=seconds,
            limited_by=limited_by,
            efficient=False,
        )


def _look_at(source: AnySource, size: int, exclude: int, threads: int, control: Control) -> _Guest:
    """Take the sample; a guest that was opened here is closed again before anything is timed."""
    filters = exclude > 1
    # For types of pages VMCOREINFO may have to be looked for; else the sample is all that is read.
    vmcoreinfo = TOLD_OR_FOUND if filters else AS_TOLD
    with (
        session(source) as it,
        it.held(pause=False, cancelled=control.cancelled, vmcoreinfo=vmcoreinfo) as guest,
    ):
        if filters:
            guest = _filtered(guest, exclude, threads, control)
        # The codec is named in the header, and does not change its size.
        kdump = kdump_head(guest, engines()[0].codec)
        elf = elf_head(guest, whole_blocks(guest.blocks))
        blocks = whole_pages(guest.blocks, guest.page_size)
        sample = take_sample(blocks, page_size=guest.page_size, size=size)
        read_speed = reading_speed(blocks, sample)
        training = training_pages(guest.blocks, page_size=guest.page_size)
        page_size, guest_bytes = guest.page_size, guest.size
    began = time.thread_time()
    zero = zero_pages(sample.pages.reshape(-1), page_size)
    test_seconds = time.thread_time() - began
    if zero.all():
        raise SourceError(
            "nothing to compress: all pages of the sample are zero",
            hint="a dump of it is small in any format",
        )
    return _Guest(
        sample=sample,
        pages=sample.pages[~zero],
        training=training,
        zero_share=float(zero.mean()),
        scan_seconds_per_byte=1 / read_speed + test_seconds / sample.pages.nbytes,
        page_size=page_size,
        guest_bytes=guest_bytes,
        # The zero page that all share lies with the others.
        kdump_bytes=kdump.data_offset + page_size,
        elf_bytes=len(elf.content),
    )


def _filtered(guest: Guest, exclude: int, threads: int, control: Control) -> Guest:
    """Leave out types of pages; a guest that runs has others a moment later, but as many."""
    from vmdump.guest.linux.page_types.filter import filtered  # most dumps leave out nothing
    from vmdump.guest.linux.page_types.types import tell_types

    return filtered(guest, tell_types(guest, threads=threads, check=control.check), exclude)


def _name(source: AnySource) -> str:
    parts = source if isinstance(source, list | tuple) else [source]
    names = [os.fspath(part) for part in parts if isinstance(part, str | os.PathLike)]
    return " ".join(names) or type(source).__name__


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
