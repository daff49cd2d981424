"""vmdump writes the memory of a virtual machine to a crash dump that other people's readers open."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vmdump import errors

if TYPE_CHECKING:
    from vmdump.codecs.registry import EngineName
    from vmdump.formats.names import Format, Layout
    from vmdump.guest.blocks import Block, Memory
    from vmdump.guest.buffers import BufferMemory
    from vmdump.guest.guest import Guest
    from vmdump.guest.linux.kernel_log import LogRecord
    from vmdump.guest.linux.page_types.usage import PageType, PageUsage
    from vmdump.guest.stored import StoredPages
    from vmdump.job import DumpJob, Progress, dump_async, start_dump
    from vmdump.opening import open, open_source
    from vmdump.operations.bench.bench import Benchmark, bench
    from vmdump.operations.bench.forecast import Candidate
    from vmdump.operations.capabilities import Capabilities, FormatState, capabilities
    from vmdump.operations.convert import convert
    from vmdump.operations.dmesg import dmesg
    from vmdump.operations.dump import dump
    from vmdump.operations.find import find
    from vmdump.operations.guests import RunningGuest, guests
    from vmdump.operations.info import DumpInfo, info
    from vmdump.operations.repair import Repair, repair
    from vmdump.operations.report import Report
    from vmdump.operations.usage import PageState, page_at, page_types
    from vmdump.operations.verify import Verification, verify
    from vmdump.readers.dump import Dump
    from vmdump.readers.kinds import PageKind
    from vmdump.sources.base import Source
    from vmdump.sources.buffers import BlockSource
    from vmdump.sources.raw.places import RawPart
    from vmdump.sources.rawfile import RawSource

__version__ = "0.1.0"

__all__ = [
    "Benchmark",
    "Block",
    "BlockSource",
    "BufferMemory",
    "Candidate",
    "Capabilities",
    "Dump",
    "DumpInfo",
    "DumpJob",
    "EngineName",
    "Format",
    "FormatState",
    "Guest",
    "Layout",
    "LogRecord",
    "Memory",
    "PageKind",
    "PageState",
    "PageType",
    "PageUsage",
    "Progress",
    "RawPart",
    "RawSource",
    "Repair",
    "Report",
    "RunningGuest",
    "Source",
    "StoredPages",
    "Verification",
    "__version__",
    "bench",
    "capabilities",
    "convert",
    "dmesg",
    "dump",
    "dump_async",
    "errors",
    "find",
    "guests",
    "info",
    "open",
    "open_source",
    "page_at",
    "page_types",
    "repair",
    "start_dump",
    "verify",
]

# Names that are loaded when they are first used: the command has to set up its process before numpy is there,
# and waits for no part that it does not need; numpy alone takes 50 ms. No module here may have one of these
# names: whoever imported the module would find it in the place of the function.
_HOMES = {
    "Benchmark": "vmdump.operations.bench.bench",
    "Block": "vmdump.guest.blocks",
    "BlockSource": "vmdump.sources.buffers",
    "BufferMemory": "vmdump.guest.buffers",
    "Candidate": "vmdump.operations.bench.forecast",
    "Capabilities": "vmdump.operations.capabilities",
    "Dump": "vmdump.readers.dump",
    "DumpInfo": "vmdump.operations.info",
    "DumpJob": "vmdump.job",
    "EngineName": "vmdump.codecs.registry",
    "Format": "vmdump.formats.names",
    "FormatState": "vmdump.operations.capabilities",
    "Guest": "vmdump.guest.guest",
    "Layout": "vmdump.formats.names",
    "LogRecord": "vmdump.guest.linux.kernel_log",
    "Memory": "vmdump.guest.blocks",
    "PageKind": "vmdump.readers.kinds",
    "PageState": "vmdump.operations.usage",
    "PageType": "vmdump.guest.linux.page_types.usage",
    "PageUsage": "vmdump.guest.linux.page_types.usage",
    "Progress": "vmdump.job",
    "RawPart": "vmdump.sources.raw.places",
    "RawSource": "vmdump.sources.rawfile",
    "Repair": "vmdump.operations.repair",
    "Report": "vmdump.operations.report",
    "RunningGuest": "vmdump.operations.guests",
    "Source": "vmdump.sources.base",
    "StoredPages": "vmdump.guest.stored",
    "Verification": "vmdump.operations.verify",
    "bench": "vmdump.operations.bench.bench",
    "capabilities": "vmdump.operations.capabilities",
    "convert": "vmdump.operations.convert",
    "dmesg": "vmdump.operations.dmesg",
    "dump": "vmdump.operations.dump",
    "dump_async": "vmdump.job",
    "find": "vmdump.operations.find",
    "guests": "vmdump.operations.guests",
    "info": "vmdump.operations.info",
    "open": "vmdump.opening",
    "open_source": "vmdump.opening",
    "page_at": "vmdump.operations.usage",
    "page_types": "vmdump.operations.usage",
    "repair": "vmdump.operations.repair",
    "start_dump": "vmdump.job",
    "verify": "vmdump.operations.verify",
}

if not TYPE_CHECKING:  # mypy would take every misspelt name for one that this knows

    def __getattr__(name: str) -> object:
        if name == "drgn":
            # Not one of the names that a star imports: it would take the place of drgn itself.
            return import_module("vmdump.drgn")
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
