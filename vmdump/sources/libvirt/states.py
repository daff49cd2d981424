"""What libvirt says of a domain, in QMP's words.

Source: include/libvirt/libvirt-domain.h; its numbers are part of libvirt's ABI.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["is_inactive", "name_of_event", "name_of_job", "name_of_state"]

_RUNNING, _BLOCKED, _PAUSED, _SHUTDOWN, _SHUTOFF, _CRASHED, _ASLEEP = range(1, 8)
_NAMES: Mapping[int, str] = {
    _RUNNING: "running",
    _BLOCKED: "running",
    _SHUTDOWN: "shutdown",
    _CRASHED: "guest-panicked",
    _ASLEEP: "suspended",
}
_PAUSED_FOR: Mapping[int, str] = {
    0: "paused",  # who has paused it did not ask libvirt
    1: "paused",
    2: "finish-migrate",
    3: "save-vm",
    4: "save-vm",
    5: "io-error",
    6: "watchdog",
    7: "paused",  # it was so in the snapshot
    8: "shutdown",
    9: "save-vm",
    10: "guest-panicked",
    11: "preconfig",
    12: "postmigrate",
    13: "postmigrate",
}
_JOBS: Mapping[int, str] = {
    0: "job",
    1: "start",
    2: "save",
    3: "restore",
    4: "migration-in",
    5: "migration-out",
    6: "snapshot",
    7: "snapshot-revert",
    8: "dump",
    9: "backup",
    10: "snapshot-delete",
}
_NO_JOB = (0, 3, 4, 5)
"""Types of jobs: none, and those that have ended."""
_EVENTS: Mapping[int, str] = {2: "RESET", 3: "STOP", 4: "RESUME", 5: "END"}
"""Lifecycle events. What is started is another guest, or one from a snapshot."""
_DETAILS: Mapping[tuple[int, int], str] = {
    (2, 4): "WAKEUP",
    (3, 5): "RESET",  # paused, from a snapshot
}


def is_inactive(state: int) -> bool:
    """Tell whether a domain in a state has no QEMU."""
    return state == _SHUTOFF


def name_of_state(state: int, reason: int) -> str:
    """Give QMP's word for a state, as query-status has it.

    Parameters
    ----------
    state, reason : int
        As ``virDomainGetState`` gives them.
    """
    return _PAUSED_FOR.get(reason, "save-vm") if state == _PAUSED else _NAMES.get(state, "debug")


def name_of_job(stats: Mapping[str, object]) -> str:
    """Give the word for the job that somebody has on a domain; nothing if there is none.

    Parameters
    ----------
    stats : mapping
        As ``virDomainGetJobStats`` gives them.
    """
    if stats.get("type", 0) in _NO_JOB:
        return ""
    operation = stats.get("operation", 0)
    return _JOBS.get(operation, "job") if isinstance(operation, int) else "job"


def name_of_event(event: int, detail: int) -> str:
    """Give QMP's word for a lifecycle event, ``END`` for QEMU's end; nothing for what does not matter.

    Parameters
    ----------
    event, detail : int
        As a callback for VIR_DOMAIN_EVENT_ID_LIFECYCLE gets them.
    """
    return _DETAILS.get((event, detail), _EVENTS.get(event, ""))
