"""Sizes and addresses on the command line."""

from __future__ import annotations

import click

from vmdump.units import parse_size

__all__ = ["as_size"]


def as_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Take 0x, K, M, G and T; the callback of an argument or option."""
    return None if value is None else parse_size(value, parameter=parameter.name or "")
