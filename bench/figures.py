"""What follows from the samples: medians, ratios, targets. Nothing is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from measure import Group, Row, Sample

Figure = Callable[[Sample], float | None]


def seconds(sample: Sample) -> float | None:
    return sample.seconds


def own_seconds(sample: Sample) -> float | None:
    """vmdump's own seconds where there are some, else those of the process."""
    return sample.dump_seconds if sample.dump_seconds is not None else sample.seconds


def synced(sample: Sample) -> float | None:
    return sample.synced_seconds


def values(row: Row, figure: Figure) -> list[float]:
    """A figure in all rounds that have it."""
    found = (figure(sample) for sample in row.good)
    return [value for value in found if value is not None]


def median(row: Row | None, figure: Figure = seconds) -> float | None:
    """The median over the rounds; None if no round has the figure."""
    some = values(row, figure) if row else []
    return statistics.median(some) if some else None


def largest(row: Row | None, figure: Figure) -> float | None:
    """The maximum over the rounds."""
    return max(values(row, figure), default=None) if row else None


def times(
    slow: Row | None, fast: Row | None, slow_of: Figure = seconds, fast_of: Figure = seconds
) -> float | None:
    """How many times as long one takes as the other: the median of the ratios, round by round.

    Both ran in the same round, so that a machine whose speed drifts has drifted for both.
    """
    if slow is None or fast is None:
        return None
    ratios = []
    for one, other in zip(slow.samples, fast.samples, strict=False):
        above, below = slow_of(one), fast_of(other)
        if not one.error and not other.error and above is not None and below:
            ratios.append(above / below)
    return statistics.median(ratios) if ratios else None


def engine(row: Row) -> str:
    """Engine and level."""
    return row.good[0].engine if row.good else ""


def rate(row: Row) -> float | None:
    """Bytes of guest data a second."""
    return median(row, lambda sample: sample.data_bytes / sample.seconds if sample.data_bytes else None)


@dataclass(frozen=True)
class Target:
    """Something that has to hold.

    Attributes
    ----------
    what : str
        In words.
    figure : float or None
        None: it was not measured.
    demand : float
        What it has to be.
    unit : {"x", "%", "s", "ms", "MiB"}
        Of both; shares are numbers up to 1.
    at_most : bool
        True if more is worse.
    """

    what: str
    figure: float | None
    demand: float
    unit: str
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` or ``not measured``."""
        if self.figure is None:
            return "not measured"
        return (
            "met"
            if (self.figure <= self.demand if self.at_most else self.figure >= self.demand)
            else "missed"
        )


def still_seconds(sample: Sample) -> float | None:
    return sample.still_seconds


def output_bytes(sample: Sample) -> float | None:
    return sample.output_bytes


def peak_bytes(sample: Sample) -> float | None:
    return sample.peak_bytes


def growth_bytes(sample: Sample) -> float | None:
    return sample.growth_bytes


def targets(groups: Iterable[Group], threads: int) -> list[Target]:
    """All that vmdump is to reach, each with the figure of this run."""
    by_name = {group.name: group for group in groups}

    def row(group: str, name: str) -> Row | None:
        return by_name[group].row(name) if group in by_name else None

    found = []
    for name, demand in (("warm", 3.5), ("cold", 8.0)):
        zlib, theirs = row(name, "vmdump kdump-zlib"), row(name, "QEMU kdump-zlib")
        found.append(
            Target(f"kdump-zlib, QEMU's over vmdump's time, {name} guest", times(theirs, zlib), demand, "x")
        )
        size = times(zlib, theirs, output_bytes, output_bytes)
        found.append(Target(f"kdump-zlib, size of vmdump's of QEMU's, {name} guest", size, 1.0, "%", True))
    for name in ("warm", "cold"):
        elf, theirs = row(name, "vmdump elf"), row(name, "QEMU elf")
        found.append(
            Target(f"elf to disk, QEMU's over vmdump's time, {name} guest", times(theirs, elf), 10, "x")
        )
        to_disk = times(theirs, elf, synced, seconds)
        found.append(
            Target(f"elf to disk, QEMU's with syncing over vmdump's, {name} guest", to_disk, 10, "x")
        )
    for name in ("warm", "cold"):
        for codec in ("lzo", "snappy"):
            what = f"kdump-{codec}, QEMU's kdump-zlib over vmdump's time, {name} guest"
            ratio = times(row(name, "QEMU kdump-zlib"), row(name, f"vmdump kdump-{codec}"))
            found.append(Target(what, ratio, 7, "x"))
    for name, peer, demand in (
        ("elf", "elf", 10.0),
        ("kdump-zlib", "kdump-zlib", 3.5),
        ("kdump-lzo", "kdump-zlib", 7.0),
        ("kdump-snappy", "kdump-zlib", 7.0),
    ):
        ratio = times(row("warm", f"QEMU {peer}"), row("warm", f"vmdump {name}, paused"))
        what = f"{name}, QEMU's {peer} over vmdump's time, warm guest that was paused before"
        found.append(Target(what, ratio, demand, "x"))
    for codec, option, demand in (("zlib", "-c", 5.0), ("lzo", "-l", 3.0)):
        for level in ("0", "1"):
            theirs = row("elf", f"makedumpfile {option} -d {level}")
            what = f"ELF file to kdump-{codec}, makedumpfile {option} -d {level} over vmdump's time"
            found.append(Target(what, times(theirs, row("elf", f"vmdump kdump-{codec}")), demand, "x"))
    for codec in ("zlib", "lzo", "snappy", "zstd"):
        limit = row("raw", f"limit of kdump-{codec} -j{threads}")
        ours = row("raw", f"vmdump kdump-{codec} -j{threads}")
        what = f"kdump-{codec}, share of its limit, {threads} threads"
        found.append(Target(what, times(limit, ours, seconds, own_seconds), 0.85, "%"))
        found.append(Target(f"{what}, whole process", times(limit, ours), 0.85, "%"))
    for codec in ("zlib", "lzo", "snappy", "zstd"):
        for who, figure in (("vmdump", own_seconds), ("limit of", seconds)):
            one, many = (row("raw", f"{who} kdump-{codec} -j{count}") for count in (1, threads))
            title = "the bare loop" if who == "limit of" else who
            what = f"kdump-{codec}, one thread over {threads} threads, {title}"
            found.append(Target(what, times(one, many, figure, figure), 1.85, "x"))
    found.append(
        Target(
            "start: a dump of one page, whole process",
            median(row("start", "vmdump kdump-zlib")),
            0.25,
            "s",
            True,
        )
    )
    every = [one for group in by_name.values() for one in group.rows if one.kind == "vmdump"]
    peaks = [value for one in every if (value := largest(one, peak_bytes)) is not None]
    found.append(Target("peak memory of vmdump, any guest", mib(max(peaks, default=None)), 160, "MiB", True))
    growth = [value for one in every if (value := largest(one, growth_bytes)) is not None]
    found.append(
        Target("growth of a guest that vmdump dumps", mib(max(growth, default=None)), 1, "MiB", True)
    )
    found += scale_targets(by_name.get("scale"))
    found += filter_targets(by_name.get("filter"))
    for name in ("elf", "kdump-zlib"):
        for way in ("libvirt:", "qmp:"):
            theirs, ours = row("libvirt", f"virsh dump {name}"), row("libvirt", f"vmdump {way} {name}")
            what = f"{name}, virsh's pause of a domain over that of {way}"
            found.append(Target(what, times(theirs, ours, still_seconds, still_seconds), 20, "x"))
    return found


def scale_targets(group: Group | None) -> list[Target]:
    """Of the dense and the sparse file."""
    rows = [*(group.rows if group else []), None, None]
    dense, sparse = rows[0], rows[1]
    title = sparse.name.removeprefix("vmdump ") if sparse else "sparse 1 TiB"
    return [
        Target(f"kdump-lzo of the {title}", median(sparse), 15, "s", True),
        Target("kdump-lzo of the same data, dense", median(dense), 2, "s", True),
        Target(
            f"peak memory, {title} of the dense one",
            times(sparse, dense, peak_bytes, peak_bytes),
            1.1,
            "%",
            True,
        ),
    ]


def filter_targets(group: Group | None) -> list[Target]:
    """Of dumps at level 31."""

    def row(name: str) -> Row | None:
        return group.row(name) if group else None

    found = []
    for title, demand in (("", 1.0), (" of 32G", 3.0)):
        for codec, option in (("lzo", "-l"), ("zlib", "-c")):
            theirs = row(f"makedumpfile {option} -d 31{title}")
            what = f"ELF file{title} to kdump-{codec} at level 31, makedumpfile's over vmdump's time"
            found.append(Target(what, times(theirs, row(f"vmdump kdump-{codec} -d 31{title}")), demand, "x"))
    for level in ("1", "31"):
        sparse = row(f"vmdump sparse 1.0 TiB -d {level}")
        found.append(Target(f"sparse 1 TiB at level {level}", median(sparse), 20, "s", True))
        peak = mib(largest(sparse, peak_bytes))
        found.append(Target(f"sparse 1 TiB at level {level}, peak memory", peak, 120, "MiB", True))
    types = row("types of pages")
    ratio = times(types, row("memcpy of struct pages"))
    found.append(Target("types of pages, memcpy of their struct pages", ratio, 3, "x", True))
    rate = median(types, lambda sample: sample.seconds * 1e3 * (16 << 20) / (sample.data_bytes or 1))
    found.append(Target("types of pages, for each GiB of guest", rate, 4, "ms", True))
    return found


def mib(count: float | None) -> float | None:
    return None if count is None else count / (1 << 20)
