"""kdump-compressed files, in either layout, and split sets of them."""

from __future__ import annotations

from vmdump.codecs.registry import find_engine, make_packer
from vmdump.formats.names import Layout
from vmdump.guest.blocks import MIN_PAGE_SIZE
from vmdump.guest.guest import Guest
from vmdump.pipeline.control import Control
from vmdump.pipeline.plan import cut_blocks
from vmdump.sinks.base import Sink
from vmdump.writers.base import Ahead, Writer
from vmdump.writers.kdump_head import KdumpHead, kdump_head, split_heads
from vmdump.writers.kdump_plan import KdumpForm, KdumpPlan
from vmdump.writers.packers import Packers

__all__ = ["KdumpWriter"]


class KdumpWriter(Writer):
    """kdump-compressed files.

    Parameters
    ----------
    codec : str
        Of the pages.
    layout : {"auto", "standard", "flattened"}
        auto is standard where the sink is seekable.
    engine : str, optional
        Does the codec's work; without it, the fastest that this build has.
    level : int, optional
        Of the engine; without it, its default. With an engine or a level all pages are packed anew, also
        those that are stored as the codec packs them.

    Raises
    ------
    EngineUnavailable
        This build has no such engine.
    RequestError
        The engine has no such level.
    """

    def __init__(
        self,
        codec: str,
        *,
        layout: Layout = "auto",
        engine: str | None = None,
        level: int | None = None,
    ) -> None:
        self._engine = find_engine(codec, engine)
        self._level = make_packer(self._engine, MIN_PAGE_SIZE, level).level
        self._form = KdumpForm(codec, layout, packs_anew=engine is not None or level is not None)
        self.codec, self.engine = codec, self._engine.name
        self.level = self._level if self._engine.has_levels else None

    def layout_for(self, sink: Sink) -> Layout:
        """Tell in which layout it is written there."""
        return self._form.layout_for(sink)

    def plan(self, guest: Guest) -> KdumpPlan:
        """Lay a guest out in one file."""
        head = kdump_head(guest, self.codec)
        return self._plan(guest, guest.size, head, self._packers(guest))

    def check_split(self) -> None:
        """Refuse a split set of flattened files."""
        if self._form.layout == "flattened":
            super().check_split()

    def plan_split(self, guest: Guest, count: int) -> list[KdumpPlan]:
        """Lay a guest out in several files, whose pages are packed in the same way."""
        packers = self._packers(guest)
        plans = []
        for head in split_heads(guest, self.codec, count):
            begin, end = head.begin_pfn * guest.page_size, head.end_pfn * guest.page_size
            size = sum(piece.size for piece in cut_blocks(guest.blocks, begin, end))
            plans.append(self._plan(guest, size, head, packers))
        return plans

    def _plan(self, guest: Guest, size: int, head: KdumpHead, packers: Packers) -> KdumpPlan:
        return KdumpPlan(guest, size, head.memory_size, self._form, head, packers)

    def _packers(self, guest: Guest) -> Packers:
        return Packers(self._engine, self._level, guest)

    def writes_ahead(self, sink: Sink) -> bool:
        """Tell whether it is a file of the standard layout: what is flattened comes in its order."""
        return sink.sparse and self.layout_for(sink) == "standard"

    def write_ahead(self, guest: Guest, sink: Sink, *, threads: int, control: Control) -> Ahead:
        """Pack all pages; what makes a dump of their data is written later."""
        from vmdump.writers.kdump_ahead import KdumpAhead  # few guests run

        return KdumpAhead(self.plan, guest, sink, threads=threads, control=control)
