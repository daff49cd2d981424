"""The page of ``vmdump report``: one file of HTML, without a reference to any other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeVar

from vmdump import DumpInfo, LogRecord, PageUsage, Verification, __version__
from vmdump.cli.printing import share
from vmdump.cli.report_charts import bytes_chart, kinds_chart, types_map
from vmdump.cli.report_looks import POLICY, SCRIPT, STYLE
from vmdump.markup import Html, tag
from vmdump.operations.density import Density
from vmdump.units import counted, format_size

__all__ = ["Facts", "Log", "Registers", "page"]

_SHOWN = 200
"""Blocks, lines of VMCOREINFO and damaged pages that are listed."""
_Found = TypeVar("_Found")
_LEVELS = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")


class Log(NamedTuple):
    """The last records of a kernel's log, and how many were before them."""

    records: tuple[LogRecord, ...]
    dropped: int


class Registers(NamedTuple):
    """How many vCPUs there are, and the registers of the first ones."""

    cpus: int
    shown: tuple[dict[str, int], ...]


@dataclass(frozen=True)
class Facts:
    """What the page tells; a str in the place of a part says why there is none.

    Attributes
    ----------
    name : str
        Of the dump.
    made : datetime
        When.
    info, density, usage, log, registers, verification
        The parts.
    """

    name: str
    made: datetime
    info: DumpInfo
    density: Density | str
    usage: PageUsage | str
    log: Log | str
    registers: Registers | str
    verification: Verification | str


def page(facts: Facts) -> str:
    """Give the file."""
    sections = (
        ("dump", "What it is", _what(facts.info)),
        ("integrity", "Integrity", _integrity(facts)),
        ("memory", "Memory", _memory(facts)),
        ("use", "What memory is used for", _part(facts.usage, types_map)),
        ("log", "Kernel log", _part(facts.log, _log)),
        ("cpus", "vCPUs and registers", _part(facts.registers, _registers)),
        ("vmcoreinfo", "VMCOREINFO", _vmcoreinfo(facts.info)),
    )
    links = tag("nav", *(tag("a", title, href=f"#{name}") for name, title, _ in sections))
    parts = [tag("section", tag("h2", title), body, id=name) for name, title, body in sections]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{facts.name} - vmdump report"),
        tag("style", Html(STYLE)),
    )
    made = f"vmdump {__version__}, {facts.made:%Y-%m-%d %H:%M} UTC"
    body = tag(
        "body",
        tag("h1", facts.name),
        tag("p", made, class_="soft"),
        links,
        *parts,
        tag("script", Html(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _part(found: _Found | str, show: Callable[[_Found], Html]) -> Html:
    return tag("p", found, class_="soft") if isinstance(found, str) else show(found)


def _rows(rows: Iterable[tuple[object, object]]) -> Html:
    lines = (tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows)
    return tag("div", tag("table", tag("tbody", *lines)), class_="wide")


def _what(info: DumpInfo) -> Html:
    def rows() -> Iterator[tuple[object, object]]:
        yield "format", info.format + (f", {info.compression}" if info.compression else "")
        if info.maker:
            yield "made by", info.maker
        if info.damage:
            yield "damaged", tag("span", f"{info.damage}; this is what is left", class_="bad")
        marks = [name for name, on in (("incomplete", info.incomplete), ("fuzzy", info.fuzzy)) if on]
        if marks:
            yield "marked", tag("span", ", ".join(marks), class_="bad")
        if info.file_bytes:
            part = share(info.file_bytes, info.guest_bytes)
            yield "file", f"{format_size(info.file_bytes)} ({part} of the guest)"
        cpus = counted(info.cpus, "vCPU")
        yield "guest", f"{info.arch}, {info.bits}-bit, {info.byteorder}-endian, {cpus}"
        names = " ".join(each for each in info.utsname.values() if each)
        if names:
            yield "system", names
        memory = f"{format_size(info.guest_bytes)} in {counted(len(info.blocks), 'block')}"
        yield "memory", f"{memory}, pages of {info.page_size} bytes"
        yield "phys_base", tag("code", f"{info.phys_base:#x}")
        yield "notes", ", ".join(f"{count} {name}" for name, count in info.notes.items()) or "none"

    return _rows(rows())


def _integrity(facts: Facts) -> Html:
    found, info = facts.verification, facts.info
    if isinstance(found, str):
        bad = info.damaged_pages or info.damage
        lines = [tag("p", found, class_="bad" if info.damage else "soft")]
        if info.damaged_pages:
            pages = counted(info.damaged_pages, "page is", "pages are")
            lines.append(tag("p", f"{pages} lost or have invalid descriptors.", class_="bad"))
        elif not bad:
            lines.append(tag("p", "No page descriptor is invalid."))
        return Html("".join(lines))
    if not found.damaged_pages:
        kept = "; it is marked as incomplete" if info.incomplete else ""
        pages = counted(found.pages - found.kinds.get("excluded", 0), "page")
        return tag("p", f"All {pages} that it has could be read and unpacked{kept}.", class_="good")
    head = tag("p", f"{counted(found.damaged_pages, 'page')} cannot be read.", class_="bad")
    lines = [tag("li", tag("code", f"pfn {each.pfn:#x}"), f": {each.reason}") for each in found.damaged]
    shown = "The first ones" if found.damaged_pages > len(found.damaged) else "Which ones"
    return Html(head + tag("details", tag("summary", shown), tag("ul", *lines)))


def _memory(facts: Facts) -> Html:
    info, density = facts.info, facts.density
    parts = []
    if isinstance(density, str):
        parts.append(tag("p", density, class_="soft"))
    elif density.cells:
        parts += [tag("p", "How the dump holds pages, over guest-physical addresses:"), kinds_chart(density)]
        parts += [
            tag("p", "Where its bytes are, estimated from a sample; pages that share theirs count each:"),
            bytes_chart(density),
        ]
    rows: list[tuple[object, object]]
    rows = [(tag("code", f"{begin:#x}-{end:#x}"), format_size(end - begin)) for begin, end in info.blocks]
    if len(rows) > _SHOWN:
        rows[_SHOWN:] = [(f"and {len(rows) - _SHOWN} more", "")]
    parts.append(tag("details", tag("summary", counted(len(info.blocks), "block")), _rows(rows)))
    return Html("".join(parts))


def _log(log: Log) -> Html:
    if not log.records:
        return tag("p", "It is empty.", class_="soft")
    levels = [
        tag("option", "all levels" if level == 7 else f"{name} and worse", value=level)
        for level, name in reversed(list(enumerate(_LEVELS)))
    ]
    tools = tag(
        "div",
        tag(
            "input", id="find", type="search", placeholder="Search in the log", aria_label="Search in the log"
        ),
        tag("select", *levels, id="most", aria_label="Level"),
        tag("span", id="shown", class_="soft"),
        class_="tools",
    )
    records = (tag("div", record.line(), data_level=record.level) for record in log.records)
    parts = [tools, tag("div", *records, id="records", class_="log", tabindex=0)]
    if log.dropped:
        before = counted(log.dropped, "record")
        parts.insert(0, tag("p", f"{before} before these: 'vmdump dmesg' prints all.", class_="soft"))
    return Html("".join(parts))


def _registers(registers: Registers) -> Html:
    if not registers.cpus:
        return tag("p", "The dump has no registers.", class_="soft")
    parts = []
    for number, cpu in enumerate(registers.shown):
        values = (tag("div", tag("b", name), f"{value:#x}", class_="mono") for name, value in cpu.items())
        here = next((f": {name} {cpu[name]:#x}" for name in ("rip", "eip", "pc", "nip") if name in cpu), "")
        parts.append(
            tag("details", tag("summary", f"vCPU {number}{here}"), tag("div", *values, class_="registers"))
        )
    if registers.cpus > len(registers.shown):
        parts.append(tag("p", f"and {registers.cpus - len(registers.shown)} more", class_="soft"))
    return Html("".join(parts))


def _vmcoreinfo(info: DumpInfo) -> Html:
    if not info.vmcoreinfo:
        return tag(
            "p",
            "There is none: what the kernel's log, the page types and virtual addresses take is not known.",
            class_="soft",
        )
    rows: list[tuple[object, object]] = [*info.vmcoreinfo.items()]
    if len(rows) > _SHOWN:
        rows[_SHOWN:] = [(f"and {len(rows) - _SHOWN} more", "")]
    found = [each for each in info.vmcoreinfo_found if each.chosen]
    title = f"{counted(len(info.vmcoreinfo), 'line')}" + (
        f", found in memory at {found[0].address:#x}" if found else ""
    )
    return tag("details", tag("summary", title), _rows(rows))
