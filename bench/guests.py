"""The tests' guests, their monitor, their libvirt, and what takes dumps apart, for the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.struct_pages import KEYS_6_12, LRU, structs
from helpers.struct_pages import text as vmcoreinfo
from live.guests import IMAGE, QEMU, SHM, Guest, Monitor, Share
from live.libvirt_host import Domain, Host
from oracles.kdump import Kdump

__all__ = [
    "IMAGE",
    "KEYS_6_12",
    "LRU",
    "QEMU",
    "SHM",
    "Domain",
    "Guest",
    "Host",
    "Kdump",
    "Monitor",
    "Share",
    "structs",
    "vmcoreinfo",
]
