"""The report of a finished dump."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vmdump.units import counted, format_size

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """The report of a finished dump.

    Attributes
    ----------
    output : str
        Where it went.
    format, layout : str
        Format name; ``standard`` or ``flattened``.
    codec, engine : str
        Empty for ELF.
    level : int or None
        Compression level; None for ELF, and of an engine that has no levels.
    threads : int
        Worker threads.
    guest_bytes : int
        Guest memory in the dump.
    hole_bytes : int
        Part of it that was known to be zero and not read.
    output_bytes : int
        Size of the dump.
    zero_pages, plain_pages, compressed_pages : int
        Pages of a kdump file by kind.
    copied_pages : int
        Those of them that were copied as they are stored in another kdump file, not packed again.
    excluded_pages : int
        Pages of the guest that are not in the dump: of types that were not wanted, excluded from the dump
        that was its source, or, in a kdump file, unreadable.
    partial_pages : int
        Pages of which the guest has only a part, as blocks that end inside a page have it: a kdump file has
        zeros in the rest. 0 in an ELF file, which has no more than the guest's bytes.
    changed_pages : int
        Pages packed during the pause, because they had changed since they were packed ahead, while the guest
        ran; 0 where nothing was packed ahead.
    unreadable : tuple of (int, int)
        Guest-physical ranges ``[begin, end)`` that the host could not read: excluded from a kdump file,
        zeros in an ELF file.
    fuzzy : bool
        True if the guest ran while it was read. The dump has a note that says so.
    paused_seconds : float or None
        For how long a live guest was paused; None of any other.
    seconds : float
        From the first to the last byte, syncing included.
    parts : tuple of str
        The files of a split set; empty for a dump in one file.
    vmcoreinfo_found : int or None
        Guest-physical address at which the dump's VMCOREINFO was found; None if the source told it, if it
        was given, or if the dump has no VMCOREINFO.
    lost_pages : int
        Pages of a damaged dump that it does not have any more; they are excluded, and the output is marked as
        incomplete.
    remarks : tuple of str
        What others see of the visit to a live guest, that they would not expect: that libvirt marks the
        domain as tainted.
    dump_level : int
        Which types of pages are not in the dump, in makedumpfile's bits; those of a source that was a
        filtered dump included. 1 is zeros, of which nothing is lost.
    doubtful_pages : int
        Pages that are in it because what the guest's kernel tells of them contradicts itself, or cannot be
        read.
    has_vmcoreinfo : bool
        The dump has a VMCOREINFO that names the kernel: without one, crash and drgn cannot find their way.
    """

    output: str
    format: str
    layout: str
    codec: str
    engine: str
    level: int | None
    threads: int
    guest_bytes: int
    hole_bytes: int
    output_bytes: int
    zero_pages: int
    plain_pages: int
    compressed_pages: int
    copied_pages: int
    excluded_pages: int
    changed_pages: int
    unreadable: tuple[tuple[int, int], ...]
    fuzzy: bool
    paused_seconds: float | None
    seconds: float
    parts: tuple[str, ...] = ()
    vmcoreinfo_found: int | None = None
    partial_pages: int = 0
    lost_pages: int = 0
    remarks: tuple[str, ...] = ()
    dump_level: int = 1
    doubtful_pages: int = 0
    has_vmcoreinfo: bool = True

    @property
    def bytes_per_second(self) -> float:
        """Guest memory without its holes, of which nothing is read, that was dumped in a second."""
        return (self.guest_bytes - self.hole_bytes) / self.seconds if self.seconds else 0.0

    def _repr_html_(self) -> str:
        """Give a table for a notebook."""
        from vmdump.markup import facts_table

        rows = [("format", f"{self.format}, {self.layout}")]
        if self.engine:
            level = "" if self.level is None else f" level {self.level}"
            rows.append(("packed by", f"{self.engine}{level}"))
        rows += [
            ("guest memory", format_size(self.guest_bytes)),
            ("dump", f"{format_size(self.output_bytes)} ({self.output_bytes / self.guest_bytes:.1%})"),
            ("time", f"{self.seconds:.2f} s ({self.bytes_per_second / 1e6:.0f} MB/s of data)"),
        ]
        if self.paused_seconds is not None:
            rows.append(("paused", f"{self.paused_seconds:.3f} s"))
        if self.excluded_pages:
            rows.append(("excluded", f"{counted(self.excluded_pages, 'page')}, level {self.dump_level}"))
        if self.unreadable:
            rows.append(("unreadable", counted(len(self.unreadable), "range")))
        rows += [("remark", remark) for remark in self.remarks]
        return facts_table(self.output, rows)

    def as_dict(self) -> dict[str, Any]:
        """Give all attributes by name, for JSON."""
        return asdict(self)
