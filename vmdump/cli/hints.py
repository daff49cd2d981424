"""What a user could do better: said once, behind the result."""

from __future__ import annotations

from collections.abc import Iterable

from vmdump.codecs.registry import find_engine, lacking

__all__ = ["engine_hint"]


def engine_hint(used: Iterable[tuple[str, str]]) -> str:
    """Say in one line which faster engines are not built in, or nothing.

    Parameters
    ----------
    used : iterable of tuple
        Codec and engine of each dump; empty strings for one that is not compressed.
    """
    reasons = {
        each.name: each.missing.removeprefix("not built: ")
        for codec, engine in used
        if codec and engine
        for each in lacking(find_engine(codec, engine))
    }
    if not reasons:
        return ""
    named = "; ".join(f"{name} is not built in: {reason}" for name, reason in reasons.items())
    return f"hint: {named}; other engines do its work, more slowly"
