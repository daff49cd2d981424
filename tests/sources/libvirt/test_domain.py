"""Domains: which one is meant, and what libvirt's refusals become."""

from __future__ import annotations

import errno
import resource
import threading

import pytest
from oracles.elf_builder import Load, build_elf
from scripted import fake_libvirt
from scripted.fake_libvirt import Error, FakeLibvirt

from vmdump.errors import AccessDenied, Cancelled, CapabilityError, GuestBusy, QmpError, SourceError
from vmdump.sources.libvirt.connection import Connection
from vmdump.sources.libvirt.domain import find_domain
from vmdump.sources.libvirt.fifo import headers_through_fifo

UUID = "12345678-9abc-def0-1234-56789abcdef0"
ODD_NAMES = [
    "two words",
    'it\'s "quoted"',
    "what?",
    "a?b&c=d",
    "100%41",
    "a:b",
    "gäste",
    "-f",
    "7",
    UUID,
    "guest=x,y",
]


def found(name: str) -> str:
    with Connection() as connection:
        return find_domain(connection, name, f"libvirt:{name}").uuid


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_taken_as_it_is(name: str, libvirt: FakeLibvirt) -> None:
    libvirt.add("other", number=7)
    wanted = libvirt.add(name, number=8)
    assert found(name) == wanted.UUIDString()


def test_uuid_and_id(libvirt: FakeLibvirt) -> None:
    libvirt.add("one", UUID, number=12)
    assert found(UUID) == found("12") == UUID


def test_an_id_comes_behind_a_name(libvirt: FakeLibvirt) -> None:
    libvirt.add("one", number=12)
    named = libvirt.add("12", number=13)
    assert found("12") == named.UUIDString()


def test_a_name_that_is_the_uuid_of_another(libvirt: FakeLibvirt) -> None:
    libvirt.add("one", UUID)
    libvirt.add(UUID)
    with pytest.raises(SourceError, match="the UUID of 'one'; use the UUID of the one"):
        found(UUID)


def test_a_name_that_is_not_utf_8(libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_libvirt.Connection, "lookupByName", lambda _, name: name.encode())
    with pytest.raises(SourceError, match="no such domain at qemu:///system"):
        found("\udcff")


def test_unknown_names_have_similar_ones(libvirt: FakeLibvirt) -> None:
    libvirt.add("webserver")
    libvirt.add("database", number=-1)
    with pytest.raises(SourceError, match="no such domain at qemu:///system; is it 'database'"):
        found("databas")
    with pytest.raises(SourceError, match="virsh list --all"):
        found("x")


def test_inactive_domains_have_no_memory(libvirt: FakeLibvirt) -> None:
    libvirt.add("off", number=-1)
    with pytest.raises(SourceError, match=r"^libvirt:off: the domain is not active, .*virsh start"):
        found("off")


def test_a_daemon_of_another_hypervisor(libvirt: FakeLibvirt) -> None:
    libvirt.kind = "LXC"
    with pytest.raises(CapabilityError, match="this hypervisor is lxc"):
        found("x")


@pytest.mark.parametrize(
    ("refusal", "kind", "text"),
    [
        (Error("Failed to connect socket", 38, 7, errno.ENOENT), SourceError, "start its daemon"),
        (Error("Failed to connect socket", 38, 7, errno.EACCES), AccessDenied, "run vmdump as root"),
        (Error("authentication unavailable: no polkit agent", 80), AccessDenied, "run vmdump as root"),
        (Error("no connection driver available for qemu:///nix", 5), CapabilityError, "qemu:///system"),
    ],
)
def test_nobody_is_let_in(refusal: Error, kind: type, text: str, libvirt: FakeLibvirt) -> None:
    libvirt.refusal = refusal
    with pytest.raises(SourceError if kind is SourceError else kind, match=text) as raised:
        Connection()
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("refusal", "kind", "text"),
    [
        (Error("cannot acquire state change lock (held by job)", 68), GuestBusy, "somebody else is at work"),
        (Error("domain is not running", 55), GuestBusy, "domain is not running"),
        (Error("access denied", 88), AccessDenied, "libvirt refuses: access denied"),
        (
            Error("unable to execute QEMU command 'dump-guest-memory': no"),
            QmpError,
            "'dump-guest-memory': no",
        ),
        (Error("Domain not found", 42), QmpError, "Domain not found"),
        (Error("End of file while reading data", 38, 7), QmpError, "End of file"),
    ],
)
def test_refused_dumps(refusal: Error, kind: type, text: str, libvirt: FakeLibvirt) -> None:
    domain = libvirt.add("x")

    def refuse() -> None:
        raise refusal

    domain.before["dump"] = refuse
    with Connection() as connection, pytest.raises(kind, match=f"^libvirt:x: dump: .*{text}") as raised:
        headers_through_fifo(find_domain(connection, "x", "libvirt:x"))
    if isinstance(raised.value, QmpError):
        assert bool(raised.value.error_class) == ("QEMU" in str(refusal))


def test_with_few_descriptors(libvirt: FakeLibvirt) -> None:
    """What the daemon opens has a number that is allowed."""
    domain = libvirt.add("x")
    domain.headers = build_elf([Load(0, filesz=4096)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with Connection() as connection:
            headers = headers_through_fifo(find_domain(connection, "x", "libvirt:x"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(headers.loads) == 1


def test_a_daemon_that_hangs_can_be_left(libvirt: FakeLibvirt) -> None:
    domain, over = libvirt.add("x"), threading.Event()
    domain.before["dump"] = lambda: over.wait(60)
    try:
        with Connection() as connection, pytest.raises(Cancelled):
            headers_through_fifo(find_domain(connection, "x", "libvirt:x"), lambda: True)
    finally:
        over.set()


def test_nothing_stays_behind(libvirt: FakeLibvirt) -> None:
    libvirt.add("x")
    found("x")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vmdump-libvirt")]


def test_who_is_not_root_may_be_what_is_wrong(libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    libvirt.refusal = Error("internal error: Unable to get system bus connection")
    with pytest.raises(SourceError, match="start its daemon"):
        Connection("qemu:///session")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(AccessDenied, match="run vmdump as root; guests of your own"):
        Connection("qemu:///system")
