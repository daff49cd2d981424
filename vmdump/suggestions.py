"""What a misspelt word was meant to be."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["is_it"]


def is_it(word: str, known: Iterable[str]) -> str:
    """Ask for the nearest word, to be put behind what is wrong; empty where none is near.

    Examples
    --------
    >>> is_it("kdump-zstdd", ["elf", "kdump-zstd"])
    ' (is it kdump-zstd?)'
    >>> is_it("ZSTD", ["elf", "zstd"])
    ' (is it zstd?)'
    >>> is_it("pdf", ["elf", "kdump-zstd"])
    ''
    """
    from difflib import get_close_matches  # 3 ms, for errors only

    found = get_close_matches(word.lower(), list(known), n=1)
    return f" (is it {found[0]}?)" if found else ""
