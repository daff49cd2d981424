"""Errors as JSON: what a program reads instead of the text."""

from __future__ import annotations

from typing import Any

import click

from vmdump.errors import VmdumpError

__all__ = ["error_as_dict"]


def error_as_dict(error: BaseException, code: int, message: str) -> dict[str, Any]:
    """Give what is known of an error.

    Parameters
    ----------
    error : BaseException
        What ended the command.
    code : int
        The exit code.
    message : str
        The text, in one line.

    Returns
    -------
    dict
        ``class``: the name in :mod:`vmdump.errors`; ``exit_code``, ``message``, and the error's attributes.
    """
    attributes: dict[str, Any]
    if isinstance(error, click.ClickException):
        name, attributes = "RequestError", {"parameter": _parameter(error)}
    elif isinstance(error, VmdumpError):
        name, attributes = type(error).__name__, _attributes(error)
    elif isinstance(error, KeyboardInterrupt):
        name, attributes = "Cancelled", {}
    elif isinstance(error, OSError):
        name, attributes = "SinkError", {"errno": error.errno}
    else:
        name, attributes = "VmdumpError", {"python_class": type(error).__name__}
    return {"class": name, "exit_code": code, "message": message, **attributes}


def _parameter(error: click.ClickException) -> str:
    parameter = getattr(error, "param", None)
    return (getattr(parameter, "name", None) or getattr(error, "option_name", None) or "").lstrip("-")


def _attributes(error: VmdumpError) -> dict[str, Any]:
    found = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    # Python has these in the object's own slots, and the type of a page is told when it is asked for.
    for name in ("errno", "strerror", "filename", "page_type"):
        if hasattr(error, name):
            found[name] = getattr(error, name)
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
