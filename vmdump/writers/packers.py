"""Packers of one engine, for the pages of one guest."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from vmdump.codecs.registry import Engine, PagePacker, make_packer
from vmdump.guest.guest import Guest

__all__ = ["Packers"]


class Packers:
    """Makes packers that were all trained on the same pages, if the engine can be trained.

    Parameters
    ----------
    engine : Engine
        Does the work.
    level : int
        On its scale.
    guest : Guest
        Whose pages are packed.
    """

    def __init__(self, engine: Engine, level: int, guest: Guest) -> None:
        self._engine = engine
        self._level = level
        self._guest = guest

    @cached_property
    def make(self) -> Callable[[], PagePacker]:
        """What makes a packer, in any thread; the pages to train on are read when this is first asked for."""
        engine, level, page_size = self._engine, self._level, self._guest.page_size
        pages = None
        if engine.trained_level == level:
            from vmdump.pipeline.training import training_pages  # few levels are

            pages = training_pages(self._guest.blocks, page_size=page_size)

        def make() -> PagePacker:
            packer = make_packer(engine, page_size, level)
            if pages is not None:
                packer.train(pages)
            return packer

        return make
