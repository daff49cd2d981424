"""Where the plugins are that other people's programs load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["FOLDERS"]

_HERE = os.path.dirname(os.path.abspath(__file__))

FOLDERS: Mapping[str, str] = MappingProxyType({"volatility3": os.path.join(_HERE, "volatility3")})
"""By the name of the program."""
