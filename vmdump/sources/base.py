"""Where guests come from."""

from __future__ import annotations

from vmdump.guest.guest import Guest as Source

__all__ = ["Source"]
