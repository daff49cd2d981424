"""Open what a user names or has: guests by their schemes, dumps by their files, buffers."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard

from vmdump.errors import (
    CapabilityError,
    FormatError,
    LayoutError,
    RequestError,
    SourceError,
    VmdumpError,
    naming_shortages,
)
from vmdump.guest.blocks import Block, Memory
from vmdump.guest.guest import Guest
from vmdump.guest.linux.choice import VmcoreinfoChoice
from vmdump.sources.base import HeldGuest, Source, StillSource
from vmdump.sources.spec import check_options, split_options
from vmdump.suggestions import is_it

if TYPE_CHECKING:
    from typing_extensions import Buffer, TypeIs

    from vmdump.readers.checking import Checking
    from vmdump.readers.dump import Dump

    Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    Blocks = Buffer | Sequence[Block | tuple[int, Buffer | Memory]]
    AnySource = Paths | Source | Guest | Blocks
    AnyDump = Paths | Buffer

__all__ = [
    "AnyDump",
    "AnySource",
    "Paths",
    "as_source",
    "names_dump",
    "names_live_guest",
    "open",
    "open_dump",
    "open_source",
    "opened",
    "opened_in_part",
    "schemes",
    "session",
]


class _Scheme(NamedTuple):
    """How ``scheme:rest?option=value`` is opened; its module is loaded when somebody names it.

    Attributes
    ----------
    kind : {"live", "memory", "generated", "dump"}
        A guest that may run; memory in one or several files; a guest that needs none; a dump of a kind that
        does not tell the guest's architecture, as ``?arch=`` does.
    module, function : str
        What gives a `Source`: called with rest and options, for a live guest with `search`, too; for memory
        with the names of all files.
    """

    kind: Literal["live", "memory", "generated", "dump"]
    module: str
    function: str

    def load(self) -> Callable[..., Any]:
        """Give the function."""
        function: Callable[..., Any] = attrgetter(self.function)(import_module(self.module))
        return function


_SCHEMES = {
    "avml": _Scheme("dump", "vmdump.readers.registry", "open_dump"),
    "libvirt": _Scheme("live", "vmdump.sources.domain.source", "open_libvirt"),
    "lime": _Scheme("dump", "vmdump.readers.registry", "open_dump"),
    "qmp": _Scheme("live", "vmdump.sources.qemu.source", "open_qemu"),
    "raw": _Scheme("memory", "vmdump.sources.rawfile", "RawSource.by_names"),
    "synthetic": _Scheme("generated", "vmdump.sources.synthetic.guest", "open_synthetic"),
}


def schemes() -> tuple[str, ...]:
    """Give the words that stand before the colon of a source."""
    return tuple(_SCHEMES)


def _split(name: object) -> tuple[_Scheme | None, str, str]:
    """Give the scheme of a name, the word for it, and what is behind it; no scheme for a path."""
    if not isinstance(name, str | os.PathLike):
        return None, "", ""
    path = os.fspath(name)
    word, colon, rest = path.partition(":")
    scheme = _SCHEMES.get(word) if colon else None
    if scheme is None and _is_socket(path):
        return _SCHEMES["qmp"], "qmp", path
    return scheme, word, rest


def _is_socket(path: str) -> bool:
    with suppress(OSError, ValueError):
        return stat.S_ISSOCK(os.stat(path).st_mode)
    return False


def _demand_scheme(name: object) -> None:
    """Refuse what looks like the name of a source, and is neither that nor a file."""
    if not isinstance(name, str) or os.path.exists(name):
        return
    word, colon, _ = name.partition(":")
    if colon and word.isalpha() and word not in _SCHEMES:
        raise SourceError(
            f"there is no such file, and no source {word}:{is_it(word, _SCHEMES)}",
            path=name,
            errno=errno.ENOENT,
            hint=f"sources are {', '.join(f'{scheme}:' for scheme in _SCHEMES)} and paths",
        )


def _names(source: object) -> Sequence[object]:
    return source if isinstance(source, list | tuple) else [source]


def _is_paths(source: object) -> TypeIs[Paths]:
    names = _names(source)
    return bool(names) and all(isinstance(name, str | os.PathLike) for name in names)


def _paths(source: Paths) -> Sequence[str | os.PathLike[str]]:
    return [source] if isinstance(source, str | os.PathLike) else source


def names_live_guest(source: object) -> bool:
    """Tell whether a source is the name of a guest that may run."""
    scheme = _split(source)[0]
    return scheme is not None and scheme.kind == "live"


def names_dump(source: object) -> TypeGuard[Paths]:
    """Tell whether dumps are named: no live guest, no raw memory, none that is generated."""
    return all(
        isinstance(name, str | os.PathLike) and ((scheme := _split(name)[0]) is None or scheme.kind == "dump")
        for name in _names(source)
    )


@naming_shortages()
def open_source(source: Paths, *, search: bool = True) -> Source:
    """Open a guest as the command line names it.

    Parameters
    ----------
    source : str, path, or sequence of str or path
        ``qmp:SOCKET`` or the socket's path alone, ``libvirt:NAME?uri=qemu:///session``,
        ``raw:PATH?machine=q35&arch=x86_64&page_size=4K``, ``synthetic:SIZE?seed=1&fill=0.3``, the path of a
        dump, or those of all parts of a split set; several ``raw:PATH?...`` of one guest.
    search : bool
        Look for VMCOREINFO in the guest's memory where nothing tells it, when it is first asked for.

    Returns
    -------
    Source
        A context manager. Whatever a :class:`vmdump.guest.guest.Guest` can be asked, it can be asked, too.

    Raises
    ------
    RequestError
        An option is wrong.
    SourceError, FormatError, LayoutError, CapabilityError
        The guest cannot be opened.
    AccessDenied, GuestBusy, QmpError
        Nor can a live one.
    """
    for name in _names(source):
        scheme, _, rest = _split(name)
        if scheme is None or scheme.kind == "dump":
            continue
        if scheme.kind != "memory" and name is not source:
            raise RequestError(f"source: {name} is not a file of a split set", parameter="source")
        if scheme.kind == "live":
            live: Source = scheme.load()(*split_options(rest), search=search)
            return live
        function = scheme.load()
        still = function(_paths(source)) if scheme.kind == "memory" else function(*split_options(rest))
        return _unless(search, still)
    return _unless(search, open_dump(source))


def _unless(search: bool, source: StillSource) -> StillSource:
    return source if search else source.without_search()


def open(source: AnyDump, *, arch: str | None = None, search: bool = True) -> Dump:
    """Open a dump.

    Parameters
    ----------
    source : str, path, buffer, or sequence of str or path
        An ELF core, a kdump-compressed file in either layout, a LiME or AVML file; any of these in a buffer;
        all parts of a split set; or raw memory as ``raw:PATH?machine=q35&arch=x86_64&page_size=4K``,
        ``raw:PATH?blocks=0-2G,4G-6G`` or ``raw:PATH?base=0x0``, in one or several files.
    arch : str, optional
        The guest's architecture, for LiME and AVML files, which do not tell; x86_64, if not given.
    search : bool
        Look for VMCOREINFO in the guest's memory where the dump tells none: when `vmcoreinfo`, or what
        follows from it, is first asked for. That reads all memory.

    Returns
    -------
    Dump
        A context manager; also a source for :func:`dump`.

    Raises
    ------
    SourceError, FormatError, LayoutError, CapabilityError, RequestError
        See :func:`open_dump`.
    """
    dump = open_dump(source, arch=arch)
    return dump if search else dump.without_search()


def open_dump(
    source: AnyDump, *, arch: str | None = None, damaged: bool = False, checking: Checking | None = None
) -> Dump:
    """Open a dump of any kind that vmdump reads.

    Parameters
    ----------
    source : str, path, buffer, or sequence of str or path
        As for :func:`open`; also ``lime:PATH?arch=aarch64`` and ``avml:PATH?arch=aarch64``.
    arch, damaged, checking
        As for :func:`vmdump.readers.registry.open_dump`.

    Returns
    -------
    Dump
        To be closed by the caller.

    Raises
    ------
    SourceError, FormatError, LayoutError, CapabilityError
        As of :func:`vmdump.readers.registry.open_dump`.
    RequestError
        An option is wrong.
    """
    # The readers take 2 ms to load, 7 where Python may not keep its bytecode.
    from vmdump.readers import registry

    schemes = [_split(name)[0] for name in _names(source)]
    if _is_paths(source) and any(scheme is not None and scheme.kind == "memory" for scheme in schemes):
        if arch is not None:
            raise RequestError("arch: raw memory names it in its options", parameter="arch")
        from vmdump.readers.raw import RawDump

        return RawDump.by_names(_paths(source))
    for name in _names(source):
        _demand_scheme(name)
    scheme, word, rest = _split(source)
    if scheme is not None and scheme.kind == "dump":
        source, options = split_options(rest)
        check_options(options, ("arch",), word)
        arch = options.get("arch", arch or "x86_64")
    return registry.open_dump(source, arch=arch, damaged=damaged, checking=checking)


@contextmanager
def session(source: AnySource) -> Iterator[Source]:
    """Give the session with a guest for as long as a context lasts; one that is open already stays so.

    Parameters
    ----------
    source
        As :func:`vmdump.dump` takes it.

    Raises
    ------
    VmdumpError
        As for :func:`open_source`.
    """
    with naming_shortages(), ExitStack() as stack:
        found, owned = as_source(source)
        if owned:
            stack.enter_context(found)
        yield found


def as_source(source: AnySource) -> tuple[Source, bool]:
    """Give the session with a guest, and whether it was opened for this: the caller closes it then.

    Raises
    ------
    RequestError
        It is a guest that nobody holds, and it may run.
    VmdumpError
        As for :func:`open_source`.
    """
    if isinstance(source, Source):
        return source, False
    if isinstance(source, Guest):
        if source.changes and not source.fuzzy:
            raise RequestError("source: this guest may run; its source can be held", parameter="source")
        return HeldGuest(source), False
    if _is_paths(source):
        return open_source(source), True
    from vmdump.sources.buffers import BlockSource

    return BlockSource(source), True


@contextmanager
def opened(
    source: AnySource,
    *,
    vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
    search: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Guest]:
    """Give a guest to look at, as it is when it is opened, for as long as a context lasts.

    Parameters
    ----------
    source
        As for :func:`session`.
    vmcoreinfo, search
        As for :func:`vmdump.dump`.
    progress : callable, optional
        Told (done, total) of a search that takes longer than a second.

    Raises
    ------
    VmdumpError
        As for :func:`session`.
    """
    choice = VmcoreinfoChoice.read(vmcoreinfo, search=search, progress=progress)
    with session(source) as found:
        yield choice.lazily(found.guest)


@contextmanager
def opened_in_part(
    source: AnySource,
    *,
    vmcoreinfo: bytes | str | os.PathLike[str] | None = None,
    search: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[tuple[Guest, str]]:
    """Give a guest to look at as :func:`opened` does; of a damaged dump, what can be read.

    Parameters
    ----------
    source, vmcoreinfo, search, progress
        As for :func:`opened`.

    Yields
    ------
    guest : Guest
        The guest. Of a damaged dump, what is lost is excluded; which pages unpack is not known.
    damage : str
        Why it does not open as a whole; empty where it does.

    Raises
    ------
    VmdumpError
        Not even a part can be opened.
    """
    damage = ""
    with ExitStack() as stack:

        def enter(opening: AnySource) -> Guest:
            context = opened(opening, vmcoreinfo=vmcoreinfo, search=search, progress=progress)
            return stack.enter_context(context)

        try:
            guest = enter(source)
        except (FormatError, LayoutError, CapabilityError) as error:
            if not names_dump(source):
                raise
            try:
                part = open_dump(source, damaged=True)
            except VmdumpError:
                raise error from None
            stack.enter_context(part)
            guest, damage = enter(part), str(error)
        if path := getattr(guest, "path", ""):
            from vmdump.readers.bytes.file import naming_file

            stack.enter_context(naming_file(path))
        yield guest, damage
