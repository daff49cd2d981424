"""How a source is written on the command line: ``scheme:rest?option=value&option=value``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vmdump.errors import RequestError

__all__ = ["check_options", "split_options"]

_OPTIONS = re.compile(r"(.*)\?([a-z_][a-z_0-9]*=[^?]*)", re.DOTALL)


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Split the options off a source; a ``?`` that no ``name=`` follows belongs to the path.

    Raises
    ------
    RequestError
        An option has no ``=`` or comes twice.

    Examples
    --------
    >>> split_options("/var/guest.ram?base=0x1000&arch=i386")
    ('/var/guest.ram', {'base': '0x1000', 'arch': 'i386'})
    """
    match = _OPTIONS.fullmatch(text)
    if match is None:
        return text, {}
    from urllib.parse import unquote  # 2 ms, and most sources have no options

    options: dict[str, str] = {}
    for part in match[2].split("&"):
        name, equals, value = part.partition("=")
        if not equals or name in options:
            raise RequestError(f"source option {part!r} is not name=value, or comes twice", parameter=name)
        options[name] = unquote(value)
    return match[1], options


def check_options(options: Iterable[str], known: tuple[str, ...], scheme: str) -> None:
    """Refuse options that a scheme does not have.

    Raises
    ------
    RequestError
        Names the option and those there are.
    """
    for name in options:
        if name not in known:
            raise RequestError(
                f"{name}: {scheme} sources have no such option; there are {', '.join(known)}", parameter=name
            )
