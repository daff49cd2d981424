"""Commands of vmdump as words for a shell: for this user, and for root."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

__all__ = ["as_root", "own_words"]


def own_words(words: Sequence[str]) -> str:
    """Give a command of vmdump as a user types it."""
    return _joined(["vmdump", *words])


def as_root(words: Sequence[str]) -> str:
    """Give a command of vmdump with sudo.

    With the whole path: sudo looks for programs in folders of its own, where none of a virtual
    environment is.
    """
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) == "vmdump" and os.access(program, os.X_OK):
        return _joined(["sudo", program, *words])
    return _joined(["sudo", sys.executable, "-m", "vmdump", *words])


def _joined(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) if word.isprintable() else _escaped(word) for word in words)


def _escaped(word: str) -> str:
    r"""Quote what a terminal must not get as escapes, which bash, zsh and ksh read: ``$'a\x0ab'``."""
    parts = (
        char
        if char.isprintable() and char not in "\\'"
        else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
        for char in word
    )
    return f"$'{''.join(parts)}'"
