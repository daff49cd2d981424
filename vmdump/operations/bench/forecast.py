"""What a dump of a guest would cost in a format, by a sample of the guest."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple

from vmdump.codecs.registry import default_engine, engines
from vmdump.errors import CapabilityError, ReadError, SourceError
from vmdump.formats.names import FORMATS
from vmdump.guest.blocks import Pages
from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import AS_TOLD, TOLD_OR_FOUND
from vmdump.guest.linux.page_types.way_out import naming_way_out
from vmdump.guest.whole import whole_pages
from vmdump.kernels.zero import zero_pages
from vmdump.opening import session
from vmdump.operations.bench.disk import DiskSpeed
from vmdump.operations.bench.trial import Trial, estimate_ratios
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import whole_blocks
from vmdump.pipeline.sample import Sample, reading_speed, take_sample
from vmdump.pipeline.training import training_pages
from vmdump.writers.elf_head import elf_head
from vmdump.writers.kdump_head import kdump_head

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["Candidate", "LevelForecast", "Sampled", "forecast_level", "look_at"]

COMPARED_LEVELS = (1, 31)
"""All pages but those of zeros, and as few as somebody needs who looks at a kernel."""

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
class Sampled:
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
    def stored(self) -> float:
        """Bytes of pages that a dump has, zero pages not counted."""
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
        """Tell what the dump costs that a trial packs at this speed to this ratio."""
        engine = trial.engine
        written = self.kdump_bytes + self.stored * ratio
        output_bytes, seconds, limited_by = self._cost(self.stored / speed, written, threads, disk)
        chosen = default_engine(engine.codec)
        return Candidate(
            format=next(known.name for known in FORMATS if known.codec == engine.codec and not known.raw),
            codec=engine.codec,
            engine=engine.name,
            level=trial.level,
            default=engine == chosen and trial.level == chosen.default_level,
            level_matters=engine.has_levels,
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
        """Tell what an ELF file costs."""
        output_bytes, seconds, limited_by = self._cost(0, self.elf_bytes + self.stored, threads, disk)
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


@dataclass(frozen=True)
class LevelForecast:
    """What a dump would cost that leaves out other types of pages.

    Attributes
    ----------
    dump_level : int
        In makedumpfile's bits.
    stored_bytes : int
        Pages that it would have, zero pages not counted; 0 where that cannot be told.
    candidate : Candidate or None
        The dump: in the format, with the engine and level that are fastest at the level that was asked for.
    missing : str
        Why there is none; empty if there is one.
    """

    dump_level: int
    stored_bytes: int
    candidate: Candidate | None
    missing: str = ""


class _Taken(NamedTuple):
    sample: Sample
    training: Pages
    read_speed: float
    page_size: int
    guest_bytes: int
    kdump_bytes: int
    elf_bytes: int


def _take(guest: Guest, size: int) -> _Taken:
    # The codec is named in the header, and does not change its size.
    kdump = kdump_head(guest, engines()[0].codec)
    elf = elf_head(guest, whole_blocks(guest.blocks))
    blocks = whole_pages(guest.blocks, guest.page_size)
    sample = take_sample(blocks, page_size=guest.page_size, size=size)
    read_speed = reading_speed(blocks, sample)
    training = training_pages(guest.blocks, page_size=guest.page_size)
    # The zero page that all share lies with the others.
    kdump_bytes = kdump.data_offset + guest.page_size
    return _Taken(sample, training, read_speed, guest.page_size, guest.size, kdump_bytes, len(elf.content))


def _sampled(taken: _Taken) -> Sampled:
    sample = taken.sample
    began = time.thread_time()
    zero = zero_pages(sample.pages.reshape(-1), taken.page_size)
    test_seconds = time.thread_time() - began
    if zero.all():
        raise SourceError(
            "nothing to compress: all pages of the sample are zero",
            hint="a dump of it is small in any format",
        )
    return Sampled(
        sample=sample,
        pages=sample.pages[~zero],
        training=taken.training,
        zero_share=float(zero.mean()),
        scan_seconds_per_byte=1 / taken.read_speed + test_seconds / sample.pages.nbytes,
        page_size=taken.page_size,
        guest_bytes=taken.guest_bytes,
        kdump_bytes=taken.kdump_bytes,
        elf_bytes=taken.elf_bytes,
    )


def look_at(
    source: AnySource, size: int, exclude: int, threads: int, control: Control
) -> tuple[Sampled, dict[int, Sampled | str]]:
    """Take samples; a guest that was opened here is closed again before anything is timed.

    Parameters
    ----------
    source, size, exclude, threads
        As for :func:`vmdump.operations.bench.bench.bench`.
    control : Control
        Asked whether to end.

    Returns
    -------
    sampled : Sampled
        Of the level that is asked for.
    others : dict of int to Sampled or str
        Of `COMPARED_LEVELS` but that one, or why there is none.
    """
    filters = exclude > 1
    # For types of pages VMCOREINFO may have to be looked for; else the sample is all that is read.
    vmcoreinfo = TOLD_OR_FOUND if filters else AS_TOLD
    others: dict[int, _Taken | str] = {}
    with (
        session(source) as it,
        it.held(pause=False, cancelled=control.cancelled, vmcoreinfo=vmcoreinfo) as guest,
    ):
        with naming_way_out("measure all pages with -d 1"):
            taken = _take(_at_level(guest, exclude, threads, control), size)
        for level in COMPARED_LEVELS:
            if level != exclude:
                try:
                    others[level] = _take(_at_level(guest, level, threads, control), size)
                except (CapabilityError, ReadError, SourceError) as error:
                    others[level] = str(error)
    return _sampled(taken), {level: _or_reason(other) for level, other in others.items()}


def _or_reason(taken: _Taken | str) -> Sampled | str:
    if isinstance(taken, str):
        return taken
    try:
        return _sampled(taken)
    except SourceError as error:
        return str(error)


def _at_level(guest: Guest, level: int, threads: int, control: Control) -> Guest:
    """Leave out types of pages; a guest that runs has others a moment later, but as many."""
    if level <= 1:
        return guest
    from vmdump.guest.linux.page_types.filter import filtered  # most dumps leave out nothing
    from vmdump.guest.linux.page_types.types import tell_types

    return filtered(guest, tell_types(guest, threads=threads, check=control.check), level)


def forecast_level(
    level: int, sampled: Sampled | str, like: Candidate, rounds: int, threads: int, disk: DiskSpeed
) -> LevelForecast:
    """Tell what a dump at another level would cost.

    Parameters
    ----------
    level : int
        The level.
    sampled : Sampled or str
        Of it, or why there is none.
    like : Candidate
        Its format, engine and level are taken.
    rounds : int
        Of packing; the median counts.
    threads, disk
        Of the dump.
    """
    if isinstance(sampled, str):
        return LevelForecast(level, 0, None, sampled)
    stored = round(sampled.stored)
    if not like.codec:
        return LevelForecast(level, stored, sampled.candidate_elf(threads, disk))
    engine = next(each for each in engines() if (each.name, each.codec) == (like.engine, like.codec))
    assert like.level is not None
    trial = Trial(engine, like.level, sampled.pages, sampled.training)
    for _ in range(rounds):
        trial.round()
    ratio = estimate_ratios([trial.sizes], [trial.covered], sampled.page_size)[0]
    speed = median(trial.speeds)
    return LevelForecast(level, stored, sampled.candidate(trial, speed, ratio, like.efficient, threads, disk))
