"""The tests' guests and their monitor, for the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from live.guests import IMAGE, QEMU, SHM, Guest

__all__ = ["IMAGE", "QEMU", "SHM", "Guest"]
