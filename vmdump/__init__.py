"""vmdump writes the memory of a virtual machine to a crash dump that other people's readers open."""

from vmdump.api import dump, dump_async, open, open_source, start_dump
from vmdump.capabilities import Capabilities, FormatState, capabilities
from vmdump.job import DumpJob, Progress, Report
from vmdump.readers.dump import Dump
from vmdump.sources.base import Block, Memory, Source
from vmdump.sources.buffers import BlockSource, BufferMemory

__version__ = "0.1.0"

__all__ = [
    "Block",
    "BlockSource",
    "BufferMemory",
    "Capabilities",
    "Dump",
    "DumpJob",
    "FormatState",
    "Memory",
    "Progress",
    "Report",
    "Source",
    "__version__",
    "capabilities",
    "dump",
    "dump_async",
    "open",
    "open_source",
    "start_dump",
]
