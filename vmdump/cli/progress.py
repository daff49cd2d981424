"""Progress and summary of commands on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from vmdump.cli.printing import console, harmless
from vmdump.operations.report import Report
from vmdump.units import counted, format_size

__all__ = ["late_bar", "progress_bar", "summary"]


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


def summary(report: Report) -> str:
    """Summarize a finished dump in one line."""
    share = report.output_bytes / report.guest_bytes
    by = f" by {report.engine} level {report.level}" if report.engine else ""
    return (
        f"{report.output}: {report.format}, {report.layout}{by}:"
        f" {format_size(report.guest_bytes)} of guest memory"
        f" in {report.seconds:.2f} s ({report.bytes_per_second / 1e6:.0f} MB/s),"
        f" {format_size(report.output_bytes)} written ({share:.0%})"
        f"{_in_doubt(report)}"
        f"{_filled_up(report)}"
        f"{_paused(report)}"
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


def _paused(report: Report) -> str:
    if report.paused_seconds is None:
        return ""
    how = "ran on (fuzzy) but for" if report.fuzzy else "was paused for"
    return f"; the guest {how} {report.paused_seconds:.3f} s"
