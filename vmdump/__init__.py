"""vmdump writes the memory of a virtual machine to a crash dump that other people's readers open."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vmdump import errors

if TYPE_CHECKING:
    from vmdump.api import dump, dump_async, open, open_source, start_dump
    from vmdump.benchmark import Benchmark, Candidate, bench
    from vmdump.compare import Verification, verify
    from vmdump.conversion import convert
    from vmdump.features import Capabilities, FormatState, capabilities
    from vmdump.job import DumpJob, Progress, Report
    from vmdump.kernel_log import LogRecord, dmesg
    from vmdump.readers.dump import Dump
    from vmdump.readers.kinds import PageKind, StoredPages
    from vmdump.repairing import Repair, repair
    from vmdump.sources.base import Block, Memory, Source
    from vmdump.sources.buffers import BlockSource, BufferMemory
    from vmdump.summary import DumpInfo, info

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
    "FormatState",
    "LogRecord",
    "Memory",
    "PageKind",
    "Progress",
    "Repair",
    "Report",
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
    "info",
    "open",
    "open_source",
    "repair",
    "start_dump",
    "verify",
]

# Names that are loaded when they are first used: the command has to set up its process before numpy is there,
# and waits for no part that it does not need; numpy alone takes 50 ms. No module here may have one of these
# names: whoever imported the module would find it in the place of the function.
_HOMES = {
    "Benchmark": "vmdump.benchmark",
    "Block": "vmdump.sources.base",
    "BlockSource": "vmdump.sources.buffers",
    "BufferMemory": "vmdump.sources.buffers",
    "Candidate": "vmdump.benchmark",
    "Capabilities": "vmdump.features",
    "Dump": "vmdump.readers.dump",
    "DumpInfo": "vmdump.summary",
    "DumpJob": "vmdump.job",
    "FormatState": "vmdump.features",
    "LogRecord": "vmdump.kernel_log",
    "Memory": "vmdump.sources.base",
    "PageKind": "vmdump.readers.kinds",
    "Progress": "vmdump.job",
    "Repair": "vmdump.repairing",
    "Report": "vmdump.job",
    "Source": "vmdump.sources.base",
    "StoredPages": "vmdump.readers.kinds",
    "Verification": "vmdump.compare",
    "bench": "vmdump.benchmark",
    "capabilities": "vmdump.features",
    "convert": "vmdump.conversion",
    "dmesg": "vmdump.kernel_log",
    "dump": "vmdump.api",
    "dump_async": "vmdump.api",
    "info": "vmdump.summary",
    "open": "vmdump.api",
    "open_source": "vmdump.api",
    "repair": "vmdump.repairing",
    "start_dump": "vmdump.api",
    "verify": "vmdump.compare",
}

if not TYPE_CHECKING:  # mypy would take every misspelt name for one that this knows

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
