"""States, jobs and events by the numbers that libvirt-python has."""

from __future__ import annotations

import pytest

from vmdump.sources.libvirt.states import is_inactive, name_of_event, name_of_job, name_of_state

libvirt = pytest.importorskip("libvirt")


@pytest.mark.parametrize(
    ("state", "reason", "name"),
    [
        ("RUNNING", "RUNNING_BOOTED", "running"),
        ("PAUSED", "PAUSED_USER", "paused"),
        ("PAUSED", "PAUSED_UNKNOWN", "paused"),
        ("PAUSED", "PAUSED_IOERROR", "io-error"),
        ("PAUSED", "PAUSED_WATCHDOG", "watchdog"),
        ("PAUSED", "PAUSED_MIGRATION", "finish-migrate"),
        ("PAUSED", "PAUSED_SAVE", "save-vm"),
        ("PAUSED", "PAUSED_CRASHED", "guest-panicked"),
        ("PAUSED", "PAUSED_SHUTTING_DOWN", "shutdown"),
        ("CRASHED", "CRASHED_PANICKED", "guest-panicked"),
        ("PMSUSPENDED", "PMSUSPENDED_UNKNOWN", "suspended"),
    ],
)
def test_states(state: str, reason: str, name: str) -> None:
    numbers = [getattr(libvirt, f"VIR_DOMAIN_{word}") for word in (state, reason)]
    assert name_of_state(*numbers) == name
    assert not is_inactive(numbers[0])


def test_no_state_without_a_name_is_taken_for_a_pause_of_ours() -> None:
    assert name_of_state(libvirt.VIR_DOMAIN_PAUSED, 99) != "paused"
    assert name_of_state(99, 0) not in ("paused", "running")
    assert is_inactive(libvirt.VIR_DOMAIN_SHUTOFF)


def test_jobs() -> None:
    stats = {"type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED, "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE}
    assert name_of_job(stats) == "save"
    assert name_of_job({**stats, "type": libvirt.VIR_DOMAIN_JOB_COMPLETED}) == ""
    assert name_of_job({"type": libvirt.VIR_DOMAIN_JOB_NONE}) == ""
    assert name_of_job({"type": libvirt.VIR_DOMAIN_JOB_BOUNDED}) == "job"


@pytest.mark.parametrize(
    ("event", "detail", "name"),
    [
        ("SUSPENDED", "SUSPENDED_PAUSED", "STOP"),
        ("RESUMED", "RESUMED_UNPAUSED", "RESUME"),
        ("SUSPENDED", "SUSPENDED_FROM_SNAPSHOT", "RESET"),
        ("STARTED", "STARTED_FROM_SNAPSHOT", "RESET"),
        ("STARTED", "STARTED_WAKEUP", "WAKEUP"),
        ("STOPPED", "STOPPED_DESTROYED", "END"),
        ("DEFINED", "DEFINED_ADDED", ""),
    ],
)
def test_events(event: str, detail: str, name: str) -> None:
    numbers = [getattr(libvirt, f"VIR_DOMAIN_EVENT_{word}") for word in (event, detail)]
    assert name_of_event(*numbers) == name
