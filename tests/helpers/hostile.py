"""Everything that can be asked of a dump, asked of one that lies: only vmdump's own errors may come out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

import vmdump
from vmdump.errors import CapabilityError, VmdumpError

_CONVERTED_AT_MOST = 16 << 20
"""Bytes of guest memory: a header may claim any number of zeros, and all of them would be written."""
_CONVERTED_BELOW = 1 << 36
"""Addresses: the bitmaps of a kdump file have a bit for each page below the highest one."""
_BLOCKS_AT_MOST = 16


@contextmanager
def as_file(data: bytes | bytearray) -> Iterator[str]:
    """Give the path of a file in memory that holds `data`."""
    fd = os.memfd_create("hostile")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def touch(*parts: bytes | bytearray, convert: bool = False) -> Sequence[str]:
    """Open a dump and ask it everything.

    Parameters
    ----------
    parts : bytes
        The file, or the files of a split set.
    convert : bool
        Also write it out again, in another format.

    Returns
    -------
    list of str
        The class of each error that came out; all are vmdump's own, any other one is not caught.
    """
    errors: list[str] = []

    def ask(question: Callable[[], object]) -> None:
        try:
            question()
        except VmdumpError as error:
            text = str(error)
            assert text, type(error)
            assert "\n" not in text, repr(text)
            # What the guest lacks is no fault of the file's.
            lacks = isinstance(error, CapabilityError) and (
                text.startswith("page types: ") or "no kdump file of a machine without a name" in text
            )
            assert lacks or any(path in text for path in paths), f"{text!r} names none of {paths}"
            errors.append(type(error).__name__)

    def everything(paths: list[str]) -> None:
        with vmdump.open(paths[0] if len(paths) == 1 else paths) as dump:
            for question in _questions(dump):
                ask(question)
            # A block that ends inside the last page of all addresses has no whole pages, as LayoutError says.
            if dump.blocks[-1].end <= _CONVERTED_BELOW:
                for question in _of_page_types(dump, usage=dump.size <= _CONVERTED_AT_MOST):
                    ask(question)
            if convert and dump.size <= _CONVERTED_AT_MOST and dump.blocks[-1].end <= _CONVERTED_BELOW:
                with tempfile.TemporaryDirectory(prefix="vmdump-hostile-") as folder:
                    target = "elf" if dump.format.startswith("kdump") else "kdump-snappy"
                    for exclude in (1, 31):
                        name = f"{folder}/out-{exclude}"
                        ask(
                            lambda name=name, exclude=exclude: vmdump.dump(
                                dump, name, format=target, threads=1, exclude=exclude
                            )
                        )

    files = [as_file(part) for part in parts]
    paths = [file.__enter__() for file in files]
    try:
        ask(lambda: everything(paths))
    finally:
        for file in files:
            file.__exit__(None, None, None)
    return errors


def _of_page_types(dump: vmdump.Dump, *, usage: bool) -> Iterator[Callable[[], object]]:
    """What pages are used for. All data is read for `usage`, and a header may claim any amount of it."""
    for address in {dump.blocks[0].start, dump.blocks[-1].end - 1}:
        yield lambda address=address: vmdump.page_at(dump, address).as_dict()
    if usage:
        yield lambda: vmdump.page_types(dump, threads=1).as_dict()


def _questions(dump: vmdump.Dump) -> Iterator[Callable[[], object]]:
    for name in ("size", "notes", "nr_cpus", "cpus", "phys_base", "utsname", "excluded_size", "unreadable"):
        yield lambda name=name: getattr(dump, name, None)
    yield lambda: dict(dump.vmcoreinfo)
    yield lambda: repr(dump)
    chosen = [*dump.blocks[:_BLOCKS_AT_MOST], *dump.blocks[_BLOCKS_AT_MOST:][-1:]]
    size = dump.page_size
    for block in chosen:
        count = block.size // size
        first = -(-block.start // size)
        for pfn, pages in {
            (first, min(count, 8)),
            (first + count - 1, 1),  # in front of the first page, where a block has no whole one
            (first + count // 2, min(count, 2)),
        }:
            if pages > 0:
                yield lambda pfn=pfn, pages=pages: dump.pages(pfn, pages)
                for method in ("page_kinds", "excluded_pages", "stored_pages"):
                    if hasattr(dump, method):
                        yield lambda pfn=pfn, pages=pages, method=method: getattr(dump, method)(pfn, pages)
        yield lambda block=block: next(block.memory.extents(), None)
        yield lambda block=block: dump.read(block.start, min(block.size, 100))
        yield lambda block=block: block.memory.view(block.size - 1, 1, np.empty(1, np.uint8))
    for address in (0, 1 << 63, (1 << 64) - 1):
        yield lambda address=address: dump.read(address, 1)
