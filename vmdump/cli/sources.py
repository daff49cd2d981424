"""Dumps and guests on the command line."""

from __future__ import annotations

import click

__all__ = ["as_source", "source_name"]


def as_source(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> str | tuple[str, ...]:
    """Take one source, or all parts of a split set; the callback of an argument."""
    return value[0] if len(value) == 1 else value


def source_name(source: str | tuple[str, ...]) -> str:
    """Give the name to show for what was named on the command line."""
    return source if isinstance(source, str) else f"{source[0]} and {len(source) - 1} more"
