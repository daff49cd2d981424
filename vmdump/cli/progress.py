"""Progress and summary of commands on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from vmdump.cli.printing import console, harmless, say, say_json
from vmdump.operations.report import Report
from vmdump.units import counted, format_size

__all__ = ["late_bar", "progress_bar", "say_report", "summary"]


@contextmanager
def progress_bar(
    label: str, *, shown: bool, of_bytes: bool = True
) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on standard error."""
    if not shown:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = (DownloadColumn(binary_units=True), TransferSpeedColumn()) if of_bytes else ()
    columns = (
        TextColumn("{task.description}", markup=False),  # a path may have brackets
        BarColumn(),
        *amounts,
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        task = bar.add_task(harmless(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def late_bar(label: str, *, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar from the first report of progress on: most often, there is no report."""
    if not shown:
        yield None
        return
    with ExitStack() as stack:
        bar: Callable[[int, int], None] | None = None

        def tell(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(progress_bar(label, shown=True))
            if bar is not None:
                bar(done, total)

        yield tell


def say_report(report: Report, *, as_json: bool, quiet: bool, log_json: bool, hints: bool) -> None:
    """Print the report of a dump: as JSON where that is asked for, else one line on standard error.

    Parameters
    ----------
    report : Report
        Of the dump.
    as_json, quiet, log_json : bool
        The options of the same names.
    hints : bool
        Say what would make the next dump faster.
    """
    if as_json:
        say_json(report.as_dict())
    if log_json:
        say_json({"event": "report", **report.as_dict()}, err=True)
        return
    terminal = sys.stderr.isatty()
    # What is wrong with a dump is said by the error's line, which says that it is written, too.
    wrong = bool(report.unreadable or report.lost_pages)
    if as_json or quiet or (wrong and not terminal):
        return
    say(summary(report), err=True)
    if terminal and hints:
        from vmdump.cli.hints import engine_hint

        if hint := engine_hint([(report.codec, report.engine)]):
            say(hint, err=True)


def summary(report: Report) -> str:
    """Summarize a finished dump in one line."""
    share = report.output_bytes / report.guest_bytes
    # Of a set, the files that are there.
    name = f"{report.parts[0]} to {report.parts[-1]}" if report.parts else report.output
    level = "" if report.level is None else f" level {report.level}"
    by = f" by {report.engine}{level}" if report.engine else ""
    return (
        f"{name}: {report.format}, {report.layout}{by}:"
        f" {format_size(report.guest_bytes)} of guest memory"
        f" in {report.seconds:.2f} s ({report.bytes_per_second / 1e6:.0f} MB/s of data),"
        f" {format_size(report.output_bytes)} written ({share:.0%})"
        f"{_paused(report)}"
        f"{_in_doubt(report)}"
        f"{_filled_up(report)}"
        f"{_unreadable(report)}"
        f"{_without_vmcoreinfo(report)}"
        f"{''.join(f'; {remark}' for remark in report.remarks)}"
    )


def _filled_up(report: Report) -> str:
    if not report.partial_pages:
        return ""
    return f"; zeros fill up {counted(report.partial_pages, 'page')} inside which memory ends"


def _in_doubt(report: Report) -> str:
    if not report.doubtful_pages:
        return ""
    return f"; {counted(report.doubtful_pages, 'page')} of doubtful types kept"


def _unreadable(report: Report) -> str:
    size = sum(end - begin for begin, end in report.unreadable)
    return f"; {format_size(size)} could not be read" if size else ""


def _without_vmcoreinfo(report: Report) -> str:
    if report.has_vmcoreinfo:
        return ""
    return "; it has no VMCOREINFO, which crash and drgn ask for: --vmcoreinfo FILE gives one"


def _paused(report: Report) -> str:
    if report.paused_seconds is None:
        return ""
    how = "ran on (fuzzy) but for" if report.fuzzy else "was paused for"
    return f"; the guest {how} {report.paused_seconds:.3f} s"
