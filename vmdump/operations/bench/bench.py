"""Which compression for this guest and this disk: every engine at every level, on a sample of the guest."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from vmdump.codecs.registry import engines
from vmdump.errors import RequestError
from vmdump.formats.levels import parse_level
from vmdump.operations.bench.disk import DISK_ROUNDS, DiskSpeed, measure_disk
from vmdump.operations.bench.forecast import Candidate, LevelForecast, forecast_level, look_at
from vmdump.operations.bench.others import OthersShare
from vmdump.operations.bench.trial import Trial, estimate_ratios
from vmdump.pipeline.control import Control
from vmdump.pipeline.workers import check_threads
from vmdump.units import counted, format_size

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["Benchmark", "Candidate", "LevelForecast", "bench", "efficient"]

_ROUNDS = 3
"""The median of three is not moved by one bad moment of the machine."""
_DEFAULT_SAMPLE = 32 << 20
_BUSY_SHARE = 0.15


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
    levels : tuple of LevelForecast
        Levels 1 and 31, and that of the dump: each with the compression that is fastest at that one.
    others_share : float
        Share of the processors' time that others had during the trials, 0 to 1. The forecast leaves them out:
        a dump that has to share the processors as well takes longer.
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
    levels: tuple[LevelForecast, ...] = ()
    others_share: float = 0.0

    @property
    def busy(self) -> bool:
        """True if others had so much of the processors that the forecast is too short."""
        return self.others_share > _BUSY_SHARE

    @property
    def recommended(self) -> dict[str, Candidate]:
        """The choices by what they are: the fastest one, the smallest one, and those between."""
        choices = {"fastest here": self.fastest}
        if not self.fastest.codec:
            compressed = next((each for each in self.fitting if each.codec), None)
            if compressed is not None:
                choices["fastest compressed"] = compressed
        balanced = self.smallest_at_disk_speed
        if balanced is not None and balanced.output_bytes < self.fastest.output_bytes:
            choices["smallest that the disk does not wait for"] = balanced
        choices["smallest"] = self.smallest
        return choices

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

    def _repr_html_(self) -> str:
        """Give a table of the choices for a notebook, the fastest first."""
        from vmdump.markup import facts_table

        roles = [("fastest", self.fastest), ("smallest", self.smallest)]
        if (balanced := self.smallest_at_disk_speed) is not None:
            roles.insert(1, ("smallest at disk speed", balanced))
        rows = (
            (role, each.options, f"{each.seconds:.1f} s", format_size(each.output_bytes), each.limited_by)
            for role, each in roles
        )
        title = f"{self.source}: {format_size(self.guest_bytes)}, {counted(self.threads, 'thread')}"
        return facts_table(title, rows, head=("", "options", "time", "dump", "bottleneck"))

    def as_dict(self) -> dict[str, Any]:
        """Give all attributes by name, and the options of the three choices, for JSON."""
        balanced = self.smallest_at_disk_speed
        facts = asdict(self)
        for row in (*facts["candidates"], *(each["candidate"] for each in facts["levels"])):
            if row is not None and not row["level_matters"]:
                row["level"] = None
        return {
            **facts,
            "busy": self.busy,
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
    control.start(2 + DISK_ROUNDS + count * (1 + _ROUNDS))

    guest, others = look_at(source, sample, left_out, threads, control)
    control.advance(1)
    disk = measure_disk(to, cancelled=control.cancelled, round_done=lambda: control.advance(1))

    others_there = OthersShare()
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

    others_share = others_there.share()
    ratios = estimate_ratios(
        [trial.sizes for trial in trials], [trial.covered for trial in trials], guest.page_size
    )
    speeds = [median(trial.speeds) for trial in trials]
    best = efficient(list(zip(speeds, ratios, strict=True)))
    candidates = [guest.candidate_elf(threads, disk)]
    for trial, speed, ratio, is_efficient in zip(trials, speeds, ratios, best, strict=True):
        candidates.append(guest.candidate(trial, speed, ratio, is_efficient, threads, disk))
    candidates.sort(key=lambda each: (each.seconds, each.output_bytes))
    found = Benchmark(
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
        others_share=others_share,
    )
    like = found.fastest
    levels = [LevelForecast(left_out, round(guest.stored), like)]
    levels += [forecast_level(level, other, like, _ROUNDS, threads, disk) for level, other in others.items()]
    control.advance(1)
    return replace(found, levels=tuple(sorted(levels, key=lambda each: each.dump_level)))


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
