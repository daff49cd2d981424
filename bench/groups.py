"""All groups of contestants by their names."""

from __future__ import annotations

from collections.abc import Callable

from domains import libvirt
from filtering import filtering
from filtering_live import filter_live
from measure import Group, clear, say
from scenarios import Bench, from_elf, live_cold, live_warm, raw_file, scale, start

GROUPS: dict[str, Callable[[Bench, Group], None]] = {
    "start": start,
    "raw": raw_file,
    "elf": from_elf,
    "filter": filtering,
    "warm": live_warm,
    "cold": live_cold,
    "filter-live": filter_live,
    "libvirt": libvirt,
    "scale": scale,
}


def run_group(bench: Bench, group: Group) -> None:
    """Run one group, by its name; an error ends the group and no more."""
    try:
        GROUPS[group.name](bench, group)
    except Exception as error:
        group.error = f"{error}" or type(error).__name__
        say(f"{group.name}: {group.error}")
    clear(bench.output)
