"""What several commands share: arguments, options and their checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vmdump.cli.verbosity import verbose_option
from vmdump.errors import RequestError
from vmdump.formats.levels import EXCLUDABLE, parse_level
from vmdump.formats.names import DEFAULT_FORMAT, FORMATS, LAYOUTS
from vmdump.sinks.opening import named_descriptor
from vmdump.units import parse_size

__all__ = [
    "as_size",
    "as_source",
    "check_report",
    "completing",
    "engine_option",
    "exclude_options",
    "excluded",
    "format_option",
    "json_option",
    "keep_partial_option",
    "layout_option",
    "progress_options",
    "quiet_option",
    "search_option",
    "source_name",
    "threads_option",
    "vmcoreinfo_option",
]

_STDOUT = 1
_BITS = ", ".join(f"{bit} {name}" for name, bit in EXCLUDABLE.items())


def completing(kind: str) -> Callable[..., Any]:
    """Give what completes sources, formats, layouts or engines; loaded when a shell asks."""

    def complete(*arguments: Any) -> Any:
        from vmdump.cli import completing

        return getattr(completing, f"complete_{kind}")(*arguments)

    return complete


engine_option = click.option(
    "--engine",
    shell_complete=completing("engine"),
    help="Compression library; 'vmdump capabilities' lists them.",
)
format_option = click.option(
    "-f",
    "--format",
    "format_name",
    default=DEFAULT_FORMAT,
    show_default=True,
    metavar="FORMAT",
    shell_complete=completing("format"),
    help=f"One of {', '.join(known.name for known in FORMATS)}; zstd is short for kdump-zstd, and so on.",
)
layout_option = click.option(
    "--layout",
    default="auto",
    show_default=True,
    shell_complete=completing("layout"),
    help=f"Of a kdump file: {', '.join(LAYOUTS)}.",
)
_level_option = click.option(
    "-d",
    "--dump-level",
    "dump_level",
    type=int,
    default=1,
    show_default=True,
    metavar="LEVEL",
    help=f"Pages to exclude, as makedumpfile has them: the sum of {_BITS}.",
)
_exclude_option = click.option(
    "--exclude", metavar="NAMES", help=f"The same by names: {','.join(EXCLUDABLE)}."
)


def exclude_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which types of pages are excluded; :func:`excluded` takes them."""
    return _level_option(_exclude_option(command))


threads_option = click.option(
    "-j", "--threads", type=int, help="Worker threads; all processors, if not given."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print a report as JSON on standard output."
)
keep_partial_option = click.option(
    "--keep-partial", is_flag=True, help="If it fails midway, keep what was written as OUTPUT.partial."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress and no summary.")
_lines_option = click.option(
    "--progress", "lines", is_flag=True, help="A line for each phase and every five seconds, no bar."
)


def _log_json(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value:
        from vmdump.cli.log import log_as_json  # few want it

        log_as_json(context)
    return value


_log_json_option = click.option(
    "--log-json",
    is_flag=True,
    is_eager=True,
    callback=_log_json,
    help="Progress, report and errors as lines of JSON on standard error.",
)


def progress_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how progress is told: quiet, lines, log_json."""
    return quiet_option(verbose_option(_lines_option(_log_json_option(command))))


search_option = click.option(
    "--no-search", is_flag=True, help="Do not look for VMCOREINFO in the guest's memory."
)
vmcoreinfo_option = click.option(
    "--vmcoreinfo",
    metavar="FILE|found:N",
    help="VMCOREINFO to use instead of the guest's: a file, or one of those that 'vmdump info' finds.",
)


def as_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Take 0x, K, M, G and T; the callback of an argument or option."""
    return None if value is None else parse_size(value, parameter=parameter.name or "")


def as_source(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> str | tuple[str, ...]:
    """Take one source, or all parts of a split set; the callback of an argument."""
    return value[0] if value is not None and len(value) == 1 else value


def source_name(source: str | tuple[str, ...]) -> str:
    """Give the name to show for what was named on the command line."""
    return source if isinstance(source, str) else f"{source[0]} and {len(source) - 1} more"


def excluded(dump_level: int, exclude: str | None) -> int:
    """Give the level of both options.

    Raises
    ------
    RequestError
        There is no such level, or no such name.
    """
    return parse_level(dump_level) | (0 if exclude is None else parse_level(exclude))


def check_report(output: str, *, as_json: bool) -> None:
    """Refuse to write a dump and a report about it to the same place.

    Raises
    ------
    RequestError
        Both would go to standard output.
    """
    if as_json and named_descriptor(output) == _STDOUT:
        raise RequestError(
            "json: the dump and the report cannot both go to standard output", parameter="json"
        )
