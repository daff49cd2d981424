"""What a dump is to be: the source as it is named, the options, and how they go together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from vmdump.arch.paging import Runs
from vmdump.codecs.engines import Engine, PagePacker, find_engine, make_packer
from vmdump.errors import CapabilityError, RequestError, naming_shortages
from vmdump.formats.kdump import CODEC_FLAGS
from vmdump.formats.names import (
    DEFAULT_FORMAT,
    DumpFormat,
    Layout,
    find_format,
    find_layout,
)
from vmdump.guest.guest import MIN_PAGE_SIZE, Guest
from vmdump.guest.linux.choice import VmcoreinfoChoice, read_vmcoreinfo
from vmdump.job import Report
from vmdump.opening import as_source
from vmdump.operations.early import Early
from vmdump.pipeline.control import Control
from vmdump.pipeline.copies import Copies
from vmdump.pipeline.plan import Slice, filter_blocks, whole_blocks
from vmdump.pipeline.training import training_pages
from vmdump.pipeline.workers import check_threads
from vmdump.sinks.opening import open_sink
from vmdump.sources.base import Source
from vmdump.writers.elf import write_elf
from vmdump.writers.kdump import KdumpPlan, plan_kdump, write_kdump
from vmdump.writers.tally import Tally

if TYPE_CHECKING:
    from vmdump.opening import AnySource

__all__ = ["DumpOptions", "Request", "check_request"]


@dataclass(frozen=True)
class Request:
    """A dump that was checked and can begin."""

    source: Source
    owned: bool
    lay_out: Callable[[Guest], tuple[list[Slice], KdumpPlan | None]]
    format: DumpFormat
    layout: Layout
    engine: Engine | None
    level: int | None
    threads: int
    output: str | os.PathLike[str]
    force: bool
    pause: bool
    compat: bool
    repack: bool
    list_mappings: Callable[[Guest], Runs | None]
    vmcoreinfo: VmcoreinfoChoice

    def held(
        self, control: Control, prepare: Callable[[Guest], object] | None = None
    ) -> AbstractContextManager[Guest]:
        """Hold the source's guest, with the VMCOREINFO that is wanted; see :meth:`Source.held`."""
        vmcoreinfo = replace(self.vmcoreinfo, progress=control.side_work())
        return self.source.held(
            pause=self.pause, cancelled=control.cancelled, prepare=prepare, vmcoreinfo=vmcoreinfo
        )

    @naming_shortages()
    def run(self, control: Control) -> Report:
        """Dump the guest.

        Parameters
        ----------
        control : Control
            Told of every chunk.

        Raises
        ------
        VmdumpError
            As for :func:`vmdump.dump`.
        """
        try:
            began = time.perf_counter()
            with open_sink(self.output, force=self.force, cancelled=control.cancelled) as output:
                flatten = self.layout == "flattened" or (
                    self.layout == "auto"
                    and self.engine is not None
                    and (self.compat or not output.seekable)  # QEMU 7.2 knows no other
                )
                output.begin(self.source.guest.files, self.source.in_use)
                early = Early(self, output, control)
                with (
                    closing(early),
                    self.held(
                        control, early.write if output.sparse and not (flatten or self.compat) else None
                    ) as guest,
                ):
                    slices, plan = self.lay_out(guest)
                    guest_bytes = sum(piece.size for piece in slices)
                    control.start(plan.memory_size if plan else guest_bytes)
                    output.begin(guest.files)
                    if self.compat:
                        # Here, because few dumps are of this kind, and a start takes 1 ms longer with it.
                        from vmdump.writers.compat.dump import write_compat

                        tally = write_compat(
                            guest,
                            None if self.engine else slices,
                            output,
                            mappings=self.list_mappings(guest),
                            flatten=flatten,
                            threads=self.threads,
                            control=control,
                            release=self.source.release,
                        )
                    elif self.engine is None or plan is None:
                        elf_plan, known = early.units_for(guest, slices)
                        tally = write_elf(
                            guest,
                            slices,
                            output,
                            threads=self.threads,
                            control=control,
                            known=known,
                            plan=elf_plan,
                            release=self.source.release,
                        )
                    else:
                        pages = early.pages_for(guest, plan)
                        tally = write_kdump(
                            guest,
                            plan,
                            output,
                            codec=self.engine.codec,
                            make_packer=early.make_packer or self.packers(guest),
                            flatten=flatten,
                            threads=self.threads,
                            control=control,
                            early=pages,
                            copies=self.copies(guest),
                            release=self.source.release,
                        )
            return self.report(
                guest,
                tally,
                name=output.name,
                layout="flattened" if flatten else "standard",
                guest_bytes=guest_bytes,
                seconds=time.perf_counter() - began,
            )
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Close what was opened for it; what :meth:`run` ends with."""
        if self.owned:
            self.source.close()

    def report(
        self,
        guest: Guest,
        tally: Tally,
        *,
        name: str,
        layout: str,
        guest_bytes: int,
        seconds: float,
        parts: Sequence[str] = (),
    ) -> Report:
        """Say what was dumped."""
        return Report(
            output=name,
            format=self.format.name,
            layout=layout,
            codec=self.engine.codec if self.engine else "",
            engine=self.engine.name if self.engine else "",
            level=self.level,
            threads=self.threads,
            guest_bytes=guest_bytes,
            hole_bytes=tally.hole_bytes,
            output_bytes=tally.size,
            zero_pages=tally.zero_pages,
            plain_pages=tally.plain_pages,
            compressed_pages=tally.compressed_pages,
            copied_pages=tally.copied_pages,
            excluded_pages=tally.excluded_pages,
            changed_pages=tally.changed_pages,
            unreadable=tuple(guest.unreadable),
            fuzzy=guest.fuzzy,
            paused_seconds=self.source.paused_seconds,
            seconds=seconds,
            parts=tuple(parts),
            vmcoreinfo_found=None if guest.found_vmcoreinfo is None else guest.found_vmcoreinfo.address,
            partial_pages=tally.partial_pages,
            lost_pages=guest.lost_pages,
        )

    def copies(self, guest: Guest) -> Copies | None:
        """Give the pages that need not be packed again; none where engine or level were named."""
        if self.repack or self.engine is None or guest.codec is None:
            return None
        return Copies(
            guest.stored_pages, CODEC_FLAGS[self.engine.codec], plain=guest.codec == self.engine.codec
        )

    def packers(self, guest: Guest) -> Callable[[int], PagePacker]:
        """Give what makes the packers of this guest: all were trained on the same pages, if they can be."""
        engine, level = self.engine, self.level
        assert engine is not None
        pages = None
        if engine.trained_level == level:
            pages = training_pages(guest.blocks, page_size=guest.page_size)

        def make(page_size: int) -> PagePacker:
            packer = make_packer(engine, page_size, level)
            if pages is not None:
                packer.train(pages)
            return packer

        return make


class DumpOptions(TypedDict, total=False):
    """The options of :func:`dump` and :func:`start_dump`; :func:`dump` says what they mean."""

    format: str
    layout: str
    engine: str | None
    level: int | None
    threads: int | None
    begin: int | None
    length: int | None
    paging: bool
    force: bool
    pause: bool
    vmcoreinfo: bytes | str | os.PathLike[str] | None
    search: bool
    compat: str | None


@naming_shortages()
def check_request(
    source: AnySource,
    output: str | os.PathLike[str],
    *,
    format: str = DEFAULT_FORMAT,
    layout: str = "auto",
    engine: str | None = None,
    level: int | None = None,
    threads: int | None = None,
    begin: int | None = None,
    length: int | None = None,
    paging: bool = False,
    force: bool = False,
    pause: bool = True,
    vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
    search: bool = True,
    compat: str | None = None,
    owned: bool = False,
) -> Request:
    """Refuse what cannot be done before anything is opened or created; parameters as for :func:`vmdump.dump`.

    With `owned` an open source is closed when the request has run, as one that was opened here.

    Raises
    ------
    VmdumpError
        As for :func:`vmdump.dump`.
    """
    dump_format = find_format(format)
    wanted_layout = find_layout(layout, dump_format)
    codec = dump_format.codec
    if codec is not None and (paging or begin is not None or length is not None):
        raise RequestError(
            f"format: {format} holds the whole guest, so paging, begin and length go with elf only",
            parameter="format",
        )
    if begin is not None and length is None:
        raise RequestError("length: is missing, begin needs it", parameter="length")
    if begin is None and length is not None:
        raise RequestError("begin: is missing, length needs it", parameter="begin")
    if codec is None and (engine is not None or level is not None):
        name = "level" if engine is None else "engine"
        raise RequestError(f"{name}: an elf file is not compressed", parameter=name)
    threads = check_threads(threads)
    chosen: Engine | None
    chosen_level: int | None
    if compat is not None:
        from vmdump.writers.compat.target import check_compat

        demanded = check_compat(
            compat, dump_format, engine=engine, level=level, pause=pause, vmcoreinfo=vmcoreinfo is not None
        )
        chosen, chosen_level = demanded or (None, None)
    else:
        chosen = None if codec is None else find_engine(codec, engine)
        chosen_level = None if chosen is None else make_packer(chosen, MIN_PAGE_SIZE, level).level
    text = None if vmcoreinfo is None else read_vmcoreinfo(vmcoreinfo)
    if isinstance(text, int) and not search:
        raise RequestError("search: found:N names what a search finds", parameter="search")

    def lay_out(guest: Guest) -> tuple[list[Slice], KdumpPlan | None]:
        plan = None
        if compat is not None:
            from vmdump.writers.compat.target import qemu_target

            qemu_target(guest)
        elif codec is not None:
            plan = plan_kdump(guest, codec)
        if begin is None or length is None:
            return whole_blocks(guest.blocks), plan
        return filter_blocks(guest.blocks, begin, length), plan

    def list_mappings(guest: Guest) -> Runs | None:
        if not paging:
            return None
        if compat is not None:
            from vmdump.writers.compat.target import qemu_target

            if not qemu_target(guest).page_tables:
                return None
        runs = guest.mappings(as_qemu=compat is not None)
        return runs if begin is None or length is None else runs.clipped(begin, begin + length)

    # QEMU does not search.
    choice = VmcoreinfoChoice(text, search and compat is None)
    opened, opened_here = as_source(source)
    owned = owned or opened_here
    try:
        if paging and compat is None and opened.guest.arch.address_spaces is None:
            raise CapabilityError(f"paging: no page-table walk for {opened.guest.arch.name} in this version")
        lay_out(choice.without_search(opened.guest))
        return Request(
            source=opened,
            owned=owned,
            lay_out=lay_out,
            format=dump_format,
            layout=wanted_layout,
            engine=chosen,
            level=chosen_level,
            threads=threads,
            output=output,
            force=force,
            pause=pause,
            compat=compat is not None,
            repack=engine is not None or level is not None,
            list_mappings=list_mappings,
            vmcoreinfo=choice,
        )
    except BaseException:
        if owned:
            opened.close()
        raise
