"""The tests' guests, their monitor and their libvirt, for the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from live.guests import IMAGE, QEMU, SHM, Guest, Monitor, Share
from live.libvirt_host import Domain, Host

__all__ = ["IMAGE", "QEMU", "SHM", "Domain", "Guest", "Host", "Monitor", "Share"]
