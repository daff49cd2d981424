"""What ``vmdump info`` says of what pages are used for: ``--usage`` and ``--page``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from vmdump import PageState, PageType, PageUsage, page_at, page_types
from vmdump.cli.memory_map import FORMATS, draw_map
from vmdump.cli.options import source_name
from vmdump.cli.pictures import picture_file
from vmdump.cli.printing import say, say_json, share
from vmdump.cli.progress import late_bar, progress_bar
from vmdump.guest.linux.page_types.usage import SHOWN_LEVELS, name_bits
from vmdump.units import format_size

__all__ = ["show_page", "show_usage"]

_ORDER = (
    PageType.ZERO,
    PageType.FREE,
    PageType.CACHE,
    PageType.CACHE_PRIVATE,
    PageType.USER,
    PageType.HUGE,
    PageType.SLAB,
    PageType.PAGE_TABLE,
    PageType.KERNEL,
    PageType.OFFLINE,
    PageType.POISONED,
    PageType.UNDESCRIBED,
    PageType.DOUBTFUL,
)


def show_usage(
    dump: str | tuple[str, ...],
    *,
    picture: str | None,
    force: bool,
    as_json: bool,
    vmcoreinfo: str | None,
    search: bool,
) -> None:
    """Print pages and bytes by type, and what dumps of some levels would hold; draw them."""
    with picture_file(picture, FORMATS, force=force) as drawn:
        with progress_bar(source_name(dump), shown=sys.stderr.isatty()) as progress:
            found = page_types(dump, vmcoreinfo=vmcoreinfo, search=search, progress=progress)
        drawn(lambda kind: draw_map(found, source_name(dump), kind))
    if as_json:
        say_json(found.as_dict())
    else:
        say(*_usage(found))


def _usage(found: PageUsage) -> Iterator[str]:
    counts = found.counts
    total = sum(each.pages for each in counts.values())
    lacking = any(each.excluded_pages for each in counts.values())
    if found.running:
        yield "figures of a running guest: they are of no one moment"
    yield f"{'type':<21} {'pages':>12} {'bytes':>11} {'share':>6}{'   not in the dump' if lacking else ''}"
    for kind in _ORDER:
        each = counts[kind]
        if each.pages:
            yield (
                f"{kind.label:<21} {each.pages:>12} {format_size(each.bytes):>11} "
                f"{share(each.pages, total):>6}{f'{each.excluded_pages:>18}' if lacking else ''}"
            )
    whole = total * found.page_size
    yield f"{'all':<21} {total:>12} {format_size(whole):>11} {'':>6}".rstrip()
    yield ""
    yield "a dump of level     has"
    for level in SHOWN_LEVELS:
        size = found.bytes_at(level)
        yield f"{level:>15} {format_size(size):>11} {share(size, whole):>6}"


def show_page(
    dump: str | tuple[str, ...], address: int, *, as_json: bool, vmcoreinfo: str | None, search: bool
) -> None:
    """Print what one page is used for, whether it is in the dump, and if not, why."""
    with late_bar(source_name(dump), shown=sys.stderr.isatty()) as progress:
        found = page_at(dump, address, vmcoreinfo=vmcoreinfo, search=search, progress=progress)
    if as_json:
        say_json(found.as_dict())
        return
    for title, text in _page(found):
        say(f"{title:<12} {text}")


def _page(found: PageState) -> Iterator[tuple[str, str]]:
    yield "page", f"{found.address:#x}-{found.address + found.page_size:#x}"
    if found.running:
        yield "guest", "runs: this may be over already"
    if found.type == PageType.MISSING.name.lower():
        yield "type", "none: the guest has no memory there"
        return
    kind = PageType[found.type.upper()] if found.type else None
    yield "type", f"cannot be told: {found.why_no_type}" if kind is None else kind.label
    if found.zero:
        yield "holds", "zeros only"
    yield "in the dump", "yes" if found.in_dump else f"no: {_reason(found)}"
    if found.in_dump and found.leaves_out:
        yield "left out by", f"levels with {name_bits(found.leaves_out)}"


def _reason(found: PageState) -> str:
    if found.excluded_by:
        return f"excluded by {name_bits(found.excluded_by)} of its level {found.dump_level}"
    if found.leaves_out:
        return f"the dump does not tell its level; {name_bits(found.leaves_out)} leaves it out"
    if not found.type:
        return f"excluded, at level {found.dump_level}" if found.dump_level > 1 else "excluded"
    return "no level leaves it out: it was lost, or excluded for another reason"
