"""Commands of vmdump as words for a shell: for this user, and for root."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

__all__ = ["as_root", "own_words"]


def own_words(words: Sequence[str]) -> str:
    """Give a command of vmdump as a user types it."""
    return shlex.join(["vmdump", *words])


def as_root(words: Sequence[str]) -> str:
    """Give a command of vmdump with sudo.

    With the whole path: sudo looks for programs in folders of its own, where none of a virtual
    environment is.
    """
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) == "vmdump" and os.access(program, os.X_OK):
        return shlex.join(["sudo", program, *words])
    return shlex.join(["sudo", sys.executable, "-m", "vmdump", *words])
