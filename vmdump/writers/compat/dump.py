"""Any file that QEMU 7.2 writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmdump.arch.paging import Runs
from vmdump.guest.guest import Guest
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import Slice
from vmdump.sinks.base import Sink
from vmdump.writers.compat.elf import write_compat_elf
from vmdump.writers.compat.kdump import plan_compat_kdump, write_compat_kdump
from vmdump.writers.compat.target import make_compat_packer
from vmdump.writers.tally import Tally

__all__ = ["write_compat"]


def write_compat(
    source: Guest,
    slices: Sequence[Slice] | None,
    output: Sink,
    *,
    mappings: Runs | None,
    flatten: bool,
    threads: int,
    control: Control,
    release: Callable[[], object],
) -> Tally:
    """Write the ELF core of some memory, or the kdump-zlib file of the whole guest.

    Parameters
    ----------
    source : Guest
        The guest.
    slices : sequence of Slice or None
        The memory in an ELF core; None for a kdump file.
    output : Sink
        Seekable, but for ELF and where `flatten` is true.
    mappings : Runs or None
        As for :func:`write_compat_elf`.
    flatten, threads, control, release
        As for :func:`write_compat_kdump`.

    Raises
    ------
    CapabilityError
        QEMU 7.2 does not dump such guests.
    SourceError, SinkError, CodecError, Cancelled
        And nothing is committed.
    """
    if slices is not None:
        return write_compat_elf(
            source, slices, output, threads=threads, control=control, release=release, mappings=mappings
        )
    return write_compat_kdump(
        plan_compat_kdump(source),
        output,
        make_packer=make_compat_packer,
        flatten=flatten,
        threads=threads,
        control=control,
        release=release,
    )
